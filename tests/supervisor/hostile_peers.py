"""What hostile observers and control clients do, against the sockets of a living front or gate.

Each attack is a function of the two places where it listens; it does its worst for as long as it
takes, leaves what it opened open in `kept`, and returns. `Peer` speaks ZMTP by hand, for what no
library would send. `TOPPLING` are those that are known to end a libzmq which is capped; of the
others it must not even notice.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import zmq
from casemate.protocol.limits import CONTROL_REQUEST_SIZE, FRONT_FILES, MIB
from fakes import PATIENCE
from msgspec import msgpack

__all__ = ["BY_STRANGERS", "ON_CONTROL", "ON_EVENTS", "TOPPLING", "Attack", "Target", "Where"]

# Of a unix socket its path.
Where = str | tuple[str, int]

_GREETING = (
    b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
)
_MORE, _LONG, _COMMAND = 1, 2, 4

# A peer that is not read any more has said enough. Not one whose attack ends with the front, which
# may stand still for longer on a loaded machine.
_STUCK_SECONDS = 1.0


@dataclass(frozen=True)
class Target:
    events: Where
    control: Where
    run: str  # that goes on meanwhile
    context: zmq.Context[Any]
    kept: ExitStack  # closed when all is over

    def socket(self, kind: int, path: Where) -> zmq.Socket[Any]:
        made: zmq.Socket[Any] = self.kept.enter_context(self.context.socket(kind))
        made.linger = 0
        made.connect(f"ipc://{path}")
        return made


Attack = Callable[[Target], None]


class Peer:
    """A connection without a library. What it says may be refused at any moment."""

    def __init__(self, place: Where, patience: float = _STUCK_SECONDS) -> None:
        family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.settimeout(patience)
        try:
            self._socket.connect(place)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def say(self, data: bytes) -> bool:
        """False where it is not heard any more."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def greet(self, kind: bytes) -> bool:
        """Through the whole handshake: what comes before its end is not a message to libzmq."""
        name = b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
        ready = b"\x05READY" + name
        heard = b""
        with contextlib.suppress(OSError):
            self._socket.sendall(_GREETING + bytes([_COMMAND, len(ready)]) + ready)
            while b"READY" not in heard:
                if not (said := self._socket.recv(4096)):
                    return False
                heard += said
        return b"READY" in heard

    def frame(self, body: bytes, flags: int = 0) -> bool:
        return self.say(bytes([flags | _LONG]) + struct.pack(">Q", len(body)) + body)


def _peers(
    target: Target, place: Where, count: int, patience: float = _STUCK_SECONDS
) -> list[Peer]:
    """As many as are let in before nobody listens, or nobody takes them from the queue of those
    who knock."""
    peers: list[Peer] = []
    give_up = time.monotonic() + patience
    while len(peers) < count and time.monotonic() < give_up:
        try:
            peer = Peer(place, patience)
        except BlockingIOError:
            time.sleep(0.001)
            continue
        except OSError:
            break
        target.kept.callback(peer.close)
        peers.append(peer)
        give_up = time.monotonic() + patience
    return peers


# ---- what may be done to either socket


def _say_garbage(target: Target, place: Where) -> None:
    draw = random.Random(7)
    for first in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03", _GREETING):
        for peer in _peers(target, place, 20):
            peer.say(first + draw.randbytes(4096))


def _half_a_greeting(target: Target, place: Where) -> None:
    for size, peer in enumerate(_peers(target, place, 64)):
        peer.say(_GREETING[:size])


def _flood_of_connections(target: Target, place: Where) -> None:
    """More than it has descriptors, and they stay: a front dies of it, a gate takes no more."""
    patience = PATIENCE if isinstance(place, str) else _STUCK_SECONDS
    _peers(target, place, 2 * FRONT_FILES, patience)


def _connect_and_leave(target: Target, place: Where) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError):
            peer = Peer(place)
            peer.greet(b"DEALER")
            peer.close()


def _claim_of_a_huge_frame(target: Target, place: Where) -> None:
    for peer in _peers(target, place, 20):
        peer.greet(b"SUB" if place == target.events else b"DEALER")
        peer.say(bytes([_LONG]) + struct.pack(">Q", 2**62))
        peer.say(bytes(MIB))


def _unfinished(target: Target, place: Where) -> None:
    """A message that never ends: what neither a size nor a queue of libzmq's bounds."""
    (peer,) = _peers(target, place, 1, PATIENCE)
    assert peer.greet(b"SUB" if place == target.events else b"DEALER")
    part = bytes([_MORE | _LONG]) + struct.pack(">Q", 900) + bytes(900)
    while peer.say(part * 100):
        pass


# Who cannot say who he is gets no further than these.
BY_STRANGERS = {
    "speaks_garbage": _say_garbage,
    "stops_in_its_greeting": _half_a_greeting,
    "floods_with_connections": _flood_of_connections,
    "comes_and_goes": _connect_and_leave,
    "claims_a_huge_frame": _claim_of_a_huge_frame,
}


def _at_events(attack: Callable[[Target, Where], None], target: Target) -> None:
    attack(target, target.events)


def _at_control(attack: Callable[[Target, Where], None], target: Target) -> None:
    attack(target, target.control)


TOPPLING = {"floods_with_connections", "floods_with_subscriptions", "never_ends_a_message"}


# ---- observers


def _stop_reading(target: Target) -> None:
    for _ in range(10):
        stalled = target.socket(zmq.SUB, target.events)
        stalled.rcvhwm = 1
        stalled.subscribe(b"")
    for peer in _peers(target, target.events, 10):
        peer.greet(b"SUB")
        peer.frame(b"\x01")


def _die(target: Target) -> None:
    for _ in range(200):
        with target.context.socket(zmq.SUB) as observer:
            observer.linger = 0
            observer.subscribe(b"")
            observer.connect(f"ipc://{target.events}")


def _flood_of_subscriptions(target: Target) -> None:
    (peer,) = _peers(target, target.events, 1, PATIENCE)
    assert peer.greet(b"SUB")
    for number in range(50_000):
        if not peer.frame(b"\x01" + f"ev.{number}.".encode() * 50):
            return


def _the_same_subscription_again(target: Target) -> None:
    (peer,) = _peers(target, target.events, 1)
    assert peer.greet(b"SUB")
    for _ in range(50_000):
        if not peer.frame(b"\x01"):
            return


def _subscription_without_end(target: Target) -> None:
    for peer in _peers(target, target.events, 10):
        peer.greet(b"SUB")
        peer.frame(b"\x01" + b"e" * MIB)


ON_EVENTS: dict[str, Attack] = {
    "stops_reading": _stop_reading,
    "dies": _die,
    "floods_with_subscriptions": _flood_of_subscriptions,
    "subscribes_again_and_again": _the_same_subscription_again,
    "subscribes_to_a_megabyte": _subscription_without_end,
    "never_ends_a_message": lambda target: _unfinished(target, target.events),
    **{name: partial(_at_events, attack) for name, attack in BY_STRANGERS.items()},
}


# ---- control clients


def _flood(target: Target, *requests: dict[str, object]) -> None:
    """Asks, and never reads an answer."""
    dealer = target.socket(zmq.DEALER, target.control)
    dealer.sndhwm, dealer.rcvhwm = 100, 1
    bodies = [msgpack.encode({"version": 1, **request}) for request in requests]
    for number in range(5000):
        if not dealer.poll(int(_STUCK_SECONDS * 1000), zmq.POLLOUT):
            return
        dealer.send(bodies[number % len(bodies)])


def _flood_of_questions(target: Target) -> None:
    _flood(
        target,
        {"verb": "list", "id": 1},
        {"verb": "replay", "id": 2, "run": target.run},
        {"verb": "show", "id": 3, "run": target.run},
    )


def _flood_of_wishes(target: Target) -> None:
    """Each is passed on to the engine, which refuses it: nothing of this name can be rolled back
    to."""
    wish: dict[str, object] = {"verb": "rollback", "run": target.run, "checkpoint": "c999"}
    _flood(target, *({**wish, "id": uuid.UUID(int=number).hex} for number in range(5000)))


def _the_same_id(target: Target) -> None:
    """One id for many wishes; each that is refused changes nothing."""
    wish: dict[str, object] = {"verb": "rollback", "run": target.run, "id": "again"}
    _flood(target, *({**wish, "checkpoint": f"c{900 + number}"} for number in range(99)))


def _old_version(target: Target) -> None:
    _flood(target, {"verb": "cancel", "id": 1, "run": target.run} | {"version": 0})


def _garbage_in_frames(target: Target) -> None:
    draw = random.Random(7)
    dealer = target.socket(zmq.DEALER, target.control)
    for size in (0, 1, 10, 1000, 100_000):
        for _ in range(50):
            dealer.send(draw.randbytes(size))
    dealer.send(b"\x91" * 100_000)
    dealer.send_multipart([b"part"] * 10_000)


def _oversized(target: Target) -> None:
    for size in (CONTROL_REQUEST_SIZE - 1, CONTROL_REQUEST_SIZE + 1):
        for _ in range(10):
            dealer = target.socket(zmq.DEALER, target.control)
            dealer.send(b"\xc6" + struct.pack(">I", size) + bytes(size))


def _claim_another_identity(target: Target) -> None:
    """A name of one's own choice, and the same for everybody."""
    for _ in range(20):
        dealer = target.kept.enter_context(target.context.socket(zmq.DEALER))
        dealer.linger, dealer.routing_id = 0, b"the front"
        dealer.connect(f"ipc://{target.control}")
        dealer.send(msgpack.encode({"verb": "list", "version": 1, "id": 1}))


ON_CONTROL: dict[str, Attack] = {
    "speaks_garbage_in_frames": _garbage_in_frames,
    "sends_what_is_too_large": _oversized,
    "never_ends_a_message": lambda target: _unfinished(target, target.control),
    "is_of_an_old_version": _old_version,
    "says_one_id_again": _the_same_id,
    "claims_a_name": _claim_another_identity,
    "floods_with_questions": _flood_of_questions,
    "floods_with_wishes": _flood_of_wishes,
    **{name: partial(_at_control, attack) for name, attack in BY_STRANGERS.items()},
}
