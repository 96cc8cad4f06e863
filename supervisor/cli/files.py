"""`diff` and `apply`: a run's files. They need no supervisor, and ask none.

The patch goes to stdout byte for byte, unless that is a terminal: there each line is made harmless.
What is to be known about it goes to stderr, so that it can be piped into `git apply`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ...protocol.control import RunState
from ...protocol.errors import CasemateError
from ...protocol.limits import MIB, PATHS_NAMED
from ..apply import Applied, ApplyRefused
from ..beneath import Found, reason
from ..changes import RunFiles, apply_run, find_files
from ..patch import Entry, Summary, quoted, summary_lines
from ..workspace import printable as as_text
from .show import open_state, print_json
from .view import bytes_of, printable

__all__ = ["apply_files", "print_applied", "print_diff"]

# Of one line on a terminal: minified sources have lines of a megabyte.
_LINE = 2000

# Of a patch that is held back until it is whole; beyond it a file holds it.
_HELD = 8 * MIB

_STYLES = {b"+": "green", b"-": "red", b"@": "cyan", b"d": "bold"}


@contextmanager
def _disk(subject: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise CasemateError(f"{subject}: {reason(error)}{where}") from error


# -------------------------------------------------------------------------------------------- diff


def print_diff(
    text: str,
    *,
    checkpoint: str | None,
    attempt: str | None,
    stat: bool,
    as_json: bool,
    state: Path | None,
) -> int:
    directory = open_state(state)
    run = directory.find_run(text)
    with _disk(f"run {run.id}"):
        files = find_files(directory, run, checkpoint=checkpoint, attempt=attempt)
        if as_json or stat:
            summary = files.write_patch(None)
        else:
            # Whole before a byte of it is out: half a patch would be applied as well.
            with tempfile.SpooledTemporaryFile(_HELD) as held:
                summary = files.write_patch(held)  # type: ignore[arg-type] # it has a file's methods
                held.seek(0)
                _put(held)
        changed = files.changed_by_others(summary)
    if as_json:
        print_json(
            {
                "run": run.id,
                "files": summary.files,
                "paths": [_as_json(entry, summary) for entry in summary.entries],
                "clash": None if files.clash is None else list(files.clash.paths),
                "changed_by_others": [as_text(path) for path in changed],
            }
        )
        return 0
    if stat:
        for line in _stat_lines(summary.entries):
            print(line)
    for line in _notes(files, summary, changed):
        print(line, file=sys.stderr)
    return 0


def _put(patch: Any) -> None:
    if not sys.stdout.isatty():
        sys.stdout.flush()
        while chunk := patch.read(1 << 20):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    console = Console(highlight=False, emoji=False)
    for line in patch:
        style = _STYLES.get(line[:1], "")
        shown = printable(line.rstrip(b"\n").decode("utf-8", "backslashreplace"), _LINE)
        console.print(Text(shown, style=style), soft_wrap=True)


def _notes(files: RunFiles, summary: Summary, changed: list[str]) -> Iterable[str]:
    yield from summary_lines(summary)
    if files.clash is not None:
        yield f"{files.clash.message}: taken are those that come last in the order of the graph"
    for path in changed[:PATHS_NAMED]:
        yield f"changed by others since the run began: {quoted(path)}"
    if len(changed) > PATHS_NAMED:
        yield f"changed by others since the run began: and {len(changed) - PATHS_NAMED} more"


def _change(entry: Entry) -> str:
    if entry.old.kind == "absent":
        return "added"
    return "deleted" if entry.new.kind == "absent" else "changed"


def _as_json(entry: Entry, summary: Summary) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "path": as_text(entry.path),
        "change": _change(entry),
        "old": _side(entry.old),
        "new": _side(entry.new),
    }
    if entry.lines is not None:
        shown |= {"added": entry.lines[0], "removed": entry.lines[1]}
    for name, told in (
        ("binary", summary.binary),
        ("left_out", summary.left_out),
        ("risky", summary.risky),
    ):
        if entry.path in told:
            shown[name] = told[entry.path]
    return shown


def _side(found: Found) -> dict[str, Any] | None:
    if found.kind == "absent":
        return None
    shown: dict[str, Any] = {"kind": found.kind}
    if found.kind in ("file", "folder"):
        shown["mode"] = f"{found.mode:04o}"
    if found.kind == "file":
        shown["size"] = found.size
    if found.target is not None:
        shown["target"] = as_text(found.target)
    return shown


def _stat_lines(entries: Iterable[Entry]) -> Iterable[str]:
    named = [(quoted(entry.path), entry) for entry in entries]
    width = min(max((len(name) for name, _ in named), default=0), 60)
    for name, entry in named:
        yield f"{_change(entry):8} {name:{width}}  {_measure(entry)}".rstrip()


def _measure(entry: Entry) -> str:
    old, new = entry.old, entry.new
    if old.kind != new.kind and "absent" not in (old.kind, new.kind):
        return f"{old.kind} → {new.kind}"
    if entry.lines is not None:
        return f"+{entry.lines[0]} -{entry.lines[1]}"
    if old.kind == new.kind == "file" and old.size != new.size:
        return f"{bytes_of(old.size)} → {bytes_of(new.size)}"
    if old.kind == new.kind and old.mode != new.mode:
        return f"{old.mode:04o} → {new.mode:04o}"
    there = new if old.kind == "absent" else old
    return bytes_of(there.size) if there.kind == "file" else there.kind


# ------------------------------------------------------------------------------------------- apply


def apply_files(
    text: str,
    *,
    checkpoint: str | None,
    allow: list[str],
    accept_base: bool,
    last: bool,
    dry_run: bool,
    as_json: bool,
    state: Path | None,
) -> int:
    directory = open_state(state)
    run = directory.find_run(text)
    try:
        with _disk(f"run {run.id}"):
            standing, applied = apply_run(
                directory,
                run,
                checkpoint=checkpoint,
                allow=allow,
                accept_base=accept_base,
                last=last,
                dry_run=dry_run,
            )
    except ApplyRefused as refusal:
        if not as_json:
            raise
        print_json({"run": run.id, "applied": False, "refused": _refusal(refusal)})
        return 2
    shown = None if checkpoint is not None else RunState(standing.name.lower())
    print_applied(run.id, shown, applied, dry_run=dry_run, as_json=as_json)
    return 0


def print_applied(
    run: str, standing: RunState | None, applied: Applied, *, dry_run: bool, as_json: bool
) -> None:
    """`standing`: of the run, where that is what was applied."""
    if as_json:
        print_json(
            {
                "run": run,
                "applied": not dry_run,
                "written": applied.written,
                "bytes": applied.size,
                "removed": applied.removed,
                "folders": applied.folders,
            }
        )
        return
    words = (
        f"{applied.written} written ({bytes_of(applied.size)}), {applied.removed} removed, "
        f"{applied.folders} folders"
    )
    print(words + (" (not really)" if dry_run else ""))
    if standing not in (None, RunState.COMPLETED):
        print(f"run {run} is {standing}: that is what its completed tasks made", file=sys.stderr)


def _refusal(refusal: ApplyRefused) -> dict[str, Any]:
    return {
        "changed": [as_text(path) for path in refusal.changed],
        "unexpected": {as_text(path): why for path, why in refusal.unexpected.items()},
        "risky": {as_text(path): why for path, why in refusal.risky.items()},
    }
