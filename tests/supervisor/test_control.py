"""Steering from outside: the front passes requests on, the engine trusts none of it, the client
finds the owner and asks once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from casemate.protocol import control
from casemate.protocol.control import (
    Apply,
    Breakers,
    BreakersShown,
    BreakerSummary,
    Cancel,
    ControlError,
    Done,
    Error,
    Fork,
    List,
    Listed,
    OpenBreaker,
    Pause,
    Reply,
    ResetBreaker,
    Rollback,
    Shutdown,
    Why,
)
from casemate.protocol.errors import CasemateError, UsageError
from casemate.protocol.limits import (
    CONTROL_OUTSTANDING,
    CONTROL_PATH_LENGTH,
    CONTROL_PATHS,
    CONTROL_VERB_SIZE,
    CONTROL_VERSION,
    NAME_LENGTH,
)
from casemate.supervisor.apply import Applied
from casemate.supervisor.breakers import standing_of
from casemate.supervisor.control import Client, carry_out
from casemate.supervisor.core.breaker import Forced, Reset, Row, step
from casemate.supervisor.front import FrontProcess
from casemate.supervisor.state import OwnedRun, StateDirectory
from fakes import PATIENCE
from msgspec import msgpack


class FakeEngine:
    """What the engine offers, noted; `gate` holds rollbacks until it is set."""

    def __init__(self, *runs: str) -> None:
        self.runs = set(runs)
        self.free = set[str]()
        self.told: list[tuple[Any, ...]] = []
        self.gate = asyncio.Event()

    def owns(self, run: str) -> bool:
        return run in self.runs

    async def is_free(self, run: str) -> bool:
        return run in self.free

    async def shut_down(self, drain: float | None) -> None:
        self.told.append(("shut_down", drain))

    async def apply(self, wish: Apply) -> Applied:
        self.told.append(("apply", wish))
        return Applied(1, 2, 3, 4)

    async def accept(self, submission: str, digest: bytes) -> tuple[str, tuple[str, ...]]:
        self.told.append(("accept", submission, digest))
        return "a-new-run", ("a note",)

    async def pause(self, run: str, drain: bool = False) -> None:
        self.told.append(("pause", run, drain))

    async def resume(self, run: str) -> None:
        raise UsageError(f"run {run}: not paused")

    def cancel(self, run: str, reason: str) -> None:
        self.told.append(("cancel", run, reason))

    async def checkpoint(self, run: str) -> str:
        raise OSError(28, "No space left on device")

    async def rollback(
        self, run: str, checkpoint: str | None, before: str | None, accept_base: bool = False
    ) -> None:
        self.told.append(("rollback", run, checkpoint, before, accept_base))
        await self.gate.wait()

    async def fork(self, run: str, checkpoint: str) -> str:
        self.told.append(("fork", run, checkpoint))
        return "the new run"

    def why(self, run: str, task: str) -> tuple[str, ...]:
        return (f"{task} waits for a slot.",)

    async def step_breaker(self, key: str, happening: Forced | Reset) -> BreakerSummary:
        return standing_of(key, step(Row(), 1.0, happening), 1.0)


class Bench:
    def __init__(self, state: StateDirectory, front: FrontProcess, owned: OwnedRun) -> None:
        self.state, self.front, self.owned = state, front, owned
        self.run = owned.directory.id
        self.engine = FakeEngine(self.run)

    async def ask(self, *requests: Any) -> list[Reply]:
        return await asyncio.to_thread(self._ask, requests)

    def _ask(self, requests: tuple[Any, ...]) -> list[Reply]:
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger = 0
            client.connect(self.front.control_endpoint)
            for request in requests:
                client.send(msgpack.encode(request))
            replies: list[Reply] = []
            for _ in requests:
                assert client.poll(int(PATIENCE * 1000))
                replies.append(msgpack.decode(client.recv(), type=Reply))
            return replies

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                await asyncio.sleep(0.005)


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(tmp_path / "state")


def run(state: StateDirectory, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        front = FrontProcess(state)
        owned = state.create_run()
        it = Bench(state, front, owned)
        front.on_request = lambda verb: carry_out(it.engine, verb)
        await front.start()
        try:
            assert await front.wait_ready(PATIENCE)
            await story(it)
        finally:
            await front.close()
            owned.ownership.release()

    asyncio.run(main())


def test_each_verb_reaches_the_engine_and_its_answer_comes_back(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        def work() -> tuple[str, str]:
            with Client(state) as client:
                client.pause("last", drain=True)
                client.cancel(it.run[:6], "no use")
                client.rollback(it.run, None, "b", True)
                assert client.why(it.run, "a") == ("a waits for a slot.",)
                with pytest.raises(UsageError, match="not paused"):
                    client.resume(it.run)
                with pytest.raises(CasemateError, match="No space left") as full:
                    client.checkpoint(it.run)
                return client.fork(it.run, "c3"), type(full.value).__name__

        it.engine.gate.set()
        assert await asyncio.to_thread(work) == ("the new run", "CasemateError")
        assert it.engine.told == [
            ("pause", it.run, True),
            ("cancel", it.run, "no use"),
            ("rollback", it.run, None, "b", True),
            ("fork", it.run, "c3"),
        ]
        assert it.front.restarts == 0

    run(state, story)


def test_who_waits_for_a_rollback_holds_up_nobody_and_the_queue_is_bounded(
    state: StateDirectory,
) -> None:
    async def story(it: Bench) -> None:
        # Four clients, for one alone would lose replies that he does not read at once.
        rollbacks = [
            Rollback(version=1, id=number, run=it.run, checkpoint="c0")
            for number in range(CONTROL_OUTSTANDING)
        ]
        waiting = [asyncio.create_task(it.ask(*rollbacks[n::4])) for n in range(4)]
        await it.until(lambda: len(it.engine.told) == CONTROL_OUTSTANDING)
        [listed] = await it.ask(List(version=1, id="x"))
        assert isinstance(listed, Listed)
        [refused] = await it.ask(rollbacks[0])
        assert isinstance(refused, Error) and "under way" in refused.error.message
        it.engine.gate.set()
        replies = [reply for each in waiting for reply in await each]
        assert all(isinstance(reply, Done) for reply in replies)
        assert len(it.engine.told) == CONTROL_OUTSTANDING
        assert it.front.restarts == 0

    run(state, story)


def test_a_request_that_comes_again_is_carried_out_once(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        fork = Fork(version=1, id="a-name-of-its-own", run=it.run, checkpoint="c1")
        first, again = await it.ask(fork, fork)
        assert first == again == Done(id=fork.id, run="the new run")
        assert len(it.engine.told) == 1
        [other] = await it.ask(msgspec.structs.replace(fork, checkpoint="c2"))
        assert isinstance(other, Error) and other.error.kind == ControlError.BAD_REQUEST
        pause = Pause(version=1, id=1, run=it.run)
        await it.ask(pause, pause)
        assert len(it.engine.told) == 3  # numbers name nothing

    run(state, story)


def test_a_reply_is_kept_whatever_is_asked_meanwhile(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.supervisor.front.CONTROL_REPLIES_KEPT", 2)

    async def story(it: Bench) -> None:
        fork = Fork(version=1, id="a-fork", run=it.run, checkpoint="c1")
        await it.ask(fork)
        await it.ask(*(Why(version=1, id=f"why-{n}", run=it.run, task="a") for n in range(9)))
        await it.ask(fork)
        assert it.engine.told == [("fork", it.run, "c1")]

    run(state, story)


def test_a_request_that_is_under_way_is_not_forgotten(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.supervisor.front.CONTROL_REPLIES_KEPT", 2)

    async def story(it: Bench) -> None:
        rollback = Rollback(version=1, id="a-rollback", run=it.run, checkpoint="c0")
        first = asyncio.create_task(it.ask(rollback))
        await it.until(lambda: it.engine.told)
        for n in range(4):
            await it.ask(Pause(version=1, id=f"pause-{n}", run=it.run))
        again = asyncio.create_task(it.ask(rollback))
        await it.until(lambda: len(it.front._steering) == 2)
        it.engine.gate.set()
        assert await first == await again
        assert [told[0] for told in it.engine.told].count("rollback") == 1
        assert len(it.front._replies) <= 3

    run(state, story)


def test_a_front_that_dies_in_between_does_not_lose_a_clients_request(
    state: StateDirectory,
) -> None:
    async def story(it: Bench) -> None:
        def work() -> None:
            with Client(state) as client:
                client.rollback(it.run, "c0", None)

        asked = asyncio.create_task(asyncio.to_thread(work))
        await it.until(lambda: it.engine.told)
        assert it.front.pid is not None
        os.kill(it.front.pid, signal.SIGKILL)
        await it.until(lambda: it.front.restarts == 1)
        it.engine.gate.set()
        await asked
        assert len(it.engine.told) == 1

    run(state, story)


@pytest.mark.parametrize(
    "request_",
    [
        {"verb": "pause", "version": 1, "id": 1, "run": "x" * 65},
        {"verb": "cancel", "version": 1, "id": 1, "run": "last", "reason": "x" * 1001},
        {"verb": "pause", "version": 1, "id": "i" * 129, "run": "last"},
        {"verb": "rollback", "version": 1, "id": 1, "run": "last", "before": ["a"]},
        {"verb": "fork", "version": 1, "id": 1, "run": "last"},
        {"verb": "pause", "version": 1, "id": 1, "run": "last", "more": 1},
    ],
)
def test_a_malformed_request_never_reaches_the_engine(
    state: StateDirectory, request_: dict[str, Any]
) -> None:
    async def story(it: Bench) -> None:
        [reply] = await it.ask(request_)
        assert isinstance(reply, Error) and reply.error.kind == ControlError.BAD_REQUEST
        assert it.engine.told == [] and it.front.restarts == 0

    run(state, story)


def test_the_largest_request_there_can_be_fits(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        largest = Cancel(version=1, id="\U0010ffff" * 128, run="last", reason="\U0010ffff" * 1000)
        [reply] = await it.ask(largest)
        assert isinstance(reply, Done)
        assert it.engine.told == [("cancel", it.run, largest.reason)]

    run(state, story)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


STEER = {"type": "steer", "verb": {"verb": "list", "version": 1, "id": 1}, "number": 1}


@pytest.mark.parametrize(
    "said",
    [
        framed(b"\xc1"),
        framed(b"\x91" * 8000),
        framed(msgpack.encode(STEER)),
        framed(msgpack.encode({"type": "listening"})),
        (CONTROL_VERB_SIZE + 1).to_bytes(4, "little"),
        b"\xff\xff\xff\xff",
    ],
    ids=["garbage", "deep", "no verb", "again", "oversized", "huge"],
)
def test_a_front_that_breaks_the_rules_is_killed_and_replaced(
    state: StateDirectory, said: bytes
) -> None:
    async def story(it: Bench) -> None:
        # As if the front had said it: the engine's end of a channel whose other end is ours. The
        # real one stays open: a front that is left ends, and takes its folder along.
        channel, epoch = it.front._channel, it.front.epoch
        assert channel is not None
        ours, theirs = socket.socketpair()
        with channel, theirs:
            loop = asyncio.get_running_loop()
            loop.remove_reader(channel)
            ours.setblocking(False)
            it.front._channel = ours
            loop.add_reader(ours, it.front._on_readable)
            theirs.sendall(said)
            await it.until(lambda: it.front.restarts == 1 and it.front.epoch != epoch)
        assert await it.front.wait_ready(PATIENCE)
        [reply] = await it.ask(Pause(version=1, id=1, run=it.run))
        assert isinstance(reply, Done)

    run(state, story)


def test_a_run_of_nobody_is_a_clear_error(state: StateDirectory) -> None:
    owned = state.create_run()
    with Client(state, patience=0.2) as client:
        with pytest.raises(CasemateError, match=f"pid {os.getpid()}.*cannot be reached"):
            client.pause(owned.directory.id)
        owned.ownership.release()
        with pytest.raises(UsageError, match="no living supervisor owns it"):
            client.pause(owned.directory.id)
        with pytest.raises(UsageError, match="no run 'zz'"):
            client.pause("zz")


def test_a_run_of_another_supervisor_is_not_found_here(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        it.engine.runs.clear()
        [reply] = await it.ask(Pause(version=1, id=1, run=it.run))
        assert isinstance(reply, Error) and reply.error.kind == ControlError.NOT_FOUND

    run(state, story)


def test_a_run_that_nobody_owns_is_taken_up_for_what_it_allows(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        it.engine.runs.clear()
        it.engine.free.add(it.run)
        back = Rollback(version=1, id=1, run=it.run, before="a")
        apply = Apply(version=1, id=2, run=it.run[:10], allow=("bin/",), dry_run=True)
        it.engine.gate.set()
        done, applied, refused = await it.ask(back, apply, Pause(version=1, id=3, run=it.run))
        assert isinstance(done, Done) and done.run == it.run
        assert applied == control.Applied(id=2, run=it.run, written=1, size=2, removed=3, folders=4)
        assert isinstance(refused, Error) and refused.error.kind == ControlError.NOT_FOUND
        assert it.engine.told == [
            ("rollback", it.run, None, "a", False),
            ("apply", msgspec.structs.replace(apply, run=it.run)),
        ]

    run(state, story)


def test_the_largest_request_that_steers_reaches_the_engine(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        it.engine.free.add(it.run)
        paths = ("\U0001f4a3" * CONTROL_PATH_LENGTH,) * CONTROL_PATHS
        name = "\U0001f4a3" * NAME_LENGTH
        long = Apply(version=1, id="\U0001f4a3" * 128, run=it.run, checkpoint=name, allow=paths)
        [applied] = await it.ask(long)
        assert isinstance(applied, control.Applied)
        [refused] = await it.ask(msgspec.structs.replace(long, id=1, allow=(*paths, "")))
        assert isinstance(refused, Error) and refused.error.kind == ControlError.BAD_REQUEST

    run(state, story)


def test_whoever_serves_is_told_to_end(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        [done] = await it.ask(Shutdown(version=1, id=1, drain=2.5))
        assert done == Done(id=1, run="")
        assert it.engine.told == [("shut_down", 2.5)]

    run(state, story)


def test_breakers_are_steered_without_a_run_and_read_by_the_front(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        replies = await it.ask(
            OpenBreaker(version=CONTROL_VERSION, id="a", key="k", open_for=7.0),
            ResetBreaker(version=CONTROL_VERSION, id="b", key="k"),
            {"verb": "open_breaker", "version": CONTROL_VERSION, "id": 3, "key": "/no"},
            Breakers(version=CONTROL_VERSION, id=4),
        )
        answered = {reply.id: reply for reply in replies}
        opened, closed, refused, shown = (answered[each] for each in ("a", "b", 3, 4))
        assert isinstance(opened, BreakersShown)
        assert [(each.key, each.state, each.open_for) for each in opened.breakers] == [
            ("k", "open", 7.0)
        ]
        assert isinstance(closed, BreakersShown)
        assert [each.state for each in closed.breakers] == ["closed"]
        assert isinstance(refused, Error)
        assert refused.error.kind is ControlError.BAD_REQUEST
        assert isinstance(shown, BreakersShown)
        assert shown.breakers == ()  # the fake engine writes nothing

    run(state, story)
