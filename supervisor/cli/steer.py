"""`pause`, `resume`, `cancel`, `checkpoint`, `rollback`, `fork`, `shutdown`, `gc`.

Where a living supervisor owns the run it is asked, and acts at once. Where none does, the wish is
recorded in the run's journal (`offline`), and `resume` goes on with it, here and in the foreground.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...protocol.control import RunState
from ...protocol.errors import UsageError
from ...protocol.limits import PATHS_NAMED
from ...protocol.pipeline import PipelineSpec
from ...protocol.units import parse_duration
from .. import client
from ..config import load_config
from ..control import Client
from ..cursor import public
from ..gc import Dropped, collect_garbage
from ..journal import JournalReader, NotBegunError
from ..overview import summarise
from ..state import RunDirectory, StateDirectory
from ..trimming import Trimmed
from .show import open_state, print_json
from .view import bytes_of, printable

__all__ = [
    "cancel_run",
    "checkpoint_run",
    "drop_runs",
    "fork_run",
    "pause_run",
    "resume_run",
    "roll_back_run",
    "shut_down",
]

# To kill what a run has going takes some 20 ms; what is asked first (`grace`), and what is marked
# `always`, longer.
_ENDING = 3.0

_UNDER_WAY = {RunState.RUNNING, RunState.PAUSED}
_GOES_ON = "is being cancelled: what cleans up has the time it needs"
_CANCELLED = {
    RunState.CANCELLED: "is cancelled",
    RunState.RUNNING: _GOES_ON,
    RunState.PAUSED: _GOES_ON,
    RunState.INTERRUPTED: "is to be cancelled: `casemate resume {run}` does what cleans up",
}


def _steer(
    run: RunDirectory,
    directory: StateDirectory,
    online: Callable[[Client], str | None],
    offline: Callable[[], str | None],
) -> str | None:
    if not run.is_owned():
        return offline()
    with Client(directory) as client:
        return online(client)


def _say(as_json: bool, run: str, words: str, **more: str | None) -> int:
    if as_json:
        print_json({"run": run} | {key: value for key, value in more.items() if value})
    else:
        print(words)
    return 0


def pause_run(text: str, *, drain: bool, as_json: bool, state: Path | None) -> int:
    directory = open_state(state)
    run = directory.find_run(text)

    def offline() -> None:
        from .. import offline as recorded

        recorded.pause_run(directory, run.id, drain)

    _steer(run, directory, lambda client: client.pause(run.id, drain), offline)
    return _say(as_json, run.id, f"run {run.id} is paused")


def cancel_run(text: str, *, reason: str, as_json: bool, state: Path | None) -> int:
    directory = open_state(state)
    run = directory.find_run(text)

    def offline() -> None:
        from .. import offline as recorded

        recorded.cancel_run(directory, run.id, reason)

    _steer(run, directory, lambda client: client.cancel(run.id, reason), offline)
    standing = _wait_ended(run)
    words = _CANCELLED.get(standing, "has {standing}: the cancel came too late")
    words = f"run {run.id} {words.format(run=run.id, standing=standing)}"
    if standing not in _CANCELLED:
        raise UsageError(words)
    return _say(as_json, run.id, words, state=standing)


def _wait_ended(run: RunDirectory) -> RunState:
    """How the run stands once it has ended, or when it is clear that this takes longer."""
    give_up = time.monotonic() + _ENDING
    while True:
        standing = summarise(run).state
        if standing not in _UNDER_WAY or time.monotonic() > give_up:
            return standing
        time.sleep(0.02)


def checkpoint_run(text: str, *, as_json: bool, state: Path | None) -> int:
    directory = open_state(state)
    run = directory.find_run(text)

    def offline() -> str | None:
        from .. import offline as recorded

        made: str = recorded.checkpoint_run(directory, run.id)
        return made

    made = _steer(run, directory, lambda client: client.checkpoint(run.id), offline) or ""
    return _say(as_json, run.id, printable(made), checkpoint=made)


def roll_back_run(
    text: str,
    checkpoint: str | None,
    *,
    before: str | None,
    accept_base: bool,
    as_json: bool,
    state: Path | None,
) -> int:
    if (checkpoint is None) == (before is None):
        raise UsageError("rollback: give a checkpoint, or --before TASK; one of the two")
    directory = open_state(state)
    run = directory.find_run(text)
    is_offline = []

    def offline() -> None:
        from .. import offline as recorded

        recorded.rollback_run(directory, run.id, checkpoint, before, accept_base)
        is_offline.append(True)

    def online(client: Client) -> None:
        client.rollback(run.id, checkpoint, before, accept_base)

    _steer(run, directory, online, offline)
    words = f"run {run.id} is rolled back to {checkpoint or f'before {before}'}"
    if is_offline:
        words += f"; `casemate resume {run.id}` goes on"
    return _say(as_json, run.id, words, checkpoint=checkpoint, before=before)


def fork_run(text: str, checkpoint: str, *, as_json: bool, state: Path | None) -> int:
    directory = open_state(state)
    run = directory.find_run(text)

    def offline() -> str | None:
        from .. import offline as recorded

        made: str = recorded.fork_run(directory, run.id, checkpoint)
        return made

    made = _steer(run, directory, lambda client: client.fork(run.id, checkpoint), offline) or ""
    return _say(as_json, made, made, source=run.id)


def shut_down(drain: str | None, *, state: Path | None) -> int:
    directory = open_state(state)
    with client.Client(state=directory.path) as asking:
        asking.shutdown(drain)
    print(f"the supervisor of {directory.path} is ending")
    return 0


# ------------------------------------------------------------------------------------------ resume


def resume_run(text: str, *, as_json: bool, log: str | None, state: Path | None) -> int:
    config = load_config(state=state, log=log)
    directory = StateDirectory.open_existing(config.state)
    run = directory.find_run(text)
    if run.is_owned():
        with Client(directory) as client:
            client.resume(run.id)
        return _say(as_json, run.id, f"run {run.id} goes on")
    from .run import resume_here
    from .scope import settle, speak

    config = speak(config)
    settle()
    with JournalReader(run) as reader:
        first = reader.events(0, 1)
        if not first or first[0].kind != "run.started":
            raise NotBegunError(run.id)
        past = [public(*outline) for outline in reader.decisions()]
        since = reader.last_seq()
    spec = msgspec.msgpack.decode(
        msgspec.msgpack.decode(first[0].data, type=_Started).spec, type=PipelineSpec
    )
    return asyncio.run(resume_here(config, run.id, spec, past, since, as_json))


class _Started(msgspec.Struct):
    spec: msgspec.Raw


# ---------------------------------------------------------------------------------------------- gc


def drop_runs(
    *,
    keep: int | None,
    older: str | None,
    runs: Sequence[str],
    dry_run: bool,
    as_json: bool,
    state: Path | None,
) -> int:
    try:
        seconds = None if older is None else parse_duration(older)
    except ValueError as error:
        raise UsageError(f"--older: {error}") from error
    directory = open_state(state)
    found = collect_garbage(directory, keep=keep, older=seconds, runs=runs, dry_run=dry_run)
    dropped: list[Any] = []
    trimmed: list[Any] = []
    freed = problems = 0
    for one in found:
        (dropped if isinstance(one, Dropped) else trimmed).append(msgspec.to_builtins(one))
        freed += one.bytes
        problems += one.problem is not None
        if as_json:
            continue
        what = one.run or "what had been left half made, or half gone"
        if one.problem is not None:
            verb = "dropped" if isinstance(one, Dropped) else "trimmed"
            print(f"casemate: {what}: not {verb}: {printable(one.problem)}", file=sys.stderr)
        elif isinstance(one, Dropped):
            name = printable(one.pipeline or "", 30)
            print(f"{what}  {one.state or ''}  {bytes_of(one.bytes)}  {name}".rstrip())
        else:
            print(f"{what}  kept  {bytes_of(one.bytes)}  {_superfluous(one)}")
    if as_json:
        print_json({"dropped": dropped, "trimmed": trimmed, "bytes": freed, "dry_run": dry_run})
    else:
        count = sum(one["problem"] is None for one in dropped)
        print(f"{count} dropped, {bytes_of(freed)} freed" + (" (not really)" if dry_run else ""))
    return 1 if problems else 0


def _superfluous(one: Trimmed) -> str:
    words = []
    if one.attempts:
        named = ", ".join(one.attempts[:PATHS_NAMED])
        more = len(one.attempts) - PATHS_NAMED
        words.append(f"files of attempts {named}" + (f" and {more} more" if more > 0 else ""))
    if one.values:
        words.append(f"{one.values} values that no event has")
    return "; ".join(words) or "what can be made again"
