"""`casemate run`: a supervisor, and a view of the events of one run.

The engine is a child process here too: this one opens what tasks wrote, in order to show it, and
however long that takes it must delay no kill.

With `--watch` it stays, and goes on with what changes (`again.py`).
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from ...protocol import codec
from ...protocol.errors import UsageError
from ...protocol.pipeline import PipelineSpec
from ..api import Supervisor
from ..config import Config, load_config
from ..cursor import ENDINGS, PipelineEvent
from ..describe import read_pipeline
from ..reload import Watch
from .again import run_again
from .loading import interrupt, interruptible, load
from .scope import settle, speak
from .view import LiveView, PlainView, View

__all__ = ["input_value", "resume_here", "run_file"]

_ENDING = (signal.SIGINT, signal.SIGTERM)
EXIT_CODES = {"completed": 0, "failed": 1, "cancelled": 130}


def run_file(
    file: Path,
    *,
    input: str | None,
    workspace: Path | None,
    as_json: bool,
    watch: bool,
    allow: list[str] | None,
    log: str | None,
    state: Path | None,
) -> int:
    config = speak(load_config(state=state, allow=allow or None, log=log))
    settle()  # before the first child: a .py pipeline is loaded in one
    value = input_value(input)
    watched = Watch(file) if watch else None
    try:
        with interruptible():
            spec = load(file, config, workspace)
            if watched is None:
                return asyncio.run(_run(config, spec, value, as_json))

            def read_again() -> PipelineSpec:
                return read_pipeline(file, config, workspace)

            asyncio.run(_run_again(config, spec, value, as_json, watched, read_again))
            return EXIT_CODES["cancelled"]
    except KeyboardInterrupt:  # while it was loaded, or waited for: a run has its own handler
        return EXIT_CODES["cancelled"]


def input_value(text: str | None) -> Any:  # the user's value
    if text is None:
        return None
    try:
        if text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        return codec.from_jsonable(json.loads(text))
    except (OSError, ValueError) as error:
        raise UsageError(f"--input: {error}; give JSON, or @FILE with JSON in it") from error


async def _run(config: Config, spec: PipelineSpec, value: Any, as_json: bool) -> int:
    async with Supervisor(config=config) as supervisor:
        run = await supervisor.submit(spec, value)
        return EXIT_CODES.get(await _watch(supervisor, run, spec, as_json), 1)


async def _run_again(
    config: Config,
    spec: PipelineSpec,
    value: Any,
    as_json: bool,
    watch: Watch,
    read_again: Callable[[], PipelineSpec],
) -> None:
    async with Supervisor(config=config) as supervisor:

        async def follow(run: str, spec: PipelineSpec) -> None:
            await _show(supervisor, run, spec, as_json)

        await run_again(supervisor, spec, value, watch, read_again, follow)


async def resume_here(
    config: Config,
    run: str,
    spec: PipelineSpec,
    past: Sequence[PipelineEvent],
    since: int,
    as_json: bool,
) -> int:
    """Go on with a run that nobody owns: its events after `since`, over what the past made."""
    async with Supervisor(config=config) as supervisor:
        await supervisor.resume(run)
        outcome = await _watch(supervisor, run, spec, as_json, past, since)
        return EXIT_CODES.get(outcome, 1)


async def _watch(
    supervisor: Supervisor,
    run: str,
    spec: PipelineSpec,
    as_json: bool,
    past: Sequence[PipelineEvent] = (),
    since: int = 0,
) -> str:
    loop = asyncio.get_running_loop()
    cancelling: set[asyncio.Task[None]] = set()  # a task that nobody holds may vanish

    def end(number: signal.Signals) -> None:
        cancelling.add(loop.create_task(supervisor.cancel(run, f"by {number.name}")))

    for number in _ENDING:
        loop.add_signal_handler(number, end, number)
    try:
        return await _show(supervisor, run, spec, as_json, past, since)
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGTERM, interrupt)


async def _show(
    supervisor: Supervisor,
    run: str,
    spec: PipelineSpec,
    as_json: bool,
    past: Sequence[PipelineEvent] = (),
    since: int = 0,
) -> str:
    """Until the run has ended: how it did."""
    outcome = "interrupted"
    with _view(spec, supervisor.events_endpoint, as_json) as view:
        for event in past:
            view.remember(event)
        async for event in supervisor.events(run, since, whole=as_json):
            view.see(event)
            outcome = ENDINGS.get(event.kind, outcome)
    if not as_json:
        print(f"{view.summary()} · run {run}")
        for line in view.results():
            print(line)
    return outcome


class JsonView(View):
    """Each event as one line of JSON on stdout."""

    def see(self, event: PipelineEvent) -> None:
        sys.stdout.write(msgspec.json.encode(event.as_json()).decode() + "\n")
        sys.stdout.flush()


def _view(spec: PipelineSpec, events: str, as_json: bool) -> View:
    if as_json:
        return JsonView(spec, events)
    console = Console()
    kind = LiveView if console.is_terminal else PlainView
    return kind(spec, events, console)
