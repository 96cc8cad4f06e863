"""Following one run from outside: what comes over the sockets in, its events in order out. Sans-IO.

An observer that reads slowly, or comes late, misses live events; the journal has them all, and a
client of the control socket may ask for them. A `Follower` is told every frame of the event socket
and every reply of the control socket, and says what to ask for next, one request at a time:

    JOINING  ─first heartbeat→  ASKING  ─reply: nothing is missing→  LIVE
                                  ▲                                   │
                                  └──── hole in seq · heartbeat ahead · new epoch

The first heartbeat proves that the subscription counts: whatever is committed from then on arrives
live or shows as a hole. The first question is how the run stands (`snapshot`), which also gives its
whole id; then come replays. What arrives live while something is asked for is held, up to a bound;
beyond it is dropped, and asked for in turn. So an event is delivered once, in order, without holes,
however much was lost on the way, and memory does not depend on how much that was.

`lossy` skips holes where others fill them, and takes a new snapshot where the tail is missing: for
who shows how things stand, and would rather be current than complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import StrEnum

import msgspec
from msgspec import Raw

from .control import (
    HEARTBEAT_TOPIC,
    Error,
    Fetch,
    Fetched,
    Frame,
    Header,
    Heartbeat,
    Replay,
    Replayed,
    Reply,
    RunState,
    Show,
    Shown,
)
from .errors import RemoteViolation
from .events import Event
from .limits import CONTROL_VERSION, EVENT_VERSION, HELD_EVENTS, HELD_SIZE

__all__ = ["ENDINGS", "Beat", "Follower", "Published", "State", "read_frames"]

# After which there is no more of a run, unless somebody takes it back or goes on with it.
ENDINGS = frozenset({"run.completed", "run.failed", "run.cancelled"})
ENDED = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED})


class State(StrEnum):
    JOINING = "joining"
    ASKING = "asking"
    LIVE = "live"


class Happening(StrEnum):
    BEHIND = "behind"  # the first heartbeat; a hole, a heartbeat that is ahead, a new epoch
    COMPLETE = "complete"  # a reply after which nothing is known to be missing


EDGES: dict[State, dict[Happening, State]] = {
    State.JOINING: {Happening.BEHIND: State.ASKING},
    State.ASKING: {Happening.BEHIND: State.ASKING, Happening.COMPLETE: State.LIVE},
    State.LIVE: {Happening.BEHIND: State.ASKING},
}


class Published(msgspec.Struct, frozen=True):
    """An event as it is published. `omitted`: sizes in bytes of the values that were left out."""

    epoch: int
    event: Event
    omitted: dict[str, int]


class Beat(msgspec.Struct, frozen=True):
    """The front lives. `last`: the last seq of its newest runs."""

    epoch: int
    last: dict[str, int]


_header = msgspec.msgpack.Decoder(Header)
_heartbeat = msgspec.msgpack.Decoder(Heartbeat)
_last = msgspec.msgpack.Decoder(dict[str, int])


def read_frames(frames: Sequence[bytes]) -> Published | Beat:
    """One message of the event socket. Raises RemoteViolation where it is none."""
    try:
        name, head, payload = frames
        if name == HEARTBEAT_TOPIC:
            beat = _heartbeat.decode(head)
            _check_version(beat.version)
            return Beat(beat.epoch, _last.decode(payload))
        header = _header.decode(head)
        _check_version(header.version)
        # Kinds hold a dot, runs and tasks none.
        prefix, run, task, kind = name.decode("ascii").split(".", 3)
        if prefix != "ev" or kind != f"{header.kind}.":
            raise ValueError(f"topic {name[:200]!r} of a {header.kind}")
    except (ValueError, RecursionError) as error:
        raise RemoteViolation(f"the event socket sent what is no event: {error}") from error
    event = Event(
        seq=header.seq,
        run=run,
        task=task or None,
        attempt=header.attempt,
        kind=header.kind,
        at=header.time,
        data=Raw(payload),
        task_seq=header.task_seq,
    )
    return Published(header.epoch, event, header.omitted)


def _check_version(version: int) -> None:
    if version != EVENT_VERSION:
        raise ValueError(f"version {version}; this casemate reads version {EVENT_VERSION}")


def _read_replayed(frame: Frame, run: str) -> Published:
    published = read_frames((frame.topic, frame.header, frame.payload))
    if not isinstance(published, Published) or published.event.run != run:
        raise RemoteViolation(f"a replay of run {run} holds what is none of its events")
    return published


class Follower:
    """The events of `run` (an id, a unique prefix, or `last`) after `since`. None: from now on, as
    `snapshot` tells. `whole`: values that were left out of an event are fetched before it is given.
    """

    def __init__(
        self, run: str, since: int | None = 0, *, lossy: bool = False, whole: bool = True
    ) -> None:
        self.run = run
        self.state = State.JOINING
        self.snapshot: Shown | None = None
        self.have = since or 0  # the last seq that is in `_ready`, or was taken
        self._from_now = since is None
        self._wants_snapshot = True
        self._lossy = lossy
        self._whole = whole
        self._epoch: int | None = None
        self._known = 0  # the last seq that somebody spoke of
        self._has_ended = False  # as of `have`
        self._ready: deque[Published] = deque()
        self._held: dict[int, Published] = {}
        self._held_size = 0
        self._fetched = bytearray()
        self._asked = 0  # the number of the last request
        self._is_asked = False  # and whether its reply is still to come

    @property
    def is_over(self) -> bool:
        """The run has ended, and everything was taken."""
        is_complete = self.state is State.LIVE and not self._ready and self._known <= self.have
        return is_complete and self._has_ended

    # ---- in

    def publish(self, published: Published) -> None:
        """A live event; of another run, or known already, it changes nothing."""
        event = published.event
        if event.run != self.run:
            return
        self._meet(published.epoch)
        self._known = max(self._known, event.seq)
        if event.seq <= self.have:
            return
        if self.state is State.LIVE and (self._lossy or event.seq == self.have + 1):
            self._deliver(published)
            return
        self._hold(published)
        if self.state is State.LIVE:
            self._move(Happening.BEHIND)

    def beat(self, beat: Beat) -> None:
        if self.state is State.JOINING:
            self._epoch = beat.epoch
            self._move(Happening.BEHIND)
            return
        self._meet(beat.epoch)
        self._known = max(self._known, beat.last.get(self.run, 0))
        if self.state is State.LIVE and self._known > self.have:
            self._wants_snapshot = self._lossy
            self._move(Happening.BEHIND)

    def reply(self, reply: Reply) -> None:
        """What came back; a late one, to a request that was given up, changes nothing. Raises
        RemoteViolation where it makes no sense, and LookupError where the run cannot be had."""
        if not self._is_asked or reply.id != self._asked:
            return
        self._is_asked = False
        match reply:
            case Error(error=problem):
                raise LookupError(problem.message)
            case Fetched():
                self._take_piece(reply)
            case Shown():
                self._take_snapshot(reply)
                self._settle()
            case Replayed(run=run, events=frames, last_seq=last):
                self._take_page([_read_replayed(frame, run) for frame in frames], last)
                self._settle()
            case _:
                raise RemoteViolation(f"a reply of another kind: {type(reply).__name__}")

    def read(self, shown: Shown, page: Sequence[Published]) -> None:
        """The same from the journal itself, of a run that nobody tells of."""
        if self.state is not State.ASKING:
            self._move(Happening.BEHIND)
        if self._wants_snapshot:
            self._take_snapshot(shown)
        self._take_page(page, shown.as_of)
        self._settle()

    def lose(self) -> None:
        """Whoever was asked is gone; what was only half fetched is asked for anew."""
        self._is_asked = False
        if self._ready and self._lacks(self._ready[0]):
            self.have = self._ready[0].event.seq - 1
            self._ready.clear()
            self._fetched = bytearray()
            if self.state is State.LIVE:
                self._move(Happening.BEHIND)

    # ---- out

    def request(self) -> Show | Replay | Fetch | None:
        """What to ask for now; None: nothing, or a reply is still to come."""
        if self._is_asked:
            return None
        if self._ready and self._lacks(self._ready[0]):
            seq = self._ready[0].event.seq
            return Fetch(
                version=CONTROL_VERSION,
                id=self._number(),
                run=self.run,
                seq=seq,
                offset=len(self._fetched),
            )
        # What is asked for waits for what is ready to be taken: a reader sets the pace.
        if self.state is not State.ASKING or self._ready:
            return None
        if self._wants_snapshot:
            return Show(version=CONTROL_VERSION, id=self._number(), run=self.run)
        return Replay(version=CONTROL_VERSION, id=self._number(), run=self.run, since=self.have)

    def ask_again(self) -> None:
        """The reply does not come: whoever was asked may have been restarted."""
        self._is_asked = False

    def take(self) -> Published | None:
        """The next event."""
        if not self._ready or self._lacks(self._ready[0]):
            return None
        return self._ready.popleft()

    # ---- inside

    def _move(self, happening: Happening) -> None:
        self.state = EDGES[self.state][happening]

    def _meet(self, epoch: int) -> None:
        """What an earlier front had queued is gone with it."""
        if epoch != self._epoch and self.state is State.LIVE and not self._lossy:
            self._move(Happening.BEHIND)
        self._epoch = epoch

    def _lacks(self, published: Published) -> bool:
        return self._whole and bool(published.omitted)

    def _number(self) -> int:
        self._asked += 1
        self._is_asked = True
        return self._asked

    def _hold(self, published: Published) -> None:
        size = len(published.event.data)
        if len(self._held) < HELD_EVENTS and self._held_size + size <= HELD_SIZE:
            if published.event.seq not in self._held:
                self._held_size += size
            self._held[published.event.seq] = published

    def _deliver(self, published: Published) -> None:
        self.have = published.event.seq
        self._has_ended = published.event.kind in ENDINGS
        self._ready.append(published)

    def _take_snapshot(self, shown: Shown) -> None:
        self.run, self.snapshot = shown.run.id, shown
        self._wants_snapshot = False
        self._known = max(self._known, shown.as_of)
        if self._from_now or self._lossy:
            self.have = shown.as_of
        if self.have == shown.as_of:
            self._has_ended = shown.run.state in ENDED

    def _take_page(self, page: Sequence[Published], last: int) -> None:
        for published in page:
            if published.event.seq > self.have + 1:
                raise RemoteViolation(
                    f"a replay of run {self.run} goes from {self.have} to {published.event.seq}"
                )
            if published.event.seq == self.have + 1:
                self._deliver(published)
        if not page and last > self.have:
            raise RemoteViolation(f"a replay of run {self.run} stops at {self.have} of {last}")
        self._known = max(self._known, last)

    def _settle(self) -> None:
        """Go on with what was held; live where that leaves nothing missing."""
        while (published := self._held.pop(self.have + 1, None)) is not None:
            self._deliver(published)
        if self._lossy:
            for seq in sorted(self._held):
                if seq > self.have:
                    self._deliver(self._held[seq])
            self._known = self.have
        self._held = {seq: each for seq, each in self._held.items() if seq > self.have}
        self._held_size = sum(len(each.event.data) for each in self._held.values())
        if self.have >= self._known:
            self._from_now = False
            self._move(Happening.COMPLETE)

    def _take_piece(self, piece: Fetched) -> None:
        head = self._ready[0]
        if piece.seq != head.event.seq:
            raise RemoteViolation(f"event {piece.seq} came where {head.event.seq} was asked for")
        self._fetched += piece.data
        if len(self._fetched) < piece.size:
            if not piece.data:
                raise RemoteViolation(f"event {piece.seq} ends before its {piece.size} bytes")
            return
        event = msgspec.structs.replace(head.event, data=Raw(bytes(self._fetched)))
        self._ready[0] = Published(head.epoch, event, {})
        self._fetched = bytearray()
