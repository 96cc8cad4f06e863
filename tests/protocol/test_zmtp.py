"""The endpoint by itself: split reads, refusals, bounds."""

from __future__ import annotations

from itertools import pairwise

import pytest
from casemate.protocol.errors import LocalViolation, RemoteViolation
from casemate.protocol.limits import MESSAGE_SIZE
from casemate.protocol.zmtp import (
    HANDSHAKE,
    TRANSITIONS,
    Endpoint,
    Input,
    State,
    WireViolation,
)
from hypothesis import given, settings
from hypothesis import strategies as st

LIMIT = 1000


def wire(*frames: bytes) -> bytes:
    """The frames as the specification writes them, said a second time on purpose."""
    made = b""
    for frame in frames:
        if len(frame) < 256:
            made += b"\x00" + len(frame).to_bytes(1, "big") + frame
        else:
            made += b"\x02" + len(frame).to_bytes(8, "big") + frame
    return made


def opened(limit: int = LIMIT) -> Endpoint:
    endpoint = Endpoint(limit)
    assert endpoint.receive(HANDSHAKE) == []
    return endpoint


def outcome(data: bytes, cuts: list[int], limit: int = LIMIT) -> tuple[list[bytes], str]:
    """What a peer that sends `data` is seen to say, when it comes in these pieces."""
    endpoint = Endpoint(limit)
    frames: list[bytes] = []
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    for start, stop in pairwise(edges):
        try:
            frames += endpoint.receive(data[start:stop])
        except WireViolation as violation:
            return frames + violation.frames, str(violation)
        assert endpoint.buffered < limit + 9
    return frames, ""


frames_strategy = st.lists(
    st.binary(max_size=20) | st.integers(0, LIMIT).map(lambda size: b"x" * size), max_size=12
)
cuts_strategy = st.lists(st.integers(0, 1 << 20), max_size=20)


@given(frames_strategy, cuts_strategy)
def test_any_split_of_reads_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    assert outcome(HANDSHAKE + wire(*frames), cuts) == (frames, "")


@given(frames_strategy)
def test_single_bytes_give_the_same_frames(frames: list[bytes]) -> None:
    data = HANDSHAKE + wire(*frames)
    assert outcome(data, list(range(len(data)))) == (frames, "")


@given(frames_strategy, st.integers(0, 1 << 20), st.binary(max_size=30), cuts_strategy)
@settings(max_examples=500)
def test_any_split_of_reads_gives_the_same_violation(
    frames: list[bytes], where: int, garbage: bytes, cuts: list[int]
) -> None:
    data = HANDSHAKE + wire(*frames)
    where %= len(data) + 1
    data = data[:where] + garbage + data[where:]
    assert outcome(data, cuts) == outcome(data, [])


@given(st.lists(frames_strategy, min_size=1, max_size=3))
def test_two_endpoints_understand_each_other(batches: list[list[bytes]]) -> None:
    here, there = Endpoint(LIMIT), Endpoint(LIMIT)
    there.receive(here.greeting())
    here.receive(there.greeting())
    for batch in batches:
        assert there.receive(b"".join(here.send(frame) for frame in batch)) == batch
        assert here.receive(b"".join(there.send(frame) for frame in batch)) == batch


@pytest.mark.parametrize("size", [0, 1, 255, 256, LIMIT])
def test_sent_frames_are_framed_as_specified(size: int) -> None:
    assert opened().send(b"x" * size) == wire(b"x" * size)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_read(kind: type[bytes] | type[bytearray]) -> None:
    endpoint = opened()
    assert endpoint.receive(kind(wire(b"a")[:2])) == []
    got = endpoint.receive(kind(b"a" + wire(b"b")))
    assert got == [b"a", b"b"]
    assert all(type(frame) is bytes for frame in got)


@pytest.mark.parametrize("at", range(len(HANDSHAKE)))
def test_a_handshake_is_refused_at_its_first_wrong_byte(at: int) -> None:
    endpoint = Endpoint()
    endpoint.receive(HANDSHAKE[:at])
    with pytest.raises(WireViolation, match=f"at byte {at}$"):
        endpoint.receive(bytes((HANDSHAKE[at] ^ 0xFF,)))
    assert endpoint.buffered == 0


@pytest.mark.parametrize(
    ("found", "sent", "problem"),
    [
        (b"\x03\x01NULL", b"\x03\x00NULL", "version"),
        (b"\x03\x01NULL", b"\x02\x01NULL", "version"),
        (b"NULL\x00", b"PLAIN", "mechanism"),
        (b"NULL\x00", b"CURVE", "mechanism"),
        (b"\x04\x1a\x05READY", b"\x04\x1a\x05ERROR", "READY"),
        (b"\x04\x1a\x05READY", b"\x00\x05hello", "READY"),
        (b"PAIR", b"PUSH", "socket type"),
        (b"\x04\x1a\x05READY", b"\x04\x1b\x05READY", "READY"),
    ],
)
def test_other_dialects_are_refused_by_name(found: bytes, sent: bytes, problem: str) -> None:
    assert found in HANDSHAKE
    with pytest.raises(WireViolation, match=problem):
        Endpoint().receive(HANDSHAKE.replace(found, sent))


@pytest.mark.parametrize("flags", [flags for flags in range(256) if flags not in (0, 2)])
def test_every_other_flag_is_refused_before_a_size_is_read(flags: int) -> None:
    endpoint = opened()
    with pytest.raises(WireViolation) as caught:
        endpoint.receive(wire(b"good") + bytes((flags,)))
    assert caught.value.frames == [b"good"]
    assert endpoint.state is State.BROKEN


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_an_oversize_frame_is_refused_when_its_size_is_known(size: int) -> None:
    endpoint = opened()
    header = b"\x02" + size.to_bytes(8, "big")
    assert endpoint.receive(header[:-1]) == []
    with pytest.raises(WireViolation, match=f"frame of {size} bytes"):
        endpoint.receive(header[-1:])
    assert endpoint.buffered == 0


def test_a_short_frame_may_be_oversize_as_well() -> None:
    with pytest.raises(WireViolation, match="frame of 11 bytes"):
        opened(limit=10).receive(b"\x00\x0b")


def test_a_long_header_around_a_short_body_is_refused() -> None:
    with pytest.raises(WireViolation, match="long header"):
        opened().receive(b"\x02" + (255).to_bytes(8, "big"))


def test_a_broken_endpoint_stays_broken() -> None:
    endpoint = opened()
    with pytest.raises(WireViolation, match="command"):
        endpoint.receive(wire(b"good") + b"\x04")
    with pytest.raises(WireViolation, match="command") as again:
        endpoint.receive(wire(b"good"))
    assert again.value.frames == []
    assert endpoint.buffered == 0
    with pytest.raises(LocalViolation, match="broken"):
        endpoint.send(b"x")


@pytest.mark.parametrize("got", [b"", HANDSHAKE[:10], HANDSHAKE[:64], HANDSHAKE[:-1]])
def test_nothing_is_sent_before_the_peer_is_ready(got: bytes) -> None:
    endpoint = Endpoint()
    endpoint.receive(got)
    assert not endpoint.is_open
    with pytest.raises(LocalViolation):
        endpoint.send(b"x")


def test_our_own_oversize_is_our_own_fault() -> None:
    with pytest.raises(LocalViolation, match="1001 bytes"):
        opened().send(b"x" * (LIMIT + 1))


def test_less_than_a_frame_stays_behind() -> None:
    endpoint = opened(MESSAGE_SIZE)
    data = wire(b"x" * MESSAGE_SIZE)
    for start in range(0, len(data) - 1, 4096):
        endpoint.receive(data[start : min(start + 4096, len(data) - 1)])
    assert endpoint.buffered == len(data) - 1
    assert endpoint.receive(data[-1:] + wire(b"next")) == [b"x" * MESSAGE_SIZE, b"next"]
    assert endpoint.buffered == 0


def test_every_edge_of_the_states_is_taken() -> None:
    taken = set()
    for good in (0, 1, 64, 70, len(HANDSHAKE)):
        endpoint = Endpoint()
        before = endpoint.state
        endpoint.receive(HANDSHAKE[:good])
        taken.add((before, endpoint.state))
        before = endpoint.state
        with pytest.raises(RemoteViolation):
            endpoint.receive(b"\xee")
        taken.add((before, endpoint.state))
    endpoint = Endpoint()
    endpoint.receive(HANDSHAKE[:64])
    endpoint.receive(HANDSHAKE[64:])
    taken.add((State.READY, endpoint.state))
    table = {(state, after) for state, edges in TRANSITIONS.items() for after in edges.values()}
    assert table <= taken
    assert set(TRANSITIONS) == set(State)
    assert {event for edges in TRANSITIONS.values() for event in edges} == set(Input)
