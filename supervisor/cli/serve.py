"""`casemate serve`: a supervisor that stays, for runs that are submitted and those that dead ones
left behind.

When it starts it takes up every run of the state directory that was cut off, and one that was
paused stays paused; then it starts what was submitted and had not begun. It waits for SIGTERM or
SIGINT: meanwhile other terminals submit and steer runs, and observers watch them.

Then it ends, in one of two ways. It suspends: what runs is killed at once, and the next `serve`
begins those attempts again. Or (`--drain`) nothing new starts and what runs is left to end, so long
as that takes no longer than was said; a second signal suspends the rest. `casemate shutdown` is as
good as a signal. Nothing is lost either way: what had completed is in the journals, what was
submitted is a run, and neither is a pause.

A service manager is told when it is ready and when it is about to end, and by a watchdog, where
there is one, that the engine answers (`notify.py`).

On stdout: a line for each event of the runs themselves, or with `--json` every event.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...protocol.control import RunState
from ...protocol.errors import CasemateError, UsageError
from ...protocol.units import parse_duration
from ..api import Supervisor
from ..config import Config, load_config
from ..notify import Notifier
from ..overview import list_runs
from ..state import StateDirectory
from .reloading import Reloading
from .scope import settle, speak
from .view import run_line

__all__ = ["serve_runs"]

# Seconds that a suspended engine has to end in: it kills what lives, which takes milliseconds, and
# closes its journals, which takes as long as the disk does.
_SUSPENDED = 30.0


@dataclass(frozen=True, slots=True)
class _Ending:
    """Somebody's word to end."""

    by: str
    patience: float  # seconds


def serve_runs(
    *,
    as_json: bool,
    drain: str | None,
    pipelines: Path | None,
    allow: list[str] | None,
    listen: str | None,
    keys: Path | None,
    log: str | None,
    state: Path | None,
) -> int:
    def load() -> Config:
        return load_config(state=state, allow=allow or None, listen=listen, keys=keys, log=log)

    reloading = Reloading(pipelines)
    patience = _patience(drain)
    config = speak(load())
    notifier = Notifier()
    settle()  # before the first child
    asyncio.run(_serve(config, notifier, as_json, patience, reloading, load))
    return 0


def _patience(drain: str | None) -> float:
    try:
        return 0.0 if drain is None else parse_duration(drain)
    except ValueError as error:
        raise UsageError(f"--drain: {error}") from error


async def _serve(
    config: Config,
    notifier: Notifier,
    as_json: bool,
    patience: float,
    reloading: Reloading,
    load: Callable[[], Config],
) -> None:
    loop = asyncio.get_running_loop()
    endings: asyncio.Queue[_Ending] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, endings.put_nowait, _Ending(number.name, patience))
    following: set[asyncio.Task[None]] = set()

    def follow(run: str, since: int = 0) -> None:
        task = loop.create_task(_follow(server, run, since, as_json))
        following.add(task)
        task.add_done_callback(following.discard)

    await reloading.begin(config)
    server = Supervisor(
        config=config,
        on_submitted=follow,
        on_shutdown=lambda drain: endings.put_nowait(
            _Ending("shutdown", patience if drain is None else drain)
        ),
        listen=config.listen,
        catalogue=reloading.catalogue,
    )
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
        notifier.ready(f"serving {config.state}")
        gone = loop.create_task(supervisor.wait_closed())
        pulse = loop.create_task(_pulse(supervisor, notifier))
        keeping = loop.create_task(reloading.keep(supervisor, load))
        told = await _first(endings, gone, keeping)
        if told is not None:
            notifier.stopping("about to end", told.patience + _SUSPENDED)
            if told.patience:
                _say(as_json, f"{told.by}: what runs may end within {told.patience:g} s")
                await _drain(supervisor, told.patience, endings, gone)
        has_died = gone.done()
        broken = keeping.exception() if keeping.done() else None
        for task in (*following, gone, pulse, keeping):
            task.cancel()
        if has_died:
            raise CasemateError("the engine is gone: its runs are interrupted, `serve` goes on")
        if broken is not None:
            raise broken


async def _first(
    endings: asyncio.Queue[_Ending], gone: asyncio.Task[None], *others: asyncio.Task[None]
) -> _Ending | None:
    """None where the engine has died before that, or another task ended."""
    told = asyncio.create_task(endings.get())
    await asyncio.wait([told, gone, *others], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    return told.result() if told.done() and not told.cancelled() else None


async def _drain(
    supervisor: Supervisor,
    patience: float,
    endings: asyncio.Queue[_Ending],
    gone: asyncio.Task[None],
) -> None:
    draining = asyncio.create_task(_drained(supervisor, patience))
    await _first(endings, gone, draining)
    draining.cancel()


async def _drained(supervisor: Supervisor, patience: float) -> None:
    with contextlib.suppress(CasemateError, TimeoutError):  # told by `gone`
        async with asyncio.timeout(patience):
            await supervisor.drain()


async def _pulse(supervisor: Supervisor, notifier: Notifier) -> None:
    """For the watchdog: of the engine, by way of our own loop."""
    if notifier.watchdog is None:
        return
    with contextlib.suppress(CasemateError):  # it has died, which others notice
        while True:
            await supervisor.ping()
            notifier.tell(WATCHDOG=1)
            await asyncio.sleep(notifier.watchdog / 3)


def _say(as_json: bool, line: str) -> None:
    """What a person who looks on should know, where stdout is not all events."""
    print(line if not as_json else f"casemate: {line}", file=sys.stderr if as_json else sys.stdout)
    sys.stdout.flush()


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
