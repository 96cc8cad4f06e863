"""What a command with an engine does before the first child: a cgroup of its own
(sandbox/scope.py), and logs (logs.py)."""

from __future__ import annotations

import sys
from dataclasses import replace

from ...protocol.errors import SetupRefused
from ...sandbox.scope import take_place
from .. import logs
from ..config import Config

__all__ = ["settle", "speak"]


def speak(config: Config) -> Config:
    """Where nobody said what to log, a person at a terminal is told what he has to know."""
    config = replace(config, log=config.log or "warnings")
    logs.set_up(config.log or "off")
    for note in config.notes:
        print(f"casemate: {note}", file=sys.stderr)
    return config


def settle() -> None:
    """Before the first child is started, for then we are not alone any more."""
    try:
        take_place()
    except (OSError, SetupRefused) as error:
        # Nothing is lost: limits are sampled then, and whoever starts a sandbox says so.
        print(f"casemate: no cgroup of our own: {error}", file=sys.stderr)
