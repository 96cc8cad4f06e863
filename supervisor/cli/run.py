"""`casemate run`: a supervisor, and a view of the events of one run.

The engine is a child process here too: this one opens what tasks wrote, in order to show it, and
however long that takes it must delay no kill.

With `--watch` it stays: when a run has ended and something in the pipeline's folder changes, the
file is read again and run anew. A file that is broken meanwhile is reported, and waited for.
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
from watchfiles import awatch

from ...protocol import codec
from ...protocol.errors import UsageError
from ...protocol.pipeline import PipelineSpec
from ..api import Supervisor
from ..config import Config, load_config
from ..cursor import ENDINGS, PipelineEvent
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
    read_again = (lambda: load(file, config, workspace)) if watch else None
    try:
        with interruptible():
            spec = load(file, config, workspace)
            return asyncio.run(_run(config, spec, value, as_json, read_again))
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


async def _run(
    config: Config,
    spec: PipelineSpec,
    value: Any,
    as_json: bool,
    read_again: Callable[[], PipelineSpec] | None,
) -> int:
    async with Supervisor(config=config) as supervisor:
        while True:
            outcome = await _run_once(supervisor, spec, value, as_json)
            if read_again is None:
                return EXIT_CODES.get(outcome, 1)
            spec = await _changed(Path(spec.root), read_again)


async def _run_once(supervisor: Supervisor, spec: PipelineSpec, value: Any, as_json: bool) -> str:
    run = await supervisor.submit(spec, value)
    return await _watch(supervisor, run, spec, as_json)


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
    outcome = "interrupted"
    try:
        with _view(spec, supervisor.events_endpoint, as_json) as view:
            for event in past:
                view.remember(event)
            async for event in supervisor.events(run, since, whole=as_json):
                view.see(event)
                outcome = ENDINGS.get(event.kind, outcome)
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGTERM, interrupt)
    if not as_json:
        print(f"{view.summary()} · run {run}")
        for line in view.results():
            print(line)
    return outcome


async def _changed(folder: Path, read_again: Callable[[], PipelineSpec]) -> PipelineSpec:
    """Wait until something in the folder changes and the pipeline can be read."""
    print(f"casemate: watching {folder} for changes (^C ends it)", file=sys.stderr)
    async for _ in awatch(folder):
        try:
            return await asyncio.to_thread(read_again)
        except UsageError as error:
            print(f"casemate: {error}", file=sys.stderr)
    raise KeyboardInterrupt


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
