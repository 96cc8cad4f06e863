"""The guest's end of the link: one socket, used by any number of threads and coroutines.

    the task's threads   say things, and listen when they need to hear something
    libzmq's thread      moves frames between the socket's queues and the connection

There is no reader. Whoever waits (for an item of a stream, for the SAVED of a save, for room to
send) and whoever asks (`ctx.cancelled`, `ctx.deadline`) takes off the socket all that has come and
puts it where it belongs: items into the buffer of their stream, which the supervisor's credit
bounds, the rest into a flag, a count or the deadline.

libzmq's sockets belong to one thread at a time, so all of this happens under one lock. It is not
held while waiting: a wait is a poll on the socket's descriptor, after which things are tried again.
That descriptor is edge-triggered: any call on the socket, by anybody, may swallow the edge that
somebody else is waiting for. Hence the one rule here: who waits registers before he looks, and who
has used the socket while others are registered listens for them and wakes them (`_settle`).

SIGTERM raises `Cancelled` in the main thread at any bytecode, and what was taken off the socket at
that moment would be lost. So what happens under the lock is shielded: the signal is acted on right
after it. While waiting it is acted on at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import zmq
from msgspec import Raw

from ..protocol import codec
from ..protocol.errors import LocalViolation, RemoteViolation
from ..protocol.limits import MESSAGE_SIZE, STREAM_CREDIT_ITEMS, STREAM_CREDIT_SIZE
from ..protocol.link import Conversation, Role
from ..protocol.messages import (
    Cancel,
    Credit,
    Deadline,
    End,
    Hello,
    Item,
    Kind,
    Message,
    Run,
    Save,
    Saved,
)
from .context import ENDED

if TYPE_CHECKING:
    import asyncio

__all__ = ["SEND_QUEUE", "Link"]

# So many messages wait in libzmq's queue, then a send blocks. With 4 the two threads wait for each
# other at every other message: 51 000 items of 200 B a second on a loaded 2-core VM, against 80 000
# with 16 and 106 000 with 64. But the queue may hold that many MiB, and they are the task's memory.
SEND_QUEUE = 16

# Batches of items, mostly: what is in hand here is no longer in the supervisor's memory.
RECEIVE_QUEUE = 4

# A full queue empties in microseconds, and libzmq waits for that far more cheaply than we do. A
# send may hold the lock that long while nobody else waits; then it waits like everybody.
SEND_PATIENCE = 20  # milliseconds

# Where no descriptor is left to be woken by, one looks so often.
LOOK_INTERVAL = 10  # milliseconds

# Credit goes back in quarters of the window: often enough that the supervisor need not stop.
CREDIT_ITEMS = STREAM_CREDIT_ITEMS // 4
CREDIT_SIZE = STREAM_CREDIT_SIZE // 4

# As a plain int: libzmq's flag is an enum, dear to pass.
_NOBLOCK = int(zmq.NOBLOCK)

_T = TypeVar("_T")


class _Waiter(Protocol):
    def wake(self) -> None:
        """Something has changed. Called under the link's lock, by any thread."""


class _Stream:
    """What has come of one stream."""

    __slots__ = ("has_ended", "in_hand", "items", "name", "owed", "owed_size")

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: deque[Raw] = deque()
        self.has_ended = False
        # What the task took and is busy with: credited when it comes back for more. A task that
        # has taken the last item that there is does not look as if it were waiting.
        self.in_hand: list[int] = []  # their sizes
        self.owed = 0
        self.owed_size = 0


class Link:
    """See above. `send`, `save` and `take` block; a signal or a cancelled coroutine ends that."""

    def __init__(self, listener_fd: int) -> None:
        os.set_inheritable(listener_fd, False)
        self._is_ours = True
        # libzmq's sockets do not survive a fork, and a lock may be held by a thread that the child
        # does not have. A flag, since a getpid() for each message is a tenth of sending it.
        os.register_at_fork(after_in_child=self._lose)
        self._main = get_ident()
        self._is_shielded = False  # of the main thread; only it looks
        self._due: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._conversation = Conversation(Role.GUEST)
        self._broken: Exception | None = None
        self._cancelled = False
        self._deadline: float | None = None
        self._streams: dict[str, _Stream] = {}
        self._saves = self._saved = 0  # how many were sent, how many are durable
        self._waiters: set[_Waiter] = set()
        self._has_news = False  # since the waiters were woken last
        self._lacks_room = False  # somebody could not send
        self._loops: dict[asyncio.AbstractEventLoop, _LoopWaiter] = {}
        # libzmq's threads block signals, but only once they run. Until then one of them may be who
        # gets a SIGTERM, and the interpreter (CPython 3.11, 3.12) does not see a signal that came
        # to another thread while the main thread computes. So they are born blocking it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        context = zmq.Context(io_threads=1)
        socket = context.socket(zmq.PAIR)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        socket.setsockopt(zmq.USE_FD, listener_fd)
        socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
        socket.setsockopt(zmq.SNDTIMEO, SEND_PATIENCE)
        socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_SIZE)
        # The context is never closed in earnest; if the interpreter exits all the same (a bug of
        # ours), it must not wait for a peer.
        socket.setsockopt(zmq.LINGER, 0)
        # The engine's start timeout watches over the handshake; libzmq's own 30 s would only cut
        # the connection of a loaded host, and there is no second one.
        socket.setsockopt(zmq.HANDSHAKE_IVL, 0)
        # With USE_FD the name is never looked at, made or unlinked (libzmq 4.3.5).
        socket.bind("ipc:///casemate/link")
        self._context = context
        self._socket = socket
        self._fd = int(socket.getsockopt(zmq.FD))

    def greet(self, hello: Hello) -> None:
        """The first word, which waits for the connection. What comes in answer is `receive`'s: a
        `send` that has waited would have heard it."""
        frame = codec.encode(hello)
        with self._lock:
            while not self._say(Kind.HELLO, frame, 0):
                pass  # each time it has waited for SEND_PATIENCE

    def receive(self) -> Message:
        """The next message, whenever it comes. For the opening, before the task's code runs."""
        with self._lock:
            return self._decoded(self._socket.recv())

    def begin(self, run: Run) -> None:
        """The job: what may come from now on."""
        self._deadline = None if run.deadline is None else time.monotonic() + run.deadline
        self._streams = {name: _Stream(name) for name in run.streams}

    # -- what the task does ------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        # Every item of every task passes here: fewer calls than the rest makes do with.
        if not self._is_ours:
            self._check_ours()
        kind, frame = codec.kind_of(message), codec.encode(message)
        if is_main := get_ident() == self._main:
            self._is_shielded = True
        try:
            with self._lock:
                if self._waiters:
                    is_said = self._say(kind, frame)
                    self._settle()
                else:
                    is_said = self._say(kind, frame, 0)
        finally:
            if is_main:
                self._unshield()
        if not is_said:
            self._wait_for(lambda: self._say(kind, frame) or None)

    def save(self, message: Save) -> None:
        """Return when it is durable. Saves of several threads take turns."""
        self._check_ours()
        frame = codec.encode(message)
        number = self._wait_for(partial(self._say_save, frame))
        self._wait_for(lambda: self._is_saved(number) or None)

    def take(self, upstream: str) -> Any:  # a user's value
        """The next item of a stream, when there is one; ENDED after the last."""
        self._check_ours()
        stream, taken = self._streams[upstream], list[Raw]()
        try:
            got = self._wait_for(partial(self._take, stream, taken))
            return _opened(stream, got, taken)
        except BaseException:
            self._put_back(stream, taken)
            raise

    async def take_later(self, upstream: str) -> Any:  # a user's value
        """The same, for a coroutine of an asyncio event loop."""
        self._check_ours()
        stream, taken = self._streams[upstream], list[Raw]()
        attempt = partial(self._take, stream, taken)
        try:
            got = self._try(attempt)
            if got is None:
                got = await self._wait_later(attempt)
            return _opened(stream, got, taken)
        except BaseException:
            self._put_back(stream, taken)
            raise

    def is_cancelled(self) -> bool:
        if not self._cancelled and self._is_ours:
            self._try(_nothing)
        return self._cancelled

    def deadline(self) -> float | None:
        """The moment of the wall limit on the clock of time.monotonic()."""
        if self._is_ours:
            self._try(_nothing)
        return self._deadline

    # -- what the guest does -----------------------------------------------------------------------

    @property
    def is_ours(self) -> bool:
        """Whether this process is the one that greeted, not a child of it."""
        return self._is_ours

    @property
    def broken(self) -> Exception | None:
        """How the supervisor broke the rules. The task's code has seen it too, and may have
        thought it an error of its own."""
        return self._broken

    def note_cancelled(self) -> None:
        """SIGTERM said so."""
        self._cancelled = True

    def interrupt(self, action: Callable[[], None]) -> None:
        """For a signal's handler: do this, now or as soon as nothing can be torn by it."""
        if self._is_shielded:
            self._due = action
        else:
            action()

    # -- under the lock ----------------------------------------------------------------------------

    def _say(self, kind: Kind, frame: bytes, flags: int = _NOBLOCK) -> bool:
        """False: there is no room."""
        if self._broken is not None:
            raise self._broken
        conversation = self._conversation
        if conversation.is_over:
            self._check_running()
        before = conversation.state, conversation.is_saving
        conversation.sent(kind)
        try:
            self._socket.send(frame, flags)
        except zmq.Again:
            conversation.state, conversation.is_saving = before
            self._lacks_room = True
            return False
        if kind is Kind.RESULT or kind is Kind.FAIL:
            self._has_news = True
        return True

    def _say_save(self, frame: bytes) -> int | None:
        """Its number; None: there is no room, or another is not durable yet."""
        self._check_running()
        if self._conversation.is_saving or not self._say(Kind.SAVE, frame):
            return None
        self._saves += 1
        return self._saves

    def _is_saved(self, number: int) -> bool:
        if self._saved < number:
            self._check_running()
        return self._saved >= number

    def _take(self, stream: _Stream, taken: list[Raw]) -> object:
        self._check_running()
        stream.owed += len(stream.in_hand)
        stream.owed_size += sum(stream.in_hand)
        stream.in_hand.clear()
        if not stream.items:
            self._give_credit(stream)
            return ENDED if stream.has_ended else None
        if stream.owed >= CREDIT_ITEMS or stream.owed_size >= CREDIT_SIZE:
            self._give_credit(stream)
        item = stream.items.popleft()
        stream.in_hand.append(memoryview(item).nbytes)
        taken.append(item)
        return item

    def _give_credit(self, stream: _Stream) -> None:
        """Where there is no room, it stays owed: who waits is woken when there is."""
        while stream.owed > 0:
            count = min(stream.owed, STREAM_CREDIT_ITEMS)
            frame = codec.encode(Credit(upstream=stream.name, items=count))
            if not self._say(Kind.CREDIT, frame):
                return
            stream.owed -= count
            stream.owed_size = 0

    def _hear(self) -> None:
        """Take in all that has come."""
        if self._broken is not None:
            raise self._broken
        try:
            while True:
                self._put(self._decoded(self._socket.recv(_NOBLOCK)))
        except zmq.Again:
            return
        except (LocalViolation, RemoteViolation) as error:
            self._broken = error
            self._has_news = True
            self._wake_waiters()
            raise

    def _put(self, message: Message) -> None:
        self._has_news = True
        match message:
            case Item(upstream=upstream, items=items):
                self._open_stream(upstream, "ITEM").items.extend(items)
            case End(upstream=upstream):
                self._open_stream(upstream, "END").has_ended = True
            case Saved():
                self._saved += 1
            case Deadline(deadline=deadline):
                self._deadline = deadline
            case Cancel():
                self._cancelled = True
            case _:
                raise LocalViolation(f"guest: the table let {message!r} through")

    def _open_stream(self, upstream: str, kind: str) -> _Stream:
        stream = self._streams.get(upstream)
        if stream is None:
            raise LocalViolation(
                f"guest: was sent {kind} of {upstream!r}, which is none of its streams: "
                f"{', '.join(self._streams) or 'it has none'}"
            )
        if stream.has_ended:
            raise LocalViolation(f"guest: was sent {kind} of {upstream!r} after its END")
        return stream

    def _settle(self) -> None:
        """The socket was used: what others wait for may have come unseen."""
        if not self._waiters:
            self._has_news = False
            return
        events = int(self._socket.getsockopt(zmq.EVENTS))
        if events & zmq.POLLIN:
            self._hear()
        if self._has_news or (self._lacks_room and events & zmq.POLLOUT):
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        self._has_news = self._lacks_room = False
        for waiter in self._waiters:
            waiter.wake()

    def _decoded(self, frame: bytes) -> Message:
        message = codec.decode_from_supervisor(frame)
        self._conversation.received(codec.kind_of(message))
        return message

    def _check_running(self) -> None:
        if self._conversation.is_over:
            raise RuntimeError("the task has ended; nothing more can be said")

    # -- waiting -----------------------------------------------------------------------------------

    def _try(self, attempt: Callable[[], _T | None]) -> _T | None:
        """What `attempt` gives now, under the lock, all that has come being heard; None: nothing
        yet."""
        self._shield()
        try:
            with self._lock:
                self._hear()
                got = attempt()
                self._settle()
                return got
        finally:
            self._unshield()

    def _wait_for(self, attempt: Callable[[], _T | None]) -> _T:
        """What `attempt` gives in the end."""
        got = self._try(attempt)
        if got is not None:
            return got
        waiter = _ThreadWaiter(self._fd)
        try:
            self._join(waiter)
            while (got := self._try(attempt)) is None:
                waiter.wait()
            return got
        finally:
            self._part(waiter)
            waiter.close()

    async def _wait_later(self, attempt: Callable[[], _T | None]) -> _T:
        import asyncio

        loop = asyncio.get_running_loop()
        waiter = self._loops.get(loop)
        if waiter is None:
            waiter = self._loops[loop] = _LoopWaiter(loop)
        while True:
            future = loop.create_future()
            if not waiter.futures:
                loop.add_reader(self._fd, waiter.ready)
            waiter.futures.add(future)
            try:
                self._join(waiter)
                got = self._try(attempt)
                if got is not None:
                    return got
                await future
            finally:
                waiter.futures.discard(future)
                if not waiter.futures:
                    loop.remove_reader(self._fd)
                    self._part(waiter)
                    self._loops.pop(loop, None)

    def _join(self, waiter: _Waiter) -> None:
        self._shield()
        try:
            with self._lock:
                self._waiters.add(waiter)
        finally:
            self._unshield()

    def _part(self, waiter: _Waiter) -> None:
        self._shield()
        try:
            with self._lock:
                self._waiters.discard(waiter)
        finally:
            self._unshield()

    def _shield(self) -> None:
        if get_ident() == self._main:
            self._is_shielded = True

    def _unshield(self) -> None:
        if get_ident() == self._main:
            self._is_shielded = False
            if self._due is not None:
                due, self._due = self._due, None
                due()

    # -- the rest ----------------------------------------------------------------------------------

    def _put_back(self, stream: _Stream, taken: list[Raw]) -> None:
        """The task was interrupted before it had it."""
        with self._lock:
            while taken:
                stream.items.appendleft(taken.pop())
                if stream.in_hand:
                    stream.in_hand.pop()
                else:
                    stream.owed -= 1  # another thread has counted it: it will be counted again

    def _check_ours(self) -> None:
        if not self._is_ours:
            raise RuntimeError(
                "ctx works in the task's own process; this is a child of it: hand results to the "
                "parent and emit them there"
            )

    def _lose(self) -> None:
        self._is_ours = False


def _nothing() -> None:
    return None


def _opened(stream: _Stream, got: object, taken: list[Raw]) -> Any:  # a user's value
    if not isinstance(got, Raw):
        return got
    try:
        return codec.decode_value(got)
    except RemoteViolation as error:
        taken.clear()  # it will not get better
        raise RemoteViolation(f"an item of the stream {stream.name!r} is {error}") from None


class _ThreadWaiter:
    """A thread that waits for the socket, or for another thread that has heard something."""

    def __init__(self, socket_fd: int) -> None:
        self._poller = select.poll()
        self._poller.register(socket_fd, select.POLLIN)
        self._interval: int | None = None
        try:
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            # A task that has used up its descriptors may still speak.
            self._fd, self._interval = -1, LOOK_INTERVAL
        else:
            self._poller.register(self._fd, select.POLLIN)

    def wake(self) -> None:
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)

    def wait(self) -> None:
        if any(fd == self._fd for fd, _ in self._poller.poll(self._interval)):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class _LoopWaiter:
    """The coroutines of one event loop that wait. A loop has one callback for a descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.futures: set[asyncio.Future[None]] = set()

    def ready(self) -> None:
        for future in self.futures:
            if not future.done():
                future.set_result(None)

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.ready)
