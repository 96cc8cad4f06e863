"""The private pipe between an embedding program and its engine, which is a child process.

One unix stream socketpair; each message is `u32 length | msgpack`. The host asks (`Ask`), the
engine answers each ask once (`Answer`), passes on what clients submit (`Submitted`), and tells,
unasked, how far each run's journal is committed (`Committed`): never the events themselves. The
host reads those from the journal, at its own pace, so a slow host costs the engine nothing. Both
ends trust each other: the task's side never sees it.
"""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import Raw, Struct

from ..protocol.pipeline import PipelineSpec

__all__ = [
    "Accepted",
    "Answer",
    "Ask",
    "CancelRun",
    "CheckpointRun",
    "Committed",
    "Drain",
    "Fork",
    "Message",
    "Pause",
    "Ping",
    "Reconfigure",
    "Resume",
    "Revise",
    "Rollback",
    "Settings",
    "ShutDown",
    "Submit",
    "Submitted",
    "Verb",
    "read",
    "write",
]


class Settings(Struct, frozen=True, kw_only=True):
    """How an engine is set up: the first message it gets."""

    state: str
    max_parallel: int
    memory_budget: int
    cpu_budget: float
    degrade: tuple[str, ...] = ()
    strict: tuple[str, ...] = ()
    log: str = "off"  # what the engine says of itself on stderr: see logs.py
    accepts: bool = False  # the host takes what is submitted from elsewhere


class Submit(Struct, frozen=True, tag="submit"):
    spec: PipelineSpec
    input: Raw
    submission: str | None = None  # that this is to be the run of


class CancelRun(Struct, frozen=True, tag="cancel"):
    run: str
    reason: str


class Pause(Struct, frozen=True, tag="pause"):
    run: str
    drain: bool


class Resume(Struct, frozen=True, tag="resume"):
    run: str


class TakeUp(Struct, frozen=True, tag="take_up"):
    run: str


class CheckpointRun(Struct, frozen=True, tag="checkpoint"):
    run: str


class Rollback(Struct, frozen=True, tag="rollback"):
    run: str
    checkpoint: str | None
    before: str | None
    accept_base: bool


class Fork(Struct, frozen=True, tag="fork"):
    run: str
    checkpoint: str


class Revise(Struct, frozen=True, tag="revise"):
    """End a run, and go on with a changed pipeline in a new one. `digest`: of the sources that it
    was made of. `same`: tasks that give what they gave."""

    run: str
    spec: PipelineSpec
    digest: str
    same: tuple[str, ...]


class Drain(Struct, frozen=True, tag="drain"):
    """Start nothing new; answered when what ran has ended."""


class Reconfigure(Struct, frozen=True, tag="reconfigure"):
    max_parallel: int


class Ping(Struct, frozen=True, tag="ping"):
    """Answered as soon as the engine's loop comes to it."""


class Accepted(Struct, frozen=True, tag="accepted"):
    """What became of `Submitted`: a run (and what else to tell), or why there is none. And of
    `ShutDown`, of no run."""

    number: int
    run: str | None = None
    refused: str | None = None
    notes: tuple[str, ...] = ()


Verb = (
    Accepted
    | Submit
    | CancelRun
    | Pause
    | Resume
    | TakeUp
    | CheckpointRun
    | Rollback
    | Fork
    | Revise
    | Drain
    | Reconfigure
    | Ping
)


class Ask(Struct, frozen=True):
    id: int
    verb: Verb


class Answer(Struct, frozen=True, tag="answer"):
    """`refused` is set where the ask could not be granted: a message for a person, who can mend
    it (`is_usage`) or not. The first answer, to the settings, has the addresses of the front."""

    id: int
    run: str | None = None
    checkpoint: str | None = None
    refused: str | None = None
    is_usage: bool = False
    events: str | None = None
    control: str | None = None


class Submitted(Struct, frozen=True, tag="submitted"):
    """A client has uploaded a bundle of this digest. Answered with `Accepted`."""

    number: int
    submission: str
    digest: bytes


class ShutDown(Struct, frozen=True, tag="shut_down"):
    """A client wants this supervisor to end. Answered with `Accepted`."""

    number: int
    drain: float | None  # seconds; None: as the program has it


class Committed(Struct, frozen=True, tag="committed"):
    """Events of `run` up to `seq` are durable; `ended`: there will be no more."""

    run: str
    seq: int
    ended: bool
    problem: str | None = None  # why it ended without a last event


Message = Answer | Submitted | ShutDown | Committed

_LENGTH = 4


async def read(reader: asyncio.StreamReader) -> bytes | None:
    """The next message's bytes; None at the end of the stream. asyncio tells the reader of what
    a write met, too: the other end's death may come as BrokenPipeError."""
    try:
        head = await reader.readexactly(_LENGTH)
        return await reader.readexactly(int.from_bytes(head, "little"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def write(writer: asyncio.StreamWriter, message: Struct) -> None:
    body = msgspec.msgpack.encode(message)
    writer.write(len(body).to_bytes(_LENGTH, "little") + body)
