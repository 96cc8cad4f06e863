"""Type into the operator's terminal (TIOCSTI).

Source: CVE-2017-5226, bubblewrap.
"""

import fcntl
import termios
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("session", "seccomp")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    for fd in (0, 1, 2):
        fcntl.ioctl(fd, termios.TIOCSTI, b"x")
    return "typed"
