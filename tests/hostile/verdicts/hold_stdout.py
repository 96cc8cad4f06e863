"""End while a child holds stdout and stderr open."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from hostile.inside import mark_of, wait_for_host

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"


def attack(input: Any, ctx: Any) -> object:
    code = (
        "import sys, time; sys.path.insert(0, '/sources'); "
        "from hostile.inside import take_name; take_name(sys.argv[1]); "
        "print('named', flush=True); time.sleep(3600)"
    )
    name = mark_of(ctx.run_id, ctx.task_id)
    subprocess.Popen([sys.executable, "-c", code, name], start_new_session=True)
    ctx.emit("planted when named")
    wait_for_host(ctx.task_id)
    return "done"


def check(seen: Seen) -> None:
    assert seen.was_marked, "the host never saw it alive"
    assert not seen.is_marked, "it outlived the verdict"
