"""What observers and clients exchange with the front: data only.

Events (XPUB). Three frames, `[topic, header, payload]`:

    ev.<run>.<task>.<kind>.    header: msgpack `Header`; payload: the event's data, a msgpack map
    ev.<run>..run.<what>.      an event of the run itself: the task is empty
    hb.                        header: msgpack `Heartbeat`; payload: msgpack map {run: last seq}

Where `omitted` names a field, the payload has nil there: the value is large and is fetched by
control. A heartbeat is sent every second, and at once when somebody subscribes to anything: whoever
has received one is subscribed.

Control (a ROUTER; clients use DEALER or REQ). One frame a request, one frame a reply, each a
msgpack map; `id` is the client's and comes back. A reply is `{"reply": kind, ...}`; what went wrong
is the reply `error`, never a closed connection.

Requests that read are answered by the front from the journals; those that steer (`pause`, `resume`,
`cancel`, `checkpoint`, `rollback`, `fork`, `apply`, `shutdown`) are passed on to the engine, and
answered when it has carried them out; so is `why`, which changes nothing. `breakers` reads what all
runs of the state directory share; `open_breaker` and `reset_breaker` are carried out by any engine.
An `id` that is a string names one such request for good: sent again, as a client does who got no
reply, it is not carried out again but answered with the first one's reply. A number names nothing
beyond its connection.

A run is submitted in two steps: its bundle is uploaded piece by piece (`upload`), by the front,
under an id of the client's, then named (`submit`). The id names the submission for good: however
often, and to whichever supervisor, it is submitted again, it is one run.

A late joiner: subscribe, wait for a heartbeat, replay from 0, then drop every live event whose seq
he has. A hole in seq, or a heartbeat that is ahead: replay from the last seq he has.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from .events import TaskError
from .limits import (
    CONTROL_ID_LENGTH,
    CONTROL_PATH_LENGTH,
    CONTROL_PATHS,
    CONTROL_REASON_LENGTH,
    CONTROL_VERSION,
    NAME_LENGTH,
    UPLOAD_PIECE_SIZE,
)
from .pipeline import BREAKER_KEY_PATTERN

__all__ = [
    "HEARTBEAT_TOPIC",
    "Applied",
    "Apply",
    "Because",
    "BreakerSummary",
    "BreakerVerb",
    "Breakers",
    "BreakersShown",
    "Cancel",
    "Checkpoint",
    "ControlAnswer",
    "ControlError",
    "ControlVerb",
    "Done",
    "Error",
    "Fetch",
    "Fetched",
    "Fork",
    "Frame",
    "Header",
    "Heartbeat",
    "List",
    "Listed",
    "OpenBreaker",
    "Pause",
    "Problem",
    "Replay",
    "Replayed",
    "Reply",
    "Request",
    "RequestId",
    "ResetBreaker",
    "Resume",
    "Rollback",
    "RunState",
    "RunSummary",
    "RunVerb",
    "Show",
    "Shown",
    "Shutdown",
    "Submission",
    "Submit",
    "TaskSummary",
    "Upload",
    "Uploaded",
    "Why",
    "topic",
]

HEARTBEAT_TOPIC = b"hb."


def topic(run: str, task: str | None, kind: str) -> bytes:
    return f"ev.{run}.{task or ''}.{kind}.".encode()


class Header(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What does not apply is left out."""

    version: int
    epoch: int  # changes when the front was restarted: what it had queued is gone, replay
    seq: int
    kind: str
    time: float  # wall clock, seconds since 1970
    task_seq: int | None = None  # counts this task's events from 1
    attempt: int | None = None
    omitted: dict[str, int] = {}  # "output" or "outputs/<task>": bytes


class Heartbeat(Struct, frozen=True, kw_only=True):
    version: int
    epoch: int
    time: float


# ------------------------------------------------------------------------------------- requests


# What SQLite can compare with, and JavaScript can count to.
Number = Annotated[int, Meta(ge=0, le=2**53)]
RequestId = int | Annotated[str, Meta(max_length=CONTROL_ID_LENGTH)]
# What reaches the engine is small: ids of runs and tasks, names of checkpoints.
Name = Annotated[str, Meta(max_length=NAME_LENGTH)]
Key = Annotated[str, Meta(pattern=BREAKER_KEY_PATTERN)]
Seconds = Annotated[float, Meta(ge=0, le=10**9)]
Submission = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Reason = Annotated[str, Meta(max_length=CONTROL_REASON_LENGTH)]
Paths = Annotated[
    tuple[Annotated[str, Meta(max_length=CONTROL_PATH_LENGTH)], ...],
    Meta(max_length=CONTROL_PATHS),
]


class _Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="verb"):
    version: int
    id: RequestId


class List(_Request, frozen=True, kw_only=True, tag="list"):
    """The newest runs of the state directory."""

    limit: Number = 100


class Show(_Request, frozen=True, kw_only=True, tag="show"):
    """One run and its tasks. `run`: an id, a unique prefix, or `last`, here and below."""

    run: str


class Replay(_Request, frozen=True, kw_only=True, tag="replay"):
    """A page of the run's events after seq `since`."""

    run: str
    since: Number = 0
    limit: Number = 1000


class Fetch(_Request, frozen=True, kw_only=True, tag="fetch"):
    """A piece of an event's whole data, from byte `offset`: how a large value is had."""

    run: str
    seq: Number
    offset: Number = 0


class Pause(_Request, frozen=True, kw_only=True, tag="pause"):
    """Start nothing more; what runs is frozen, or left to end (`drain`)."""

    run: Name
    drain: bool = False


class Resume(_Request, frozen=True, kw_only=True, tag="resume"):
    """Go on with a run that is paused, or was interrupted."""

    run: Name


class Cancel(_Request, frozen=True, kw_only=True, tag="cancel"):
    run: Name
    reason: Reason = ""


class Checkpoint(_Request, frozen=True, kw_only=True, tag="checkpoint"):
    """Make one now; the reply names it."""

    run: Name


class Rollback(_Request, frozen=True, kw_only=True, tag="rollback"):
    """To a checkpoint, or to just before a task: one of the two. `accept_base`: although others
    changed files of the base meanwhile."""

    run: Name
    checkpoint: Name | None = None
    before: Name | None = None
    accept_base: bool = False


class Fork(_Request, frozen=True, kw_only=True, tag="fork"):
    """A new run that shares this one's history up to a checkpoint; the reply names it."""

    run: Name
    checkpoint: Name


class Apply(_Request, frozen=True, kw_only=True, tag="apply"):
    """Write what a run that has ended changed into its workspace, or refuse and write nothing.
    `allow`: risky changes that are welcome, `accept_base`: although others changed the workspace,
    `last`: although branches clash, `dry_run`: only say what would be written."""

    run: Name
    checkpoint: Name | None = None
    allow: Paths = ()
    accept_base: bool = False
    last: bool = False
    dry_run: bool = False


class Why(_Request, frozen=True, kw_only=True, tag="why"):
    """What its supervisor knows of a task at this moment that no journal tells."""

    run: Name
    task: Name


class Breakers(_Request, frozen=True, kw_only=True, tag="breakers"):
    """Those of the state directory that have seen a failure."""


class OpenBreaker(_Request, frozen=True, kw_only=True, tag="open_breaker"):
    """Open one by hand, for all runs of the state directory, until a probe `open_for` seconds
    later."""

    key: Key
    open_for: Seconds = 30.0


class ResetBreaker(_Request, frozen=True, kw_only=True, tag="reset_breaker"):
    """Close one and forget its failures."""

    key: Key


class Upload(_Request, frozen=True, kw_only=True, tag="upload"):
    """A piece of a submission's bundle, from byte `offset` on."""

    submission: Submission
    offset: Number
    data: Annotated[bytes, Meta(max_length=UPLOAD_PIECE_SIZE)]


class Submit(_Request, frozen=True, kw_only=True, tag="submit"):
    """Start a run of what was uploaded; the reply names it. `digest`: SHA-256 of the bundle."""

    submission: Submission
    digest: Digest


class Shutdown(_Request, frozen=True, kw_only=True, tag="shutdown"):
    """End a supervisor that serves, as a signal does: what runs is begun again by the next one, or
    has `drain` seconds to end (left out: those of `serve --drain`)."""

    drain: Seconds | None = None


RunVerb = Why | Pause | Resume | Cancel | Checkpoint | Rollback | Fork | Apply
BreakerVerb = OpenBreaker | ResetBreaker
ControlVerb = RunVerb | BreakerVerb | Submit | Shutdown
Request = List | Show | Replay | Fetch | Breakers | Upload | ControlVerb


# -------------------------------------------------------------------------------------- replies


class RunState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # not ended, and no living supervisor owns it
    DAMAGED = "damaged"  # its journal cannot be read


class RunSummary(Struct, frozen=True, kw_only=True):
    id: str
    state: RunState
    pipeline: str | None = None  # None before run.started
    started: float | None = None  # wall clock
    ended: float | None = None
    last_seq: int = 0
    problem: str | None = None  # of a damaged run
    breakers: tuple[str, ...] = ()  # keys that its tasks use; in a list of runs left out


class TaskSummary(Struct, frozen=True, kw_only=True):
    id: str
    # waiting, ready, running, paused, retrying, completed, skipped, failed, cancelled
    state: str
    attempt: int = 0
    since: float | None = None  # wall clock: when it came into this state
    error: TaskError | None = None


class BreakerSummary(Struct, frozen=True, kw_only=True):
    """`failures`: that count now, or that opened it. `retry_in`: seconds until a probe may be let
    through, None while it is closed. `opening`: how often it was opened."""

    key: str
    state: str  # closed, open, half_open
    failures: int
    open_for: float
    opening: int
    retry_in: float | None
    probe: str | None  # RUN/TASK/ATTEMPT that is let through


class ControlError(StrEnum):
    BAD_REQUEST = "bad_request"  # not a request of this version
    NOT_FOUND = "not_found"  # no such run, or another supervisor's
    REFUSED = "refused"  # the run's state does not allow it; the message says why
    DAMAGED = "damaged"
    FAILED = "failed"  # the supervisor's side could not; nothing is wrong with the request


class Problem(Struct, frozen=True):
    kind: ControlError
    message: str


class _Reply(Struct, frozen=True, kw_only=True, tag_field="reply"):
    id: int | str | None  # None: the request's could not be read
    version: int = CONTROL_VERSION


class Listed(_Reply, frozen=True, kw_only=True, tag="list"):
    runs: tuple[RunSummary, ...]


class Shown(_Reply, frozen=True, kw_only=True, tag="show"):
    run: RunSummary
    tasks: tuple[TaskSummary, ...]
    as_of: int  # the last seq this follows from


class Frame(Struct, frozen=True, array_like=True):
    """One event exactly as it is published."""

    topic: bytes
    header: bytes
    payload: bytes


class Replayed(_Reply, frozen=True, kw_only=True, tag="replay"):
    run: str
    events: tuple[Frame, ...]
    last_seq: int  # of the run now: there is more where the page ends below it


class Fetched(_Reply, frozen=True, kw_only=True, tag="fetch"):
    run: str
    seq: int
    size: int  # of the whole data
    data: bytes  # from `offset`; empty at the end


class Uploaded(_Reply, frozen=True, kw_only=True, tag="upload"):
    size: int  # of what is there now: another one than asked for is where to go on


class Done(_Reply, frozen=True, kw_only=True, tag="done"):
    """A request that steers was carried out."""

    run: str  # the run, or the new one that `fork` or `submit` made; of `shutdown` empty
    checkpoint: str | None = None  # that `checkpoint` made
    notes: tuple[str, ...] = ()  # what whoever submits should be told, of a broken file as a rule


class Applied(_Reply, frozen=True, kw_only=True, tag="apply"):
    """What was done, or would be. Files and links written (and their bytes), what was removed,
    folders made or changed in mode."""

    run: str
    written: int
    size: int
    removed: int
    folders: int


class Because(_Reply, frozen=True, kw_only=True, tag="why"):
    run: str
    words: tuple[str, ...]  # sentences; none: the journal tells all


class BreakersShown(_Reply, frozen=True, kw_only=True, tag="breakers"):
    """All, or the one that was opened or reset, as it is now."""

    breakers: tuple[BreakerSummary, ...]


class Error(_Reply, frozen=True, kw_only=True, tag="error"):
    error: Problem


ControlAnswer = Done | Applied | Because | BreakersShown | Error
Reply = Listed | Shown | Replayed | Fetched | Uploaded | ControlAnswer
