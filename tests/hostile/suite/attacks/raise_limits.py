"""Lift its own limits.

Source: setrlimit(2).
"""

import resource
from typing import Any

EXPECTED = "ValueError"
WALLS = ("rlimits", "capabilities")


def attack(target: dict[str, Any]) -> object:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1, most + 1))
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def outside(target: dict[str, Any]) -> object:
    # What one process was denied another one may still have; within the limit anybody may.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return resource.getrlimit(resource.RLIMIT_NOFILE)
