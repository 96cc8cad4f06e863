"""`observe` gives a run's events to another program, each once, in order, whatever happens between.

What it gives is held against what the run's own supervisor told, from its journal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate import ObservationLost, PipelineEvent, UsageError, observe
from casemate.protocol.control import RunState
from casemate.protocol.limits import HEARTBEAT_SECONDS
from casemate.supervisor import observing
from casemate.supervisor.overview import summarise
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE, wait_until
from runs import Embedded, Live, Place, descendants, is_alive

TASKS = """
import time
def talk(input, ctx):
    ctx.emit("small")
    ctx.emit("large" * 40_000)
    ctx.log("a word")
    return "huge" * 300_000
def wait(input, ctx):
    ctx.emit("here")
    while not (ctx.attempt > 1 or ctx.cancelled):
        time.sleep(0.01)
def flood(input, ctx):
    for n in range(30_000):
        ctx.emit(n)
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "place")
    place.tasks(TASKS)
    return place


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Embedded]:
    """A supervisor that a test may hurt."""
    with Embedded(tmp_path / "state", max_parallel=4) as house:
        yield house


def compared(events: list[PipelineEvent]) -> list[tuple[object, ...]]:
    return [(e.seq, e.run, e.task, e.attempt, e.kind, e.at, e.data) for e in events]


class Reader:
    """An observer in a thread of its own."""

    def __init__(self, run: str, state: Path, since: int | None = 0) -> None:
        self.events: list[PipelineEvent] = []
        self.problem: BaseException | None = None
        self._observation = observe(run, state=state, since=since)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._observation:
                self.events.append(event)
        except BaseException as error:
            self.problem = error

    def finish(self) -> list[PipelineEvent]:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), self.events[-3:]
        if self.problem is not None:
            raise self.problem
        return self.events


async def read_all(run: str, state: Path) -> list[PipelineEvent]:
    return [event async for event in observe(run, state=state)]


def test_who_comes_early_or_late_waiting_or_not_is_told_the_same(
    house: Embedded, place: Place
) -> None:
    live = house.start(place.spec(tasks={"talk": {}, "wait": {"needs": ["talk"]}}))
    early = Reader(live.run, house.state)
    live.wait("task.emitted", "wait")
    late = Reader(live.run[:10], house.state)
    wait_until(lambda: late.events[-1:] and late.events[-1].task == "wait")
    live.cancel()
    expected = compared(live.finish().events)
    assert compared(early.finish()) == expected
    assert compared(late.finish()) == expected
    # Its supervisor lives on: of a run that has ended the journal tells.
    assert compared(list(observe("last", state=house.state))) == expected
    assert compared(asyncio.run(read_all(live.run, house.state))) == expected


def test_in_a_loop_others_go_on_meanwhile(house: Embedded, place: Place) -> None:
    live = house.start(place.spec(tasks={"talk": {}, "wait": {"needs": ["talk"]}}))

    async def watch() -> list[PipelineEvent]:
        reading = asyncio.create_task(read_all(live.run, house.state))
        # Runs only if the reader leaves the loop while it waits for an event that we cause.
        while not any(event.task == "wait" for event in live.events):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(live.cancel)
        return await asyncio.wait_for(reading, PATIENCE)

    assert compared(asyncio.run(watch())) == compared(live.finish().events)


def test_by_the_endpoints_of_a_supervisor_that_somebody_else_found(
    house: Embedded, place: Place
) -> None:
    [record] = StateDirectory(house.state).living_supervisors()
    history = house.run(place.spec(tasks={"talk": {}}))
    endpoints = (record.events, record.control)
    assert compared(list(observe("last", endpoints=endpoints))) == compared(history.events)
    with pytest.raises(UsageError, match="no run"):
        list(observe("zzzz", endpoints=endpoints))


def test_without_large_values_it_says_which_are_missing(house: Embedded, place: Place) -> None:
    live = house.start(place.spec(tasks={"talk": {}, "wait": {"needs": ["talk"]}}))
    live.wait("task.emitted", "wait")
    found = {}
    for event in observe(live.run, state=house.state, whole=False):
        found[event.kind] = event
        if event.task == "wait":
            live.cancel()
    assert found["task.completed"].data["output"] is None
    assert found["task.completed"].omitted["output"] > 1_200_000
    live.finish()


def test_a_reader_that_stands_still_loses_nothing(house: Embedded, place: Place) -> None:
    live = house.start(place.spec(tasks={"flood": {}, "wait": {}}))
    reading = iter(observe(live.run, state=house.state))
    events = [next(reading)]
    live.wait("task.completed", "flood")  # many more than are queued for a reader
    live.cancel()
    events += reading
    assert compared(events) == compared(live.finish().events)


def test_one_that_may_lose_begins_now_and_ends_with_the_run(house: Embedded, place: Place) -> None:
    live = house.start(place.spec(tasks={"talk": {}, "wait": {"needs": ["talk"]}}))
    live.wait("task.emitted", "wait")
    observation = observe(live.run, state=house.state, lossy=True)
    reading = iter(observation)
    threading.Timer(0.0, live.cancel).start()
    events = list(reading)
    history = live.finish()
    snapshot = observation.snapshot
    assert snapshot is not None
    kept = [event for event in history.events if event.seq > snapshot.as_of]
    assert compared(events) == compared(kept)


def test_a_front_that_dies_costs_an_observer_nothing(house: Embedded, place: Place) -> None:
    live = house.start(place.spec(tasks={"wait": {}, "flood": {"needs": ["talk"]}, "talk": {}}))
    reader = Reader(live.run, house.state)
    live.wait("task.emitted", "flood", count=1000)
    [front] = [pid for pid in descendants(house.engine) if b"front" in cmdline(pid)]
    os.kill(front, signal.SIGKILL)
    wait_until(lambda: not is_alive(front))
    live.wait("task.completed", "flood")
    live.cancel()
    assert compared(reader.finish()) == compared(live.finish().events)


def test_a_supervisor_that_is_silent_is_looked_for_again_and_nothing_is_lost(
    house: Embedded, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observing, "_SILENCE", HEARTBEAT_SECONDS / 2)
    begun_again: set[str] = set()
    disconnect = observing._Line._disconnect

    def told(line: observing._Line) -> None:
        begun_again.add(threading.current_thread().name)
        disconnect(line)

    monkeypatch.setattr(observing._Line, "_disconnect", told)
    live = house.start(place.spec(tasks={"wait": {}}))
    live.wait("task.emitted", "wait")
    reader, found = Reader(live.run, house.state), []
    looping = threading.Thread(
        target=lambda: found.extend(asyncio.run(read_all(live.run, house.state)))
    )
    looping.start()
    wait_until(lambda: len(begun_again) == 2)
    live.cancel()
    expected = compared(live.finish().events)
    assert compared(reader.finish()) == expected
    looping.join(PATIENCE)
    assert compared(found) == expected


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_an_observer_goes_on_with_the_supervisor_that_takes_the_run_up(
    tmp_path: Path, house: Embedded, place: Place
) -> None:
    live = house.start(place.spec(tasks={"wait": {}}))
    reader = Reader(live.run, house.state)
    live.wait("task.emitted", "wait")
    os.kill(house.engine, signal.SIGKILL)
    with Embedded(house.state) as heir:
        heir.call(heir.supervisor.resume(live.run))
        history = Live(heir, live.run).finish()
        assert compared(reader.finish()) == compared(history.events)
    assert "run.recovered" in [event.kind for event in reader.events]


def test_a_run_that_is_nobodys_is_read_to_its_end_and_lost_where_it_has_none(
    tmp_path: Path, place: Place
) -> None:
    with Embedded(tmp_path / "state") as house:
        ended = house.run(place.spec(tasks={"talk": {}}))
        cut = house.start(place.spec(tasks={"wait": {}}))
        cut.wait("task.emitted")
        os.kill(house.engine, signal.SIGKILL)
    state = StateDirectory(house.state)
    wait_until(lambda: summarise(state.run(cut.run)).state is RunState.INTERRUPTED)
    assert compared(list(observe(ended.run, state=house.state))) == compared(ended.events)
    events = []
    with pytest.raises(ObservationLost, match=f"casemate resume {cut.run}"):
        for event in observe(cut.run, state=house.state, patience=0.0):
            events.append(event)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert "task.emitted" in [event.kind for event in events]


def test_what_cannot_be_observed_is_said_at_once(tmp_path: Path, house: Embedded) -> None:
    with pytest.raises(UsageError, match="no run"):
        observe("zzzz", state=house.state)
    with pytest.raises(UsageError, match="not both"):
        observe(state=house.state, endpoints=("ipc://a", "ipc://b"))
