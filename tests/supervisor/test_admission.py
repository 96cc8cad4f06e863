"""Limits under keys, budgets and priorities with real tasks, over one run and over several.

What ran beside what is read from the journals: none of it depends on how fast this machine is.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.config import load_config
from runs import Embedded, History, Place

WORK = """
    import time

    def work(input, ctx):
        time.sleep(0.2)
    """


@pytest.fixture
def place(place: Place) -> Place:
    place.tasks(WORK)
    return place


def workers(names: str, **keys: object) -> dict[str, dict[str, object]]:
    return {name: {"execute": "tasks.py:work", **keys} for name in names}


def side_by_side(house: Embedded, *specs: PipelineSpec) -> list[History]:
    live = [house.start(spec) for spec in specs]
    return [each.finish() for each in live]


def peak(histories: list[History]) -> int:
    """The most attempts between `started` and their ending, over several runs, by the clock."""
    moments = sorted(
        (event.at, 1 if event.kind == "task.started" else -1)
        for history in histories
        for event in history.events
        if event.kind in ("task.started", "task.completed")
    )
    alive = most = 0
    for _, change in moments:
        alive += change
        most = max(most, alive)
    return most


def test_a_bulkhead_bounds_the_tasks_of_two_runs_together(house: Embedded, place: Place) -> None:
    tasks = workers("abc", bulkhead={"key": "two-runs", "max_parallel": 2})
    specs = [place.spec(name=name, tasks=tasks) for name in ("one", "two")]
    histories = side_by_side(house, *specs)
    assert {history.outcome for history in histories} == {"run.completed"}
    assert peak(histories) == 2


def test_a_tasks_own_limit_bounds_it_in_two_runs_and_nothing_else(
    house: Embedded, place: Place
) -> None:
    spec = place.spec(name="own", tasks={**workers("a", max_parallel=1), **workers("b")})
    histories = side_by_side(house, spec, spec, spec)
    assert {history.outcome for history in histories} == {"run.completed"}
    first = [
        sorted((event.at, event.kind) for event in history.events if event.task == "a")
        for history in histories
    ]
    spans = sorted((moments[1][0], moments[-1][0]) for moments in first)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_what_is_over_a_rate_waits_and_holds_back_nobody_else(
    house: Embedded, place: Place
) -> None:
    tasks = {**workers("abc", rate="1/h"), **workers("def", rate={"limit": "2/h", "key": "hour"})}
    tasks |= {"last": {"execute": "tasks.py:work", "needs": ["a", "b", "c", "d", "e"]}}
    live = house.start(place.spec(name="hourly", tasks=tasks))
    live.wait("task.completed", "last")
    live.cancel()
    history = live.finish()
    assert {event.task for event in history.of("task.started")} == {*"abcde", "last"}
    assert history.kinds("f") == ["task.ready", "task.cancelled"]


def test_a_rate_opens_again_by_itself(house: Embedded, place: Place) -> None:
    tasks = workers("abc", rate={"limit": "1/300ms", "key": "often"})
    history = house.run(place.spec(tasks=tasks))
    assert history.outcome == "run.completed"
    assert [event.task for event in history.of("task.started")] == ["a", "b", "c"]


def test_priorities_order_the_ready_tasks_of_a_run(house: Embedded, place: Place) -> None:
    tasks = {
        name: {"execute": "tasks.py:work", "priority": priority}
        for name, priority in (("a", -5), ("b", 0), ("c", 7))
    }
    history = house.run(place.spec(tasks=tasks, max_parallel=1))
    assert [event.task for event in history.of("task.started")] == ["c", "b", "a"]


def test_ceilings_on_cpu_and_memory_stay_within_the_hosts_budget(
    place: Place, tmp_path: Path
) -> None:
    config = load_config(state=tmp_path / "state", max_parallel=8, memory="1GiB", cpu=1.0)
    with Embedded(tmp_path / "state", config=config) as house:
        half = house.run(place.spec(tasks=workers("abcd", limits={"cpu": 0.5})))
        assert (half.outcome, half.peak()) == ("run.completed", 2)
        large = house.run(place.spec(tasks=workers("abcd", limits={"memory": "400MiB"})))
        assert (large.outcome, large.peak()) == ("run.completed", 2)


def test_many_ready_tasks_do_not_starve_a_run_of_one(place: Place, tmp_path: Path) -> None:
    place.tasks("def work(input): return 1\n")
    names = [f"t{number:03}" for number in range(200)]
    many = place.spec(name="many", tasks={name: {"execute": "tasks.py:work"} for name in names})
    with Embedded(tmp_path / "state", max_parallel=2) as house:
        live = house.start(many)
        live.wait("task.completed", "t000")
        [one] = side_by_side(house, place.spec(name="one", tasks=workers("x")))
        ended = one.events[-1].at
        history = live.finish()
    assert one.outcome == history.outcome == "run.completed"
    assert any(event.at > ended for event in history.of("task.started"))
