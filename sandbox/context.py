"""What a task is given besides its input: who it is, and how it speaks and listens while it runs.

A `RuntimeContext` turns `emit`, `log`, `progress` and `save` into messages for a `Speaker`: the
guest's link inside a sandbox, a list in a test; a `Stream` asks it for items. Nothing here knows
sockets. A call returns when the message is on its way; when the supervisor is slow it blocks, and
that is the backpressure. Only `save` waits for an answer: what it returned from survives a crash.
Calls from several threads are safe and come out whole, in some order.

Ending early has two faces. In plain functions SIGTERM raises `Cancelled` in the main thread (in
async ones the task's coroutine is cancelled), so that `finally` blocks run before the grace is
over. Code that catches everything, or works in threads, asks `ctx.cancelled` instead.
"""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any, Protocol, Self

from msgspec import Raw

from ..protocol import codec
from ..protocol.errors import UsageError
from ..protocol.limits import (
    ARTIFACTS,
    ARTIFACTS_SIZE,
    KIB,
    LOG_TEXT_SIZE,
    MESSAGE_SIZE,
    SAVED_SIZE,
)
from ..protocol.messages import Artifact, Emit, Log, Message, Progress, Save
from .handover import copy_out
from .spec import OUTBOX

__all__ = ["ENDED", "PAYLOAD_SIZE", "Cancelled", "RuntimeContext", "Speaker", "Stream"]

# A payload that fits one message together with the kind, its map's keys and the longest text.
PAYLOAD_SIZE = MESSAGE_SIZE - LOG_TEXT_SIZE - KIB


# What a Speaker gives after the last item of a stream: None is an item like any other.
ENDED = object()


class Cancelled(BaseException):
    """Raised in the task's main thread when the supervisor wants it to end. Like
    KeyboardInterrupt it is no `Exception`: code that shields itself from errors still ends."""


class Speaker(Protocol):
    """Where a task's words go, and where others' come from."""

    def send(self, message: Message) -> None:
        """Hand the message over; block while the other side is slow."""

    def is_cancelled(self) -> bool:
        """Whether the supervisor has asked us to end; does not wait for it."""

    def deadline(self) -> float | None:
        """The moment of the wall limit, as far as it is known now."""

    def save(self, message: Save) -> None:
        """Hand the message over; block until the state is durable."""

    def take(self, upstream: str) -> Any:  # a user's value
        """The next item of this stream, or ENDED; block until there is either."""

    async def take_later(self, upstream: str) -> Any:  # a user's value
        """The same for a coroutine."""


class Stream:
    """The items of one upstream task, in order, while it runs: for `for` and for `async for`. Each
    is handed over once, whoever asks; a loop that was left goes on where it stopped."""

    __slots__ = ("_speaker", "upstream")

    def __init__(self, speaker: Speaker, upstream: str) -> None:
        self._speaker = speaker
        self.upstream = upstream

    def __repr__(self) -> str:
        return f"<Stream of {self.upstream}>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:  # a user's value
        item = self._speaker.take(self.upstream)
        if item is ENDED:
            raise StopIteration
        return item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:  # a user's value
        item = await self._speaker.take_later(self.upstream)
        if item is ENDED:
            raise StopAsyncIteration
        return item


class RuntimeContext:
    """One attempt, as its own code sees it."""

    __slots__ = (
        "_artifacts",
        "_handing_over",
        "_outbox",
        "_room",
        "_speaker",
        "_streams",
        "attempt",
        "idempotency_key",
        "run_id",
        "saved",
        "spec",
        "task_id",
        "workspace",
    )

    def __init__(
        self,
        speaker: Speaker,
        *,
        run_id: str,
        task_id: str,
        attempt: int,
        spec: Any,  # the user's own data: whatever the pipeline says
        workspace: Path | None,
        idempotency_key: str,
        saved: Any = None,  # the user's own data
        streams: tuple[str, ...] = (),
        outbox: str = OUTBOX,
    ) -> None:
        self._speaker = speaker
        self._outbox = outbox
        self._artifacts = set[str]()
        self._room = ARTIFACTS_SIZE
        self._handing_over = threading.Lock()
        self.run_id = run_id
        self.task_id = task_id
        self.attempt = attempt
        self.spec = spec
        self.workspace = workspace
        # The same for every attempt of this task of this run: for services that deduplicate.
        self.idempotency_key = idempotency_key
        # What an earlier attempt of this task saved last; None where none did.
        self.saved = saved
        self._streams = {upstream: Stream(speaker, upstream) for upstream in streams}

    def __repr__(self) -> str:
        return f"<RuntimeContext of task {self.run_id}/{self.task_id}, attempt {self.attempt}>"

    @property
    def cancelled(self) -> bool:
        """Whether the supervisor has asked this attempt to end."""
        return self._speaker.is_cancelled()

    @property
    def deadline(self) -> float | None:
        """The moment of the wall limit on the clock of time.monotonic(); None without a limit.
        It moves when the run was paused."""
        return self._speaker.deadline()

    def emit(self, item: object) -> None:
        """Stream one item out now: JSON-like data, bytes and datetimes."""
        payload = codec.encode_value(item, "item")
        if len(payload) > PAYLOAD_SIZE:
            raise ValueError(
                f"emitted item of {len(payload)} bytes: at most {PAYLOAD_SIZE} fit one message; "
                "split it, or return it as (part of) the output"
            )
        self._speaker.send(Emit(item=Raw(payload)))

    def log(self, message: object, /, **fields: object) -> None:
        """A line for people, with data beside it. A long text is cut in its middle."""
        payload = codec.encode_value(fields, "fields")
        if len(payload) > PAYLOAD_SIZE:
            raise ValueError(
                f"log fields of {len(payload)} bytes: at most {PAYLOAD_SIZE} fit one message"
            )
        self._speaker.send(Log(text=str(message), fields=Raw(payload)))

    def progress(self, done: float, total: float | None = None) -> None:
        """How far along: `done` of `total`, in any unit."""
        done = float(done)
        total = None if total is None else float(total)
        if not math.isfinite(done) or not (total is None or math.isfinite(total)):
            raise ValueError(f"progress({done}, {total}): expected finite numbers")
        self._speaker.send(Progress(done=done, total=total))

    def save(self, state: object) -> None:
        """Keep this for the next attempt of this task, which finds the newest in `saved`. Returns
        when it is on disk. It blocks an event loop too: `asyncio.to_thread` does not."""
        payload = codec.encode_value(state, "state")
        if len(payload) > SAVED_SIZE:
            raise ValueError(
                f"saved state of {len(payload)} bytes: at most {SAVED_SIZE} are kept; "
                "save how far the work is, and leave its results in the workspace"
            )
        self._speaker.save(Save(state=Raw(payload)))

    def artifact(self, path: str | os.PathLike[str], name: str | None = None) -> str:
        """Hand over a copy of this file as it is now: kept with the run whatever becomes of the
        attempt, and told as `task.artifact`. Its name, which is returned, is the path below the
        workspace, or for a file elsewhere the last part of it, unless another is given."""
        path = os.fspath(path)
        if name is None:
            name = self._name_of(path)
        problem = codec.artifact_name_problem(name)
        if problem is not None:
            raise ValueError(problem)
        with self._handing_over:
            number = len(self._artifacts) + 1
            if name in self._artifacts:
                raise ValueError(f"artifact {name!r} was handed over before: give it another name")
            if number > ARTIFACTS:
                raise ValueError(f"artifact {name!r}: an attempt hands over at most {ARTIFACTS}")
            target = os.path.join(self._outbox, f"artifact-{number}")
            size, digest = copy_out(path, target, self._room)
            self._speaker.send(Artifact(name=name, size=size, digest=digest))
            self._artifacts.add(name)
            self._room -= size
        return name

    def _name_of(self, path: str) -> str:
        whole = os.path.abspath(path)
        if self.workspace is not None:
            below = os.path.relpath(whole, self.workspace)
            if not below.startswith(".."):
                return below
        return os.path.basename(whole)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All there are."""
        return tuple(self._streams.values())

    def stream(self, upstream: str) -> Stream:
        """What this upstream task emits, from its first item on: one Stream, however often it is
        asked for. In async code use `async for`: `for` would block the event loop."""
        stream = self._streams.get(upstream)
        if stream is None:
            names = ", ".join(sorted(self._streams)) or "none"
            raise UsageError(
                f"ctx.stream({upstream!r}): stream edges lead to {self.task_id} from: {names}; "
                "what plain edges bring is in the input"
            )
        return stream
