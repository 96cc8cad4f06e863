"""Make empty files in /dev/shm until there is no room for a name.

Source: a file system with space and without inodes; POSIX shared memory has one of its own.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

KIND = "disk"
WALLS = ("scratch",)
LIMITS = {"tmp": "4MiB"}


def attack(input: Any, ctx: Any) -> object:
    for number in itertools.count():
        os.close(os.open(f"/dev/shm/{number}", os.O_CREAT | os.O_WRONLY))
    return None
