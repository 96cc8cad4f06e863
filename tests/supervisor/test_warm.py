"""Which attempts are made ahead, and what becomes of them: the real core on a host that makes no
process. `test_preload.py` has the sandboxes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import msgspec
from casemate.protocol.events import ErrorKind, TaskError
from casemate.protocol.limits import WARM_SANDBOXES
from casemate.protocol.pipeline import PipelineSpec
from casemate.sandbox.cgroup import Measured
from casemate.supervisor.core.commands import Kill, Record, Spawn
from casemate.supervisor.core.events import Ended, Input, PauseRun, ResumeRun, Started, Submit
from casemate.supervisor.core.scheduler import Scheduler
from casemate.supervisor.core.state import RunState
from casemate.supervisor.files import Files
from casemate.supervisor.links import Attempt, Key
from casemate.supervisor.warm import WarmAttempts
from casemate.supervisor.workspace import Prepared
from msgspec import Raw
from runs import Place

MIB = 1 << 20


class Lease:
    is_sampled = False

    def measure(self) -> Measured:
        return Measured()

    def exceeded(self, measured: Measured) -> ErrorKind | None:
        return None


class Made:
    """A sandbox, as far as it is asked anything."""

    lease = Lease()

    def __init__(self, owner: WarmAttempts, key: Key) -> None:
        self.owner, self.key = owner, key
        self.is_killed = self.is_frozen = False

    def watch(self) -> None: ...

    def freeze_again(self) -> None: ...

    def freeze(self) -> None:
        self.is_frozen = True

    def kill(self) -> None:
        self.is_killed = True

    def is_silent(self) -> bool:
        return not self.is_killed

    def greet(self) -> None:
        self.owner.attempt_greeted(cast(Attempt, self))

    def die(self) -> None:
        self.owner.attempt_dead(cast(Attempt, self))


class House:
    """What the engine is to them. Of what the core spawns it notes the keys, in `started`."""

    def __init__(self, *, memory: int, parallel: int = 8) -> None:
        self.core = Scheduler(parallel, memory * MIB)
        self.warm = WarmAttempts(self)
        self.made: list[Made] = []
        self.started: dict[str, bool] = {}  # task → whether it has something to wait for
        self.kept: set[asyncio.Task[None]] = set()
        self.now = 0.0
        self.network_wall = True
        self.refusal: OSError | None = None

    def submit(self, spec: PipelineSpec, run: str = "r") -> None:
        self.warm.enter(run, spec)
        self.feed(Submit(run, spec, Raw(b"\xc0"), Raw(msgspec.msgpack.encode(spec)), 1))

    def feed(self, input: Input) -> None:
        commands = self.core.step(self.now, input)
        self.warm.granted(commands)
        for command in commands:
            if isinstance(command, Record):
                self.warm.noted(command)
            elif isinstance(command, Spawn):
                key = Key(command.run, command.task, command.attempt)
                self.started[command.task] = self.warm.claim(key)
            elif isinstance(command, Kill):
                self.warm.discard(Key(command.run, command.task, command.attempt))
        self.warm.look()

    def begin(self, task: str, attempt: int = 1) -> None:
        self.feed(Started("r", task, attempt, 1, {}))

    def end(self, task: str, attempt: int = 1, *, fails: bool = False) -> None:
        error = TaskError(kind=ErrorKind.ERROR, message="no") if fails else None
        output = None if fails else Raw(b"\xc0")
        self.feed(Ended("r", task, attempt, output=output, error=error))

    def take(self, task: str, attempt: int = 1, *, is_small: bool = True) -> Awaitable[Any]:
        key = Key("r", task, attempt)
        return asyncio.ensure_future(self.warm.take(key, None, is_small))

    @property
    def keys(self) -> list[tuple[str, int]]:
        return [(made.key.task, made.key.attempt) for made in self.made]

    # --- warm.Host

    def state_of(self, run: str) -> RunState | None:
        return self.core.state(run) if self.core.knows(run) else None

    def files_of(self, run: str) -> Files | None:
        return None

    def free_memory(self) -> int:
        return self.core.free_memory

    def has_network_wall(self) -> bool:
        return self.network_wall

    def make_ahead(self, key: Key, prepared: Prepared | None) -> Attempt:
        if self.refusal is not None:
            raise self.refusal
        self.made.append(Made(self.warm, key))
        return cast(Attempt, self.made[-1])

    def weigh(self, attempt: Attempt) -> None: ...

    def give_back(self, attempt: Attempt) -> None: ...

    def retire(self, run: str) -> None: ...

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self.kept.add(asyncio.ensure_future(work))


def chain(place: Place, *, wide: int = 1, **second: Any) -> PipelineSpec:
    """`a`, and so many that need it: b0, b1, ..."""
    place.tasks("def f(input): return 1\n")
    tasks: dict[str, Any] = {"a": {"execute": "tasks.py:f"}}
    for number in range(wide):
        tasks[f"b{number}"] = {
            "execute": "tasks.py:f",
            "needs": ["a"],
            "preload": ["json"],
            **second,
        }
    return place.spec(tasks=tasks)


def playing(story: Callable[[Place], Coroutine[Any, Any, None]]) -> Callable[[Place], None]:
    @functools.wraps(story)
    def test(place: Place) -> None:
        asyncio.run(story(place))

    return test


@playing
async def test_one_is_made_once_what_it_needs_runs(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place))
    assert house.keys == []
    house.begin("a")
    assert house.keys == [("b0", 1)]
    house.made[0].greet()
    assert house.made[0].is_frozen
    house.end("a")
    assert house.started["b0"]
    assert await house.take("b0") is house.made[0]
    assert not house.warm.is_alive()


@playing
async def test_who_starts_while_it_imports_waits(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place))
    house.begin("a")
    house.end("a")
    taking = house.take("b0")
    await asyncio.sleep(0)
    house.made[0].greet()
    assert await taking is house.made[0]
    assert not house.made[0].is_frozen


@playing
async def test_who_dies_leaves_a_cold_start(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place))
    house.begin("a")
    house.made[0].die()
    house.end("a")
    assert not house.started["b0"]
    assert house.keys == [("b0", 1)]  # and one try for each attempt


@playing
async def test_who_is_cancelled_gets_nothing(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place))
    house.begin("a")
    house.end("a")
    taking = house.take("b0")
    await asyncio.sleep(0)
    house.warm.discard(Key("r", "b0", 1))
    assert house.made[0].is_killed
    house.made[0].die()
    assert await taking is None


@playing
async def test_a_large_input_is_begun_cold(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place))
    house.begin("a")
    house.made[0].greet()
    house.end("a")
    taking = house.take("b0", is_small=False)
    await asyncio.sleep(0)
    assert house.made[0].is_killed
    house.made[0].die()
    assert await taking is None


@playing
async def test_another_number_is_not_its_attempt(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place))
    house.begin("a")
    house.made[0].greet()
    taking = house.take("b0", attempt=2)
    await asyncio.sleep(0)
    house.made[0].die()
    assert await taking is None


@playing
async def test_no_more_than_so_many(place: Place) -> None:
    house = House(memory=100_000)
    house.submit(chain(place, wide=2 * WARM_SANDBOXES))
    house.begin("a")
    assert len(house.made) == WARM_SANDBOXES
    house.made[1].die()
    house.warm.look()
    assert house.keys[-1] == (f"b{WARM_SANDBOXES}", 1)


@playing
async def test_none_beyond_the_memory_there_is(place: Place) -> None:
    house = House(memory=3 * 128)
    house.submit(chain(place, wide=4))
    house.begin("a")
    assert house.keys == [("b0", 1), ("b1", 1)]


@playing
async def test_who_needs_the_memory_waits_for_a_death(place: Place) -> None:
    """The newest goes first, and as few as it takes."""
    house = House(memory=3 * 128)
    house.submit(chain(place, wide=2))
    house.begin("a")
    for made in house.made:
        made.greet()
    other = Place(place.path / "other")
    other.tasks("def f(input): return 1\n")
    house.submit(other.spec(tasks={"x": {"execute": "tasks.py:f"}}), run="s")
    assert house.started["x"]
    assert [made.is_killed for made in house.made] == [False, True]
    taking = asyncio.ensure_future(house.warm.take(Key("s", "x", 1), None, True))
    await asyncio.sleep(0.01)
    assert not taking.done()
    house.made[1].die()
    assert await taking is None


@playing
async def test_those_that_start_in_one_step_are_not_in_each_others_way(place: Place) -> None:
    house = House(memory=1280)
    spec = chain(place, wide=2, limits={"memory": "512MiB"})
    house.submit(spec)
    house.begin("a")
    assert house.keys == [("b0", 1), ("b1", 1)]
    for made in house.made:
        made.greet()
    house.end("a")
    assert house.started == {"a": False, "b0": True, "b1": True}
    assert not any(made.is_killed for made in house.made)
    assert [await house.take("b0"), await house.take("b1")] == house.made


@playing
async def test_one_whose_attempt_never_began_goes(place: Place) -> None:
    """As where its input turned out to be too large."""
    house = House(memory=1024)
    house.submit(chain(place, retry={"attempts": 3, "delay": "1h"}))
    house.begin("a")
    house.made[0].greet()
    house.end("a")
    house.end("b0", fails=True)
    assert house.made[0].is_killed


@playing
async def test_a_pause_ends_it(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place, retry={"attempts": 3, "delay": "1h"}))
    house.begin("a")
    house.end("a")
    house.made[0].die()
    house.begin("b0")
    house.end("b0", fails=True)
    assert house.keys == [("b0", 1), ("b0", 2)]
    house.feed(PauseRun("r", False))
    assert house.made[1].is_killed
    house.made[1].die()
    house.feed(ResumeRun("r"))
    assert house.keys == [("b0", 1), ("b0", 2)]  # it has had its try


@playing
async def test_what_will_never_run_has_none(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place))
    house.begin("a")
    house.end("a", fails=True)
    assert house.made[0].is_killed


@playing
async def test_an_import_gets_the_time_of_a_start(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place, timeouts={"start": "20ms"}))
    house.begin("a")
    while not house.made[0].is_killed:
        await asyncio.sleep(0.001)


@playing
async def test_who_cannot_be_made_is_begun_cold(place: Place) -> None:
    house = House(memory=1024)
    house.refusal = OSError("no descriptors")
    house.submit(chain(place))
    house.begin("a")
    house.end("a")
    assert not house.started["b0"]
    assert not house.warm.is_alive()


@playing
async def test_none_where_the_network_is_shared(place: Place) -> None:
    house = House(memory=1024)
    house.network_wall = False
    house.submit(chain(place))
    house.begin("a")
    assert house.keys == []


@playing
async def test_a_run_that_is_over_is_forgotten(place: Place) -> None:
    house = House(memory=1024)
    house.submit(chain(place, wide=2))
    house.begin("a")
    house.warm.discard_run("r")
    for made in house.made:
        assert made.is_killed
        made.die()
    house.warm.leave("r")
    assert not house.warm.is_alive("r")
    assert not (house.warm._wanted or house.warm._tried or house.warm._runs)
