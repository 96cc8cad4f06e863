"""A cgroup of our own for a command: see sandbox/scope.py."""

from __future__ import annotations

import sys

from ...protocol.errors import SetupRefused
from ...sandbox.scope import take_place

__all__ = ["settle"]


def settle() -> None:
    """Before the first child is started, for then we are not alone any more."""
    try:
        take_place()
    except (OSError, SetupRefused) as error:
        # Nothing is lost: limits are sampled then, and whoever starts a sandbox says so.
        print(f"casemate: no cgroup of our own: {error}", file=sys.stderr)
