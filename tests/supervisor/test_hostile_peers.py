"""Hostile observers and control clients: the run does not notice, and neither does the engine.

Each attack is made while a run goes on and a well-behaved observer watches it. Some cost the front
its life, which is cheap; it takes so much memory and so many descriptors, and no more.
"""

from __future__ import annotations

import contextlib
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import zmq
from casemate import Client, PipelineEvent, observe
from casemate.protocol.errors import CasemateError
from casemate.protocol.limits import FRONT_FILES, FRONT_MEMORY, MIB
from casemate.supervisor.state import StateDirectory, SupervisorRecord
from fakes import PATIENCE, wait_until
from hostile_peers import ON_CONTROL, ON_EVENTS, TOPPLING, Attack, Target
from runs import Embedded, Place

# Items as fast as a person could not read them, until it is told to stop.
TASKS = """
import time
def speak(input, ctx):
    number = 0
    while not ctx.cancelled:
        ctx.emit(number)
        number += 1
        time.sleep(0.002)
"""

# What an engine's memory moves by in the time of any of these, whatever they do (measured: 6 MiB at
# most); a thousand requests or connections that it kept would be more.
FLAT = 48 * MIB


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("hostile") / "state", max_parallel=4) as house:
        yield house


class Reader(threading.Thread):
    """An honest observer."""

    def __init__(self, run: str, state: Path) -> None:
        super().__init__()
        self.events: list[PipelineEvent] = []
        self.problem: BaseException | None = None
        self._observation = observe(run, state=state, patience=PATIENCE)

    def run(self) -> None:
        try:
            for event in self._observation:
                self.events.append(event)
        except BaseException as error:
            self.problem = error


def record_of(house: Embedded) -> SupervisorRecord:
    [record] = StateDirectory(house.state).living_supervisors()
    return record


def front_of(house: Embedded) -> psutil.Process:
    def found() -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(house.engine).children()
            return [each for each in below if "supervisor.front" in " ".join(each.cmdline())]
        return []

    wait_until(found)
    return found()[0]


def peak_of(pid: int) -> int:
    """The most memory that it ever had."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


ATTACKS = {("observer", name): attack for name, attack in ON_EVENTS.items()} | {
    ("client", name): attack for name, attack in ON_CONTROL.items()
}


def is_cancelled(client: Client, run: str) -> bool:
    """Asked again, as the answer says, where what others asked is still being answered."""
    try:
        client.cancel(run)
    except CasemateError as error:
        if "ask again" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize(("who", "what"), ATTACKS)
def test_a_run_does_not_notice(who: str, what: str, house: Embedded, place: Place) -> None:
    attack: Attack = ATTACKS[who, what]
    place.tasks(TASKS)
    live = house.start(place.spec(tasks={"speak": {}}))
    live.wait("task.emitted", count=20)
    reader = Reader(live.run, house.state)
    reader.start()
    wait_until(lambda: len(reader.events) > 10)
    record = record_of(house)
    # So that what grows without bound meets the cap within the time of a test.
    front = front_of(house)
    cap = front.memory_info().rss + 128 * MIB
    resource.prlimit(front.pid, resource.RLIMIT_DATA, (cap, FRONT_MEMORY))
    before = psutil.Process(house.engine).memory_info().rss
    with zmq.Context() as context, ExitStack() as kept:
        events, control = (e.removeprefix("ipc://") for e in (record.events, record.control))
        attack(Target(events, control, live.run, context, kept))
        # The attack stands, and the run goes on.
        live.wait("task.emitted", count=len(live.events) + 50)
        assert psutil.Process(house.engine).memory_info().rss - before < FLAT
        with contextlib.suppress(psutil.NoSuchProcess):
            assert front.memory_info().rss < cap
            assert front.num_fds() <= FRONT_FILES
    # It is over: whoever comes now is served, by this front or by another.
    with Client(state=house.state) as client:
        wait_until(lambda: is_cancelled(client, live.run))
    if what in TOPPLING:
        # A new front serves before its epoch is written down.
        wait_until(lambda: record_of(house).epoch != record.epoch)
    else:
        assert record_of(house).epoch == record.epoch
    history = live.finish()
    reader.join(PATIENCE)
    assert reader.problem is None
    assert [each.seq for each in reader.events] == list(range(1, len(history.events) + 1))
    assert [each.data for each in reader.events] == [each.data for each in history.events]
    assert peak_of(house.engine) - before < FLAT
