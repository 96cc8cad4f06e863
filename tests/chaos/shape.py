"""Sixty tasks in chains and diamonds, drawn from a seed, that give the same every time.

Three lanes leave one root and meet in one sink. A lane grows by chains and by diamonds, and now and
then waits for another lane. Each task proves what it was given: its output holds a digest of its
input, so a wrong value anywhere shows in the sink. Beside that a task may emit (effects, which the
journal keeps), save its state and go on from it, answer with a value too large for a row, and take
its time, so that there is something to kill.
"""

from __future__ import annotations

from random import Random
from typing import Any

__all__ = ["WORK", "draw"]

LANES = 3

# The longest that a task takes its time, in seconds: it shall die in the midst of things, and the
# whole run shall take seconds.
LONGEST = 0.12

WORK = '''
"""What every task of the drawn pipeline does: as its spec says, and the same in every attempt."""
import hashlib, json, time

def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

def work(input, ctx):
    spec = ctx.spec
    given = digest(input)
    if spec["saves"]:
        state = ctx.saved or {"steps": 0, "sum": given}
        while state["steps"] < spec["saves"]:
            time.sleep(spec["seconds"] / spec["saves"])
            state = {"steps": state["steps"] + 1, "sum": digest(state)}
            ctx.save(state)
        given = state["sum"]
    else:
        for number in range(spec["items"]):
            ctx.emit({"number": number, "of": given})
            time.sleep(spec["seconds"] / spec["items"])
    return {"task": ctx.task_id, "given": given, "pad": "x" * spec["pad"]}
'''


def edges(random: Random, size: int) -> dict[str, list[str]]:
    """Task: those it needs, all of them drawn before it."""
    needs: dict[str, list[str]] = {}

    def add(*above: str) -> str:
        name = f"t{len(needs):02}"
        needs[name] = sorted(set(above))
        return name

    root = add()
    ends = [root] * LANES
    while (room := size - 1 - len(needs)) > 0:
        lane = random.randrange(LANES)
        width = random.randint(2, 4)
        if width < room and random.random() < 0.5:
            ends[lane] = add(*[add(ends[lane]) for _ in range(width)])
        elif random.random() < 0.2:
            ends[lane] = add(ends[lane], random.choice(ends))
        else:
            for _ in range(min(room, random.randint(1, 4))):
                ends[lane] = add(ends[lane])
    add(*ends)
    return needs


def draw(seed: int, size: int) -> dict[str, Any]:
    """A pipeline's document, whose code is WORK in `tasks.py`. Every attempt may be killed, so
    every task may be tried often."""
    random = Random(seed)
    tasks = {
        name: {
            "execute": "tasks.py:work",
            "needs": needs,
            "retry": {"attempts": 20, "delay": "10ms", "on": ["crash"]},
            "spec": {
                "seconds": round(random.uniform(0, LONGEST), 3),
                "items": random.randint(1, 5),
                "saves": random.choice([0, 0, 0, 3]),
                "pad": random.choice([0, 0, 0, 40_000]),
            },
        }
        for name, needs in edges(random, size).items()
    }
    return {"tasks": tasks}
