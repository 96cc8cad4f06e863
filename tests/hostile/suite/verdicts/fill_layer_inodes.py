"""Make empty files in the workspace, which weigh nothing and each take an inode of the disk.

Source: a file system with space and without inodes.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

KIND = "disk"
WALLS = ("layer",)
LIMITS = {"disk": "4MiB"}


def attack(input: Any, ctx: Any) -> object:
    for number in itertools.count():
        os.close(os.open(f"empty-{number % 20_000}", os.O_CREAT | os.O_WRONLY))
    return None
