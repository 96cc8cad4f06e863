"""Streams: which items of whom go to whom, and when a speaker has to wait.

A speaker is an attempt whose items others read; a reader is an attempt that reads. Between one
speaker and one reader lies an edge, for as long as the reader runs. An item takes one road: it is
said, becomes durable, is taken into its edge, is sent, and is credited when the reader has dealt
with it.

    said - credited    at most one window (STREAM_CREDIT_*); beyond it the speaker is held
    taken, not sent    at most about STREAM_CREDIT_SIZE: what is beyond stays in the journal
    sent - credited    at most one window, whatever the speaker has said

An edge that has taken everything which is durable is level: it takes the next items straight from
their commit. One that is not (its reader began late, or was restarted) is fed from the journal,
page by page (`ReadItems`), until it is level. So what waits for a reader is on disk, and an edge
holds a bounded number of items.

While no reader runs there is nobody to wait for: the items are journaled without credit, and where
one is still to come, up to the backlog (`Unheard`). A reader that has ended holds nobody.

A reader may wait for one stream while another is full. If what it waits for waits in turn for the
speaker of the full one, that one is let go on: holding it would be a deadlock. Whose result is
provisional waits for all that it read to complete, and so does who waits for the end of its stream.

Nothing here has a clock, a socket or a thread. Each method returns what is to be done, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Raw

from ...protocol.errors import RemoteViolation
from ...protocol.limits import (
    EVENT_SIZE,
    ITEM_SIZE,
    STREAM_CREDIT_ITEMS,
    STREAM_CREDIT_SIZE,
)

__all__ = ["Action", "Credit", "Give", "GiveEnd", "Hold", "Name", "ReadItems", "Unheard", "Wait"]

# A task and the number of its attempt.
Name = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Give:
    """Send these items."""

    reader: Name
    upstream: str
    items: tuple[Raw, ...]


@dataclass(frozen=True, slots=True)
class GiveEnd:
    """Say that there are no more."""

    reader: Name
    upstream: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Hear no more of what a speaker says, or hear it again."""

    speaker: Name
    is_held: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """An attempt waits for a stream, or does so no more."""

    attempt: Name
    is_waiting: bool


@dataclass(frozen=True, slots=True)
class ReadItems:
    """Read what a speaker said after one event and up to another, from the journal; answer with
    `Credit.read`."""

    reader: Name
    speaker: Name
    after: int
    until: int


@dataclass(frozen=True, slots=True)
class Unheard:
    """So many bytes wait for a reader that does not run, and the backlog is less. Whether it ever
    will run is not known here."""

    speaker: Name
    reader: str
    size: int


Action = Give | GiveEnd | Hold | Wait | ReadItems | Unheard


def weight(item: Raw) -> int:
    """What an item counts: its place in the journal is more than a byte."""
    return max(memoryview(item).nbytes, EVENT_SIZE)


@dataclass(slots=True, eq=False)
class _Speaker:
    name: Name
    said: int = 0  # items, in this life of the supervisor
    said_size: int = 0
    coming: int = 0  # of them, not durable yet
    last: int = 0  # the event of the last durable one, or one after it
    has_completed: bool = False  # durably
    is_alive: bool = True
    is_held: bool = False
    edges: dict[str, _Edge] = field(default_factory=dict)  # by reader task
    heard: dict[str, int] = field(default_factory=dict)  # the most that a reader was credited
    sources: list[_Speaker] = field(default_factory=list)  # whom it reads itself

    def full_edges(self) -> list[_Edge]:
        """Those for which it would have to wait."""
        return [edge for edge in self.edges.values() if edge.is_full] if self.is_alive else []


@dataclass(slots=True, eq=False)
class _Edge:
    speaker: _Speaker
    reader: Name
    taken: int = 0  # every item up to this event is pending, sent or credited
    pending: deque[Raw] = field(default_factory=deque)
    pending_size: int = 0
    sent: deque[int] = field(default_factory=deque)  # their weights
    sent_size: int = 0
    credited: int = 0
    credited_size: int = 0
    is_reading: bool = False
    has_ended: bool = False

    @property
    def is_level(self) -> bool:
        return self.taken >= self.speaker.last and not self.is_reading

    @property
    def is_full(self) -> bool:
        speaker = self.speaker
        return (
            speaker.said - self.credited >= STREAM_CREDIT_ITEMS
            or speaker.said_size - self.credited_size >= STREAM_CREDIT_SIZE
        )

    @property
    def is_starved(self) -> bool:
        """The reader has dealt with all it was sent."""
        return not self.sent and not self.has_ended

    @property
    def is_dry(self) -> bool:
        """Only what the speaker says next can help that."""
        return self.is_starved and self.is_level and not self.speaker.coming

    def take(self, items: Iterable[tuple[int, Raw]]) -> None:
        """Items that follow those taken, as far as there is room."""
        for seq, item in items:
            if self.pending_size >= STREAM_CREDIT_SIZE:
                return
            self.taken = seq
            self.pending.append(item)
            self.pending_size += weight(item)

    def next_batch(self) -> tuple[Raw, ...]:
        """What may be sent now, in one message."""
        batch: list[Raw] = []
        size = 0
        while self.pending and len(self.sent) < STREAM_CREDIT_ITEMS:
            each = weight(self.pending[0])
            if self.sent and self.sent_size + each > STREAM_CREDIT_SIZE:
                break
            size += memoryview(self.pending[0]).nbytes
            if batch and size > ITEM_SIZE:
                break
            batch.append(self.pending.popleft())
            self.pending_size -= each
            self.sent.append(each)
            self.sent_size += each
        return tuple(batch)


class Credit:
    """The streams of one run. `readers`: of each task's stream. `backlog`: bytes. `durable`: the
    last event, where the run is taken over."""

    def __init__(
        self, readers: Mapping[str, Sequence[str]], backlog: int, durable: int = 0
    ) -> None:
        self._readers = readers
        self._backlog = backlog
        self._durable = durable
        self._speakers: dict[str, _Speaker] = {}  # of each task the attempt that counts
        self._edges: dict[Name, dict[str, _Edge]] = {}  # of a reader, by upstream
        # What is not durable yet: the event's number, an item or (None) that there are no more.
        self._coming: deque[tuple[int, _Speaker, Raw | None]] = deque()
        self._full: set[_Speaker] = set()
        self._waiting: set[Name] = set()
        self._touched: set[_Speaker] = set()
        self._may_wait: set[Name] = set()
        self._actions: list[Action] = []

    def begins(
        self, reader: Name, sources: Iterable[Name], completed: Collection[str] = ()
    ) -> list[Action]:
        """A reader has its job. `completed`: those of its sources that have. Such a one that is not
        known here did so in an earlier life of the supervisor, or a rollback has restored it: all
        that it said is durable."""
        edges = self._edges[reader] = {}
        for source in sources:
            known = self._speakers.get(source[0])
            speaker = self._speaks(source)
            if speaker is not known and source[0] in completed:
                speaker.has_completed, speaker.is_alive = True, False
                speaker.last = self._durable
            edge = edges[source[0]] = speaker.edges[reader[0]] = _Edge(speaker, reader)
            self._pump(edge)
        if self._readers.get(reader[0]):
            self._speaks(reader).sources = [edge.speaker for edge in edges.values()]
        return self._settled()

    def said(self, name: Name, items: Sequence[tuple[int, Raw]]) -> list[Action]:
        """A speaker said these, each on its way to the journal as the event of that number."""
        speaker = self._speaks(name)
        for seq, item in items:
            self._coming.append((seq, speaker, item))
            speaker.said_size += weight(item)
        speaker.said += len(items)
        speaker.coming += len(items)
        self._touched.add(speaker)
        for reader in self._readers[name[0]]:
            unheard = speaker.said_size - speaker.heard.get(reader, 0)
            if reader not in speaker.edges and unheard > self._backlog:
                self._actions.append(Unheard(name, reader, unheard))
        return self._settled()

    def completed(self, name: Name, seq: int) -> None:
        """A speaker has completed, as the event of that number will tell: it says no more."""
        self._coming.append((seq, self._speaks(name), None))

    def durable(self, until: int) -> list[Action]:
        """All events up to this number are."""
        self._durable = until
        news: dict[_Speaker, list[tuple[int, Raw]]] = {}
        completed: list[_Speaker] = []
        while self._coming and self._coming[0][0] <= until:
            seq, speaker, item = self._coming.popleft()
            if item is not None:
                news.setdefault(speaker, []).append((seq, item))
            else:
                completed.append(speaker)
        for speaker, items in news.items():
            level = [edge for edge in speaker.edges.values() if edge.is_level]
            speaker.coming -= len(items)
            speaker.last = items[-1][0]
            for edge in level:
                edge.take(items)
                self._pump(edge)
        for speaker in completed:
            speaker.has_completed = True
            for edge in speaker.edges.values():
                self._pump(edge)
        return self._settled()

    def read(
        self, asked: ReadItems, items: Sequence[tuple[int, Raw]], is_all: bool
    ) -> list[Action]:
        """What the journal has of what was asked for; not `is_all`: only the first of it."""
        edge = self._edges.get(asked.reader, {}).get(asked.speaker[0])
        if edge is None:
            return []  # the reader has ended meanwhile
        edge.is_reading = False
        edge.take(items)
        if is_all and (not items or edge.taken == items[-1][0]):
            edge.taken = asked.until
        self._pump(edge)
        return self._settled()

    def credited(self, reader: Name, upstream: str, items: int) -> list[Action]:
        """RemoteViolation where it was not sent that many."""
        edge = self._edges.get(reader, {}).get(upstream)
        if edge is None:
            raise RemoteViolation(f"credit for {upstream!r}, which it does not read")
        if items > len(edge.sent):
            raise RemoteViolation(
                f"credit for {items} items of {upstream}, and {len(edge.sent)} were under way"
            )
        size = sum(edge.sent.popleft() for _ in range(items))
        edge.sent_size -= size
        edge.credited += items
        edge.credited_size += size
        self._pump(edge)
        return self._settled()

    def ended(self, name: Name) -> list[Action]:
        """An attempt says and reads nothing more."""
        for edge in self._edges.pop(name, {}).values():
            speaker = edge.speaker
            del speaker.edges[name[0]]
            heard = speaker.heard.get(name[0], 0)
            speaker.heard[name[0]] = max(heard, edge.credited_size)
        known = self._speakers.get(name[0])
        if known is not None and known.name == name:
            known.is_alive = False
        self._waiting.discard(name)
        return self._settled()

    def _speaks(self, name: Name) -> _Speaker:
        """An attempt that others read. The one before it is heard no more."""
        speaker = self._speakers.get(name[0])
        if speaker is None or speaker.name != name:
            speaker = self._speakers[name[0]] = _Speaker(name)
        return speaker

    def _pump(self, edge: _Edge) -> None:
        """Move what can be moved."""
        speaker, upstream = edge.speaker, edge.speaker.name[0]
        self._touched.add(speaker)
        self._may_wait.add(edge.reader)
        while batch := edge.next_batch():
            self._actions.append(Give(edge.reader, upstream, batch))
        if edge.is_level:
            if speaker.has_completed and not edge.pending and not edge.has_ended:
                edge.has_ended = True
                self._actions.append(GiveEnd(edge.reader, upstream))
        elif not edge.is_reading and edge.pending_size < STREAM_CREDIT_SIZE // 2:
            edge.is_reading = True
            asked = ReadItems(edge.reader, speaker.name, edge.taken, speaker.last)
            self._actions.append(asked)

    def _settled(self) -> list[Action]:
        """What has been decided, and who is held and who waits in consequence."""
        # Who has a full edge is looked at again whatever happens: what held or let it may be over.
        for speaker in sorted(self._touched | self._full, key=lambda each: each.name):
            full = speaker.full_edges()
            (self._full.add if full else self._full.discard)(speaker)
            is_held = any(not self._is_awaited(speaker, edge.reader) for edge in full)
            if is_held is not speaker.is_held:
                speaker.is_held = is_held
                self._may_wait.add(speaker.name)
                if speaker.is_alive:
                    self._actions.append(Hold(speaker.name, is_held))
        for name in sorted(self._may_wait):
            is_waiting = self._waits(name)
            if is_waiting is not (name in self._waiting):
                (self._waiting.add if is_waiting else self._waiting.discard)(name)
                self._actions.append(Wait(name, is_waiting))
        self._touched.clear()
        self._may_wait.clear()
        actions, self._actions = self._actions, []
        return actions

    def _waits(self, name: Name) -> bool:
        speaker = self._speakers.get(name[0])
        is_held = speaker is not None and speaker.name == name and speaker.is_held
        return is_held or any(edge.is_starved for edge in self._edges.get(name, {}).values())

    def _is_awaited(self, speaker: _Speaker, by: Name) -> bool:
        """Whether a reader waits, over whatever others, for what this speaker does next."""
        pending, seen = [by], {by}
        for name in pending:  # grows while it is walked
            found = [
                edge.speaker.name for edge in self._edges.get(name, {}).values() if edge.is_dry
            ]
            known = self._speakers.get(name[0])
            if known is not None and known.name == name:
                if known.is_held and known is not speaker:
                    found += [edge.reader for edge in known.full_edges()]
                if not known.is_alive and not known.has_completed:
                    found += [each.name for each in known.sources if not each.has_completed]
            if speaker.name in found:
                return True
            pending += [each for each in found if each not in seen]
            seen.update(found)
        return False
