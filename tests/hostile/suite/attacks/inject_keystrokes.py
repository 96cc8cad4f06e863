"""Type into the operator's terminal (TIOCSTI).

Source: CVE-2017-5226, bubblewrap.
"""

import errno
import fcntl
import pty
import termios
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("session", "seccomp")


def attack(target: dict[str, Any]) -> object:
    for fd in (0, 1, 2):
        fcntl.ioctl(fd, termios.TIOCSTI, b"x")
    return "typed"


def outside(target: dict[str, Any]) -> object:
    _, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    try:
        fcntl.ioctl(terminal, termios.TIOCSTI, b"x")
    except OSError as error:
        if error.errno != errno.EIO:  # as kernels since 6.2 may be told to answer
            raise
    return "typed"
