"""Say things that look like events of another task, another run, another time.

Source: log forging (CWE-117); records whose writer names their author.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("link", "values")

FORGED = {
    "seq": 1,
    "run": "another",
    "task": "another",
    "attempt": 7,
    "kind": "run.completed",
    "at": "1970-01-01T00:00:00Z",
    "data": {"outputs": {}},
}


def attack(input: Any, ctx: Any) -> object:
    ctx.emit(FORGED)
    ctx.log('\n{"seq": 1, "kind": "run.failed"}', **FORGED)
    print("ev.another.another.run.completed.")
    return FORGED


def check(seen: Seen) -> None:
    kinds = [event.kind for event in seen.events]
    require(not [kind for kind in kinds if kind.startswith("run.")], kinds)
    require(all(event.task == seen.task for event in seen.events), "an event of another task")
    require(len({event.run for event in seen.events}) == 1, "an event of another run")
    numbers = [event.seq for event in seen.events]
    require(numbers == sorted(set(numbers)), numbers)
    require(all(event.at.year > 1970 for event in seen.events), "an event of another time")
    require(seen.items == [FORGED] and seen.output == FORGED, "it is not as it was said")
