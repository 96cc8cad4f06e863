"""Compute for ever where no signal handler of Python would ever run.

Source: CrewAI and AutoGen return late or never from it.
"""

from __future__ import annotations

import collections
import itertools
from typing import Any

KIND = "timeout.wall"
WALLS = ("clocks", "kill")
TIMEOUTS = {"wall": "500ms", "grace": "100ms"}


def attack(input: Any, ctx: Any) -> object:
    collections.deque(itertools.repeat(0), maxlen=0)
    return None
