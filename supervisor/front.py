"""The front: the process that faces observers and clients, and the engine's handle on it.

    engine                                          front (python -I -S, fd 3)
      FrontProcess ── unix stream socketpair ──────▶ main thread     XPUB   events.sock
        batches of committed events, answers         control thread  ROUTER control.sock, which
        ◀── "listening", then requests that steer                     reads journals, read-only

libzmq faces whoever can reach the runtime directory, and a hostile peer can abort or exhaust it;
so it lives here, where death costs nothing: everything published is already in the journal. When
the front dies the engine starts another under a new epoch, and observers replay what they missed.
This module imports zmq only inside the functions that the front process runs.

The engine never waits for the front. What the socket does not take is buffered up to
FRONT_BUFFER_SIZE, beyond it batches are dropped and counted; the last seq of the run still gets
through, so that the next heartbeat shows the hole. An observer who reads slowly loses messages at
his own queue in the front; nobody else notices.

What steers a run is the engine's to do. The front checks such a request, names the run in full, and
passes it on under a number; whoever asked is answered when the engine has, and nobody waits for him
meanwhile. The engine trusts none of it: one strict decoder, a bound on the size of a request, on
how many are under way and how many a second it reads. A front that breaks these is killed, and
replaced; one that was taken over can steer runs as its clients could, and no more.

The control thread exists so that reading a thousand rows for a client does not hold up events.

The front ends on EOF of fd 3 (its engine closed it, or died) after giving live observers a moment
to take the tail, and unlinks its sockets. PDEATHSIG is SIGTERM here, not SIGKILL, which would not
let it: the handler sets an alarm that ends the front for certain two seconds later.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import queue
import secrets
import shutil
import signal
import socket
import sqlite3
import struct
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw, Struct

from ..protocol.control import (
    HEARTBEAT_TOPIC,
    Breakers,
    BreakersShown,
    BreakerVerb,
    ControlAnswer,
    ControlError,
    ControlVerb,
    Error,
    Fetch,
    Fetched,
    Frame,
    Header,
    Heartbeat,
    List,
    Listed,
    Problem,
    Replay,
    Replayed,
    Reply,
    Request,
    RequestId,
    Show,
    Shown,
    Shutdown,
    Submit,
    Upload,
    Uploaded,
    Why,
    topic,
)
from ..protocol.errors import CasemateError, LocalViolation, UsageError
from ..protocol.events import Event
from ..protocol.limits import (
    CONTROL_OUTSTANDING,
    CONTROL_QUEUE,
    CONTROL_RATE,
    CONTROL_REPLIES_KEPT,
    CONTROL_REQUEST_SIZE,
    CONTROL_VERB_SIZE,
    CONTROL_VERSION,
    ENVELOPE_SIZE,
    EVENT_VERSION,
    FRONT_BUFFER_SIZE,
    FRONT_QUEUE_EVENTS,
    HANDSHAKE_SECONDS,
    HEARTBEAT_RUNS,
    HEARTBEAT_SECONDS,
    INLINE_VALUE_SIZE,
    LISTED_RUNS,
    MIB,
    PUBLISHED_EVENT_SIZE,
    REPLAY_PAGE_EVENTS,
    REPLAY_PAGE_SIZE,
    SUBSCRIPTION_SIZE,
)
from .breakers import read_breakers
from .exposed import clean_environment, command_of, limit_self
from .journal import Commit, JournalReader, NotBegunError, Outline
from .overview import describe, list_runs
from .state import RUNTIME_FILES, StateDirectory, make_runtime_directory
from .submissions import Submissions

if TYPE_CHECKING:
    import zmq

__all__ = ["Frames", "FrontProcess", "OnRequest", "encode_frames", "main"]

log = logging.getLogger("casemate.front")

_CHANNEL = 3
_PREFIX = struct.Struct("<I")

# Carries out what a client asked for. UsageError is not for it to raise: refusals are answers.
OnRequest = Callable[[ControlVerb], Awaitable[ControlAnswer]]

# Events of one batch on the channel: the grain in which they are dropped.
_BATCH_EVENTS = 512

# A front that has not bound its sockets by now is stuck: importing zmq and binding takes 0.15 s on
# an idle 2-core VM (Python 3.11), which leaves a hundredfold for load.
_START_DEADLINE = 15.0

# The first restart is at once. One that dies young waits twice as long as the one before, but is
# back within a second whoever kills it: starting takes 0.15 s, so that one who ends every front
# there is has cost a quarter of a processor.
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 0.5
_OLD_AGE = 10.0
# Where none can be started at all.
_UNOBSERVED_DELAY = 5.0

# How long an ending front lets observers take what is queued for them; those who read take it in a
# millisecond, those who do not have lost it anyway.
_PARTING_SECONDS = 0.5
# And how long the engine waits for it to end before it kills it.
_CLOSE_DEADLINE = 3.0

# Welcomes (heartbeats in answer to subscriptions) are at most this often.
_WELCOME_SECONDS = 0.05


class _Hello(Struct, frozen=True):
    """The engine's first message."""

    state: str
    runtime: str
    epoch: int
    engine: int  # its pid


class _Batch(Struct, frozen=True, array_like=True, tag=0):
    events: list[Event]
    omitted: dict[int, dict[str, int]]  # by seq
    last: dict[str, int]  # runs whose events up to here were published or dropped


class _Answered(Struct, frozen=True, array_like=True, tag=1):
    """The engine has carried out, or refused, what the front passed on."""

    number: int
    answer: ControlAnswer


class _Listening(Struct, frozen=True, tag="listening"):
    """The front's first message: both sockets are bound."""


class _Steer(Struct, frozen=True, tag="steer"):
    number: int
    verb: ControlVerb


_encoder = msgspec.msgpack.Encoder()
_from_engine = msgspec.msgpack.Decoder(_Batch | _Answered)
_from_front = msgspec.msgpack.Decoder(_Listening | _Steer)


def _prefixed(message: Struct) -> bytes:
    body = _encoder.encode(message)
    return _PREFIX.pack(len(body)) + body


@dataclass(frozen=True, slots=True)
class Frames:
    """A commit, encoded for the front."""

    run: str
    last_seq: int
    batches: list[tuple[bytes, int]]  # and how many events each holds


def encode_frames(commit: Commit) -> Frames:
    """Pure, and best done in the journal's writer thread: nothing of it is then the loop's."""
    batches: list[tuple[bytes, int]] = []
    events: list[Event] = []
    omitted: dict[int, dict[str, int]] = {}
    size = 0
    outlines = commit.outlines
    for event in commit.events:
        if len(event.data) > INLINE_VALUE_SIZE:
            outline = _shorten(outlines.get(event.seq) or Outline(event, {}))
            event = outline.event
            if outline.omitted:
                omitted[event.seq] = outline.omitted
        events.append(event)
        size += len(event.data)
        if len(events) >= _BATCH_EVENTS or size > MIB // 4:
            batches.append((_prefixed(_Batch(events, omitted, {})), len(events)))
            events, omitted, size = [], {}, 0
    if events:
        batches.append((_prefixed(_Batch(events, omitted, {})), len(events)))
    return Frames(commit.run, commit.events[-1].seq, batches)


def _shorten(outline: Outline) -> Outline:
    """Leave out whole fields where many middling values make an event too large to publish."""
    event, omitted = outline
    if len(event.data) <= PUBLISHED_EVENT_SIZE:
        return outline
    fields = msgspec.msgpack.decode(event.data, type=dict[str, Raw])
    omitted = dict(omitted)
    for name, value in fields.items():
        if len(value) > INLINE_VALUE_SIZE:
            fields[name] = Raw(b"\xc0")
            omitted[name] = len(value)
    return Outline(
        msgspec.structs.replace(event, data=Raw(_encoder.encode(fields))),
        omitted,
    )


# ----------------------------------------------------------------------------- the engine's side


class FrontProcess:
    """Starts the front, feeds it, starts it again. Everything here is for the loop's thread, and
    that thread must outlive the front: PDEATHSIG goes by the thread that forked."""

    def __init__(self, state: StateDirectory, *, accepts: bool = False) -> None:
        self._state = state
        self._accepts = accepts
        self._runtime: Path | None = None
        self._record: Path | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._closing = False
        self._pid = -1
        self._pidfd = -1
        self._channel: socket.socket | None = None
        self._is_writing = False
        self._buffer: deque[tuple[bytes, int]] = deque()
        self._buffered = 0
        self._offset = 0  # of the first batch that was sent
        self._last: OrderedDict[str, int] = OrderedDict()
        self._lagging: dict[str, int] = {}
        self._delay = _FIRST_DELAY
        self._started = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._received = bytearray()
        self._steering: set[int] = set()  # numbers of this front that are under way
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies: OrderedDict[str, tuple[ControlVerb, asyncio.Future[ControlAnswer]]] = (
            OrderedDict()
        )
        self._allowance = 0.0  # of requests, refilled at CONTROL_RATE
        self._allowed_at = 0.0
        self._reading_again: asyncio.TimerHandle | None = None
        # None: nobody may steer (yet, or any more).
        self.on_request: OnRequest | None = None
        self.epoch = 0
        self.dropped = 0  # events that never reached the front
        self.restarts = 0
        self.problem: str | None = None  # what the last front that died said

    @property
    def pid(self) -> int | None:
        """For messages; None between two fronts."""
        return self._pid if self._pidfd >= 0 else None

    @property
    def runtime(self) -> Path:
        """Its folder, ours alone and gone after `close`; swept if nobody lives to remove it. The
        engine's links pass through it too."""
        assert self._runtime is not None
        return self._runtime

    @property
    def events_endpoint(self) -> str:
        return f"ipc://{self._runtime}/events.sock"

    @property
    def control_endpoint(self) -> str:
        return f"ipc://{self._runtime}/control.sock"

    async def start(self) -> None:
        """Start it; what is published before it listens waits in the buffer."""
        self._loop = asyncio.get_running_loop()
        self._runtime = await asyncio.to_thread(make_runtime_directory)
        self._spawn()

    async def wait_ready(self, patience: float = _START_DEADLINE) -> bool:
        """Until the front of this moment's epoch listens and clients can find it. False where it
        does not within `patience` seconds: runs go on without observers, `problem` says why."""
        try:
            await asyncio.wait_for(self._ready.wait(), patience)
        except TimeoutError:
            return False
        return True

    def publish(self, frames: Frames) -> None:
        """Hand over committed events. Never waits; drops what FRONT_BUFFER_SIZE cannot hold."""
        last = self._last
        last[frames.run] = frames.last_seq
        last.move_to_end(frames.run)
        if len(last) > HEARTBEAT_RUNS:
            last.popitem(last=False)
        for batch, count in frames.batches:
            if self._buffered + len(batch) > FRONT_BUFFER_SIZE:
                self.dropped += count
                self._lagging[frames.run] = frames.last_seq
                if len(self._lagging) > HEARTBEAT_RUNS:
                    del self._lagging[next(iter(self._lagging))]
            else:
                self._buffer.append((batch, count))
                self._buffered += len(batch)
        if not self._is_writing and self._channel is not None:
            self._flush()

    async def close(self) -> None:
        """End the front; no process, descriptor or file of it is left."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.on_request = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._channel is not None:
            # Half a close: the front sees EOF behind what is still in the socket.
            if self._buffer:
                await self._drain()
            self._stop_writing()
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
        if self._pidfd >= 0:
            try:
                await asyncio.wait_for(self._ended.wait(), _CLOSE_DEADLINE)
            except TimeoutError:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                await self._ended.wait()
        if self._announcing is not None:
            await self._announcing
        await asyncio.to_thread(self._remove_files)

    async def _drain(self) -> None:
        """Let a front that reads have what is buffered."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PARTING_SECONDS):
                while self._buffer and self._pidfd >= 0:
                    await asyncio.sleep(0.005)

    def _remove_files(self) -> None:
        if self._record is not None:
            self._record.unlink(missing_ok=True)
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)

    # ---- one life of the front

    def _spawn(self) -> None:
        assert self._loop is not None and self._runtime is not None
        # 53 bits: a number that JavaScript can hold too.
        self.epoch = secrets.randbits(53)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            ours.setblocking(False)
            # dup2(3, 3) would leave the descriptor close-on-exec.
            inherited = os.dup(theirs.fileno())
            spare = []
            while inherited == _CHANNEL:
                spare.append(inherited)
                inherited = os.dup(theirs.fileno())
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    command_of(__name__),
                    clean_environment(),
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (
                            os.POSIX_SPAWN_OPEN,
                            1,
                            str(self._log),
                            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND,
                            0o600,
                        ),
                        (os.POSIX_SPAWN_DUP2, 1, 2),
                        (os.POSIX_SPAWN_DUP2, inherited, _CHANNEL),
                    ],
                    # A group of its own: ^C at the terminal is for the engine.
                    setpgroup=0,
                    setsigmask=[],
                    setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGALRM],
                )
            except BaseException:
                ours.close()
                raise
            finally:
                for descriptor in (inherited, *spare):
                    os.close(descriptor)
        self._pidfd = os.pidfd_open(self._pid)
        self._started = self._loop.time()
        self._channel = ours
        self._received = bytearray()
        self._steering = set()
        self._allowance, self._allowed_at = float(CONTROL_OUTSTANDING), self._started
        self._ended.clear()
        self._loop.add_reader(self._pidfd, self._on_death)
        self._loop.add_reader(ours, self._on_readable)
        self._timer = self._loop.call_later(_START_DEADLINE, self._kill)
        hello = _Hello(str(self._state.path), str(self._runtime), self.epoch, os.getpid())
        # A fresh socket takes both at once; what is already buffered follows.
        first = [_prefixed(hello)]
        if self._last:
            first.append(_prefixed(_Batch([], {}, dict(self._last))))
        for message in reversed(first):
            self._buffer.appendleft((message, 0))
            self._buffered += len(message)
        self._offset = 0
        self._flush()

    @property
    def _log(self) -> Path:
        assert self._runtime is not None
        return self._runtime / "front.log"

    # ---- reading

    def _on_readable(self) -> None:
        assert self._loop is not None and self._channel is not None
        try:
            said = self._channel.recv(CONTROL_VERB_SIZE)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            # Gone, or as good as gone; its pidfd tells us which.
            self._loop.remove_reader(self._channel)
            self._kill()
            return
        self._received += said
        self._take_requests()

    def _take_requests(self) -> None:
        """Handle what was read; where that comes too fast, read no further for a moment."""
        assert self._loop is not None and self._channel is not None
        self._reading_again = None
        now = self._loop.time()
        earned = (now - self._allowed_at) * CONTROL_RATE
        self._allowance = min(self._allowance + earned, float(CONTROL_OUTSTANDING))
        self._allowed_at = now
        received = self._received
        while len(received) >= _PREFIX.size:
            (size,) = _PREFIX.unpack_from(received)
            end = _PREFIX.size + size
            if size > CONTROL_VERB_SIZE:
                self._distrust(f"a message of {size} bytes")
                return
            if len(received) < end:
                break
            if self._allowance < 1:
                self._loop.remove_reader(self._channel)
                wait = (1 - self._allowance) / CONTROL_RATE
                self._reading_again = self._loop.call_later(wait, self._take_requests)
                return
            self._allowance -= 1
            body = bytes(received[_PREFIX.size : end])
            del received[:end]
            if not self._take(body):
                return
        self._loop.add_reader(self._channel, self._on_readable)

    def _take(self, body: bytes) -> bool:
        try:
            message = _from_front.decode(body)
        except (ValueError, RecursionError) as error:
            self._distrust(f"a message that is none: {error}")
            return False
        # It says once, and first of all, that it listens.
        if isinstance(message, _Listening) == self._is_listening:
            self._distrust("a message out of order")
        elif isinstance(message, _Listening):
            self._listening()
            return True
        elif message.number in self._steering or len(self._steering) >= CONTROL_OUTSTANDING:
            self._distrust("more requests than it may have under way")
        else:
            self._steer(message)
            return True
        return False

    @property
    def _is_listening(self) -> bool:
        return self._timer is None

    def _distrust(self, why: str) -> None:
        assert self._loop is not None and self._channel is not None
        self.problem = f"front killed: it sent {why}"
        self._loop.remove_reader(self._channel)
        self._kill()

    def _listening(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._announcing = self._loop.create_task(self._announce(self.epoch))

    def _steer(self, asked: _Steer) -> None:
        assert self._loop is not None
        self._steering.add(asked.number)
        task = self._loop.create_task(self._carry_out(asked.number, asked.verb, self.epoch))
        self._tasks.add(task)
        task.add_done_callback(self._steered)

    def _steered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # a bug of ours: for the loop's handler, as of any callback

    async def _carry_out(self, number: int, verb: ControlVerb, epoch: int) -> None:
        answer = await self._answer(verb)
        if epoch != self.epoch or self._channel is None:
            return  # the front that asked is gone; its client asks again
        self._steering.discard(number)
        message = _prefixed(_Answered(number, answer))
        # Never dropped: there are no more of them than requests under way.
        self._buffer.append((message, 0))
        self._buffered += len(message)
        if not self._is_writing:
            self._flush()

    async def _answer(self, verb: ControlVerb) -> ControlAnswer:
        act = self.on_request
        if act is None:
            problem = Problem(ControlError.REFUSED, "this supervisor takes no requests now")
            return Error(id=verb.id, error=problem)
        # Numbers name nothing; and whoever may only ask why takes no place of what is kept for
        # those who steer.
        if not isinstance(verb.id, str) or isinstance(verb, Why):
            return await act(verb)
        known = self._replies.get(verb.id)
        if known is not None:
            if known[0] != verb:
                problem = Problem(
                    ControlError.BAD_REQUEST, "this id has named another request before"
                )
                return Error(id=verb.id, error=problem)
            return await asyncio.shield(known[1])
        reply = asyncio.ensure_future(act(verb))
        self._replies[verb.id] = (verb, reply)
        if len(self._replies) > CONTROL_REPLIES_KEPT:
            # One that is not there yet is asked for again above all: those are no more than the
            # requests under way.
            done = (name for name, (_, each) in self._replies.items() if each.done())
            if (oldest := next(done, None)) is not None:
                del self._replies[oldest]
        return await reply

    async def _announce(self, epoch: int) -> None:
        try:
            self._record = await asyncio.to_thread(
                partial(
                    self._state.announce,
                    self.events_endpoint,
                    self.control_endpoint,
                    epoch,
                    self._record,
                    accepts=self._accepts,
                )
            )
        except OSError as error:
            # Observers who are told the path still come in; others do not find it.
            self.problem = f"supervisor not announced: {error}"
        if epoch == self.epoch and self._pidfd >= 0:
            self._ready.set()

    def _kill(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _on_death(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._pidfd)
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        self._pidfd = -1
        self._ready.clear()
        if self._reading_again is not None:
            self._reading_again.cancel()
            self._reading_again = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._channel is not None:
            self._stop_writing()
            self._loop.remove_reader(self._channel)
            self._channel.close()
            self._channel = None
        # A batch that was half sent was not seen by anybody: the next front gets it whole. What
        # has no events in it belonged to the dead one.
        kept = [batch for batch in self._buffer if batch[1]]
        self._buffer = deque(kept)
        self._buffered = sum(len(batch) for batch, _ in kept)
        self._ended.set()
        if self._closing:
            return
        self.restarts += 1
        with contextlib.suppress(OSError):
            self.problem = self._log.read_text("utf-8", "replace")[-2000:].strip() or self.problem
        log.warning(
            "the front died and is started again, under a new epoch: %s", self.problem or "killed"
        )
        lived = self._loop.time() - self._started
        self._delay = _FIRST_DELAY if lived > _OLD_AGE else min(self._delay * 2, _LONGEST_DELAY)
        self._timer = self._loop.call_later(self._delay, self._respawn)

    def _respawn(self) -> None:
        assert self._loop is not None
        try:
            self._spawn()
        except OSError as error:
            # Out of descriptors or processes: the run goes on without observers until it passes.
            self.problem = f"front not started: {error}"
            log.warning("%s; the runs go on unobserved", self.problem)
            self._timer = self._loop.call_later(_UNOBSERVED_DELAY, self._respawn)

    # ---- writing

    def _flush(self) -> None:
        assert self._loop is not None and self._channel is not None
        buffer = self._buffer
        try:
            while True:
                while buffer:
                    batch = buffer[0][0]
                    sent = self._channel.send(memoryview(batch)[self._offset :])
                    self._offset += sent
                    if self._offset == len(batch):
                        buffer.popleft()
                        self._buffered -= len(batch)
                        self._offset = 0
                if not self._lagging:
                    break
                message = _prefixed(_Batch([], {}, self._lagging))
                self._lagging = {}
                buffer.append((message, 0))
                self._buffered += len(message)
        except BlockingIOError:
            if not self._is_writing:
                self._loop.add_writer(self._channel, self._flush)
                self._is_writing = True
        except OSError:
            # Gone: its pidfd tells us, and decides what comes next.
            self._stop_writing()
            self._is_writing = True
        else:
            self._stop_writing()

    def _stop_writing(self) -> None:
        if self._is_writing:
            assert self._loop is not None and self._channel is not None
            self._loop.remove_writer(self._channel)
            self._is_writing = False


# ------------------------------------------------------------------------------ the front process


def main() -> None:
    """The front's whole life. Fd 3 is the channel."""
    channel = socket.socket(fileno=_CHANNEL)
    channel.set_inheritable(False)
    hello = _read_hello(channel)
    status = 1
    try:
        _end_with(hello.engine)
        limit_self()
        _Front(channel, hello).serve()
        # EOF: the engine closed or died. If it lives it removes what others keep there as well.
        for name in RUNTIME_FILES:
            Path(hello.runtime, name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(hello.runtime).rmdir()
        status = 0
    except BaseException:
        traceback.print_exc()
    # Not by way of the interpreter: a context that is collected waits for its sockets.
    sys.stderr.flush()
    os._exit(status)


def _read_hello(channel: socket.socket) -> _Hello:
    def receive(size: int) -> bytes:
        data = channel.recv(size, socket.MSG_WAITALL)
        if len(data) < size:
            raise SystemExit
        return data

    (size,) = _PREFIX.unpack(receive(_PREFIX.size))
    return msgspec.msgpack.decode(receive(size), type=_Hello)


def _end_with(engine: int) -> None:
    from ..sandbox import syscalls

    signal.signal(signal.SIGTERM, _end_for_certain)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != engine:
        # It died before we asked to be told.
        raise SystemExit


def _end_for_certain(signum: int = 0, frame: FrameType | None = None) -> None:
    """Be gone soon. Nothing is cut short: an engine that dies is signal *and* EOF, in any order,
    and EOF is what ends us well. SIGALRM has no handler, so that the kernel does it if we cannot.
    """
    signal.setitimer(signal.ITIMER_REAL, 2 * _PARTING_SECONDS + 1)


class _Front:
    def __init__(self, channel: socket.socket, hello: _Hello) -> None:
        import zmq

        self._channel = channel
        self._channel.setblocking(False)
        self._hello = hello
        self._received = bytearray()
        self._last: OrderedDict[str, int] = OrderedDict()
        self._topics: dict[tuple[str, str | None, str], bytes] = {}
        self._context = zmq.Context()
        self._events = _listen(
            self._context, zmq.XPUB, hello.runtime + "/events.sock", FRONT_QUEUE_EVENTS
        )
        control = _listen(self._context, zmq.ROUTER, hello.runtime + "/control.sock", CONTROL_QUEUE)
        self._engine = _Engine(channel)
        self._control = threading.Thread(
            target=_serve_control,
            args=(control, Path(hello.state), hello.epoch, self._engine),
            name="control",
            daemon=True,
        )

    def serve(self) -> None:
        import zmq

        # From here on the control thread alone writes to the channel, and this one alone reads.
        self._channel.send(_prefixed(_Listening()))
        self._control.start()
        poller = zmq.Poller()
        poller.register(self._channel, zmq.POLLIN)
        poller.register(self._events, zmq.POLLIN)
        now = time.monotonic()
        beat, welcomed, wants_welcome = now, now, False
        while True:
            due = welcomed + _WELCOME_SECONDS if wants_welcome else beat
            wait = max(0.0, min(due, beat) - now)
            ready = dict(poller.poll(int(wait * 1000) + 1))
            if self._events in ready:
                wants_welcome |= self._read_subscriptions()
            if self._channel.fileno() in ready and not self._read_channel():
                break
            now = time.monotonic()
            if now >= beat or (wants_welcome and now >= welcomed + _WELCOME_SECONDS):
                self._send_heartbeat()
                beat, welcomed, wants_welcome = now + HEARTBEAT_SECONDS, now, False
        _end_for_certain()
        self._send_heartbeat()
        self._events.close(linger=int(_PARTING_SECONDS * 1000))
        # Waits for the tail to be taken, and ends the control thread.
        self._context.term()

    def _read_subscriptions(self) -> bool:
        """Take what observers asked for; whether one of them is new."""
        import zmq

        found = False
        # Bounded, so that a flood of subscriptions does not keep events waiting.
        for _ in range(100):
            try:
                parts = self._events.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            found |= parts[0][:1] == b"\x01"
        return found

    def _read_channel(self) -> bool:
        try:
            data = self._channel.recv(MIB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        received = self._received
        received += data
        start = 0
        while len(received) - start >= _PREFIX.size:
            (size,) = _PREFIX.unpack_from(received, start)
            end = start + _PREFIX.size + size
            if len(received) < end:
                break
            message = _from_engine.decode(bytes(received[start + _PREFIX.size : end]))
            if isinstance(message, _Answered):
                self._engine.put_answer(message)
            else:
                self._publish(message)
            start = end
        del received[:start]
        return True

    def _publish(self, batch: _Batch) -> None:
        import zmq

        # Three sends take 1.3 µs, send_multipart 3.6 (pyzmq 27). An XPUB without NODROP never
        # waits: it drops for those whose queue is full, and whole messages only.
        send, more, end = self._events.send, zmq.NOBLOCK | zmq.SNDMORE, zmq.NOBLOCK
        omitted = batch.omitted
        for event in batch.events:
            name, header, payload = _frame(
                event, omitted.get(event.seq, {}), self._hello.epoch, self._topics
            )
            send(name, more)
            send(header, more)
            send(payload, end)
        if batch.events:
            self._note(batch.events[-1].run, batch.events[-1].seq)
        for run, seq in batch.last.items():
            self._note(run, seq)

    def _note(self, run: str, seq: int) -> None:
        last = self._last
        last[run] = max(seq, last.get(run, 0))
        last.move_to_end(run)
        if len(last) > HEARTBEAT_RUNS:
            last.popitem(last=False)

    def _send_heartbeat(self) -> None:
        import zmq

        header = Heartbeat(version=EVENT_VERSION, epoch=self._hello.epoch, time=time.time())
        self._events.send_multipart(
            [HEARTBEAT_TOPIC, _encoder.encode(header), _encoder.encode(dict(self._last))],
            zmq.NOBLOCK,
        )


def _listen(context: zmq.Context[Any], kind: int, path: str, queue: int) -> zmq.Socket[Any]:
    import zmq

    listener: zmq.Socket[Any] = context.socket(kind)
    listener.linger = 0
    listener.sndhwm = queue
    listener.rcvhwm = 100
    # Subscriptions are names; requests are what control.py describes.
    listener.maxmsgsize = CONTROL_REQUEST_SIZE if kind == zmq.ROUTER else SUBSCRIPTION_SIZE
    if kind == zmq.XPUB:
        # Who subscribes to what another has is told of nobody otherwise, and answered by nobody.
        listener.setsockopt(zmq.XPUB_VERBOSE, 1)
    listener.handshake_ivl = int(HANDSHAKE_SECONDS * 1000)
    listener.bind("ipc://" + path)
    return listener


def _frame(
    event: Event,
    omitted: dict[str, int],
    epoch: int,
    topics: dict[tuple[str, str | None, str], bytes],
) -> tuple[bytes, bytes, Raw]:
    key = (event.run, event.task, event.kind)
    name = topics.get(key)
    if name is None:
        if len(topics) > 4096:
            topics.clear()
        name = topics[key] = topic(*key)
    header = Header(
        version=EVENT_VERSION,
        epoch=epoch,
        seq=event.seq,
        kind=event.kind,
        time=event.at,
        task_seq=event.task_seq,
        attempt=event.attempt,
        omitted=omitted,
    )
    return name, _encoder.encode(header), event.data


# ---- control


# What an error says; it may quote a request, which is larger.
_MESSAGE_LENGTH = 1000


class _Id(Struct):
    """As much as is needed to answer a request that is wrong in all else."""

    id: RequestId | None = None
    version: int = 0


_requests = msgspec.msgpack.Decoder(Request)
_ids = msgspec.msgpack.Decoder(_Id)


class _Engine:
    """The control thread's line to the engine: requests go out numbered, and each one's client is
    remembered until its answer is back. `put_answer` is for the main thread, the rest is not."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._unsent = bytearray()  # bounded as what is under way is
        self._clients: dict[int, list[bytes]] = {}
        self._numbers = itertools.count()
        self._answers: queue.SimpleQueue[_Answered] = queue.SimpleQueue()
        self.news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def channel(self) -> int:
        return self._channel.fileno()

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def ask(self, verb: ControlVerb, client: list[bytes]) -> Error | None:
        """Pass it on; an answer only where that cannot be."""
        if len(self._clients) >= CONTROL_OUTSTANDING:
            why = f"{CONTROL_OUTSTANDING} requests are under way; ask again when one is answered"
            return Error(id=verb.id, error=Problem(ControlError.FAILED, why))
        number = next(self._numbers)
        message = _prefixed(_Steer(number, verb))
        assert len(message) <= CONTROL_VERB_SIZE
        self._clients[number] = client
        self._unsent += message
        self.send()
        return None

    def send(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # an engine that is gone ends us
            while self._unsent:
                del self._unsent[: self._channel.send(self._unsent)]

    def put_answer(self, answered: _Answered) -> None:
        self._answers.put(answered)
        os.eventfd_write(self.news, 1)

    def take_answers(self) -> Iterator[tuple[list[bytes], ControlAnswer]]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.news)
        with contextlib.suppress(queue.Empty):
            while True:
                answered = self._answers.get_nowait()
                yield self._clients.pop(answered.number), answered.answer


def _serve_control(router: zmq.Socket[Any], state: Path, epoch: int, engine: _Engine) -> None:
    """The control thread: one request at a time until the context ends."""
    import zmq

    try:
        with contextlib.suppress(zmq.ContextTerminated), router:
            _answer_requests(router, _Desk(StateDirectory(state), epoch), engine)
    except BaseException:
        # A bug must not leave a front that is deaf on one ear: the next epoch hears again.
        traceback.print_exc()
        os._exit(1)


def _answer_requests(router: zmq.Socket[Any], desk: _Desk, engine: _Engine) -> None:
    import zmq

    def reply(client: list[bytes], message: Reply) -> None:
        # A client who does not read loses the reply, as ROUTER does with those who left.
        with contextlib.suppress(zmq.Again):
            router.send_multipart([*client, _encoder.encode(message)], zmq.NOBLOCK)

    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(engine.news, zmq.POLLIN)
    while True:
        if engine.has_unsent:
            poller.register(engine.channel, zmq.POLLOUT)
        elif engine.channel in poller:
            poller.unregister(engine.channel)
        ready = dict(poller.poll())
        if engine.channel in ready:
            engine.send()
        if engine.news in ready:
            for client, answer in engine.take_answers():
                reply(client, answer)
        if router not in ready:
            continue
        # Part by part: of a message with a million parts three are kept. A REQ socket's delimiter
        # goes back as it came, with what the gate put before it.
        client = [router.recv()]
        body = b""
        while router.getsockopt(zmq.RCVMORE):
            part = router.recv()
            if len(client) == 1 and not part:
                client += [body, part] if 0 < len(body) <= ENVELOPE_SIZE else [part]
                body = b""
            else:
                body = part
        said = desk.answer(body)
        if isinstance(said, ControlVerb):
            refused = engine.ask(said, client)
            if refused is not None:
                reply(client, refused)
        else:
            reply(client, said)


class _Desk:
    """Answers requests from the journals of a state directory. Changes nothing but what is being
    uploaded: what would is given back, checked, with the run named in full."""

    def __init__(self, state: StateDirectory, epoch: int) -> None:
        self._state = state
        self._epoch = epoch
        self._submissions = Submissions(state)
        self._topics: dict[tuple[str, str | None, str], bytes] = {}
        # A large value is fetched in pieces: the last one is kept whole between them.
        self._fetched: tuple[str, int, Raw] | None = None

    def answer(self, body: bytes) -> Reply | ControlVerb:
        try:
            request = _requests.decode(body)
        except (ValueError, RecursionError) as error:
            return self._refuse(body, error)
        if request.version != CONTROL_VERSION:
            return self._refuse(body, None)
        try:
            return self._answer(request)
        except UsageError as error:
            is_upload = isinstance(request, Upload)
            kind = ControlError.REFUSED if is_upload else ControlError.NOT_FOUND
            message = str(error)
        except LocalViolation:
            raise
        except CasemateError as error:
            kind, message = ControlError.DAMAGED, str(error)
        except (OSError, sqlite3.Error) as error:
            kind, message = ControlError.FAILED, str(error)
        return Error(id=request.id, error=Problem(kind, message[:_MESSAGE_LENGTH]))

    def _refuse(self, body: bytes, error: Exception | None) -> Error:
        try:
            asked = _ids.decode(body)
        except (ValueError, RecursionError):
            asked = _Id(None, CONTROL_VERSION)
        if asked.version != CONTROL_VERSION:
            message = f"version {asked.version}: this casemate speaks version {CONTROL_VERSION}"
        else:
            message = f"not a request: {error}"
        return Error(
            id=asked.id, error=Problem(ControlError.BAD_REQUEST, message[:_MESSAGE_LENGTH])
        )

    def _answer(self, request: Request) -> Reply | ControlVerb:
        if isinstance(request, List):
            most = max(1, min(request.limit, LISTED_RUNS))
            return Listed(id=request.id, runs=tuple(list_runs(self._state, most)))
        if isinstance(request, BreakerVerb | Submit | Shutdown):
            return request
        if isinstance(request, Upload):
            size = self._submissions.write(request.submission, request.offset, request.data)
            return Uploaded(id=request.id, size=size)
        if isinstance(request, Breakers):
            return BreakersShown(id=request.id, breakers=tuple(read_breakers(self._state.path)))
        run = self._state.find_run(request.run)
        if isinstance(request, ControlVerb):
            return msgspec.structs.replace(request, run=run.id)
        if isinstance(request, Show):
            summary, tasks = describe(run)
            return Shown(id=request.id, run=summary, tasks=tasks, as_of=summary.last_seq)
        try:
            reader = JournalReader(run)
        except NotBegunError:
            raise UsageError(f"run {run.id} has no events yet") from None
        with reader:
            if isinstance(request, Replay):
                return self._replay(request, reader)
            return self._fetch(request, run.id, reader)

    def _replay(self, request: Replay, reader: JournalReader) -> Replayed:
        limit = max(1, min(request.limit, REPLAY_PAGE_EVENTS))
        page = [
            _shorten(outline)
            for outline in reader.outlines(max(0, request.since), limit, REPLAY_PAGE_SIZE)
        ]
        frames = []
        for event, omitted in page:
            name, header, payload = _frame(event, omitted, self._epoch, self._topics)
            frames.append(Frame(name, header, bytes(payload)))
        return Replayed(
            id=request.id,
            run=reader.run,
            events=tuple(frames),
            last_seq=reader.last_seq(),
        )

    def _fetch(self, request: Fetch, run: str, reader: JournalReader) -> Fetched:
        kept = self._fetched
        if kept is None or kept[:2] != (run, request.seq):
            page = reader.events(request.seq - 1, 1)
            if not page or page[0].seq != request.seq:
                raise UsageError(f"run {run} has no event {request.seq}")
            kept = self._fetched = (run, request.seq, page[0].data)
        data = memoryview(kept[2])
        start = max(0, request.offset)
        return Fetched(
            id=request.id,
            run=run,
            seq=request.seq,
            size=len(data),
            data=bytes(data[start : start + REPLAY_PAGE_SIZE]),
        )
