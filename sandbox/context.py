"""What a task is given besides its input: who it is, and how it speaks while it runs.

A `RuntimeContext` turns `emit`, `log` and `progress` into messages for a `Speaker`: the guest's
link inside a sandbox, a list in a test. Nothing here knows sockets. A call returns when the
message is on its way; when the supervisor is slow it blocks, and that is the backpressure. Calls
from several threads are safe and come out whole, in some order.

Ending early has two faces. In plain functions SIGTERM raises `Cancelled` in the main thread (in
async ones the task's coroutine is cancelled), so that `finally` blocks run before the grace is
over. Code that catches everything, or works in threads, asks `ctx.cancelled` instead.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

from msgspec import Raw

from ..protocol import codec
from ..protocol.limits import KIB, LOG_TEXT_SIZE, MESSAGE_SIZE
from ..protocol.messages import Emit, Log, Message, Progress

__all__ = ["PAYLOAD_SIZE", "Cancelled", "RuntimeContext", "Speaker"]

# A payload that fits one message together with the kind, its map's keys and the longest text.
PAYLOAD_SIZE = MESSAGE_SIZE - LOG_TEXT_SIZE - KIB


class Cancelled(BaseException):
    """Raised in the task's main thread when the supervisor wants it to end. Like
    KeyboardInterrupt it is no `Exception`: code that shields itself from errors still ends."""


class Speaker(Protocol):
    """Where a task's words go."""

    def send(self, message: Message) -> None:
        """Hand the message over; block while the other side is slow."""

    def is_cancelled(self) -> bool:
        """Whether the supervisor has asked us to end; never blocks."""


class RuntimeContext:
    """One attempt, as its own code sees it."""

    __slots__ = (
        "_speaker",
        "attempt",
        "deadline",
        "idempotency_key",
        "run_id",
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
        deadline: float | None,
        idempotency_key: str,
    ) -> None:
        self._speaker = speaker
        self.run_id = run_id
        self.task_id = task_id
        self.attempt = attempt
        self.spec = spec
        self.workspace = workspace
        # The moment of the wall limit on the clock of time.monotonic(); None without a limit.
        self.deadline = deadline
        # The same for every attempt of this task of this run: for services that deduplicate.
        self.idempotency_key = idempotency_key

    def __repr__(self) -> str:
        return f"<RuntimeContext of task {self.run_id}/{self.task_id}, attempt {self.attempt}>"

    @property
    def cancelled(self) -> bool:
        """Whether the supervisor has asked this attempt to end."""
        return self._speaker.is_cancelled()

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
