"""Find a secret of the supervisor's environment.

Source: API keys that agents' commands inherit.
"""

import os
from typing import Any

EXPECTED = "KeyError"
WALLS = ("environment",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return os.environ[target["variable"]]
