"""Two hundred thousand hostile connections, through endpoint, codec and conversation together.

Each case is what one peer sends: a good conversation that has been damaged (whole messages
dropped, doubled, moved or forged; bytes flipped, cut and spliced, inside a message or across the
wire; framing tricks), or noise from the start. It arrives in random pieces, while this end says
what it may, and now and then what it may not. Whatever comes, only two exceptions exist:
`RemoteViolation` from remote bytes and `LocalViolation` from our own moves, and what is kept stays
below one frame. The seeds are fixed, so a failure is found again; it carries its bytes as a note.
"""

from __future__ import annotations

import gc
import json
import math
import os
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from casemate.protocol.codec import (
    decode_from_guest,
    decode_from_supervisor,
    decode_value,
    encode,
    encode_value,
    kind_of,
    to_jsonable,
)
from casemate.protocol.errors import LocalViolation, RemoteViolation
from casemate.protocol.limits import LINK_READ_SIZE, LINK_VERSION, MESSAGE_SIZE, MIB
from casemate.protocol.link import Conversation, Role, State
from casemate.protocol.messages import (
    Accept,
    Artifact,
    Cancel,
    Credit,
    Deadline,
    Emit,
    End,
    Fail,
    Hello,
    Item,
    Kind,
    Log,
    Message,
    Progress,
    Result,
    Run,
    Save,
    Saved,
)
from casemate.protocol.pipeline import CommandEntry, Entry, FileEntry, ModuleEntry, PickleEntry
from casemate.protocol.refusals import Refusal, Wall
from casemate.protocol.zmtp import HANDSHAKE, Endpoint, WireViolation
from msgspec import Raw

CASES = 200_000
SHARDS = 4
LIMIT = 2000  # of a frame: small, so that oversize is easy to hit
HEADER = 9

VALUES: list[object] = [
    None,
    True,
    -1,
    (1 << 64) - 1,
    0.5,
    math.nan,
    "text",
    "schön 😀",
    b"\x00\xff" * 20,
    datetime(2026, 11, 22, tzinfo=UTC),
    [],
    {},
    {"path": "a.py", "line": 3, "tags": ["x", "y"], "nested": {"deep": [[[[[[[[b"!"]]]]]]]]}},
    [{"id": number, "name": f"n{number}"} for number in range(20)],
    "x" * 300,
]
PAYLOADS = [Raw(encode_value(value)) for value in VALUES]
MAPS = [Raw(encode_value(value)) for value in VALUES if isinstance(value, dict)]
NIL = Raw(b"\xc0")

ENTRIES: tuple[Entry, ...] = (
    FileEntry(file="a.py", name="f"),
    ModuleEntry(module="a.b", name="f"),
    PickleEntry(payload=b"\x80\x05.", name="f"),
    CommandEntry(argv=("node", "agent.js")),
)

# What each side may send, as frames: its opening, what it says in between, its end.
Corpus = tuple[list[bytes], list[bytes], list[bytes]]


def frames_of(messages: list[Message]) -> list[bytes]:
    return [encode(message) for message in messages]


CORPUS: dict[Role, Corpus] = {
    Role.GUEST: (
        frames_of([Hello(version=LINK_VERSION, pid=2)]),
        frames_of(
            [
                *(Emit(item=payload) for payload in PAYLOADS),
                *(Log(text="a line\n", fields=fields) for fields in MAPS),
                Progress(done=1.0, total=None),
                Progress(done=0.5, total=2.0),
                *(Save(state=payload) for payload in PAYLOADS[:4]),
                Artifact(name="report/index.html", size=1 << 20, digest=bytes(32)),
                Credit(upstream="a", items=1),
                Credit(upstream="a", items=64),
            ]
        ),
        frames_of(
            [
                *(Result(output=payload) for payload in PAYLOADS),
                Result(output=NIL, digest=bytes(32), size=1 << 20),
                Fail(kind="error", message="boom", type="ValueError", traceback="t" * 100),
                Fail(kind="crash", message=""),
                Fail(kind="error", message="m", refused=(Refusal(Wall.NETWORK, "1.1.1.1:443"),)),
            ]
        ),
    ),
    Role.SUPERVISOR: (
        frames_of([Accept(version=LINK_VERSION)]),
        frames_of(
            [
                Run(
                    run="r",
                    task="t",
                    attempt=number + 1,
                    entry=entry,
                    input=PAYLOADS[number],
                    input_file=None,
                    spec=MAPS[0],
                    idempotency_key="k",
                    deadline=None,
                    workspace=None,
                )
                for number, entry in enumerate(ENTRIES)
            ]
        ),
        frames_of(
            [
                Cancel(grace=1.5),
                Saved(),
                Item(upstream="a", items=tuple(PAYLOADS)),
                Item(upstream="a", items=(NIL,)),
                End(upstream="a"),
                Deadline(deadline=1.5),
                Deadline(deadline=None),
            ]
        ),
    ),
}
EVERY = [frame for corpus in CORPUS.values() for part in corpus for frame in part]
OTHER = {Role.GUEST: Role.SUPERVISOR, Role.SUPERVISOR: Role.GUEST}
# What this end says when it may, and what it says at odd moments, whether it may or not.
EAGER = {
    Role.SUPERVISOR: (Kind.ACCEPT, Kind.RUN, Kind.SAVED),
    Role.GUEST: (Kind.HELLO, Kind.EMIT, Kind.SAVE),
}
ODD = {Role.SUPERVISOR: Kind.CANCEL, Role.GUEST: Kind.RESULT}

# Bytes that mean something to msgpack or ZMTP.
TELLING = bytes.fromhex(
    "00 01 02 03 04 06 7f 80 81 90 91 a0 c0 c1 c4 c6 c7 ca cb cf d3 d4 d6 d7 d9 db dc dd df ff"
)


# --- damage ------------------------------------------------------------------------------------


def damaged(rng: random.Random, data: bytes) -> bytes:
    """One to three changes of bytes."""
    made = bytearray(data)
    for _ in range(rng.randrange(3) + 1):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(7):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(made):
                made[at] = rng.choice(TELLING)
            case 2:
                del made[at : at + rng.randrange(1, 20)]
            case 3:
                made[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 4:
                made[at:at] = made[at : at + rng.randrange(1, 60)]
            case 5:
                made[at:at] = rng.choice(EVERY)
            case _:
                made[at:at] = bytes((rng.choice(TELLING),)) * rng.choice((1, 4, 8, 300))
    return bytes(made)


def reordered(rng: random.Random, frames: list[bytes]) -> None:
    """One change of the order, in place."""
    at = rng.randrange(len(frames))
    match rng.randrange(5):
        case 0:
            del frames[at]
        case 1:
            frames.insert(at, frames[rng.randrange(len(frames))])
        case 2:
            frames.insert(rng.randrange(len(frames)), frames.pop(at))
        case 3:
            frames.insert(at, rng.choice(EVERY))
        case _:
            frames[at] = bytes((rng.randrange(len(Kind) + 3),)) + frames[at][1:]


def framed(frame: bytes) -> bytes:
    if len(frame) < 256:
        return bytes((0, len(frame))) + frame
    return b"\x02" + len(frame).to_bytes(8, "big") + frame


def tricked(rng: random.Random, frame: bytes) -> bytes:
    """A frame in a framing that nobody honest uses."""
    match rng.randrange(6):
        case 0:
            return bytes((rng.choice((1, 3, 4, 6, 5, 7, 8, 0x80)),)) + framed(frame)[1:]
        case 1:
            return b"\x02" + len(frame).to_bytes(8, "big") + frame
        case 2:
            return b"\x02" + rng.randbytes(8) + frame
        case 3:
            return b"\x02" + (LIMIT + rng.randrange(-1, 2)).to_bytes(8, "big") + frame
        case 4:
            return framed(frame)[: rng.randrange(len(frame) + 1)]
        case _:
            return b"\x04\x06\x04PING" + framed(frame)


def connection(rng: random.Random, sender: Role) -> bytes:
    """All that one peer sends."""
    if rng.randrange(20) == 0:
        noise = rng.randbytes(rng.randrange(200))
        return noise if rng.randrange(4) == 0 else HANDSHAKE + noise
    opening, middle, end = CORPUS[sender]
    said, ended = (rng.randrange(1, 7), 1) if sender is Role.GUEST else (1, rng.randrange(1, 7))
    frames = [*opening, *rng.choices(middle, k=said), *rng.choices(end, k=ended)]
    if rng.randrange(3) == 0:
        reordered(rng, frames)
    if frames and rng.randrange(2) == 0:
        at = rng.randrange(len(frames))
        frames[at] = damaged(rng, frames[at])
    wire = [framed(frame) for frame in frames]
    if wire and rng.randrange(8) == 0:
        at = rng.randrange(len(frames))
        wire[at] = tricked(rng, frames[at])
    sent = HANDSHAKE + b"".join(wire)
    if rng.randrange(6) == 0:
        sent = damaged(rng, sent)
    return sent


# --- the end under test ------------------------------------------------------------------------


class OurEnd:
    """Endpoint, codec and conversation, put together as the engine does it."""

    def __init__(self, role: Role, rng: random.Random, limit: int = LIMIT) -> None:
        self.role = role
        self.rng = rng
        self.limit = limit
        self.endpoint = Endpoint(limit)
        self.conversation = Conversation(role)
        self.heard: Counter[str] = Counter()
        self.decode: Callable[[bytes], Message] = (
            decode_from_guest if role is Role.SUPERVISOR else decode_from_supervisor
        )

    def take(self, data: bytes) -> str | None:
        """What was wrong with it, by the layer that noticed; the reader stops there."""
        broken = None
        try:
            frames = self.endpoint.receive(data)
        except WireViolation as violation:
            frames = violation.frames
            broken = "endpoint"
        assert self.endpoint.buffered < self.limit + HEADER
        for frame in frames:
            assert len(frame) <= self.limit
            self.speak()
            try:
                message = self.decode(frame)
            except RemoteViolation:
                return "codec"
            try:
                self.conversation.received(kind_of(message))
            except RemoteViolation:
                return "conversation"
            self.heard[kind_of(message).name] += 1
            if isinstance(message, Emit | Result | Log) and self.rng.randrange(4) == 0:
                self.open(message)
        return broken

    def open(self, message: Emit | Result | Log) -> None:
        """As a reader far from the engine does: what a value is, JSON can say."""
        match message:
            case Emit(item=raw) | Result(output=raw) | Log(fields=raw):
                try:
                    value = decode_value(raw)
                except RemoteViolation:
                    self.heard["not a value"] += 1
                    return
                json.dumps(to_jsonable(value), allow_nan=False)

    def speak(self) -> None:
        """What we may not say is refused and changes nothing."""
        conversation = self.conversation
        for kind in EAGER[self.role]:
            if conversation.may_send(kind):
                conversation.sent(kind)
        if self.rng.randrange(20) == 0:
            odd = ODD[self.role]
            before, allowed = conversation.state, conversation.may_send(odd)
            try:
                conversation.sent(odd)
            except LocalViolation:
                assert not allowed
                assert conversation.state is before
                self.heard["local"] += 1
            else:
                assert allowed


def run_case(rng: random.Random, role: Role) -> tuple[str, Counter[str]]:
    sent = connection(rng, OTHER[role])
    end = OurEnd(role, rng)
    try:
        cuts = sorted(rng.randrange(len(sent) + 1) for _ in range(rng.randrange(4)))
        for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            broken = end.take(sent[start:stop])
            if broken:
                return broken, end.heard
    except Exception as error:
        error.add_note(f"the peer had sent {sent!r}")
        raise
    return end.conversation.state.value, end.heard


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("seed", range(SHARDS))
def test_hostile_connections_end_in_one_of_two_exceptions(seed: int) -> None:
    rng = random.Random(seed)
    ends: Counter[str] = Counter()
    heard: Counter[str] = Counter()
    settled = 0
    for case in range(CASES // SHARDS):
        if case == 2000:
            settled = resident()
        how, what = run_case(rng, Role.GUEST if case % 8 == 0 else Role.SUPERVISOR)
        ends[how] += 1
        heard += what
    assert resident() - settled < 32 * MIB
    # A fuzzer that never gets past the door proves nothing: every layer refused many, every state
    # was an end, and every kind was heard.
    for layer in ("endpoint", "codec", "conversation"):
        assert ends[layer] > CASES // SHARDS // 20, ends
    for state in State:
        assert ends[state.value] > 10, ends
    for kind in Kind:
        assert heard[kind.name] > 500, heard
    assert heard["not a value"] > 50
    assert heard["local"] > 500


def test_hostile_connections_leave_nothing_behind() -> None:
    rng = random.Random("memory")
    for _ in range(500):
        run_case(rng, Role.SUPERVISOR)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5000):
            run_case(rng, Role.SUPERVISOR)
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < MIB // 4
    assert peak - before < MIB


def long_frame(size: int, sent: int) -> bytes:
    return b"\x02" + size.to_bytes(8, "big") + bytes(sent)


@pytest.mark.parametrize(
    ("sent", "factor"),
    [
        pytest.param(b"\x00\x00" * 500_000, 8, id="empty frames"),
        pytest.param(b"\x00\x02xy" * 250_000, 24, id="tiny frames"),
        pytest.param(framed(b"\x04\x81\xa4item\xc0") * 100_000, 48, id="tiny messages"),
        pytest.param(long_frame(MESSAGE_SIZE, MESSAGE_SIZE - 1), 24, id="an unfinished frame"),
        pytest.param(framed(b"x" * MESSAGE_SIZE) * 4, 40, id="the largest frames"),
        pytest.param(
            framed(b"\x04\x81\xa4item\xdd\x00\x0f\x00\x00" + b"\x90" * 0xF0000),
            40,
            id="a megabyte of empty lists",
        ),
    ],
)
def test_one_connection_costs_a_bounded_multiple_of_one_read(sent: bytes, factor: int) -> None:
    """From the read to the frames and the closed messages; nothing else waits behind them."""
    end = OurEnd(Role.SUPERVISOR, random.Random(0), MESSAGE_SIZE)
    end.endpoint.receive(HANDSHAKE)
    gc.collect()
    tracemalloc.start()
    try:
        for start in range(0, len(sent), LINK_READ_SIZE):
            read = sent[start : start + LINK_READ_SIZE]
            frames = end.endpoint.receive(read)
            assert end.endpoint.buffered < MESSAGE_SIZE + HEADER
            messages = []
            try:
                for frame in frames:
                    messages.append(end.decode(frame))
            except RemoteViolation:
                pass
            del frames, messages
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < factor * LINK_READ_SIZE, peak / LINK_READ_SIZE
