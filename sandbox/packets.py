"""One packet with descriptors over a unix SOCK_SEQPACKET socket.

Not socket.recv_fds: it drops its flags (Python 3.11 to 3.13), MSG_CMSG_CLOEXEC among them, and what
comes through it would survive an exec.
"""

from __future__ import annotations

import array
import os
import socket

__all__ = ["receive", "send"]


def send(channel: socket.socket, packet: bytes, fds: list[int] | tuple[int, ...] = ()) -> None:
    if fds:
        socket.send_fds(channel, [packet], list(fds))
    else:
        channel.send(packet)


def receive(channel: socket.socket, size: int, max_fds: int) -> tuple[bytes, list[int], bool]:
    """(packet, descriptors, whether it came whole). An empty packet: the other end is closed."""
    fds = array.array("i")
    packet, ancillary, flags, _address = channel.recvmsg(
        size, socket.CMSG_SPACE(max_fds * fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    # CMSG_SPACE rounds up: one descriptor more than asked for may have come through.
    for fd in fds[max_fds:]:
        os.close(fd)
    is_whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) and len(fds) <= max_fds
    return packet, list(fds[:max_fds]), is_whole
