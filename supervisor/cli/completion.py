"""What a shell may offer after a tab: runs, their tasks and checkpoints, breakers.

typer calls these in a process of its own at each tab, with what was typed so far. Words come from
the state directory that the line names, read as any command reads it; where there is none, or it
cannot be read, or the line is about another host (`--at`), nothing is offered: a tab must never
print an error into a line that is being typed.

Only the newest runs are offered: more than a screen of them helps nobody, and each is a journal to
open.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec
import typer

from ...protocol.errors import CasemateError, UsageError

if TYPE_CHECKING:  # every command imports this file, and a tab alone needs these
    from ..state import RunDirectory, StateDirectory

__all__ = ["attempts", "breakers", "checkpoints", "runs", "tasks"]

# Newest first, as many as a screen has lines.
_OFFERED = 20

Offers = list[tuple[str, str]]


def runs(context: typer.Context, incomplete: str) -> Offers:
    """Ids, with what each is a run of and how it stands; and `last`."""
    return _offer(_runs(context, incomplete), incomplete)


def tasks(context: typer.Context, incomplete: str) -> Offers:
    """Of the run that the line names."""
    return _offer(_tasks(context), incomplete)


def attempts(context: typer.Context, incomplete: str) -> Offers:
    """The same, each with the number of its latest attempt."""
    numbered = ((f"{task}/{number}", state) for task, state, number in _attempts(context))
    return _offer(numbered, incomplete)


def checkpoints(context: typer.Context, incomplete: str) -> Offers:
    """Of the run that the line names, with what each holds."""
    return _offer(_checkpoints(context), incomplete)


def breakers(context: typer.Context, incomplete: str) -> Offers:
    return _offer(_breakers(context), incomplete)


def _offer(found: Iterable[tuple[str, str]], incomplete: str) -> Offers:
    offers: Offers = []
    with contextlib.suppress(CasemateError, OSError, sqlite3.Error, msgspec.MsgspecError):
        offers.extend(each for each in found if each[0].startswith(incomplete))
    return offers


def _state(context: typer.Context) -> StateDirectory:
    from .show import open_state

    if context.params.get("at") is not None:
        raise UsageError("what a supervisor elsewhere has is not in a state directory of this host")
    return open_state(context.params.get("state"))


def _runs(context: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    from ..overview import summarise
    from .view import printable

    directory = _state(context)
    fitting = [run for run in directory.run_ids() if run.startswith(incomplete)]
    for run in reversed(fitting[-_OFFERED:]):
        summary = summarise(directory.run(run))
        yield run, f"{printable(summary.pipeline or '', 30)} {summary.state}".strip()
    if directory.run_ids():
        yield "last", "the newest run"


def _run(context: typer.Context) -> RunDirectory:
    named = context.params.get("run")
    return _state(context).find_run(named if isinstance(named, str) else "last")


def _attempts(context: typer.Context) -> Iterator[tuple[str, str, int]]:
    from ..overview import describe

    for task in describe(_run(context))[1]:
        yield task.id, task.state, task.attempt


def _tasks(context: typer.Context) -> Iterator[tuple[str, str]]:
    return ((task, state) for task, state, _ in _attempts(context))


def _checkpoints(context: typer.Context) -> Iterator[tuple[str, str]]:
    from ..overview import list_checkpoints
    from .view import counted

    for each in list_checkpoints(_run(context)):
        yield each.checkpoint, counted(each.total, "task")


def _breakers(context: typer.Context) -> Iterator[tuple[str, str]]:
    from ..breakers import read_breakers

    return ((each.key, each.state) for each in read_breakers(_state(context).path))
