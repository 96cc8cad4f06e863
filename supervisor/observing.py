"""`observe`: a run's events in another program, over the event socket and, for what was missed, the
control socket.

    for event in observe("last"): ...            waits in a poll
    async for event in observe("last"): ...      leaves the loop to others meanwhile

What to make of what comes is `protocol/follow.py`'s to say; here are the sockets, the waiting and
the clock. Nothing is read ahead: while an event waits to be taken the sockets are left alone, and
what the front cannot queue for us meanwhile is replayed later. So a slow reader costs the run
nothing and this process no memory.

The supervisor is found by the run's lock and the records of those who live. One that is silent is
looked for again: its run may be another's by now. Where the run is nobody's (it has ended and its
supervisor with it, or that was killed), the journal says the rest; if that is not the end of the
run, `ObservationLost` is raised, after `patience` seconds in which nobody took it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from ..protocol.control import HEARTBEAT_TOPIC, Reply, Shown
from ..protocol.errors import CasemateError, RemoteViolation, UsageError
from ..protocol.follow import Follower, Published, read_frames
from ..protocol.limits import HEARTBEAT_SECONDS, KIB, OBSERVER_QUEUE_EVENTS
from .config import load_config
from .cursor import PipelineEvent, public
from .journal import JournalReader, NotBegunError
from .overview import describe
from .remote import CHECK_SECONDS, Reach, Remote
from .state import RunDirectory, StateDirectory, is_run_id

if TYPE_CHECKING:
    import zmq

__all__ = ["Observation", "ObservationLost", "observe"]

# A front beats every second, and another is there within one of its death.
_SILENCE = 4 * HEARTBEAT_SECONDS

# A question without an answer is asked again: whoever was asked may have been replaced.
_ANSWER_SECONDS = 2.0

_EVERYTHING = b"ev."

# An event of this many bytes is opened off an async reader's loop.
_LARGE = 64 * KIB

# How often a supervisor is looked for that is not there.
_LOOK_SECONDS = 0.1

_replies = msgspec.msgpack.Decoder(Reply)


class ObservationLost(CasemateError):
    """Nobody tells of the run any more, and it has not ended."""


class Endpoints(NamedTuple):
    events: str
    control: str


def observe(
    run: str = "last",
    *,
    since: int | None = 0,
    lossy: bool = False,
    whole: bool = True,
    state: str | os.PathLike[str] | None = None,
    endpoints: tuple[str, str] | None = None,
    at: str | None = None,
    keys: str | os.PathLike[str] | None = None,
    patience: float = 10.0,
) -> Observation:
    """The events of a run, in order and without holes, until it ends. Iterate over the result, with
    `for` or `async for`; each iteration begins anew.

    `run`: an id, a unique prefix, or `last`. `since`: the seq after which to begin; None: from now
    on (`snapshot` says how the run stands then). `lossy`: from now on, and what this reader is too
    slow for is skipped. Not `whole`: without large values, which `event.omitted` names. `state`:
    the state directory, else the usual one. `endpoints`: those of a supervisor's event and control
    socket, where its state directory is not at hand. `at`: HOST:PORT of a supervisor on another
    host; `keys`: the folder with `client.key` and `server.pub`, else the configuration's.
    `patience`: seconds to wait for a supervisor that is not there.

    Iterating raises ObservationLost where the supervisor is gone before the run has ended,
    UsageError where there is no such run, and CasemateError where what is at that address does not
    let us in, or nobody is there.
    """
    if sum(each is not None for each in (endpoints, state, at)) > 1:
        raise UsageError(
            "observe: a state directory, or the endpoints or the address of a supervisor, not both"
        )
    source: _Local | _Named
    if at is not None:
        source = _Distant(run, Remote.of(at, load_config(keys=keys).keys))
    elif endpoints is None:
        directory = StateDirectory.open_existing(load_config(state=state).state)
        source = _Local(directory, directory.find_run(run))
    else:
        source = _Named(run, Endpoints(*endpoints))
    return Observation(source, since, lossy=lossy, whole=whole, patience=patience)


class _Named:
    """A supervisor that somebody else found."""

    def __init__(self, run: str, endpoints: Endpoints) -> None:
        self.run = run
        self._endpoints = endpoints

    def find(self) -> Endpoints | None:
        return self._endpoints

    def read(self, since: int, whole: bool) -> tuple[Shown, list[Published]] | None:
        return None


class _Distant(_Named):
    """A supervisor on another host."""

    def __init__(self, run: str, remote: Remote) -> None:
        super().__init__(run, Endpoints(remote.events, remote.control))
        self.remote = remote


class _Local:
    """Whoever of this host owns the run at the moment."""

    def __init__(self, directory: StateDirectory, run: RunDirectory) -> None:
        self.run = run.id
        self._directory = directory
        self._run = run

    def find(self) -> Endpoints | None:
        if not self._run.is_owned():
            return None
        owner = self._run.owner()
        living = self._directory.living_supervisors()
        return next((Endpoints(e.events, e.control) for e in living if e.pid == owner), None)

    def read(self, since: int, whole: bool) -> tuple[Shown, list[Published]] | None:
        """How the run stands, and a page of its journal, where the run is nobody's."""
        if self._run.is_owned():
            return None
        try:
            summary, tasks = describe(self._run)
            with JournalReader(self._run) as reader:
                if whole:
                    page = [Published(0, event, {}) for event in reader.events(since)]
                else:
                    page = [Published(0, *outline) for outline in reader.outlines(since)]
        except NotBegunError:
            return None
        return Shown(id=None, run=summary, tasks=tasks, as_of=summary.last_seq), page


class Observation:
    """What `observe` gives: iterate over it."""

    def __init__(
        self,
        source: _Local | _Named,
        since: int | None,
        *,
        lossy: bool,
        whole: bool,
        patience: float,
    ) -> None:
        self._source = source
        self._since = since
        self._lossy = lossy
        self._whole = whole
        self._patience = patience
        self._follower: Follower | None = None

    @property
    def snapshot(self) -> Shown | None:
        """How the run and its tasks stood when this began (`lossy`: and when it last fell behind);
        None before that is known."""
        return None if self._follower is None else self._follower.snapshot

    def __iter__(self) -> Iterator[PipelineEvent]:
        with self._begin() as line:
            while True:
                if (published := line.take()) is not None:
                    yield public(published.event, published.omitted)
                elif line.is_over:
                    return
                elif line.is_connected:
                    line.wait()
                elif not line.use(line.look()):
                    time.sleep(_LOOK_SECONDS)

    async def __aiter__(self) -> AsyncIterator[PipelineEvent]:
        with self._begin() as line:
            while True:
                if (published := line.take()) is not None:
                    if len(published.event.data) < _LARGE:
                        yield public(published.event, published.omitted)
                    else:  # a hostile value is slow to open
                        yield await asyncio.to_thread(public, published.event, published.omitted)
                elif line.is_over:
                    return
                elif line.is_connected:
                    await line.wait_in_loop()
                elif not line.use(await asyncio.to_thread(line.look)):
                    await asyncio.sleep(_LOOK_SECONDS)

    def _begin(self) -> _Line:
        self._follower = Follower(
            self._source.run, self._since, lossy=self._lossy, whole=self._whole
        )
        return _Line(self._source, self._follower, whole=self._whole, patience=self._patience)


@dataclass(frozen=True, slots=True)
class _Found:
    """What `look` came back with: a supervisor, or the journal of a run that has none."""

    endpoints: Endpoints | None = None
    journal: tuple[Shown, list[Published]] | None = None


class _Line:
    """Two sockets, the clock, and what the follower makes of them. Only `look` blocks on a disk,
    and only `wait` on the sockets."""

    def __init__(
        self, source: _Local | _Named, follower: Follower, *, whole: bool, patience: float
    ) -> None:
        import zmq

        self._source = source
        self._follower = follower
        self._whole = whole
        self._patience = patience
        self._context: zmq.Context[Any] = zmq.Context()
        self._remote = source.remote if isinstance(source, _Distant) else None
        self._events: zmq.Socket[bytes] | None = None
        self._control: zmq.Socket[bytes] | None = None
        self._reach: Reach | None = None
        self._was_let_in = False  # ever, where it is on another host
        self._heard = self._connected = time.monotonic()
        self._asked: float | None = None
        self._is_wide = False  # subscribed to all runs, as this one's id is not known yet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    @property
    def is_over(self) -> bool:
        return self._follower.is_over

    @property
    def is_connected(self) -> bool:
        return self._events is not None

    # ---- finding whom to listen to

    def look(self) -> _Found:
        endpoints = self._source.find()
        if endpoints is not None:
            return _Found(endpoints)
        return _Found(journal=self._source.read(self._follower.have, self._whole))

    def use(self, found: _Found) -> bool:
        """False: that was nothing; look again in a moment. Raises ObservationLost when it has been
        nothing for too long."""
        if found.journal is not None:
            have = self._follower.have
            self._follower.read(*found.journal)
            if self._follower.have > have or self._follower.is_over:
                self._heard = time.monotonic()
                return True
        if time.monotonic() > self._heard + self._patience:
            run = self._follower.run
            raise ObservationLost(
                f"run {run}: no supervisor tells of it, after event {self._follower.have}; "
                + self._advice()
            )
        if found.endpoints is not None:
            self._connect(found.endpoints)
        return found.endpoints is not None

    def _advice(self) -> str:
        if self._remote is not None:
            return f"nobody answers at {self._remote.address} any more"
        return f"`casemate resume {self._follower.run}` goes on with it"

    def _connect(self, endpoints: Endpoints) -> None:
        import zmq

        self._events = self._context.socket(zmq.SUB)
        self._events.rcvhwm = OBSERVER_QUEUE_EVENTS
        self._is_wide = not is_run_id(self._follower.run)
        self._events.subscribe(_EVERYTHING if self._is_wide else self._topic())
        self._events.subscribe(HEARTBEAT_TOPIC)
        self._control = self._context.socket(zmq.DEALER)
        self._control.linger = 0
        if self._remote is not None:
            self._reach = Reach(self._remote, self._control, self._patience)
            self._remote.connect(self._events, endpoints.events)
            self._remote.connect(self._control, endpoints.control)
        else:
            self._events.connect(endpoints.events)
            self._control.connect(endpoints.control)
        self._connected = time.monotonic()
        self._asked = None

    def _disconnect(self) -> None:
        if self._reach is not None:
            self._reach.close()
            self._reach = None
        for each in (self._events, self._control):
            if each is not None:
                each.close(linger=0)
        self._events = self._control = None
        self._follower.lose()

    def _topic(self) -> bytes:
        return f"ev.{self._follower.run}.".encode()

    # ---- what comes

    def take(self) -> Published | None:
        """The next event, if it is there. Raises UsageError where there is no such run."""
        published = self._follower.take()
        while published is None and self._read_one():
            published = self._follower.take()
        if self._events is not None:
            self._ask()
        return published

    def _read_one(self) -> bool:
        """Tell the follower of one message; False: there is none, and EAGAIN was seen of both."""
        import zmq

        if self._events is None or self._control is None:
            return False
        try:
            reply = self._control.recv(zmq.NOBLOCK)
        except zmq.Again:
            pass
        else:
            self._take_reply(reply)
            return True
        try:
            frames = self._events.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._heard = time.monotonic()
        message = read_frames(frames)
        if isinstance(message, Published):
            self._follower.publish(message)
        else:
            self._follower.beat(message)
        return True

    def _take_reply(self, packet: bytes) -> None:
        self._heard = time.monotonic()
        self._asked = None
        try:
            self._follower.reply(_replies.decode(packet))
        except LookupError as error:
            raise UsageError(str(error)) from error
        except (ValueError, RecursionError) as error:
            raise RemoteViolation(f"the control socket sent what is no reply: {error}") from error
        if self._is_wide and self._events is not None and self._follower.snapshot is not None:
            self._events.subscribe(self._topic())
            self._events.unsubscribe(_EVERYTHING)
            self._is_wide = False

    def _ask(self) -> None:
        import zmq

        assert self._control is not None
        if self._asked is not None and time.monotonic() > self._asked + _ANSWER_SECONDS:
            self._follower.ask_again()
            self._asked = None
        request = self._follower.request()
        if request is not None:
            self._asked = time.monotonic()
            with contextlib.suppress(zmq.Again):  # nobody is there yet: asked again
                self._control.send(msgspec.msgpack.encode(request), zmq.NOBLOCK)

    # ---- waiting

    def wait(self) -> None:
        """Until there may be more to take. Raises ObservationLost."""
        import zmq

        poller = zmq.Poller()
        patience = self._check_silence()
        for each in self._sockets():
            poller.register(each, zmq.POLLIN)
        poller.poll(int(patience * 1000) + 1)

    async def wait_in_loop(self) -> None:
        """The same, leaving the loop to others. libzmq's descriptors tell of changes, not of what
        is there: they are looked at again once somebody watches them."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        patience = self._check_silence()
        sockets = self._sockets()
        watched = [each.fileno() for each in sockets]
        for descriptor in watched:
            loop.add_reader(descriptor, news.set)
        try:
            if not any(each.poll(0) for each in sockets):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), patience)
        finally:
            for descriptor in watched:
                loop.remove_reader(descriptor)

    def _sockets(self) -> list[zmq.Socket[bytes]]:
        """None once it is disconnected."""
        news = None if self._reach is None else self._reach.news
        return [each for each in (self._events, self._control, news) if each is not None]

    def _check_silence(self) -> float:
        """Seconds to wait at most before this has to be looked at again. Raises CasemateError where
        whoever is at the address does not let us in."""
        now = time.monotonic()
        if self._reach is not None:
            self._reach.check()
            self._was_let_in |= self._reach.is_through
            if not self._was_let_in:  # who is not there yet is not silent: Reach says when to stop
                self._connected = now
                self._asked = None if self._asked is None else now
                return CHECK_SECONDS
        wake = max(self._heard, self._connected) + _SILENCE
        if now > wake:
            self._disconnect()
            return 0.0
        if self._asked is not None:
            wake = min(wake, self._asked + _ANSWER_SECONDS)
        return max(0.0, wake - now)
