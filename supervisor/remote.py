"""A supervisor on another host, from the client's side: its address, the keys, and why it does not
answer.

    HOST:PORT      its control socket; its event socket is at the next port

Both sockets are CURVE: we prove who we are with `client.key`, and `server.pub` is how we know the
other end, so that an address that leads somewhere else is found out. libzmq connects again for ever
and says nothing; its monitor does, and `Reach` makes a message of that which a person can act on.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..protocol.errors import CasemateError, UsageError
from .keys import KeyPair, read_pair, read_public_key

if TYPE_CHECKING:
    import zmq

__all__ = ["CHECK_SECONDS", "Address", "Reach", "Remote"]

# A connection and its handshake are four journeys. Whoever has not come through by now is not
# there; a satellite link needs three seconds.
_REACH_SECONDS = 15.0

# How often whoever waits looks whether that is still of use.
CHECK_SECONDS = 1.0

# A handshake cut short once may be a gate that was just started again; this often, it is no chance.
_CUT_SHORT = 5

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^\s:/\[\]]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    host: str  # a name or an address; of version 6 in brackets
    port: int

    @classmethod
    def parse(cls, text: str, what: str) -> Address:
        """`what`: where it was said. Raises UsageError."""
        found = _ADDRESS.fullmatch(text.removeprefix("tcp://"))
        # The events have the port after it.
        if found is None or not 1 <= int(found[2]) <= 65534:
            raise UsageError(f"{what}: {text!r}: expected HOST:PORT, as in 10.0.0.5:7601")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def control(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    @property
    def events(self) -> str:
        return f"tcp://{self.host}:{self.port + 1}"


@dataclass(frozen=True, slots=True)
class Remote:
    address: Address
    own: KeyPair
    server: str  # the public key it must have

    @classmethod
    def of(cls, at: str, keys: Path) -> Remote:
        """Raises UsageError where a key is missing."""
        return cls(
            Address.parse(at, "at"), read_pair(keys, "client"), read_public_key(keys, "server")
        )

    @property
    def events(self) -> str:
        return self.address.events

    @property
    def control(self) -> str:
        return self.address.control

    def connect(self, socket: zmq.Socket[Any], endpoint: str) -> None:
        """To one of its two endpoints. Raises UsageError where that can be no address."""
        import zmq

        socket.ipv6 = True
        socket.curve_publickey = self.own.public.encode()
        socket.curve_secretkey = self.own.secret.encode()
        socket.curve_serverkey = self.server.encode()
        # What a firewall swallowed is noticed, and connected anew.
        socket.heartbeat_ivl, socket.heartbeat_timeout = 10_000, 30_000
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise UsageError(f"at {self.address}: no such address can be: {error}") from error


class Reach:
    """What becomes of the connections of one socket. Make it before the socket connects, poll
    `news` beside it, and `check` when there is some and once a second. `patience`: seconds to wait
    at least for somebody to be there."""

    def __init__(self, remote: Remote, socket: zmq.Socket[Any], patience: float = 0.0) -> None:
        import zmq

        self._remote = remote
        self._socket = socket
        self._give_up: float | None = time.monotonic() + max(_REACH_SECONDS, patience)
        self._cut_short = 0
        self.news: zmq.Socket[Any] = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )

    @property
    def is_through(self) -> bool:
        """As of the last `check`: we were let in."""
        return self._give_up is None

    def check(self) -> None:
        """Raises CasemateError where there is no use in waiting."""
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        while self.news.poll(0):
            event = recv_monitor_message(self.news)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._give_up, self._cut_short = None, 0
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise CasemateError(
                    f"the supervisor at {self._remote.address} does not know this client's key: "
                    f'its clients.toml needs a line NAME = "{self._remote.own.public}"'
                )
            else:
                self._cut_short += 1
        if self._cut_short >= _CUT_SHORT:
            raise CasemateError(
                f"what listens at {self._remote.address} does not have the key of server.pub, or "
                "is no supervisor"
            )
        if self._give_up is not None and time.monotonic() > self._give_up:
            raise CasemateError(f"no supervisor answers at {self._remote.address}")

    def close(self) -> None:
        self._socket.disable_monitor()
        self.news.close(linger=0)
