"""The guest's link at moments that a real guest meets once in thousands."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import Any

import zmq
from casemate.protocol import codec
from casemate.protocol.limits import LINK_VERSION
from casemate.protocol.messages import Accept, Hello
from casemate.sandbox.guestlink import Link
from forked import forked
from sealed import PATIENCE


class LateConnection:
    """A socket whose peer is not there at the first send, and has answered the second before that
    returns."""

    def __init__(self, own: zmq.Socket[bytes], peer: zmq.Socket[bytes]) -> None:
        self._own = own
        self._peer = peer
        self._is_there = False

    def __getattr__(self, name: str) -> Any:  # the socket's own
        return getattr(self._own, name)

    def send(self, frame: bytes, flags: int) -> None:
        if not self._is_there:
            self._is_there = True
            raise zmq.Again
        self._own.send(frame, flags)
        assert self._peer.poll(int(PATIENCE * 1000))
        assert isinstance(codec.decode_from_guest(self._peer.recv()), Hello)
        self._peer.send(codec.encode(Accept(version=LINK_VERSION)))
        assert self._own.poll(int(PATIENCE * 1000))


def test_a_greeting_that_had_to_wait_leaves_its_answer_to_who_receives() -> None:
    def work() -> str:
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/link")
            listener.listen(1)
            peer = zmq.Context().socket(zmq.PAIR)
            peer.connect(f"ipc://{folder}/link")
            link = Link(listener.detach())
            link._socket = LateConnection(link._socket, peer)  # type: ignore[assignment]
            link.greet(Hello(version=LINK_VERSION, pid=os.getpid()))
            return type(link.receive()).__name__

    assert forked(work) == "Accept"
