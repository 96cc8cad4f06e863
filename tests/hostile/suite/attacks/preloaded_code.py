"""Be loaded by what the supervisor's environment names (PYTHONPATH).

Source: LD_PRELOAD's kin for Python.
"""

import importlib
from typing import Any

EXPECTED = "ModuleNotFoundError"
WALLS = ("environment",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return importlib.import_module(target["planted"]).__name__
