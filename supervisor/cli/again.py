"""`casemate run --watch`: edit, save, see.

While a run is under way and after it has ended, the pipeline's file and all sources of its tasks
are watched. When one changes, the file is read again, and where that touches a task the run goes on
as another one, which begins with everything that the change leaves as it was (`affected.py`,
`revising.py`): what ran is killed, what had completed and is not touched is not done again. A file
that is broken is reported, and the run that there is stays.

A signal ends the run, and then the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ...protocol.errors import CasemateError, UsageError
from ...protocol.pipeline import PipelineSpec
from ..api import Supervisor
from ..reload import Watch
from ..sources import origins

__all__ = ["run_again"]

# Shows a run until it has ended.
Follow = Callable[[str, PipelineSpec], Awaitable[object]]


async def run_again(
    supervisor: Supervisor,
    spec: PipelineSpec,
    value: Any,  # the user's value
    watch: Watch,
    read_again: Callable[[], PipelineSpec],
    follow: Follow,
) -> None:
    """Until a signal. `watch` has been watching the pipeline's file since before it was read."""
    loop, leaving = asyncio.get_running_loop(), asyncio.Event()
    [file] = watch.paths
    ending = (signal.SIGINT, signal.SIGTERM)
    for number in ending:
        loop.add_signal_handler(number, leaving.set)
    following: asyncio.Task[None] | None = None
    left = loop.create_task(leaving.wait())
    try:
        watch.look_at(file, *origins(spec).values())
        run = await supervisor.submit(spec, value)
        following = loop.create_task(_follow(follow, run, spec))
        while True:
            changed = loop.create_task(_revised(supervisor, run, watch, file, spec, read_again))
            await asyncio.wait([left, changed], return_when=asyncio.FIRST_COMPLETED)
            if leaving.is_set():
                changed.cancel()
                await asyncio.wait([changed])  # it may give a run all the same, which is to end too
            if not changed.cancelled():
                run, spec = changed.result()
                await following  # to its end, which has come
                following = loop.create_task(_follow(follow, run, spec))
            if leaving.is_set():
                await _end(supervisor, run, following, leaving)
                return
    finally:
        left.cancel()
        if following is not None:
            following.cancel()
        for number in ending:
            loop.remove_signal_handler(number)


async def _end(
    supervisor: Supervisor, run: str, following: asyncio.Task[None], leaving: asyncio.Event
) -> None:
    while not following.done():
        leaving.clear()
        await supervisor.cancel(run, "by a signal")  # twice: and what would clean up, too
        again = asyncio.create_task(leaving.wait())
        await asyncio.wait([following, again], return_when=asyncio.FIRST_COMPLETED)
        again.cancel()


async def _follow(follow: Follow, run: str, spec: PipelineSpec) -> None:
    await follow(run, spec)
    print(f"casemate: watching {spec.root} for changes (^C ends it)", file=sys.stderr)


async def _revised(
    supervisor: Supervisor,
    run: str,
    watch: Watch,
    file: Path,
    spec: PipelineSpec,
    read_again: Callable[[], PipelineSpec],
) -> tuple[str, PipelineSpec]:
    """The run that goes on from `run`, and its pipeline, when a change has made one."""
    while True:
        await watch.wait_changed()
        for is_second in (False, True):
            try:
                new = await asyncio.to_thread(read_again)
                watch.look_at(file, *origins(new).values())
                revised = await _revise(supervisor, run, new)
            except UsageError as error:
                # What would mend it may be a file that is not there yet, or has come meanwhile.
                watch.look_at(file, *origins(spec).values(), Path(spec.root))
                if is_second:
                    print(f"casemate: {error}", file=sys.stderr)
                continue
            if revised is not None:
                return revised, new
            break


async def _revise(supervisor: Supervisor, run: str, new: PipelineSpec) -> str | None:
    """As `Supervisor.revise`. Cancelled, it still gives the run that comes of it: the engine makes
    what it was asked for, and whoever takes it up later would run it."""
    revising = asyncio.ensure_future(supervisor.revise(run, new))
    try:
        return await asyncio.shield(revising)
    except asyncio.CancelledError:
        with contextlib.suppress(CasemateError, OSError):
            if (revised := await revising) is not None:
                return revised
        raise
