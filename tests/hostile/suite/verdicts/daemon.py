"""Leave a daemon behind: forked twice, in a session of its own.

Source: supervisord#1101, Nomad#6980: what has a session or a parent of its own outlives its
supervisor.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from ..inside import daemonize, mark_of, wait_for_host

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("kill",)


def attack(input: Any, ctx: Any) -> object:
    daemonize(mark_of(ctx.run_id, ctx.task_id))
    ctx.emit("planted")
    wait_for_host(ctx.task_id)
    return "done"


def outside() -> object:
    """It is alive although nobody waits for it, and is killed here."""
    os.kill(daemonize("casemate-twin"), signal.SIGKILL)
    return "alive"


def check(seen: Seen) -> None:
    seen.check_daemon_ended()
