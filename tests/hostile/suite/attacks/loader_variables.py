"""Be told by the supervisor's environment where libraries lie (LD_LIBRARY_PATH).

Source: ld.so(8); CWE-426.
"""

import os
from typing import Any

EXPECTED = "KeyError"
WALLS = ("environment",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return os.environ["LD_LIBRARY_PATH"]
