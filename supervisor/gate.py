"""The gate: the process through which clients and observers of other hosts come in.

    front ── events.sock, control.sock ── gate (python -I -S) ── tcp, CURVE ── anybody
                                            ▲ stdin: keys, addresses; EOF ends it
                                            ▼ stdout: what it has to say, a line of JSON each

To the front it is one more observer and one more client, so that nothing which the network does to
a libzmq reaches anybody who is on this host: it is the gate's memory and descriptors that a flood
takes, and both are capped. `offhost.py` starts it, and starts it again.

Who connects proves by CURVE that he has the key that he names, and is then looked up in the list of
clients (ZAP, answered here, from memory). Every later message bears the name that was found there.
A name that may only `watch` may ask what changes nothing. Requests are looked at here as far as it
takes to refuse and to log; what they say is the front's to judge.

The list holds for the whole life of a gate. When it changes there is another gate: so those who
were struck off are cut off at once, and the others connect again and miss nothing, as when a front
dies.

Of events the gate asks the front for none until somebody is subscribed to any, and for all from
then on: what is said from outside costs the front nothing and takes nothing from anybody else. A
subscription is answered with the latest heartbeat, as the front does.
Requests wait their turn: libzmq takes one of each connection in turn, both here and in the front,
and while the front has enough of ours no more are read.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from ..protocol.control import (
    HEARTBEAT_TOPIC,
    ControlError,
    Error,
    Problem,
    RequestId,
)
from ..protocol.limits import (
    CONTROL_QUEUE,
    CONTROL_RATE,
    CONTROL_REQUEST_SIZE,
    CONTROL_VERSION,
    FRONT_QUEUE_EVENTS,
    GATE_LOG_BURST,
    GATE_LOG_RATE,
    GATE_QUEUE,
    REMOTE_HANDSHAKE_SECONDS,
    REMOTE_REQUEST_SIZE,
    SUBSCRIPTION_SIZE,
)
from .exposed import limit_self
from .keys import Allowed, KeyPair

if TYPE_CHECKING:
    import zmq

__all__ = ["Orders", "Said", "main"]

# Requests that change nothing: whoever may only watch may make these.
_READING = frozenset({"list", "show", "replay", "fetch", "breakers", "why"})

# What a network makes us do comes after what is done on this host.
_NICENESS = 5

# What is done for one socket before the next has its turn.
_TURN = 100

# How long what is queued for observers may still take when the gate ends.
_PARTING_SECONDS = 0.5


class Orders(Struct, frozen=True, kw_only=True):
    """All that a gate is told, on stdin."""

    own: KeyPair
    clients: tuple[Allowed, ...]
    # Where it listens, and where the front does.
    control: str
    events: str
    front_control: str
    front_events: str


class Said(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line on stdout."""

    # listening: both sockets are bound. refused: somebody, or what he asked. asked: what an allowed
    # client wants done, for the record. failed: there will be no listening.
    kind: Literal["listening", "refused", "asked", "failed"]
    text: str = ""


class _Asked(Struct):
    """As much of a request as the gate reads."""

    verb: str = ""
    version: int = 0
    id: RequestId | None = None
    run: str = ""
    key: str = ""
    submission: str = ""


class _Envelope(Struct, frozen=True, array_like=True):
    """Whose a request is: it travels with it to the front and comes back with the reply."""

    peer: bytes
    has_delimiter: bool
    who: str


class _Refused(Struct, tag="error", tag_field="reply"):
    error: Problem


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(_Asked)
_envelopes = msgspec.msgpack.Decoder(_Envelope)
_replies = msgspec.msgpack.Decoder(_Refused)


def main() -> None:
    """The gate's whole life."""
    status = 1
    try:
        limit_self()
        os.nice(_NICENESS)
        # A host that does not read must not hold up clients: what does not fit is not said.
        os.set_blocking(1, False)
        orders = msgspec.msgpack.decode(_read_orders(), type=Orders)
        _Gate(orders).serve()
        status = 0
    except _CannotListen as error:
        _say(Said(kind="failed", text=str(error)))
        status = 2
    except BaseException:
        traceback.print_exc()
    # Not by way of the interpreter: a context that is collected waits for its sockets.
    sys.stderr.flush()
    os._exit(status)


def _read_orders() -> bytes:
    head = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(int.from_bytes(head, "little"))


def _say(said: Said) -> None:
    # A line is written whole or not at all: none is as long as PIPE_BUF.
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode(said) + b"\n")


class _CannotListen(Exception):
    pass


class _Log:
    """What others make us say is bounded: a burst, then so many lines a second, and the rest
    counted."""

    def __init__(self, kind: Literal["refused", "asked"], burst: int, rate: float) -> None:
        self._kind, self._burst, self._rate = kind, float(burst), rate
        self._allowance = self._burst
        self._at = time.monotonic()
        self._left_out = 0

    def say(self, text: str, count: int = 1) -> None:
        if self._may_say():
            self._say_left_out()
            _say(Said(kind=self._kind, text=text))
        else:
            self._left_out += count

    def catch_up(self) -> None:
        if self._left_out and self._may_say():
            self._say_left_out()

    def _may_say(self) -> bool:
        now = time.monotonic()
        earned = (now - self._at) * self._rate
        self._allowance = min(self._burst, self._allowance + earned)
        self._at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _say_left_out(self) -> None:
        if self._left_out:
            _say(Said(kind=self._kind, text=f"{self._kind} {self._left_out} more"))
            self._left_out = 0


class _Gate:
    def __init__(self, orders: Orders) -> None:
        import zmq

        # Strangers who knock all night hide nothing that a client did.
        self._strangers = _Log("refused", GATE_LOG_BURST, GATE_LOG_RATE)
        self._refused = _Log("refused", GATE_LOG_BURST, GATE_LOG_RATE)
        # As many as the engine reads: a line is missing only where requests come faster than that.
        self._asked = _Log("asked", CONTROL_RATE, CONTROL_RATE)
        self._own = orders.own
        self._clients = {each.key: each for each in orders.clients}
        self._by_name = {each.name: each for each in orders.clients}
        self._has_observers = False  # or had any
        self._beat: list[bytes] | None = None
        self._context = zmq.Context()
        # First of all: without it libzmq lets in whoever has any key.
        self._doorkeeper = self._context.socket(zmq.REP)
        self._doorkeeper.linger = 0
        self._doorkeeper.bind("inproc://zeromq.zap.01")
        self._live = self._context.socket(zmq.SUB)
        self._live.rcvhwm = FRONT_QUEUE_EVENTS
        self._live.linger = 0
        self._live.subscribe(HEARTBEAT_TOPIC)
        self._live.connect(orders.front_events)
        self._front = self._context.socket(zmq.DEALER)
        self._front.sndhwm = self._front.rcvhwm = GATE_QUEUE
        self._front.linger = 0
        self._front.connect(orders.front_control)
        self._events = self._listen(zmq.XPUB, FRONT_QUEUE_EVENTS, SUBSCRIPTION_SIZE)
        self._control = self._listen(zmq.ROUTER, CONTROL_QUEUE, CONTROL_REQUEST_SIZE)
        self._doors = [_watched(each) for each in (self._events, self._control)]
        for each, endpoint in ((self._events, orders.events), (self._control, orders.control)):
            try:
                each.bind(endpoint)
            except zmq.ZMQError as error:
                raise _CannotListen(f"cannot listen at {endpoint}: {error.strerror}") from error

    def _listen(self, kind: int, queue: int, largest: int) -> zmq.Socket[Any]:
        import zmq

        listener: zmq.Socket[Any] = self._context.socket(kind)
        listener.linger = 0
        listener.ipv6 = True
        listener.sndhwm, listener.rcvhwm = queue, _TURN
        listener.maxmsgsize = largest
        listener.handshake_ivl = int(REMOTE_HANDSHAKE_SECONDS * 1000)
        # A peer whose network is gone holds a descriptor for ever otherwise.
        listener.heartbeat_ivl, listener.heartbeat_timeout = 10_000, 30_000
        listener.curve_server = True
        listener.curve_secretkey = self._own.secret.encode()
        listener.zap_domain = b"casemate"
        if kind == zmq.XPUB:
            listener.setsockopt(zmq.XPUB_VERBOSE, 1)
        return listener

    def serve(self) -> None:
        import zmq

        _say(Said(kind="listening"))
        poller = zmq.Poller()
        for each in (self._doorkeeper, self._live, self._events, *self._doors):
            poller.register(each, zmq.POLLIN)
        poller.register(0, zmq.POLLIN)
        while True:
            has_room = self._has_room()
            poller.register(self._control, zmq.POLLIN if has_room else 0)
            poller.register(self._front, zmq.POLLIN if has_room else zmq.POLLIN | zmq.POLLOUT)
            ready = dict(poller.poll(1000))
            if 0 in ready and not os.read(0, 4096):
                break
            self._open_doors()
            self._read_subscriptions()
            self._forward_events()
            self._forward_requests()
            self._forward_replies()
            self._note_failures()
            for log in (self._strangers, self._refused, self._asked):
                log.catch_up()
        # The front ended before us: what it said last is there.
        self._forward_events(most=FRONT_QUEUE_EVENTS)
        self._events.close(linger=int(_PARTING_SECONDS * 1000))
        self._control.close(linger=int(_PARTING_SECONDS * 1000))
        for each in (self._doorkeeper, self._live, self._front, *self._doors):
            each.close(linger=0)
        self._context.term()

    # ---- who comes in

    def _open_doors(self) -> None:
        import zmq

        for _ in range(_TURN):
            try:
                version, request, _, address, _, mechanism, *proof = (
                    self._doorkeeper.recv_multipart(zmq.NOBLOCK)
                )
            except zmq.Again:
                return
            from zmq.utils import z85

            key = z85.encode(proof[0]).decode() if mechanism == b"CURVE" else ""
            client = self._clients.get(key)
            if client is None:
                self._strangers.say(
                    f"refused {_address(address.decode())}: its key {key} is not in clients.toml"
                )
                answer = (b"400", b"unknown key", b"")
            else:
                answer = (b"200", b"", client.name.encode())
            self._doorkeeper.send_multipart([version, request, *answer, b""])

    def _note_failures(self) -> None:
        from zmq.utils.monitor import recv_monitor_message

        count = 0
        for door in self._doors:
            for _ in range(_TURN):
                if not door.poll(0):
                    break
                recv_monitor_message(door)
                count += 1
        if count:
            words = f"refused {count} whose greeting was cut short or not made with our key"
            self._strangers.say(words, count)

    # ---- events

    def _read_subscriptions(self) -> None:
        import zmq

        is_new = False
        for _ in range(_TURN):
            try:
                said = self._events.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            # What begins otherwise ends a subscription, or is a message of an XSUB's, which XPUB
            # passes up too: neither says that nobody listens any more.
            if said[:1] == b"\x01":
                is_new = True
                self._listen_to(said[1:])
        if is_new and self._beat is not None:
            self._events.send_multipart(self._beat, zmq.NOBLOCK)

    def _listen_to(self, topic: bytes) -> None:
        has_only_beats = HEARTBEAT_TOPIC.startswith(topic) and topic
        if not self._has_observers and not has_only_beats:
            self._has_observers = True
            self._live.subscribe(b"ev.")

    def _forward_events(self, most: int = 10 * _TURN) -> None:
        import zmq

        receive, send = self._live.recv, self._events.send
        for _ in range(most):
            try:
                topic = receive(zmq.NOBLOCK)
            except zmq.Again:
                return
            header, payload = receive(), receive()
            if topic == HEARTBEAT_TOPIC:
                self._beat = [topic, header, payload]
            # As the front: an XPUB never waits, it drops for those whose queue is full.
            send(topic, zmq.NOBLOCK | zmq.SNDMORE)
            send(header, zmq.NOBLOCK | zmq.SNDMORE)
            send(payload, zmq.NOBLOCK)

    # ---- control

    def _has_room(self) -> bool:
        import zmq

        return bool(self._front.poll(0, zmq.POLLOUT))

    def _forward_requests(self) -> None:
        import zmq

        for _ in range(_TURN):
            if not self._has_room():
                return
            try:
                peer = self._control.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            has_delimiter, parts, body = False, 0, None
            # Part by part: of a message with a million parts two are kept.
            while self._control.getsockopt(zmq.RCVMORE):
                body = self._control.recv(copy=False)
                has_delimiter |= not parts and not body.bytes
                parts += 1
            if body is None:
                continue
            name, address = str(body.get("User-Id")), str(body.get("Peer-Address"))
            envelope = _Envelope(peer, has_delimiter, f"{name} ({_address(address)})")
            self._forward(envelope, self._by_name[name], body.bytes)

    def _forward(self, envelope: _Envelope, client: Allowed, body: bytes) -> None:
        import zmq

        asked, problem = _Asked(), None
        if len(body) > REMOTE_REQUEST_SIZE:
            problem = Problem(
                ControlError.BAD_REQUEST,
                f"a request of {len(body)} bytes, of at most {REMOTE_REQUEST_SIZE}",
            )
        else:
            try:
                asked = _requests.decode(body)
            except (ValueError, RecursionError) as error:
                problem = Problem(ControlError.BAD_REQUEST, f"not a request: {str(error)[:200]}")
            else:
                problem = _refusal(asked, client)
        if problem is not None:
            self._refused.say(f"refused a request of {envelope.who}: {_word(problem.message)}")
            self._answer(envelope, _encoder.encode(Error(id=asked.id, error=problem)))
            return
        if asked.verb not in _READING | {"upload"}:
            words = f"{_word(asked.verb)} {_word(asked.run or asked.key or asked.submission)}"
            self._asked.say(f"{envelope.who} asks: {words.rstrip()}")
        # There was room; an empty part ends the envelope, as everywhere in ZeroMQ.
        self._front.send_multipart([_encoder.encode(envelope), b"", body], zmq.NOBLOCK)

    def _forward_replies(self) -> None:
        import zmq

        for _ in range(_TURN):
            try:
                sealed, _, reply = self._front.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            envelope = _envelopes.decode(sealed)
            with contextlib.suppress(msgspec.ValidationError):  # not an error
                problem = _replies.decode(reply).error
                if problem.kind is ControlError.BAD_REQUEST:
                    self._refused.say(
                        f"refused a request of {envelope.who}: {_word(problem.message)}"
                    )
            self._answer(envelope, reply)

    def _answer(self, envelope: _Envelope, reply: bytes) -> None:
        import zmq

        delimiter = [b""] if envelope.has_delimiter else []
        # A client who does not read loses the reply, as ROUTER does with those who left.
        with contextlib.suppress(zmq.Again):
            self._control.send_multipart([envelope.peer, *delimiter, reply], zmq.NOBLOCK)


def _refusal(asked: _Asked, client: Allowed) -> Problem | None:
    if asked.version != CONTROL_VERSION:
        return Problem(
            ControlError.BAD_REQUEST,
            f"version {asked.version}: this casemate speaks version {CONTROL_VERSION}",
        )
    if client.may == "watch" and asked.verb not in _READING:
        return Problem(
            ControlError.REFUSED, f"{client.name} may only watch, not {_word(asked.verb)}"
        )
    return None


def _watched(door: zmq.Socket[Any]) -> zmq.Socket[Any]:
    import zmq

    return door.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    )


def _address(text: str) -> str:
    return _word(text.removeprefix("::ffff:"))  # of version 4, as a socket for both has it


def _word(text: str) -> str:
    """A stranger's words, harmless and short."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])
