"""The guest's end of a link, as guests make it: a pyzmq socket bound to an inherited listener.

Run as `python pyzmq_peer.py LISTENER PATH MODE`; MODE says what it does once it is connected.
It lives in a process of its own because no process that holds a ZeroMQ context may fork.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import zmq
from casemate.protocol.codec import decode_from_supervisor, encode, encode_value, kind_of
from casemate.protocol.limits import LINK_VERSION, MESSAGE_SIZE
from casemate.protocol.link import Conversation, Role
from casemate.protocol.messages import Accept, Emit, Hello, Message, Result, Run
from msgspec import Raw

Socket = zmq.Socket[bytes]

STOP = b"stop"
FLOOD = 20_000
LARGE = 32


def echo(socket: Socket) -> None:
    while (message := socket.recv()) != STOP:
        socket.send(message)


def flood(socket: Socket) -> None:
    for number in range(FLOOD):
        socket.send(number.to_bytes(4, "big") * 50)


def large(socket: Socket) -> None:
    for number in range(LARGE):
        socket.send(bytes((number,)) * MESSAGE_SIZE)


def too_large(socket: Socket) -> None:
    socket.send(b"last good one")
    socket.send(bytes(MESSAGE_SIZE + 1))


def multipart(socket: Socket) -> None:
    socket.send(b"last good one")
    socket.send_multipart([b"a", b"b"])


def silence(socket: Socket) -> None:
    """Nothing of ours is sent: what libzmq sends by itself shows."""


def task(socket: Socket) -> None:
    """A whole conversation, by the codec and the table of the guest's side."""
    conversation = Conversation(Role.GUEST)

    def say(message: Message) -> None:
        conversation.sent(kind_of(message))
        socket.send(encode(message))

    def hear() -> Message:
        message = decode_from_supervisor(socket.recv())
        conversation.received(kind_of(message))
        return message

    say(Hello(version=LINK_VERSION, pid=os.getpid()))
    assert isinstance(hear(), Accept)
    run = hear()
    assert isinstance(run, Run)
    for number in range(1000):
        say(Emit(item=Raw(encode_value({"number": number}))))
    say(Result(output=run.input))


MODES: dict[str, Callable[[Socket], None]] = {
    "echo": echo,
    "flood": flood,
    "large": large,
    "too_large": too_large,
    "multipart": multipart,
    "heartbeat": silence,
    "task": task,
}


def main() -> None:
    listener, path, mode = sys.argv[1:]
    socket: Socket = zmq.Context().socket(zmq.PAIR)
    socket.sndhwm = 4
    socket.linger = 0
    if mode == "heartbeat":
        socket.heartbeat_ivl = 10
    socket.use_fd = int(listener)
    socket.bind(f"ipc://{path}")
    MODES[mode](socket)
    sys.stdin.read()  # the test's end of the pipe says when


if __name__ == "__main__":
    main()
