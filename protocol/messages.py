"""What is said over the link between the supervisor and one guest.

One message is one ZMTP frame: `u8 kind | msgpack map`. `protocol/link.py` holds the order they
may come in, `protocol/codec.py` the bytes. User payloads are `Raw`: nobody on the trusted side
opens them.
"""

from __future__ import annotations

from enum import IntEnum

from msgspec import Raw, Struct

from .pipeline import Entry

__all__ = [
    "FROM_GUEST",
    "FROM_SUPERVISOR",
    "Accept",
    "Cancel",
    "Emit",
    "Fail",
    "Hello",
    "Kind",
    "Log",
    "Message",
    "Progress",
    "Result",
    "Run",
]


class Kind(IntEnum):
    HELLO = 1
    ACCEPT = 2
    RUN = 3
    EMIT = 4
    LOG = 5
    PROGRESS = 6
    CANCEL = 7
    RESULT = 8
    FAIL = 9


class Hello(Struct, frozen=True, forbid_unknown_fields=True):
    """The guest is inside its walls and ready."""

    version: int
    pid: int  # as the guest sees it


class Accept(Struct, frozen=True, forbid_unknown_fields=True):
    version: int


class Run(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The one job of this guest. `input_file`: path inside the sandbox of a read-only file with
    the msgpack of `input`, where it was too large for a message (then `input` is nil)."""

    run: str
    task: str
    attempt: int
    entry: Entry
    input: Raw
    input_file: str | None
    spec: Raw
    idempotency_key: str
    deadline: float | None  # seconds from now until the wall limit
    workspace: str | None  # path inside the sandbox


class Emit(Struct, frozen=True, forbid_unknown_fields=True):
    item: Raw


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    fields: Raw  # a map


class Progress(Struct, frozen=True, forbid_unknown_fields=True):
    done: float
    total: float | None


class Cancel(Struct, frozen=True, forbid_unknown_fields=True):
    """End soon: the tree is killed after `grace` seconds."""

    grace: float


class Result(Struct, frozen=True, forbid_unknown_fields=True):
    """Either `output`, or the `digest` (SHA-256) and `size` of the file `output` in the outbox."""

    output: Raw
    digest: bytes | None = None
    size: int | None = None


class Fail(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The task's code raised, or gave what cannot be carried, or its command failed."""

    kind: str  # an ErrorKind the guest may claim: error, crash, invalid_output, output_limit
    message: str
    type: str | None = None
    traceback: str | None = None


Message = Hello | Accept | Run | Emit | Log | Progress | Cancel | Result | Fail

FROM_GUEST: dict[Kind, type[Struct]] = {
    Kind.HELLO: Hello,
    Kind.EMIT: Emit,
    Kind.LOG: Log,
    Kind.PROGRESS: Progress,
    Kind.RESULT: Result,
    Kind.FAIL: Fail,
}
FROM_SUPERVISOR: dict[Kind, type[Struct]] = {
    Kind.ACCEPT: Accept,
    Kind.RUN: Run,
    Kind.CANCEL: Cancel,
}
