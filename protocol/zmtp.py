"""The supervisor's end of a link: ZMTP 3.1 without the I/O, and as little of it as will do.

The peer is one pyzmq PAIR socket (libzmq 4.3.5, mechanism NULL, heartbeats off) or something that
pretends to be. What such a socket sends first never varies: a greeting of 64 bytes and a READY
command of 28. So the handshake is not parsed but compared with those 92 bytes, and garbage is
refused at its first wrong byte. After it come messages of a single frame:

    00 <u8 size> <body>      up to 255 bytes
    02 <u64 size> <body>     above

and nothing else: no MORE bit (an unfinished multipart message has no bound), no commands (PING and
its kin are off by default; libzmq never sends an ERROR under NULL without ZAP), no ZMTP 3.0 or
older (libzmq below 4.3.3), no long header around a short body. A size above the limit is refused
when the header has been read, before any of the body is kept.

Bytes go in by `receive`, whole frames come out, and less than one frame stays behind (`buffered`).
Reading less often is therefore all the backpressure there is: the caller stops calling `recv`.
Frames that were whole before the peer broke the rules are not lost: they ride on the violation,
so that what is seen of a guest does not depend on how the kernel cut its bytes into reads.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NoReturn

from .errors import LocalViolation, RemoteViolation
from .limits import MESSAGE_SIZE

__all__ = ["HANDSHAKE", "TRANSITIONS", "Endpoint", "Input", "State", "WireViolation"]

# The padding of the signature ends in 1 as libzmq sends it: read as ZMTP 1.0 it is the length of
# an empty frame. The specification lets a peer send anything there; ours never does.
_SIGNATURE = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"
_VERSION = b"\x03\x01"
_MECHANISM = b"NULL".ljust(20, b"\x00")
_AS_SERVER = b"\x00"
_FILLER = bytes(31)
_GREETING = _SIGNATURE + _VERSION + _MECHANISM + _AS_SERVER + _FILLER
_READY_HEAD = b"\x04\x1a\x05READY"
_SOCKET_TYPE = b"\x0bSocket-Type\x00\x00\x00\x04PAIR"

# What each end sends before its first message; the two are alike.
HANDSHAKE = _GREETING + _READY_HEAD + _SOCKET_TYPE

# Where each part of the handshake ends, to say which part was wrong.
_PARTS = (
    (10, "signature"),
    (12, "version (3.1 is spoken)"),
    (32, "mechanism (NULL is spoken)"),
    (33, "as-server flag"),
    (64, "filler"),
    (72, "READY command"),
    (len(HANDSHAKE), "socket type (PAIR is expected, and no other property)"),
)

_SHORT = 0x00
_LONG = 0x02
_SHORT_HEADER = 2
_LONG_HEADER = 9
_SHORT_SIZE = 255


class State(StrEnum):
    GREETING = "greeting"
    READY = "ready"
    OPEN = "open"
    BROKEN = "broken"


class Input(StrEnum):
    GREETED = "greeted"
    READIED = "readied"
    BROKE = "broke"


# What the peer has sent so far. Our own half has no states: the handshake goes out at once.
TRANSITIONS: dict[State, dict[Input, State]] = {
    State.GREETING: {Input.GREETED: State.READY, Input.BROKE: State.BROKEN},
    State.READY: {Input.READIED: State.OPEN, Input.BROKE: State.BROKEN},
    State.OPEN: {Input.BROKE: State.BROKEN},
    State.BROKEN: {},
}


class WireViolation(RemoteViolation):
    """The peer does not speak our ZMTP. `frames`: what it said well in the same read, before."""

    def __init__(self, message: str, frames: list[bytes]) -> None:
        super().__init__(message)
        self.frames = frames


class Endpoint:
    """One end of one connection. `limit` bounds a frame, both ways."""

    __slots__ = ("_buffer", "_header", "_limit", "_need", "_problem", "_state")

    def __init__(self, limit: int = MESSAGE_SIZE) -> None:
        self._limit = limit
        self._state = State.GREETING
        self._buffer = bytearray()  # the handshake so far, or the begun frame with its header
        self._need = 0  # size of the begun frame with its header; 0 while that is not known
        self._header = 0  # size of its header
        self._problem = ""

    @property
    def state(self) -> State:
        return self._state

    @property
    def is_open(self) -> bool:
        """The peer is ready: messages may be sent."""
        return self._state is State.OPEN

    @property
    def buffered(self) -> int:
        """Bytes kept for later: always less than one frame of the largest size and its header."""
        return len(self._buffer)

    def greeting(self) -> bytes:
        """What to send as soon as there is a connection, before anything else.

        READY goes with it: the mechanism is settled, so there is no answer to wait for.
        """
        return HANDSHAKE

    def send(self, frame: bytes) -> bytes:
        """The bytes to put on the wire for one message."""
        if self._state is not State.OPEN:
            raise LocalViolation(f"message sent while the link is {self._state.value}")
        size = len(frame)
        if size > self._limit:
            raise LocalViolation(f"message of {size} bytes sent; at most {self._limit} may be")
        if size <= _SHORT_SIZE:
            return bytes((_SHORT, size)) + frame
        return b"\x02" + size.to_bytes(8, "big") + frame

    def receive(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The frames that `data` completes, in order."""
        if type(data) is not bytes:
            data = bytes(data)
        position = 0
        if self._state is not State.OPEN:
            position = self._shake_hands(data)
            if not self.is_open:
                return []
        frames: list[bytes] = []
        buffer = self._buffer
        if buffer:
            if not self._need:
                # Less than a header: join and begin again.
                data = bytes(buffer) + data[position:]
                position = 0
                buffer.clear()
            else:
                missing = self._need - len(buffer)
                if len(data) - position < missing:
                    buffer += data[position:] if position else data
                    return frames
                position += missing
                buffer += data[position - missing : position]
                frames.append(bytes(memoryview(buffer)[self._header :]))
                buffer.clear()
        # One loop without calls for the common case, many small frames in one read: a method per
        # frame would cost more than all the rest.
        append = frames.append
        limit = self._limit
        end = len(data)
        last = end - 1
        need = 0
        header = 0
        while position < last:
            flags = data[position]
            if flags == _SHORT:
                size = data[position + 1]
                start = position + 2
                if size > limit:
                    self._break(f"frame of {size} bytes; at most {limit} may come", frames)
            elif flags == _LONG:
                start = position + 9
                if start > end:
                    break
                size = int.from_bytes(data[position + 1 : start], "big")
                if size > limit:
                    self._break(f"frame of {size} bytes; at most {limit} may come", frames)
                if size <= _SHORT_SIZE:
                    self._break(f"frame of {size} bytes with a long header", frames)
            else:
                self._break(_flags_problem(flags), frames)
            stop = start + size
            if stop > end:
                need = stop - position
                header = start - position
                break
            append(data[start:stop])
            position = stop
        self._need = need
        self._header = header
        if position < end:
            if position == last and (flags := data[position]) not in (_SHORT, _LONG):
                self._break(_flags_problem(flags), frames)
            buffer += data[position:]
        return frames

    def _shake_hands(self, data: bytes) -> int:
        """Compare what came with what must come; how much of `data` belonged to the handshake."""
        if self._state is State.BROKEN:
            raise WireViolation(self._problem, [])
        buffer = self._buffer
        known = len(buffer)
        taken = data[: len(HANDSHAKE) - known]
        if not HANDSHAKE.startswith(taken, known):
            wrong = known + _first_difference(taken, HANDSHAKE[known:])
            part = next(name for stop, name in _PARTS if wrong < stop)
            self._break(f"handshake: wrong {part}, at byte {wrong}", [])
        buffer += taken
        if self._state is State.GREETING and len(buffer) >= len(_GREETING):
            self._move(Input.GREETED)
        if len(buffer) == len(HANDSHAKE):
            self._move(Input.READIED)
            buffer.clear()
        return len(taken)

    def _move(self, by: Input) -> None:
        self._state = TRANSITIONS[self._state][by]

    def _break(self, problem: str, frames: list[bytes]) -> NoReturn:
        self._move(Input.BROKE)
        self._problem = problem
        self._buffer.clear()
        raise WireViolation(problem, frames)


def _flags_problem(flags: int) -> str:
    if flags > 0x07:
        return f"frame flags {flags:#04x}"
    if flags & 0x04:
        return "a command; none may come after READY"
    return "a message of several frames; every message is one"


def _first_difference(got: bytes, expected: bytes) -> int:
    return next(index for index, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b)
