"""The page about every system call, `sandbox/SYSCALLS.md`: made from the filter's own lists, and
kept up to date by a test (`pytest tests/sandbox/test_surface.py --regenerate`)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

from casemate.sandbox import seccomp
from casemate.sandbox.syscalls import AARCH64, X86_64, Arch

__all__ = ["HIGHEST", "Entry", "counts", "entries", "render"]

HIGHEST = 500


class Entry(NamedTuple):
    """What a number means on one architecture and what becomes of it."""

    name: str  # empty: no call has it
    outcome: str  # allowed, checked, EPERM, ENOSYS
    group: str


def entries(arch: Arch) -> dict[int, Entry]:
    by_name = {
        **{call: ("allowed", group.name) for group in seccomp.ALLOWED for call in group.calls},
        **dict.fromkeys(seccomp.CHECKED, ("checked", "by its arguments")),
        **{call: ("EPERM", group.name) for group in seccomp.FORBIDDEN for call in group.calls},
        **{call: ("ENOSYS", group.name) for group in seccomp.ABSENT for call in group.calls},
    }
    names = {number: name for name, number in arch.numbers.items()}
    return {
        number: Entry(names[number], *by_name[names[number]])
        if number in names
        else Entry("", "ENOSYS", "no such call")
        for number in range(HIGHEST + 1)
    }


def counts(arch: Arch) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in entries(arch).values():
        key = entry.outcome if entry.name else "no such call (ENOSYS)"
        found[key] = found.get(key, 0) + 1
    return dict(sorted(found.items()))


def render() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Every system call"
    yield ""
    yield (
        "Generated from `seccomp.py` (`pytest tests/sandbox/test_surface.py --regenerate`); do not "
        "edit. What a task may ask of the kernel, number by number: *allowed* whatever its "
        "arguments, *checked* by them, refused with EPERM (it is told no), or with ENOSYS (it sees "
        "an older kernel and falls back). Numbers above the table, those of calls that come after "
        "Linux 6.19 among them, are ENOSYS; calls of another architecture kill."
    )
    yield ""
    yield "| outcome | x86-64 | aarch64 |"
    yield "|---|---|---|"
    x86, arm = counts(X86_64), counts(AARCH64)
    for outcome in x86:
        yield f"| {outcome} | {x86[outcome]} | {arm[outcome]} |"
    yield ""
    yield "## Why"
    for title, groups in (
        ("Allowed", seccomp.ALLOWED),
        ("Refused with EPERM", seccomp.FORBIDDEN),
        ("Refused with ENOSYS", seccomp.ABSENT),
    ):
        yield ""
        yield f"### {title}"
        yield ""
        for group in groups:
            yield f"- **{group.name}**: {group.reason}."
    yield ""
    yield "### Checked by arguments"
    yield ""
    for name, reason in seccomp.WHY_CHECKED.items():
        yield f"- `{name}`: {reason}."
    yield ""
    yield "### ioctl"
    yield ""
    for requests in seccomp.IOCTLS:
        numbers = ", ".join(
            f"{first:#x}" if first == last else f"{first:#x}–{last:#x}"
            for first, last in requests.ranges
        )
        yield f"- **{requests.name}** ({_word(requests.outcome)}): {requests.reason}. {numbers}"
    yield "- **everything else** (ENOTTY): no honest program needs it of what a task holds."
    yield ""
    yield f"## 0 to {HIGHEST}"
    yield ""
    yield "| number | x86-64 | | aarch64 | |"
    yield "|---|---|---|---|---|"
    left, right = entries(X86_64), entries(AARCH64)
    for number in range(HIGHEST + 1):
        yield f"| {number} | {_cells(left[number])} | {_cells(right[number])} |"


def _word(outcome: int) -> str:
    return "allowed" if outcome == seccomp.ALLOW else errno.errorcode[outcome & 0xFFFF]


def _cells(entry: Entry) -> str:
    name = f"`{entry.name}`" if entry.name else ""
    return f"{name} | {entry.outcome}: {entry.group}"
