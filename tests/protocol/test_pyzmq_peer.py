"""The strict endpoint against the peer it is made for: a real pyzmq socket in another process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from casemate.protocol.codec import (
    decode_from_guest,
    decode_value,
    encode,
    encode_value,
    kind_of,
)
from casemate.protocol.errors import RemoteViolation
from casemate.protocol.limits import LINK_READ_SIZE, LINK_VERSION, MESSAGE_SIZE
from casemate.protocol.link import Conversation, Role, State
from casemate.protocol.messages import Accept, Emit, Hello, Message, Result, Run
from casemate.protocol.pipeline import FileEntry
from casemate.protocol.zmtp import HANDSHAKE, Endpoint, WireViolation
from msgspec import Raw
from pyzmq_peer import FLOOD, LARGE

PEER = Path(__file__).with_name("pyzmq_peer.py")
HEADER = 9


class Connection:
    """The supervisor's end, with a socket that waits."""

    def __init__(self, connected: socket.socket, read_size: int = LINK_READ_SIZE) -> None:
        self.socket = connected
        self.endpoint = Endpoint()
        self.read_size = read_size
        self.most_buffered = 0
        self._frames: list[bytes] = []
        connected.sendall(self.endpoint.greeting())

    def read(self) -> list[bytes]:
        data = self.socket.recv(self.read_size)
        assert data, "the peer has closed the connection"
        frames = self.endpoint.receive(data)
        self.most_buffered = max(self.most_buffered, self.endpoint.buffered)
        return frames

    def wait_open(self) -> None:
        while not self.endpoint.is_open:
            self._frames += self.read()

    def receive(self) -> bytes:
        while not self._frames:
            self._frames += self.read()
        return self._frames.pop(0)

    def send(self, frame: bytes) -> None:
        self.socket.sendall(self.endpoint.send(frame))


Connect = Callable[[str], AbstractContextManager[socket.socket]]


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    @contextmanager
    def connected(mode: str) -> Iterator[socket.socket]:
        path = tmp_path / "link"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link,
        ):
            # Below /proc/self/fd, as pytest's folders may be longer than a socket's path may be.
            folder = os.open(tmp_path, os.O_PATH)
            try:
                short = f"/proc/self/fd/{folder}/link"
                listener.bind(short)
                listener.listen(1)
                link.connect(short)
            finally:
                os.close(folder)
            peer = subprocess.Popen(
                [sys.executable, str(PEER), str(listener.fileno()), str(path), mode],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
            )
            listener.close()
            path.unlink()
            link.settimeout(60)  # a test that hangs fails here; nothing is concluded from time
            try:
                yield link
            finally:
                peer.kill()
                peer.communicate()

    return connected


def test_libzmq_sends_exactly_the_handshake_that_is_compared_with(connect: Connect) -> None:
    with connect("echo") as link:
        link.sendall(HANDSHAKE)
        got = b""
        while len(got) < len(HANDSHAKE):
            got += link.recv(len(HANDSHAKE) - len(got))
        assert got == HANDSHAKE


def test_messages_of_every_size_go_both_ways(connect: Connect) -> None:
    sizes = [0, 1, 2, 254, 255, 256, 257, 65_535, 65_536, MESSAGE_SIZE - 1, MESSAGE_SIZE]
    with connect("echo") as link:
        connection = Connection(link)
        connection.wait_open()
        for size in sizes:
            message = bytes((size % 251,)) * size
            connection.send(message)
            assert connection.receive() == message
        connection.send(b"stop")


def test_thousands_of_small_messages_come_whole_and_in_order(connect: Connect) -> None:
    with connect("flood") as link:
        connection = Connection(link)
        for number in range(FLOOD):
            assert connection.receive() == number.to_bytes(4, "big") * 50
        assert connection.most_buffered < 2 + 200


@pytest.mark.parametrize("read_size", [1000, LINK_READ_SIZE, 4 * MESSAGE_SIZE])
def test_a_flood_of_large_messages_waits_in_the_socket_not_in_memory(
    connect: Connect, read_size: int
) -> None:
    with connect("large") as link:
        connection = Connection(link, read_size)
        for number in range(LARGE):
            assert connection.receive() == bytes((number,)) * MESSAGE_SIZE
        assert connection.most_buffered < MESSAGE_SIZE + HEADER


@pytest.mark.parametrize(
    ("mode", "problem", "frames"),
    [
        ("multipart", "several frames", [b"last good one"]),
        ("too_large", f"frame of {MESSAGE_SIZE + 1} bytes", [b"last good one"]),
        ("heartbeat", "command", []),
    ],
)
def test_what_a_guest_of_ours_never_sends_is_refused(
    connect: Connect, mode: str, problem: str, frames: list[bytes]
) -> None:
    with connect(mode) as link:
        connection = Connection(link)
        got: list[bytes] = []
        with pytest.raises(WireViolation, match=problem) as caught:
            while True:
                got += connection.read()
        assert got + caught.value.frames == frames


def test_a_whole_conversation(connect: Connect) -> None:
    given = {"text": "schön", "raw": b"\x00\xff", "numbers": [1, -2, 3.5, None, True]}
    with connect("task") as link:
        connection = Connection(link)
        conversation = Conversation(Role.SUPERVISOR)

        def hear() -> Message:
            message = decode_from_guest(connection.receive())
            conversation.received(kind_of(message))
            return message

        def say(message: Message) -> None:
            conversation.sent(kind_of(message))
            connection.send(encode(message))

        assert isinstance(hear(), Hello)
        say(Accept(version=LINK_VERSION))
        say(
            Run(
                run="r",
                task="t",
                attempt=1,
                entry=FileEntry(file="agents.py", name="analyze"),
                input=Raw(encode_value(given)),
                input_file=None,
                spec=Raw(encode_value({})),
                idempotency_key="k",
                deadline=None,
                workspace=None,
            )
        )
        for number in range(1000):
            message = hear()
            assert isinstance(message, Emit)
            assert decode_value(message.item) == {"number": number}
        message = hear()
        assert isinstance(message, Result)
        assert decode_value(message.output) == given
        assert conversation.state is State.TOLD


def test_the_violation_is_one_of_the_remote_side() -> None:
    assert issubclass(WireViolation, RemoteViolation)
