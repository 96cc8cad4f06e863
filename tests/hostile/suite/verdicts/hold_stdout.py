"""End while a child holds stdout and stderr open.

Source: codex#4337: descendants keep the pipe open, and who reads it waits for ever.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from ..inside import mark_of, wait_for_host

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("kill", "clocks")


def attack(input: Any, ctx: Any) -> object:
    code = (
        "import ctypes, sys, time; ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0); "
        "print('named', flush=True); time.sleep(3600)"
    )
    name = mark_of(ctx.run_id, ctx.task_id)
    subprocess.Popen([sys.executable, "-c", code, name], start_new_session=True)
    ctx.emit("planted when named")
    wait_for_host(ctx.task_id)
    return "done"


def outside() -> object:
    """Its starter has ended, and whoever reads does not see the end."""
    with subprocess.Popen(
        ["/bin/sh", "-c", "sleep 3600 & exit"], stdout=subprocess.PIPE, start_new_session=True
    ) as shell:
        try:
            shell.wait()
            assert shell.stdout is not None
            if select.select([shell.stdout], [], [], 0.1)[0]:
                raise EOFError
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    return "held"


def check(seen: Seen) -> None:
    seen.check_daemon_ended()
