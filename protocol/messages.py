"""What is said over the link between the supervisor and one guest.

One message is one ZMTP frame: `u8 kind | msgpack map`. `protocol/link.py` holds the order they
may come in, `protocol/codec.py` the bytes. User payloads are `Raw`: nobody on the trusted side
opens them.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

from msgspec import Raw, Struct

from .pipeline import Entry
from .refusals import Refusal

__all__ = [
    "FROM_GUEST",
    "FROM_SUPERVISOR",
    "Accept",
    "Artifact",
    "Cancel",
    "Credit",
    "Deadline",
    "Emit",
    "End",
    "Fail",
    "Hello",
    "Item",
    "Kind",
    "Log",
    "Message",
    "Part",
    "Progress",
    "Result",
    "Run",
    "Save",
    "Saved",
]

NIL = Raw(b"\xc0")


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
    SAVE = 10
    SAVED = 11
    ITEM = 12
    END = 13
    CREDIT = 14
    DEADLINE = 15
    ARTIFACT = 16


class Part(StrEnum):
    """What a sandbox does of an attempt: the task itself, or one of its two checks."""

    EXECUTE = "execute"
    VALIDATE = "validate"
    RECOVER = "recover"


class Hello(Struct, frozen=True, forbid_unknown_fields=True):
    """The guest is inside its walls and ready."""

    version: int
    pid: int  # as the guest sees it


class Accept(Struct, frozen=True, forbid_unknown_fields=True):
    version: int


class Run(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The one job of this guest. `input_file`: path inside the sandbox of a read-only file with
    the msgpack of `input`, where it was too large for a message (then `input` is nil). `saved`:
    what an earlier attempt of this task saved last; nil where none did. `streams`: the upstream
    tasks whose items this guest will be sent. `preload`: modules to import before `entry` is.

    Of a validation, `input` is the output, and `schema` (nil: none) what it is held against before
    `entry` is called; of a recovery, the error."""

    run: str
    task: str
    attempt: int
    part: Part = Part.EXECUTE
    entry: Entry | None  # None: of a validation that has a schema alone
    input: Raw
    input_file: str | None
    spec: Raw
    idempotency_key: str
    deadline: float | None  # seconds from now until the wall limit
    workspace: str | None  # path inside the sandbox
    saved: Raw = NIL
    streams: tuple[str, ...] = ()
    python: str | None = None  # the interpreter that calls `entry`; None: the guest itself
    schema: Raw = NIL
    preload: tuple[str, ...] = ()


class Emit(Struct, frozen=True, forbid_unknown_fields=True):
    item: Raw


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    fields: Raw  # a map


class Progress(Struct, frozen=True, forbid_unknown_fields=True):
    done: float
    total: float | None


class Save(Struct, frozen=True, forbid_unknown_fields=True):
    """Keep this for the next attempt, should this one fail. It waits for SAVED."""

    state: Raw


class Saved(Struct, frozen=True, forbid_unknown_fields=True):
    """The state of the last SAVE is durable."""


class Artifact(Struct, frozen=True, forbid_unknown_fields=True):
    """A file that the task hands over. The n-th lies in the outbox as `artifact-<n>`: `name` is
    what it is called, and leads nowhere."""

    name: str
    size: int
    digest: bytes  # SHA-256


class Item(Struct, frozen=True, forbid_unknown_fields=True):
    """The next items of a stream, in order; as many as fit a message, within the credit."""

    upstream: str
    items: tuple[Raw, ...]


class End(Struct, frozen=True, forbid_unknown_fields=True):
    """A stream has no more items: its producer has completed."""

    upstream: str


class Credit(Struct, frozen=True, forbid_unknown_fields=True):
    """So many further items of a stream have been dealt with: the task had them, and came back
    for more. All of them credited means that it waits."""

    upstream: str
    items: int


class Deadline(Struct, frozen=True, forbid_unknown_fields=True):
    """The wall limit has moved, because the attempt was paused. A moment on CLOCK_MONOTONIC, which
    both ends share, and not seconds from now: the guest may look for it much later."""

    deadline: float | None


class Cancel(Struct, frozen=True, forbid_unknown_fields=True):
    """End soon: the tree is killed after `grace` seconds."""

    grace: float


class Result(Struct, frozen=True, forbid_unknown_fields=True):
    """Either `output`, or the `digest` (SHA-256) and `size` of the file `output` in the outbox."""

    output: Raw
    digest: bytes | None = None
    size: int | None = None


class Fail(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The task's code raised, or gave what cannot be carried, or its command failed. `refused`:
    which walls it met, as the guest saw it."""

    kind: str  # an ErrorKind the guest may claim: error, crash, invalid_output, output_limit
    message: str
    type: str | None = None
    traceback: str | None = None
    retry_after: float | None = None  # seconds, not negative
    refused: tuple[Refusal, ...] = ()


Message = (
    Hello
    | Accept
    | Run
    | Emit
    | Log
    | Progress
    | Save
    | Saved
    | Artifact
    | Item
    | End
    | Credit
    | Deadline
    | Cancel
    | Result
    | Fail
)

FROM_GUEST: dict[Kind, type[Struct]] = {
    Kind.HELLO: Hello,
    Kind.EMIT: Emit,
    Kind.LOG: Log,
    Kind.PROGRESS: Progress,
    Kind.SAVE: Save,
    Kind.ARTIFACT: Artifact,
    Kind.CREDIT: Credit,
    Kind.RESULT: Result,
    Kind.FAIL: Fail,
}
FROM_SUPERVISOR: dict[Kind, type[Struct]] = {
    Kind.ACCEPT: Accept,
    Kind.RUN: Run,
    Kind.SAVED: Saved,
    Kind.ITEM: Item,
    Kind.END: End,
    Kind.DEADLINE: Deadline,
    Kind.CANCEL: Cancel,
}
