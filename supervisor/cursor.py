"""Reading a run: a cursor over its journal, lossless and in order, at the reader's own pace.

Nothing is queued for a reader. It asks the engine only how far the journal is durable, and reads
the rows itself: a slow reader costs nothing and misses nothing. This is also where a task's values
are opened: in the reader's process, never in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from ..protocol import codec
from ..protocol.errors import RemoteViolation
from ..protocol.events import Event
from .journal import JournalReader
from .state import StateDirectory

__all__ = ["ENDINGS", "Committer", "PipelineEvent", "RunResult", "collect", "follow", "public"]

# Enough that a page costs more than asking for it, few enough that the first is there at once.
_PAGE_EVENTS = 1000

ENDINGS = {"run.completed": "completed", "run.failed": "failed", "run.cancelled": "cancelled"}


@dataclass(frozen=True, slots=True)
class PipelineEvent:
    """One fact of a run. `seq` counts the run's events from 1, without holes."""

    seq: int
    run: str
    task: str | None
    attempt: int | None
    kind: str
    at: datetime
    data: dict[str, Any]
    # Large values that were left out (None stands for them), with their sizes in bytes.
    omitted: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The documented JSON shape; bytes and datetimes as `{"$bytes": …}`, `{"$datetime": …}`."""
        return {
            "seq": self.seq,
            "run": self.run,
            "task": self.task,
            "attempt": self.attempt,
            "kind": self.kind,
            "at": self.at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "data": codec.to_jsonable(self.data),
        }


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. `outputs`: {sink task: output}; `errors`: {task: its final error}."""

    run: str
    state: str
    outputs: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.state == "completed"


class Committer(Protocol):
    """What a cursor needs of an engine, be it in this process or another."""

    async def wait_committed(self, run: str, beyond: int) -> tuple[int, bool]: ...


async def follow(
    state: StateDirectory, engine: Committer, run: str, since: int = 0, *, whole: bool = True
) -> AsyncIterator[PipelineEvent]:
    """The run's events after `since`, in order, until its last one. Not `whole`: without the
    values that are large (`omitted` names them), for who only shows them."""
    committed, ended = await engine.wait_committed(run, since)
    reader = await asyncio.to_thread(JournalReader, state.run(run))
    try:
        while True:
            while since < committed:
                page = await asyncio.to_thread(_page, reader, since, whole)
                for event in page:
                    since = event.seq
                    yield event
            if ended:
                return
            committed, ended = await engine.wait_committed(run, since)
    finally:
        reader.close()


def _page(reader: JournalReader, since: int, whole: bool) -> list[PipelineEvent]:
    """Read and opened off the loop: a hostile value is slow to open."""
    if whole:
        return [public(event) for event in reader.events(since, _PAGE_EVENTS)]
    return [public(*outline) for outline in reader.outlines(since, _PAGE_EVENTS)]


def public(event: Event, omitted: dict[str, int] | None = None) -> PipelineEvent:
    """The event as a program sees it. Its data holds a task's own values: this is where they are
    opened, in the client's process, never in the engine."""
    return PipelineEvent(
        seq=event.seq,
        run=event.run,
        task=event.task,
        attempt=event.attempt,
        kind=event.kind,
        at=datetime.fromtimestamp(event.at, UTC),
        data=_opened(event.data, _OURS),
        omitted=omitted or {},
    )


# An event's data, and in it `outputs`: maps that we made, with a task's value at each key.
_OURS = 2
_open_map = msgspec.msgpack.Decoder(dict[str, Raw])


def _opened(data: Raw, ours: int) -> Any:  # the user's data
    """The value; where a hostile guest sent what only looks like one, that alone is left closed:
    it may not hide its neighbours."""
    try:
        return codec.decode_value(data)
    except RemoteViolation as error:
        if ours:
            with contextlib.suppress(ValueError, RecursionError):
                return {
                    key: _opened(item, ours - 1) for key, item in _open_map.decode(data).items()
                }
        return {"undecodable": str(error)}


async def collect(events: AsyncIterator[PipelineEvent]) -> RunResult:
    run, state = "", "interrupted"
    outputs: dict[str, Any] = {}
    errors: dict[str, dict[str, Any]] = {}
    async for event in events:
        run = event.run
        if event.kind in {"task.failed", "task.cancelled"} and event.task:
            errors[event.task] = event.data["error"]
        elif event.kind == "run.completed":
            outputs = event.data["outputs"]
        state = ENDINGS.get(event.kind, state)
    return RunResult(run, state, outputs, errors)
