"""The front, with real sockets: observers see everything, and nothing they do reaches the engine.

`Observer` is what a stranger would write from protocol/control.py alone: pyzmq and msgpack.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from casemate.protocol.control import (
    ControlError,
    Error,
    Fetch,
    Fetched,
    Frame,
    List,
    Listed,
    Replay,
    Replayed,
    Reply,
    Request,
    RunState,
    Show,
    Shown,
)
from casemate.protocol.events import (
    EventData,
    RunCompleted,
    RunStarted,
    TaskCompleted,
    TaskEmitted,
    TaskReady,
    TaskStarted,
)
from casemate.protocol.limits import (
    FRONT_BUFFER_SIZE,
    FRONT_FILES,
    FRONT_MEMORY,
    INLINE_VALUE_SIZE,
    PUBLISHED_EVENT_SIZE,
    REPLAY_PAGE_EVENTS,
    REPLAY_PAGE_SIZE,
)
from casemate.supervisor.front import FrontProcess, encode_frames
from casemate.supervisor.journal import Entry, Journal
from casemate.supervisor.state import OwnedRun, StateDirectory, make_runtime_directory
from core.simulated import make_pipeline, make_task, raw
from fakes import PATIENCE, wait_until
from msgspec import Raw, Struct, msgpack

PATIENCE_MS = int(PATIENCE * 1000)
LARGE = Raw(msgpack.encode(b"large " * INLINE_VALUE_SIZE))
SPEC = make_pipeline([make_task("a"), make_task("b")])
STARTED = RunStarted(pipeline="review", input=Raw(b"\xc0"), seed=7, spec=raw(SPEC))


class Observer(threading.Thread):
    """Follows one run losslessly: subscribe, wait for a heartbeat, replay, mend holes."""

    def __init__(self, events: str, control: str, run: str, queue: int = 1000) -> None:
        super().__init__()
        self.endpoints, self.run_id, self.queue = (events, control), run, queue
        self.seen: list[int] = []
        self.kinds: list[str] = []
        self.epochs: list[int] = []
        self.replays = 0
        self.is_attached = threading.Event()
        self.is_stopped = threading.Event()

    def run(self) -> None:
        with zmq.Context() as context:
            self.follow(context)

    def follow(self, context: zmq.Context[Any]) -> None:
        live = context.socket(zmq.SUB)
        live.linger, live.rcvhwm = 0, self.queue
        live.subscribe(f"ev.{self.run_id}.")
        live.subscribe("hb.")
        live.connect(self.endpoints[0])
        self.control = context.socket(zmq.DEALER)
        self.control.linger = 0
        self.control.connect(self.endpoints[1])
        with live, self.control:
            while "run.completed" not in self.kinds and not self.is_stopped.is_set():
                if not live.poll(100):
                    continue
                topic, header, payload = live.recv_multipart()
                head = msgpack.decode(header)
                if self.epochs[-1:] != [head["epoch"]]:
                    self.epochs.append(head["epoch"])
                    self.replay()
                    self.is_attached.set()
                if topic == b"hb.":
                    if msgpack.decode(payload).get(self.run_id, 0) > len(self.seen):
                        self.replay()
                else:
                    if head["seq"] > len(self.seen) + 1:
                        self.replay()
                    self.take(head)

    def take(self, head: dict[str, Any]) -> None:
        if head["seq"] == len(self.seen) + 1:
            self.seen.append(head["seq"])
            self.kinds.append(head["kind"])

    def replay(self) -> None:
        self.replays += 1
        while not self.is_stopped.is_set():
            request = {"verb": "replay", "version": 1, "id": self.replays, "run": self.run_id}
            request["since"] = len(self.seen)
            self.control.send(msgpack.encode(request))
            if not self.control.poll(5000):
                continue  # the front died under it: the next one answers
            reply = msgpack.decode(self.control.recv())
            if reply["reply"] == "error":
                return
            for _, header, _ in reply["events"]:
                self.take(msgpack.decode(header))
            if len(self.seen) >= reply["last_seq"]:
                return


class Bench:
    """A journal and a front, wired as the engine wires them."""

    def __init__(self, state: StateDirectory) -> None:
        self.loop = asyncio.get_running_loop()
        self.state = state
        self.front = FrontProcess(state)
        self.runs: list[OwnedRun] = []
        self.committed: dict[str, int] = {}
        self.journal = Journal(
            lambda commit: self.tell(self.published, encode_frames(commit)),
            lambda run, error: self.tell(self.failed, run, error),
        )

    def tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the test is over
            self.loop.call_soon_threadsafe(function, *arguments)

    def published(self, frames: Any) -> None:
        self.front.publish(frames)
        self.committed[frames.run] = frames.last_seq

    def failed(self, run: str, error: Exception) -> None:
        raise error

    def begin(self) -> str:
        owned = self.state.create_run()
        self.runs.append(owned)
        self.journal.open(owned.directory)
        return owned.directory.id

    def append(self, run: str, *data: EventData, task: str | None = "a") -> range:
        items: list[Entry] = [(task, None if task is None else 1, 1.5, one) for one in data]
        return self.journal.append(run, items)

    async def until_committed(self, run: str, seq: int) -> None:
        await until(lambda: self.committed.get(run, 0) >= seq)

    async def observer(self, run: str, **options: Any) -> Observer:
        front = self.front
        observer = Observer(front.events_endpoint, front.control_endpoint, run, **options)
        observer.start()
        await asyncio.to_thread(observer.is_attached.wait, PATIENCE)
        return observer

    async def ask(self, request: Request, kind: int = zmq.DEALER) -> Reply:
        reply = await asyncio.to_thread(ask, self.front.control_endpoint, request, kind)
        decoded: Reply = msgpack.decode(reply, type=Reply)
        return decoded


def ask(endpoint: str, request: Struct | bytes, kind: int = zmq.DEALER) -> bytes:
    with zmq.Context() as context, context.socket(kind) as client:
        client.linger = 0
        client.connect(endpoint)
        client.send(request if isinstance(request, bytes) else msgpack.encode(request))
        assert client.poll(PATIENCE_MS)
        return client.recv()


async def until(holds: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, "waited in vain"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def bench(state: StateDirectory) -> AsyncIterator[Bench]:
    it = Bench(state)
    await it.front.start()
    try:
        assert await it.front.wait_ready(PATIENCE)
        yield it
    finally:
        await asyncio.to_thread(it.journal.close)
        await asyncio.sleep(0)
        await it.front.close()
        for owned in it.runs:
            owned.ownership.release()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(tmp_path / "state")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Like tmp_path, where the path of a socket fits."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def run(state: StateDirectory, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with bench(state) as it:
            await story(it)

    asyncio.run(main())


# ------------------------------------------------------------------------------------- observers


@pytest.mark.parametrize("queue", [1000, 2], ids=["fast", "slow"])
def test_an_observer_sees_every_seq_once_and_in_order(state: StateDirectory, queue: int) -> None:
    count = 20_000

    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, STARTED, task=None)
        await it.until_committed(name, 1)
        observer = await it.observer(name, queue=queue)
        for number in range(0, count, 100):
            it.append(name, *[TaskEmitted(Raw(msgpack.encode(number)))] * 100)
            if number % 1000 == 0:
                await asyncio.sleep(0)
        it.append(name, RunCompleted({}), task=None)
        await asyncio.to_thread(observer.join, PATIENCE)
        assert observer.seen == list(range(1, count + 3))
        assert observer.kinds[0] == "run.started"
        assert len(observer.epochs) == 1

    run(state, story)


def test_two_observers_of_two_runs_see_only_their_own(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        names = [it.begin(), it.begin()]
        observers = []
        for name in names:
            it.append(name, STARTED, task=None)
            await it.until_committed(name, 1)
            observers.append(await it.observer(name))
        for number in range(200):
            it.append(names[number % 2], TaskReady())
        for name in names:
            it.append(name, RunCompleted({}), task=None)
        for observer in observers:
            await asyncio.to_thread(observer.join, PATIENCE)
            assert observer.seen == list(range(1, 103))

    run(state, story)


def test_published_frames_are_what_the_wire_says(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        name = it.begin()
        with zmq.Context() as context, context.socket(zmq.SUB) as live:
            live.linger = 0
            live.subscribe(b"")
            live.connect(it.front.events_endpoint)

            def receive() -> list[bytes]:
                assert live.poll(PATIENCE_MS)
                return live.recv_multipart()

            # A heartbeat answers the subscription.
            topic, header, payload = await asyncio.to_thread(receive)
            assert topic == b"hb." and msgpack.decode(payload) == {}
            assert msgpack.decode(header)["epoch"] == it.front.epoch
            it.append(name, STARTED, task=None)
            it.append(name, TaskReady(), TaskCompleted(LARGE, 0.5))
            frames: list[list[bytes]] = []
            while len(frames) < 3:
                frame = await asyncio.to_thread(receive)
                if frame[0] != b"hb.":
                    frames.append(frame)
            assert [frame[0].decode() for frame in frames] == [
                f"ev.{name}..run.started.",
                f"ev.{name}.a.task.ready.",
                f"ev.{name}.a.task.completed.",
            ]
            assert frames[0][2] == msgpack.encode(STARTED)
            common = {"epoch": it.front.epoch, "time": 1.5, "version": 1}
            assert [msgpack.decode(frame[1]) for frame in frames] == [
                common | {"seq": 1, "kind": "run.started"},
                common | {"seq": 2, "kind": "task.ready", "task_seq": 1, "attempt": 1},
                common
                | {"seq": 3, "kind": "task.completed", "task_seq": 2, "attempt": 1}
                | {"omitted": {"output": len(LARGE)}},
            ]
            assert msgpack.decode(frames[2][2]) == {
                "output": None,
                "seconds": 0.5,
                "layer": None,
            }
            # Every second, also when nothing happens.
            beats: list[Any] = []
            while len(beats) < 2:
                topic, header, payload = await asyncio.to_thread(receive)
                beats.append(msgpack.decode(payload))
            assert beats[-1] == {name: 3}

    run(state, story)


def test_a_stalled_observer_costs_the_others_nothing(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, STARTED, task=None)
        await it.until_committed(name, 1)
        with zmq.Context() as context, context.socket(zmq.SUB) as stalled:
            stalled.linger, stalled.rcvhwm = 0, 1
            stalled.subscribe(b"")
            stalled.connect(it.front.events_endpoint)
            assert await asyncio.to_thread(stalled.poll, PATIENCE_MS)
            observer = await it.observer(name)
            for _ in range(300):
                it.append(name, *[TaskEmitted(Raw(b"\xc4\xff" + b"x" * 255))] * 100)
                await asyncio.sleep(0)
            it.append(name, RunCompleted({}), task=None)
            await asyncio.to_thread(observer.join, PATIENCE)
            assert observer.seen == list(range(1, 30_003))
        assert it.front.restarts == 0

    run(state, story)


# ------------------------------------------------------------------------- death and restart


def test_a_killed_front_is_followed_by_another_epoch_and_observers_catch_up(
    state: StateDirectory,
) -> None:
    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, STARTED, task=None)
        await it.until_committed(name, 1)
        observer = await it.observer(name)
        epochs = [it.front.epoch]
        for _ in range(3):
            it.append(name, *[TaskReady()] * 500)
            assert it.front.pid is not None
            os.kill(it.front.pid, signal.SIGKILL)
            # The engine goes on as if nothing were.
            it.append(name, *[TaskReady()] * 500)
            await until(lambda: it.front.epoch not in epochs)
            epochs.append(it.front.epoch)
            assert await it.front.wait_ready(PATIENCE)
            (record,) = it.state.living_supervisors()
            assert record.epoch == it.front.epoch
            await until(lambda: observer.epochs[-1] == it.front.epoch)
        it.append(name, RunCompleted({}), task=None)
        await asyncio.to_thread(observer.join, PATIENCE)
        assert observer.seen == list(range(1, 3003))
        assert observer.epochs == epochs
        assert it.front.restarts == 3

    run(state, story)


def test_what_a_stopped_front_cannot_take_is_dropped_and_mended(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, STARTED, task=None)
        await it.until_committed(name, 1)
        observer = await it.observer(name)
        assert it.front.pid is not None
        os.kill(it.front.pid, signal.SIGSTOP)
        item = TaskEmitted(Raw(msgpack.encode(b"x" * 10_000)))
        count = 0
        while it.front.dropped < 500:
            last = it.append(name, *[item] * 100)[-1]
            count += 100
            await it.until_committed(name, last)
            assert it.front._buffered <= FRONT_BUFFER_SIZE
        os.kill(it.front.pid, signal.SIGCONT)
        it.append(name, RunCompleted({}), task=None)
        await asyncio.to_thread(observer.join, PATIENCE)
        assert observer.seen == list(range(1, count + 3))
        assert observer.replays > 1
        assert it.front.restarts == 0

    run(state, story)


def test_a_lost_tail_shows_in_the_heartbeat(state: StateDirectory) -> None:
    """Nothing is published after the hole: only the heartbeat can tell of it."""

    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, STARTED, task=None)
        await it.until_committed(name, 1)
        observer = await it.observer(name)
        assert it.front.pid is not None
        os.kill(it.front.pid, signal.SIGSTOP)
        item = TaskEmitted(Raw(msgpack.encode(b"x" * 10_000)))
        while it.front.dropped == 0:
            last = it.append(name, *[item] * 100)[-1]
            await it.until_committed(name, last)
        last = it.append(name, RunCompleted({}), task=None)[-1]
        await it.until_committed(name, last)
        os.kill(it.front.pid, signal.SIGCONT)
        await asyncio.to_thread(observer.join, PATIENCE)
        assert observer.seen == list(range(1, last + 1))

    run(state, story)


def test_close_leaves_no_process_descriptor_or_file(
    state: StateDirectory, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))

    async def story() -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(3):
            async with bench(state) as it:
                (runtime,) = os.listdir(short_path)
                assert (short_path / runtime).stat().st_mode & 0o777 == 0o700
                assert sorted(os.listdir(short_path / runtime)) == [
                    "control.sock",
                    "events.sock",
                    "front.log",
                ]
                pid = it.front.pid
                assert [one.pid for one in state.living_supervisors()] == [os.getpid()]
            assert os.listdir(short_path) == []
            assert os.listdir(state.supervisors) == []
            assert not Path(f"/proc/{pid}").exists()
        assert sorted(os.listdir("/proc/self/fd")) == before

    asyncio.run(story())


def test_close_gives_live_observers_the_tail(state: StateDirectory) -> None:
    async def story() -> None:
        async with bench(state) as it:
            name = it.begin()
            it.append(name, STARTED, task=None)
            await it.until_committed(name, 1)
            observer = await it.observer(name)
            last = it.append(name, *[TaskReady()] * 300)[-1] + 1
            it.append(name, RunCompleted({}), task=None)
            await it.until_committed(name, last)
        await asyncio.to_thread(observer.join, PATIENCE)
        observer.is_stopped.set()
        assert observer.seen == list(range(1, last + 1))

    asyncio.run(story())


def test_close_ends_a_front_that_does_not_listen(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.supervisor.front._CLOSE_DEADLINE", 0.2)

    async def story(it: Bench) -> None:
        assert it.front.pid is not None
        os.kill(it.front.pid, signal.SIGSTOP)

    run(state, story)
    assert os.listdir(state.supervisors) == []


def test_a_front_that_cannot_begin_is_tried_again_and_tells_why(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        front = FrontProcess(state)
        with monkeypatch.context() as patch:
            broken = [sys.executable, "-c", "raise OSError('broken')"]
            patch.setattr("casemate.supervisor.front.command_of", lambda module: broken)
            await front.start()
            await until(lambda: front.restarts >= 2)
            assert front.problem is not None and "broken" in front.problem
            assert not await front.wait_ready(0.01)
        assert await front.wait_ready(PATIENCE)
        await front.close()

    asyncio.run(story())


ENGINE = """
import asyncio, os, sys, time
from pathlib import Path
from casemate.supervisor.front import FrontProcess
from casemate.supervisor.state import StateDirectory
async def main():
    front = FrontProcess(StateDirectory.open(Path(sys.argv[1])))
    await front.start()
    await front.wait_ready()
    print(front.pid, front.events_endpoint.removeprefix("ipc://"), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_a_front_ends_with_its_killed_engine_and_takes_its_sockets_along(
    state: StateDirectory,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(state.path)], stdout=subprocess.PIPE, text=True
    ) as engine:
        try:
            assert engine.stdout is not None
            pid, path = engine.stdout.readline().split()
            assert [one.pid for one in state.living_supervisors()] == [engine.pid]
        finally:
            engine.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in stat_of(int(pid)))
    wait_until(lambda: not Path(path).parent.exists())
    assert list(state.living_supervisors()) == []
    assert os.listdir(state.supervisors) == []


def test_what_both_leave_when_killed_together_is_swept_by_who_looks_next(
    state: StateDirectory,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(state.path)], stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        pid, path = engine.stdout.readline().split()
        os.kill(engine.pid, signal.SIGSTOP)
        os.kill(int(pid), signal.SIGKILL)
        engine.kill()
    assert Path(path).exists()
    assert len(os.listdir(state.supervisors)) == 1
    assert list(state.living_supervisors()) == []
    assert os.listdir(state.supervisors) == []
    assert not Path(path).parent.exists()


def stat_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_a_stuck_front_ends_with_its_engine_too(state: StateDirectory) -> None:
    """Stopped, it reads no EOF and runs no handler; on going on it is ended by the signal."""
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(state.path)], stdout=subprocess.PIPE, text=True
    ) as engine:
        try:
            assert engine.stdout is not None
            pid = int(engine.stdout.readline().split()[0])
            os.kill(pid, signal.SIGSTOP)
        finally:
            engine.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: stat_of(pid) == "Z")


# ---------------------------------------------------------------------------------- its own walls


def test_the_engines_side_imports_no_libzmq() -> None:
    script = """
        import sys
        import casemate.supervisor.journal, casemate.supervisor.front, casemate.supervisor.state
        print([name for name in sys.modules if name.split(".")[0] == "zmq"])
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, check=True
    )
    assert found.stdout == b"[]\n"


def test_the_front_is_capped_and_holds_nothing_of_the_engine(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "hush")

    async def story(it: Bench) -> None:
        pid = it.front.pid
        assert pid is not None
        for kind, most in (
            (resource.RLIMIT_NOFILE, FRONT_FILES),
            (resource.RLIMIT_DATA, FRONT_MEMORY),
            (resource.RLIMIT_CORE, 0),
        ):
            assert resource.prlimit(pid, kind) == (most, most)
        assert b"hush" not in Path(f"/proc/{pid}/environ").read_bytes()
        opened = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
        assert not [path for path in opened if "journal.db" in path or "owner.lock" in path]
        # A group of its own: ^C at the terminal does not reach it.
        assert os.getpgid(pid) == pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        assert children == ""

    run(state, story)


def test_the_runtime_directory_is_private_and_fits_a_socket_path(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(base: Path | str) -> Path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
        path = make_runtime_directory()
        assert path.stat().st_mode & 0o777 == 0o700
        assert len(os.fsencode(path / "control.sock")) <= 107
        path.rmdir()
        return path.parent

    good = short_path / "good"
    good.mkdir(mode=0o700)
    assert made(good) == good
    writable = short_path / "writable"
    writable.mkdir()
    writable.chmod(0o777)
    assert made(writable) == Path("/tmp")
    deep = short_path / ("d" * 100)
    deep.mkdir(mode=0o700)
    assert made(deep) == Path("/tmp")
    assert made("relative") == Path("/tmp")
    assert made(short_path / "missing") == Path("/tmp")
    assert made("") == Path("/tmp")


# --------------------------------------------------------------------------------------- control


def test_runs_are_listed_and_shown_while_they_run_and_after(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, STARTED, task=None)
        it.append(name, TaskReady(), TaskStarted(5, {}))
        await it.until_committed(name, 3)
        listed = await it.ask(List(version=1, id="x"))
        assert isinstance(listed, Listed) and listed.id == "x"
        assert [(one.id, one.state) for one in listed.runs] == [(name, RunState.RUNNING)]
        shown = await it.ask(Show(version=1, id=2, run="last"), zmq.REQ)
        assert isinstance(shown, Shown)
        assert (shown.run.id, shown.run.pipeline, shown.as_of) == (name, "review", 3)
        assert [(one.id, one.state) for one in shown.tasks] == [("a", "running"), ("b", "waiting")]
        done = TaskCompleted(Raw(b"\xc0"), 1.0)
        it.append(name, done)
        it.append(name, TaskReady(), TaskStarted(6, {}), done, task="b")
        it.append(name, RunCompleted({}), task=None)
        await it.until_committed(name, 8)
        it.journal.close_run(name, it.runs[0].ownership.release)
        await until(lambda: not it.runs[0].directory.is_owned())
        shown = await it.ask(Show(version=1, id=2, run=name[:10]))
        assert isinstance(shown, Shown) and shown.run.state == RunState.COMPLETED

    run(state, story)


def test_replay_comes_in_bounded_pages_of_frames_as_published(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, *[TaskReady()] * 2500)
        it.append(name, *[TaskEmitted(Raw(msgpack.encode(b"x" * 15_000)))] * 200)
        it.append(name, RunCompleted({"z": LARGE}), task=None)
        await it.until_committed(name, 2701)
        since, pages = 0, 0
        frames: list[Frame] = []
        while since < 2701:
            page = await it.ask(Replay(version=1, id=1, run=name, since=since, limit=10**9))
            assert isinstance(page, Replayed) and page.last_seq == 2701
            assert 0 < len(page.events) <= REPLAY_PAGE_EVENTS
            assert sum(len(frame.payload) for frame in page.events) <= REPLAY_PAGE_SIZE
            frames += page.events
            since = msgpack.decode(page.events[-1].header)["seq"]
            pages += 1
        assert [msgpack.decode(frame.header)["seq"] for frame in frames] == list(range(1, 2702))
        assert pages >= 5
        assert frames[-1].topic == f"ev.{name}..run.completed.".encode()
        assert msgpack.decode(frames[-1].payload) == {"outputs": {"z": None}}
        empty = await it.ask(Replay(version=1, id=1, run=name, since=2701))
        assert isinstance(empty, Replayed) and empty.events == ()

    run(state, story)


def test_a_large_value_is_fetched_in_pieces(state: StateDirectory) -> None:
    value = Raw(msgpack.encode(os.urandom(REPLAY_PAGE_SIZE * 2 + 12345)))

    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, TaskReady(), TaskCompleted(value, 1.0))
        await it.until_committed(name, 2)
        whole = b""
        while True:
            piece = await it.ask(
                Fetch(version=1, id=1, run=name, seq=2, offset=len(whole)), zmq.DEALER
            )
            assert isinstance(piece, Fetched) and len(piece.data) <= REPLAY_PAGE_SIZE
            if not piece.data:
                break
            whole += piece.data
        assert whole == msgpack.encode(TaskCompleted(value, 1.0))
        assert piece.size == len(whole)
        missing = await it.ask(Fetch(version=1, id=1, run=name, seq=3))
        assert isinstance(missing, Error) and missing.error.kind == ControlError.NOT_FOUND

    run(state, story)


def test_an_event_of_many_middling_values_is_published_without_them(state: StateDirectory) -> None:
    outputs = {f"t{number}": Raw(msgpack.encode(b"y" * 10_000)) for number in range(20)}

    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, RunCompleted(outputs), task=None)
        await it.until_committed(name, 1)
        page = await it.ask(Replay(version=1, id=1, run=name))
        assert isinstance(page, Replayed)
        (frame,) = page.events
        assert len(frame.payload) <= PUBLISHED_EVENT_SIZE
        assert msgpack.decode(frame.payload) == {"outputs": None}
        assert msgpack.decode(frame.header)["omitted"] == {"outputs": len(msgpack.encode(outputs))}

    run(state, story)


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        ({"verb": "show", "version": 1, "id": 9, "run": "zz"}, "not_found", "no run"),
        ({"verb": "show", "version": 1, "id": 9, "run": "../../etc"}, "not_found", "no run"),
        ({"verb": "show", "version": 1, "id": 9, "run": ""}, "not_found", "no run"),
        ({"verb": "show", "version": 2, "id": 9, "run": "last"}, "bad_request", "version 2"),
        ({"verb": "erase", "version": 1, "id": 9}, "bad_request", "erase"),
        ({"verb": "list", "version": 1, "id": 9, "more": 1}, "bad_request", "more"),
        ({"verb": "list", "version": 1, "id": 9, "limit": "x"}, "bad_request", "limit"),
        ({"verb": "list", "version": 1, "id": 9, "limit": -1}, "bad_request", "limit"),
        (
            {"verb": "replay", "version": 1, "id": 9, "run": "last", "since": 2**64 - 1},
            "bad_request",
            "since",
        ),
        ({"verb": "show", "version": 1, "id": 9, "run": "x" * 10**6}, "not_found", "no run 'xxx"),
        ({"verb": "replay", "version": 3, "id": 9, "new": 1}, "bad_request", "version 3"),
    ],
)
def test_a_refusal_is_a_reply_that_says_why(
    request_: dict[str, Any], kind: str, words: str, refusing: tuple[str, int]
) -> None:
    reply = msgpack.decode(ask(refusing[0], msgpack.encode(request_)), type=Error)
    assert (reply.id, reply.error.kind) == (9, kind)
    assert words in reply.error.message


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The endpoint and pid of a front that several tests annoy."""
    state = StateDirectory.open(tmp_path_factory.mktemp("refusing") / "state")
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(state.path)], stdout=subprocess.PIPE, text=True
    ) as engine:
        try:
            assert engine.stdout is not None
            pid, path = engine.stdout.readline().split()
            yield "ipc://" + str(Path(path).with_name("control.sock")), int(pid)
        finally:
            engine.kill()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        b"\x81\xa2id" + b"\x91" * 100_000,
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        random.Random(7).randbytes(1000),
        msgpack.encode({"verb": "list", "version": 1, "id": [[[]]]}),
        msgpack.encode([1, 2, 3]),
    ],
    ids=lambda body: body[:8].hex() or "empty",
)
def test_garbage_is_answered_and_the_next_request_served(
    body: bytes, refusing: tuple[str, int]
) -> None:
    endpoint, pid = refusing
    # A REQ socket puts the delimiter before it, so that an empty body is still a request.
    reply = msgpack.decode(ask(endpoint, body, zmq.REQ), type=Error)
    assert (reply.id, reply.error.kind) == (None, ControlError.BAD_REQUEST)
    listed = ask(endpoint, List(version=1, id=1))
    assert msgpack.decode(listed, type=Listed).runs == ()
    assert stat_of(pid) != "Z"


def test_strange_messages_and_half_open_peers_stop_nobody(refusing: tuple[str, int]) -> None:
    endpoint, pid = refusing
    path = endpoint.removeprefix("ipc://")
    with contextlib.ExitStack() as peers:
        for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\x00" * 8 + b"\x7f\x03"):
            for target in (path, str(Path(path).with_name("events.sock"))):
                for _ in range(20):
                    peer = peers.enter_context(socket.socket(socket.AF_UNIX))
                    peer.connect(target)
                    peer.sendall(greeting)
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger = 0
            client.connect(endpoint)
            client.send_multipart([b"part"] * 1000)
            client.send_multipart([b"", b"", b""])
            client.send(msgpack.encode(List(version=1, id=77)))
            ids = []
            while 77 not in ids:
                assert client.poll(PATIENCE_MS)
                ids.append(msgpack.decode(client.recv_multipart()[-1])["id"])
        with zmq.Context() as context, context.socket(zmq.PUB) as wrong:
            wrong.linger = 0
            wrong.connect(endpoint)
            wrong.send(b"nobody hears this")
        assert msgpack.decode(ask(endpoint, List(version=1, id=1)))["id"] == 1
    assert stat_of(pid) != "Z"


def test_a_client_who_does_not_read_his_replies_loses_them(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        name = it.begin()
        it.append(name, *[TaskEmitted(Raw(msgpack.encode(b"x" * 15_000)))] * 100)
        await it.until_committed(name, 100)

        def flood() -> None:
            with zmq.Context() as context, context.socket(zmq.DEALER) as deaf:
                deaf.linger, deaf.rcvhwm, deaf.sndhwm = 0, 1, 0
                deaf.connect(it.front.control_endpoint)
                request = msgpack.encode(Replay(version=1, id=1, run=name))
                for _ in range(300):
                    deaf.send(request)
                reply = ask(it.front.control_endpoint, Replay(version=1, id=5, run=name))
                assert msgpack.decode(reply)["id"] == 5

        await asyncio.to_thread(flood)
        assert it.front.pid is not None and it.front.restarts == 0
        pages = int(Path(f"/proc/{it.front.pid}/statm").read_text().split()[1])
        assert pages * resource.getpagesize() < FRONT_MEMORY // 4

    run(state, story)


def test_a_damaged_run_is_an_error_as_data(state: StateDirectory) -> None:
    async def story(it: Bench) -> None:
        owned = it.state.create_run()
        owned.ownership.release()
        owned.directory.journal.write_bytes(b"not a database, " * 1000)
        reply = await it.ask(Replay(version=1, id=1, run=owned.directory.id))
        assert isinstance(reply, Error) and reply.error.kind == ControlError.DAMAGED
        listed = await it.ask(List(version=1, id=1))
        assert isinstance(listed, Listed)
        assert [one.state for one in listed.runs] == [RunState.DAMAGED]

    run(state, story)
