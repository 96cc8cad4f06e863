"""What the wire costs the engine: frames, messages and values a second, on one core.

    python tests/bench/link_throughput.py [--repeat R]

No sockets: a guest's bytes are cut into reads as the engine makes them. `frames` is the endpoint
alone, `messages` the endpoint with the codec and the conversation, as the engine uses them; values
are what a guest or a reader pays. CPU time, medians of R runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from casemate.protocol.codec import (
    checked_raw,
    decode_from_guest,
    decode_value,
    encode,
    encode_value,
    kind_of,
)
from casemate.protocol.limits import LINK_READ_SIZE, LINK_VERSION, MESSAGE_SIZE, MIB
from casemate.protocol.link import Conversation, Role
from casemate.protocol.messages import Emit, Hello, Kind
from casemate.protocol.zmtp import Endpoint
from msgspec import Raw

FRAME = 200


def endpoint() -> Endpoint:
    made = Endpoint()
    made.receive(Endpoint().greeting())
    return made


def opened() -> tuple[Endpoint, Conversation]:
    conversation = Conversation(Role.SUPERVISOR)
    conversation.received(kind_of(Hello(version=LINK_VERSION, pid=2)))
    conversation.sent(Kind.ACCEPT)
    conversation.sent(Kind.RUN)
    return endpoint(), conversation


def reads(data: bytes) -> list[bytes]:
    return [data[start : start + LINK_READ_SIZE] for start in range(0, len(data), LINK_READ_SIZE)]


def take_frames(pieces: list[bytes]) -> None:
    end = endpoint()
    for piece in pieces:
        end.receive(piece)


def take_messages(pieces: list[bytes]) -> None:
    end, conversation = opened()
    for piece in pieces:
        for frame in end.receive(piece):
            conversation.received(kind_of(decode_from_guest(frame)))


def times(count: int, act: Callable[[], object]) -> None:
    for _ in range(count):
        act()


def median(act: Callable[[], object], repeat: int) -> float:
    taken = []
    for _ in range(repeat):
        # CPU time: it is one thread that never waits, and others may use the machine.
        begin = time.process_time()
        act()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9)
    repeat = parser.parse_args().repeat
    small = encode(Emit(item=Raw(encode_value("x" * (FRAME - 10)))))
    large = encode(Emit(item=Raw(encode_value(b"x" * (MESSAGE_SIZE - 100)))))
    for name, frame, count in (("200 B", small, 100_000), ("1 MiB", large, 200)):
        pieces = reads(endpoint().send(frame) * count)
        size = len(frame) * count / MIB
        for what, take in (("frames", take_frames), ("messages", take_messages)):
            seconds = median(partial(take, pieces), repeat)
            print(f"{name} {what:9} {count / seconds:12,.0f} /s {size / seconds:9,.0f} MiB/s")
    item = {"path": "a.py", "line": 3, "tags": ["x", "y"], "score": 0.5}
    rows = [dict(item, line=line) for line in range(20_000)]
    values: list[tuple[str, object, int]] = [("item", item, 10_000), ("rows", rows, 1)]
    for name, value, count in values:
        raw = encode_value(value)
        acts: list[tuple[str, Callable[[], object]]] = [
            ("encode_value", partial(encode_value, value)),
            ("decode_value", partial(decode_value, raw)),
            ("checked_raw", partial(checked_raw, raw)),
        ]
        for what, act in acts:
            seconds = median(partial(times, count, act), repeat) / count
            print(f"{name} of {len(raw):9,} B {what:13} {seconds * 1e6:12,.2f} µs")


if __name__ == "__main__":
    main()
