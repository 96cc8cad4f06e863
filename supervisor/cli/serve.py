"""`casemate serve`: a supervisor that stays, for runs that are submitted and those that dead ones
left behind.

When it starts it takes up every run of the state directory that was cut off, and one that was
paused stays paused; then it starts what was submitted and had not begun. It waits for SIGTERM or
SIGINT: meanwhile other terminals submit and steer runs, and observers watch them. What it is doing
when it ends is cut off in turn.

On stdout: a line for each event of the runs themselves, or with `--json` every event.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import msgspec

from ...protocol.control import RunState
from ...protocol.errors import CasemateError, UsageError
from ..api import Supervisor
from ..config import Config, load_config
from ..overview import list_runs
from ..state import StateDirectory
from .scope import settle, speak
from .view import run_line

__all__ = ["serve_runs"]


def serve_runs(
    *,
    as_json: bool,
    allow: list[str] | None,
    listen: str | None,
    keys: Path | None,
    log: str | None,
    state: Path | None,
) -> int:
    config = load_config(state=state, allow=allow or None, listen=listen, keys=keys, log=log)
    config = speak(config)
    settle()  # before the first child
    asyncio.run(_serve(config, as_json))
    return 0


async def _serve(config: Config, as_json: bool) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    following: set[asyncio.Task[None]] = set()

    def follow(run: str, since: int = 0) -> None:
        task = loop.create_task(_follow(supervisor, run, since, as_json))
        following.add(task)
        task.add_done_callback(following.discard)

    server = Supervisor(config=config, on_submitted=follow, listen=config.listen)
    async with server as supervisor:
        if not as_json:
            where = f"serving {config.state} · {supervisor.events_endpoint}"
            print(where + (f" · {config.listen}" if config.listen else ""), flush=True)
        for run, since in await _take_up_all(supervisor, config):
            follow(run, since)
        try:
            await supervisor.start_submitted()
        except UsageError as error:
            print(f"casemate: {error}", file=sys.stderr)
        ends = [loop.create_task(stopped.wait()), loop.create_task(supervisor.wait_closed())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in (*following, *ends):
            task.cancel()
        if not stopped.is_set():
            raise CasemateError("the engine is gone: its runs are interrupted, `serve` goes on")


async def _take_up_all(supervisor: Supervisor, config: Config) -> list[tuple[str, int]]:
    """The runs, and the last event that was known of each."""
    taken: list[tuple[str, int]] = []
    runs = await asyncio.to_thread(list_runs, StateDirectory.open(config.state))
    for run in reversed(runs):
        if run.state is RunState.INTERRUPTED and run.last_seq:
            try:
                await supervisor.take_up(run.id)
            except CasemateError as error:  # of one run; the others go on
                print(f"casemate: {error}", file=sys.stderr)
            else:
                taken.append((run.id, run.last_seq))
    return taken


async def _follow(supervisor: Supervisor, run: str, since: int, as_json: bool) -> None:
    try:
        async for event in supervisor.events(run, since, whole=as_json):
            if as_json:
                print(msgspec.json.encode(event.as_json()).decode(), flush=True)
            elif event.task is None and event.kind != "checkpoint.created":
                print(f"{event.at.astimezone():%H:%M:%S} {run} {run_line(event)}", flush=True)
    except CasemateError as error:
        print(f"casemate: {error}", file=sys.stderr)
