"""Be loaded by what the supervisor's environment names (PYTHONPATH)."""

import importlib
from typing import Any

EXPECTED = "ModuleNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return importlib.import_module(target["planted"]).__name__
