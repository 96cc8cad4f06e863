"""Give a terminal a line discipline that nobody maintains (TIOCSETD).

Source: CVE-2023-6546, n_gsm; CVE-2017-2636, n_hdlc.
"""

import fcntl
import pty
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("session", "seccomp")


def attack(target: dict[str, Any]) -> object:
    for fd in (0, 1, 2):
        discipline(fd)
    return "set"


def outside(target: dict[str, Any]) -> object:
    _, terminal = pty.openpty()
    return discipline(terminal)


def discipline(fd: int) -> object:
    return fcntl.ioctl(fd, 0x5423, bytes(4))  # N_TTY
