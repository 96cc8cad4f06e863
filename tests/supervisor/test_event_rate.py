"""`limits.event_rate`: whoever says more waits, is not taken for silent, and loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from casemate.supervisor.config import load_config
from casemate.supervisor.links import RATE_BURST, Pace
from hypothesis import given
from hypothesis import strategies as st
from runs import Embedded, History, Place

RATE = 40
ITEMS = 160

TASKS = f"""
import time

def speak(input, ctx):
    for number in range({ITEMS}):
        ctx.emit([number, "x" * ctx.spec["size"]])
    return "said"

def burst(input, ctx):
    for number in range({ITEMS}):
        ctx.emit(number)
    time.sleep(2)
    return "said"

def log(input, ctx):
    for number in range({ITEMS}):
        ctx.log(str(number), size="x" * 500)
"""


@given(
    st.floats(1, 1e6),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 500)), min_size=1, max_size=50),
)
def test_who_waits_as_told_keeps_the_rate(rate: float, said: list[tuple[float, int]]) -> None:
    pace, now, total = Pace(rate), 0.0, 0
    for pause, events in said:
        now += pace.ahead(now) + pause
        # What was said until now has been allowed; what it says next is said at once.
        assert total <= rate * (now + RATE_BURST) * (1 + 1e-9)
        pace.spend(now, events)
        total += events
    # And nobody waits for more than what was said.
    assert pace.ahead(now) <= total / rate


@given(st.floats(1, 1e6), st.floats(0, 1e6))
def test_a_burst_of_a_second_costs_no_time(rate: float, now: float) -> None:
    pace = Pace(rate)
    pace.spend(now, int(rate * RATE_BURST))
    assert pace.ahead(now) <= 1e-6
    pace.spend(now, 1 + int(rate))
    assert pace.ahead(now) > 0


def run(folder: Path, function: str, size: int = 0, **timeouts: float) -> History:
    place = Place(folder)
    place.tasks(TASKS)
    task: dict[str, Any] = {
        "execute": f"tasks.py:{function}",
        "spec": {"size": size},
        "limits": {"event_rate": RATE},
        "timeouts": timeouts,
    }
    with Embedded(folder / "state", config=load_config(state=folder / "state")) as house:
        return house.run(place.spec(tasks={"it": task}))


def check_pace(history: History, kind: str) -> None:
    said = history.of(kind, "it")
    assert len(said) == ITEMS
    # Of events of this size one read brings four. A burst is free, and a little waits in the link
    # when it ends.
    waiting = sum(event.at == said[-1].at for event in said)
    lasted = (said[-1].at - said[0].at).total_seconds()
    assert lasted >= (ITEMS - waiting - 8) / RATE - RATE_BURST > 1


def test_who_emits_more_waits_and_loses_nothing(tmp_path: Path) -> None:
    history = run(tmp_path, "speak", size=500)
    assert [item[0] for item in history.items("it")] == list(range(ITEMS))
    assert history.output("it") == "said"
    check_pace(history, "task.emitted")


def test_who_logs_more_waits(tmp_path: Path) -> None:
    check_pace(run(tmp_path, "log"), "task.log")


def test_who_is_not_listened_to_is_not_silent(tmp_path: Path) -> None:
    # What it says at once is more than it may say in the time in which it then says nothing.
    history = run(tmp_path, "burst", idle=0.5)
    assert history.items("it") == list(range(ITEMS))
    assert history.output("it") == "said"
