"""The streams of one run as the engine carries them.

`core/credit.py` decides which items go to whom and who has to wait; this file carries it out:

    Give, GiveEnd   a message to the reader's guest
    Hold            the speaker's link is not read: its buffers fill, and it waits
    Wait            told to the core, which stops the attempt's idle clock
    ReadItems       a page of the journal, in a thread
    Unheard         the speaker is ended, if the reader is still to come

Nothing is sent that is not durable: a run that is taken up again gives its readers the same items.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Protocol

from msgspec import Raw

from ..protocol.errors import CasemateError
from ..protocol.events import ErrorKind, EventData, TaskEmitted, TaskError
from ..protocol.limits import STREAM_CREDIT_SIZE
from ..protocol.pipeline import PipelineSpec
from ..protocol.units import format_size
from .core.credit import Action, Credit, Give, GiveEnd, Hold, Name, ReadItems, Unheard, Wait
from .core.events import FailRun, Input, Waits
from .core.task import Standing
from .journal import JournalReader
from .links import Attempt, Key
from .state import RunDirectory

__all__ = ["Streams"]

# A reader that stands so is still to run. RUNNING: it is about to be given its job, or it is done.
_TO_COME = frozenset({Standing.WAITING, Standing.READY, Standing.BACKOFF})


class Owner(Protocol):
    """The engine, as far as streams need it."""

    def attempt_alive(self, key: Key) -> Attempt | None: ...
    def standing_of(self, run: str, task: str) -> Standing: ...
    def tell_core(self, input: Input) -> None: ...
    def in_background(self, work: Coroutine[Any, Any, None]) -> None: ...


class Streams:
    def __init__(
        self, owner: Owner, directory: RunDirectory, spec: PipelineSpec, durable: int
    ) -> None:
        self._owner = owner
        self._directory = directory
        self._run = directory.id
        self._backlog = spec.stream_backlog
        self._readers: dict[str, list[str]] = {}
        for edge in sorted(spec.edges):
            if edge.stream:
                self._readers.setdefault(edge.source, []).append(edge.to)
        self._credit = Credit(self._readers, spec.stream_backlog, durable)
        self._sources: dict[Name, tuple[Name, ...]] = {}  # of those who have not begun

    @classmethod
    def of_run(
        cls, owner: Owner, directory: RunDirectory, spec: PipelineSpec, durable: int = 0
    ) -> Streams | None:
        """None: the run has no stream edges. `durable`: its last event, where it is taken over."""
        has_streams = any(edge.stream for edge in spec.edges)
        return cls(owner, directory, spec, durable) if has_streams else None

    def expects(self, reader: Name, sources: tuple[Name, ...]) -> None:
        """An attempt that reads is on its way."""
        if sources:
            self._sources[reader] = sources

    def upstreams(self, reader: Name) -> tuple[str, ...]:
        return tuple(task for task, _ in self._sources.get(reader, ()))

    def begins(self, reader: Name) -> None:
        """It has its job, and may be sent items."""
        if sources := self._sources.pop(reader, None):
            completed = {
                task
                for task, _ in sources
                if self._owner.standing_of(self._run, task) is Standing.COMPLETED
            }
            self._act(self._credit.begins(reader, sources, completed))

    def said(self, speaker: Name, said: Sequence[EventData], seqs: range) -> None:
        """What goes into the journal under these numbers."""
        if speaker[0] not in self._readers:
            return
        items = [
            (seq, each.item)
            for seq, each in zip(seqs, said, strict=True)
            if isinstance(each, TaskEmitted)
        ]
        if items:
            self._act(self._credit.said(speaker, items))

    def completed(self, speaker: Name, seq: int) -> None:
        if speaker[0] in self._readers:
            self._credit.completed(speaker, seq)

    def durable(self, until: int) -> None:
        self._act(self._credit.durable(until))

    def credited(self, reader: Name, upstream: str, items: int) -> None:
        """RemoteViolation where it was not sent that many."""
        self._act(self._credit.credited(reader, upstream, items))

    def ended(self, name: Name) -> None:
        """Nothing of an attempt is alive."""
        self._sources.pop(name, None)
        self._act(self._credit.ended(name))

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Give(reader=reader, upstream=upstream, items=items):
                    if attempt := self._alive(reader):
                        attempt.give(upstream, items)
                case GiveEnd(reader=reader, upstream=upstream):
                    if attempt := self._alive(reader):
                        attempt.give_end(upstream)
                case Hold(speaker=speaker, is_held=is_held):
                    if attempt := self._alive(speaker):
                        attempt.hold(is_held)
                case Wait(attempt=(task, number), is_waiting=is_waiting):
                    self._owner.tell_core(Waits(self._run, task, number, is_waiting))
                case ReadItems():
                    self._owner.in_background(self._read(action))
                case Unheard():
                    self._refuse(action)

    def _alive(self, name: Name) -> Attempt | None:
        return self._owner.attempt_alive(Key(self._run, *name))

    def _refuse(self, unheard: Unheard) -> None:
        reader = unheard.reader
        attempt = self._alive(unheard.speaker)
        if attempt is None or self._owner.standing_of(self._run, reader) not in _TO_COME:
            return
        attempt.blame(
            ErrorKind.OUTPUT_LIMIT,
            f"{format_size(unheard.size)} of its items wait for {reader}, which does not run yet, "
            f"and stream_backlog is {format_size(self._backlog)}",
        )
        attempt.kill()

    async def _read(self, asked: ReadItems) -> None:
        try:
            items, is_all = await asyncio.to_thread(self._read_page, asked)
        except (OSError, ValueError, CasemateError) as error:
            message = f"items of {asked.speaker[0]} cannot be read again: {error}"
            failure = TaskError(kind=ErrorKind.DISK, message=message)
            self._owner.tell_core(FailRun(self._run, failure))
        else:
            self._act(self._credit.read(asked, items, is_all))

    def _read_page(self, asked: ReadItems) -> tuple[list[tuple[int, Raw]], bool]:
        with JournalReader(self._directory) as reader:
            return reader.items(
                *asked.speaker,
                since=asked.after,
                until=asked.until,
                size=STREAM_CREDIT_SIZE,
            )
