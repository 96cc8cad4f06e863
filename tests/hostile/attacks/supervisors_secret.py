"""Find a secret of the supervisor's environment."""

import os
from typing import Any

EXPECTED = "KeyError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return os.environ[target["variable"]]
