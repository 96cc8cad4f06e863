"""A cgroup of our own to hand on: for commands that were started in a delegated scope.

On cgroup v2 a folder with processes in it can hand no controllers to its children. Under
`systemd-run --scope -p Delegate=yes casemate ...` we are the only process in ours, and step aside
into a leaf below it. Only a command may: an embedding program did not ask to be moved.
"""

from __future__ import annotations

import sys

from ...sandbox import cgroup

__all__ = ["settle"]


def settle() -> None:
    """Before the first child is started, for then we are not alone any more."""
    facts = cgroup.probe()
    try:
        cgroup.settle(facts)
    except OSError as error:
        # Nothing is lost: limits are sampled then, and whoever starts a sandbox says so.
        print(
            f"casemate: {facts.settle_in} was delegated to us and cannot be used: {error}",
            file=sys.stderr,
        )
