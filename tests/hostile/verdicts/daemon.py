"""Leave a daemon behind: forked twice, in a session of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hostile.inside import daemonize, mark_of, wait_for_host

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"


def attack(input: Any, ctx: Any) -> object:
    daemonize(mark_of(ctx.run_id, ctx.task_id))
    ctx.emit("planted")
    wait_for_host(ctx.task_id)
    return "done"


def check(seen: Seen) -> None:
    assert seen.was_marked, "the host never saw it alive"
    assert not seen.is_marked, "it outlived the verdict"
