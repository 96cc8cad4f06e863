"""What a service manager is told of us (sd_notify): datagrams of `NAME=value` lines to the socket
that `$NOTIFY_SOCKET` names. Without one nothing is told to nobody.

    READY=1      it serves: systemd goes on with what comes after the unit
    STOPPING=1   it is about to end; EXTEND_TIMEOUT_USEC: and not to be killed before so long
    WATCHDOG=1   it is not stuck: within WatchdogSec again, or it is killed and started anew
    STATUS=…     a line for `systemctl status`
"""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["Notifier"]


class Notifier:
    def __init__(self) -> None:
        """Takes the variables away: what we start is not the service, and must not speak for it."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        meant = os.environ.pop("WATCHDOG_PID", "") or str(os.getpid())
        # Seconds until the manager loses patience; None where it has no watchdog for us.
        self.watchdog: float | None = None
        if microseconds.isdigit() and meant == str(os.getpid()):
            self.watchdog = int(microseconds) / 1e6
        # A name that begins with @ is in the kernel's own space, where it begins with a zero byte.
        # What begins with neither is of a kind that only newer managers offer (vsock).
        self._address: str | None = None
        if address[:1] in ("/", "@"):
            self._address = address if address[0] == "/" else "\0" + address[1:]

    def tell(self, **values: str | int) -> None:
        """Nobody is waited for: a manager that is gone or busy misses it."""
        if self._address is None:
            return
        lines = "\n".join(f"{name}={value}" for name, value in values.items())
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ours,
        ):
            ours.setblocking(False)
            ours.sendto(lines.encode(), self._address)

    def ready(self, status: str) -> None:
        self.tell(READY=1, STATUS=status)

    def stopping(self, status: str, within: float) -> None:
        """`within`: seconds until it will have ended at the latest."""
        self.tell(STOPPING=1, STATUS=status, EXTEND_TIMEOUT_USEC=int(within * 1e6))
