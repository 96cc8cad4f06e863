"""The whole suite: each attack outside, then all of them in one run, and one outcome for each.

Contained means: exactly what the attack's file says must become of it, its tree dead at the
verdict, and a well-behaved task served after it. Anything else is not contained, an attack that
failed for another reason too: it proved nothing. What takes a thing that nothing counts where no
cgroup holds the limits is said to be unheld there: of such a one the tree must be dead and the next
task served, and no more is claimed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

from msgspec import Struct

from .arena import AFTER, Arena, wait_until
from .attack import Attack, Kind, every_attack
from .outside import SUCCEEDS, can_run_outside, explain, run_outside
from .require import NotContained, require
from .seen import Seen
from .stage import Stage
from .target import Target, files_in

__all__ = ["Findings", "Outcome", "judge", "run_suite"]

_ERRNO = re.compile(r"\[Errno (\d+)\]")

# The engine at rest has 30 MiB; what waits for the journal (32 MiB, in two forms) and what the
# allocator keeps come on top: 65 MiB were seen. One flood alone says 192 MiB.
ENGINE_MEMORY = 160 << 20

# Where /tmp is a tmpfs, what a task writes to its layer there is memory of its own.
ON_DISK = "/var/tmp"

# Beside the tasks of the arena, most of which wait for something.
STORIES_AT_A_TIME = 2


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of one attack."""

    name: str
    kind: str  # the folder that it is in
    tries: str
    source: str
    contained: bool
    unheld: bool = False  # nor is it held: no wall of this host counts what it takes
    seen: str  # its verdict, or the error that it met
    errno: str | None = None  # of that error, by name
    walls: tuple[str, ...]  # what may have stopped it, the nearest first
    why: str | None = None  # it does not count as contained
    outside: str  # what it came to with nothing around it


class Findings(Struct, frozen=True, kw_only=True):
    ok: bool  # all that this host can hold is held, and the host is as it was
    contained: int
    unheld: int
    outcomes: tuple[Outcome, ...]
    host: tuple[str, ...]  # what was found wrong with the host afterwards
    walls: dict[str, Any]  # in force in the first of the sandboxes
    seconds: float

    def of(self, attack: Attack) -> Outcome:
        [outcome] = [each for each in self.outcomes if each.name == attack.name]
        return outcome


def run_suite(
    attacks: Sequence[Attack] | None = None,
    report: Callable[[Outcome], object] = lambda outcome: None,
    **settings: Any,
) -> Findings:
    """`report` is called from another thread, with each outcome as it comes. `settings`: of
    `load_config`, as flags. Raises SetupRefused where no sandbox can be built."""
    chosen = every_attack() if attacks is None else list(attacks)
    began = time.monotonic()
    place = ON_DISK if os.access(ON_DISK, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="casemate-attack-", dir=place) as name:
        folder = Path(name)
        target = Target(folder)
        try:
            with patch.dict(os.environ, target.environment):
                return _run(chosen, report, folder, target, settings, began)
        finally:
            target.close()


def _run(
    attacks: Sequence[Attack],
    report: Callable[[Outcome], object],
    folder: Path,
    target: Target,
    settings: dict[str, Any],
    began: float,
) -> Findings:
    outcomes: dict[str, Outcome] = {}
    host: list[str] = []
    walls: dict[str, Any] = {}

    def reach(outcome: Outcome) -> None:
        outcomes[outcome.name] = outcome
        report(outcome)

    def tell(attack: Attack) -> None:
        reach(_tell(attack, folder / attack.name))

    tasks = [attack for attack in attacks if attack.kind is not Kind.STORY]
    stories = [attack for attack in attacks if attack.kind is Kind.STORY]
    with ThreadPoolExecutor(STORIES_AT_A_TIME) as pool, contextlib.ExitStack() as entered:
        # Before the first story, which starts children too: the arena knows its own by that.
        arena = entered.enter_context(Arena(folder, target, **settings)) if tasks else None
        told = pool.map(tell, stories)
        if arena is not None:
            walls = _run_tasks(tasks, arena, reach)
            host += _complaints(arena, target)
        list(told)  # what went wrong in them is raised here
    host += [f"{attack.name}: no verdict" for attack in attacks if attack.name not in outcomes]
    contained = sum(outcome.contained for outcome in outcomes.values())
    unheld = sum(outcome.unheld for outcome in outcomes.values())
    return Findings(
        ok=contained + unheld == len(attacks) and not host,
        contained=contained,
        unheld=unheld,
        outcomes=tuple(outcomes[name] for name in sorted(outcomes)),
        host=tuple(host),
        walls=walls,
        seconds=round(time.monotonic() - began, 1),
    )


def _run_tasks(
    attacks: Sequence[Attack], arena: Arena, reach: Callable[[Outcome], None]
) -> dict[str, Any]:
    """The walls in force in the first of their sandboxes."""
    free = run_outside([each for each in attacks if can_run_outside(each)], arena.target)
    pipeline = arena.pipeline("attacks", attacks[0].root)
    for attack in attacks:
        arena.add(pipeline, attack)
    named = {attack.name: attack for attack in attacks}
    ended: dict[str, Seen] = {}

    def on_end(seen: Seen) -> None:
        ended[seen.task] = seen
        name = seen.task.removesuffix(AFTER)
        if name in ended and name + AFTER in ended:
            reach(judge(named[name], ended[name], ended[name + AFTER], free.get(name)))

    seen = arena.run(pipeline, on_end)
    return next((one.walls for one in seen.values() if one.data("task.started")), {})


def _tell(attack: Attack, folder: Path) -> Outcome:
    """A story; the good task that is served afterwards is its own affair."""
    said, why, outside = "not contained", None, "has no meaning outside"
    if hasattr(attack.module, "outside"):
        attack.module.outside(Stage(folder / "outside"))
        outside = SUCCEEDS
    try:
        said = attack.module.attack(Stage(folder / "inside"))
    except NotContained as found:
        why = str(found)
    except (OSError, subprocess.SubprocessError) as error:
        why = f"nothing is proved: {error}"
    return Outcome(
        name=attack.name,
        kind=str(attack.kind),
        tries=attack.tries,
        source=attack.source,
        contained=why is None,
        seen=said,
        walls=attack.walls,
        why=why,
        outside=outside,
    )


def judge(attack: Attack, seen: Seen, after: Seen, outside: str | None = None) -> Outcome:
    why, unheld = None, False
    try:
        if attack.kind is Kind.REACH:
            _check_reach(attack, seen)
        elif not (unheld := seen.is_sampled and getattr(attack.module, "SAMPLED", "") is None):
            _check_verdict(attack, seen)
        seen.check_ended()
        _check_served(after)
    except NotContained as found:
        why = str(found)
    said, number = _said(seen)
    return Outcome(
        name=attack.name,
        kind=str(attack.kind),
        tries=attack.tries,
        source=attack.source,
        contained=why is None and not unheld,
        unheld=why is None and unheld,
        seen=said,
        errno=number,
        walls=attack.walls,
        why=why,
        outside=_outside(attack, outside),
    )


def _expected(attack: Attack, seen: Seen, ordinarily: str | None) -> str | None:
    if seen.is_sampled:
        return getattr(attack.module, "SAMPLED", ordinarily)
    return ordinarily


def _check_reach(attack: Attack, seen: Seen) -> None:
    expected = _expected(attack, seen, attack.module.EXPECTED)
    if seen.kind == "completed" and expected is not None:
        raise NotContained(f"GOT THROUGH: {seen.output!r}")
    if expected is None:
        require(seen.kind == "completed", seen.events[-1:])
        files = seen.events[-1].data["layer"]["files"]
        require(files == 1, f"{files} files in its layer")
    else:
        require(seen.kind == "error", f"expected {expected}, was {seen.kind}: {_last(seen)}")
        found = seen.error["type"]
        require(found == expected, f"expected {expected}, was {found}: {_last(seen)}")


def _check_verdict(attack: Attack, seen: Seen) -> None:
    expected = _expected(attack, seen, attack.module.KIND)
    require(seen.kind == expected, f"expected {expected}, was {seen.kind}: {_last(seen)}")
    if hasattr(attack.module, "check"):
        attack.module.check(seen)


def _check_served(after: Seen) -> None:
    require(after.kind == "completed", f"the next task was not served: {_last(after)}")
    require(after.output == {"sum": 190}, after.output)
    require(after.items == list(range(20)), after.items)
    require(after.logged("stdout") == "working\n", after.logged("stdout"))


def _said(seen: Seen) -> tuple[str, str | None]:
    """The verdict or the error, and its errno's name where it tells one."""
    if seen.kind != "error":
        return seen.kind, None
    error = seen.error
    found = _ERRNO.search(error["message"])
    return error["type"], errno.errorcode.get(int(found[1])) if found else None


def _last(seen: Seen) -> str:
    if not seen.events or seen.events[-1].kind != "task.failed":
        return str(seen.events[-1:])
    return str(seen.error["message"])


def _outside(attack: Attack, answer: str | None) -> str:
    return "has no meaning outside" if answer is None else explain(attack, answer)


def _complaints(arena: Arena, target: Target) -> Iterator[str]:
    """What was promised of the host, and does not hold."""
    if files_in(target.workspace) != target.files:
        yield "the workspace was changed"
    if left := arena.sandboxes():
        yield f"processes are left: {left}"
    if (peak := arena.peak_memory()) > ENGINE_MEMORY:
        yield f"the engine grew to {peak >> 20} MiB"
    try:
        # The journal's writer closes a run's file after its last event has been seen.
        wait_until(lambda: arena.engine.num_fds() <= arena.descriptors)
    except NotContained:
        yield f"the engine kept {arena.engine.num_fds() - arena.descriptors} descriptors"
