"""Compute for ever where no signal handler of Python would ever run."""

from __future__ import annotations

import collections
import itertools
from typing import Any

KIND = "timeout.wall"
TIMEOUTS = {"wall": "500ms", "grace": "100ms"}


def attack(input: Any, ctx: Any) -> object:
    collections.deque(itertools.repeat(0), maxlen=0)
    return None
