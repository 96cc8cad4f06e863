"""`ps`, `show`, `checkpoints`, `events`, `output`: what journals tell. They need no supervisor, and
ask none."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...protocol import codec
from ...protocol.control import BreakerSummary, RunState, RunSummary, TaskSummary
from ...protocol.errors import CasemateError, UsageError
from ...protocol.limits import PATHS_NAMED
from ..breakers import read_breakers
from ..config import load_config
from ..control import Client
from ..core.why import Reason
from ..cursor import ENDINGS, PipelineEvent, public
from ..journal import JournalReader, NotBegunError
from ..overview import describe, explain_task, list_runs, read_story
from ..state import RunDirectory, StateDirectory
from .view import STYLES, TEXT_WIDTH, bytes_of, lines_of, printable, run_line

__all__ = [
    "breaker_line",
    "count_done",
    "giving_kinds",
    "list_checkpoints",
    "no_output",
    "open_state",
    "print_checkpoints",
    "print_each",
    "print_events",
    "print_given",
    "print_json",
    "print_output",
    "print_ps",
    "print_run",
    "print_runs",
    "print_standing",
    "print_why",
    "table_of",
]

# Without --all: one screen.
_LISTED = 20

# How often a followed journal is looked at: a person does not see the difference to at once.
_LOOK_SECONDS = 0.1

# For what a supervisor adds to an answer that stands without it.
_LIVE_SECONDS = 2.0

RUN_STYLES = {
    RunState.RUNNING: ("▶", "bold blue"),
    RunState.PAUSED: ("‖", "cyan"),
    RunState.COMPLETED: ("✔", "green"),
    RunState.FAILED: ("✘", "red"),
    RunState.CANCELLED: ("✘", "magenta"),
    RunState.INTERRUPTED: ("↯", "yellow"),
    RunState.DAMAGED: ("✘", "bold red"),
}


def open_state(state: Path | None) -> StateDirectory:
    return StateDirectory.open_existing(load_config(state=state).state)


def print_json(value: Any, *, compact: bool = False) -> None:
    """JSON on stdout, in which a task's text can do nothing to a terminal: what is not printable
    is escaped, and JSON still."""
    text = json.dumps(value, indent=None if compact else 2, ensure_ascii=False)
    shown = (c if c.isprintable() or c == "\n" else _escaped(c) for c in text)
    sys.stdout.write("".join(shown) + "\n")


def _escaped(character: str) -> str:
    return json.dumps(character, ensure_ascii=True)[1:-1] if character != "\x7f" else "\\u007f"


def _console() -> Console:
    return Console(highlight=False, emoji=False)


def _age(since: float | None, until: float | None = None) -> str:
    if since is None:
        return ""
    passed = max(0.0, (until or time.time()) - since)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if passed >= size:
            return f"{passed / size:.0f}{unit}"
    return f"{passed:.0f}s"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def _state(state: RunState) -> Text:
    mark, style = RUN_STYLES[state]
    return Text(f"{mark} {state}", style=style)


def table_of(*columns: str, right: tuple[str, ...] = (), long: str = "") -> Table:
    """`long`: the column that gives way where the others need the room."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), header_style="dim")
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if name == long else None,
        )
    table.expand = bool(long)
    return table


def breaker_line(found: BreakerSummary) -> str:
    if found.retry_in is None:
        return "closed"
    if found.probe is not None:
        return f"half open: {printable(found.probe)} is the probe"
    wait = f"in {found.retry_in:.1f} s" if found.retry_in else "is due"
    return f"open, a probe {wait}"


def _open_breakers(
    directory: StateDirectory, keys: Container[str] | None = None
) -> list[BreakerSummary]:
    """Those that are not closed, of all or of these keys."""
    found = read_breakers(directory.path)
    return [each for each in found if each.state != "closed" and (keys is None or each.key in keys)]


# ---------------------------------------------------------------------------------------------- ps


def print_ps(*, everything: bool, as_json: bool, state: Path | None) -> int:
    directory = open_state(state)
    known = list_runs(directory, None if everything else _LISTED)
    rows = [(summary, *_counts(directory, summary)) for summary in known]
    if not rows and not as_json:
        print(f"no runs in {directory.path}", file=sys.stderr)
        return 0
    print_runs(rows, _open_breakers(directory), as_json=as_json)
    hidden = len(directory.run_ids()) - len(rows)
    if hidden > 0 and not as_json:
        print(f"… and {hidden} older (--all)", file=sys.stderr)
    return 0


def print_runs(
    rows: Sequence[tuple[RunSummary, int, int]],
    breakers: Sequence[BreakerSummary],
    *,
    as_json: bool,
) -> None:
    """Each run with how many of its tasks are done, and how many it has."""
    if as_json:
        print_json(
            [msgspec.to_builtins(run) | {"done": done, "tasks": of} for run, done, of in rows]
        )
        return
    table = table_of("run", "pipeline", "state", "tasks", "age", right=("tasks", "age"))
    for run, done, of in rows:
        name = printable(run.pipeline or "", 30)
        table.add_row(run.id, Text(name), _state(run.state), f"{done}/{of}", _age(run.started))
    _console().print(table)
    for found in breakers:
        print(f"breaker {printable(found.key)}: {breaker_line(found)}")


def _counts(directory: StateDirectory, summary: RunSummary) -> tuple[int, int]:
    if summary.state is RunState.DAMAGED:
        return 0, 0
    try:
        _, tasks = describe(directory.run(summary.id))
    except CasemateError:
        return 0, 0
    return count_done(tasks), len(tasks)


def count_done(tasks: Sequence[TaskSummary]) -> int:
    return sum(task.state in ("completed", "skipped") for task in tasks)


# -------------------------------------------------------------------------------------------- show


def print_run(text: str, *, everything: bool, as_json: bool, state: Path | None) -> int:
    directory = open_state(state)
    run = directory.find_run(text)
    summary, tasks = describe(run)
    breakers = _open_breakers(directory, summary.breakers)
    story = list(_story(run)) if everything else None
    print_standing(summary, tasks, breakers, story, as_json=as_json)
    return 0


def print_standing(
    summary: RunSummary,
    tasks: tuple[TaskSummary, ...],
    breakers: Sequence[BreakerSummary],
    story: Sequence[tuple[PipelineEvent, bool]] | None = None,
    *,
    as_json: bool,
) -> None:
    """How a run stands; with its `story`, each event and whether it was undone, where given."""
    if as_json:
        shown = {
            "run": msgspec.to_builtins(summary),
            "tasks": msgspec.to_builtins(tasks),
            "breakers": msgspec.to_builtins(breakers),
        }
        if story is not None:
            shown["story"] = [event.as_json() | {"undone": undone} for event, undone in story]
        print_json(shown)
        return
    console = _console()
    head = Text.assemble(
        (printable(summary.pipeline or "(not begun)"), "bold"), f"  {summary.id}  "
    )
    head.append_text(_state(summary.state))
    if summary.started is not None:
        took = _age(summary.started, summary.ended)
        head.append(f"  {_clock(summary.started)}, {took}", "dim")
    console.print(head)
    for found in breakers:
        console.print(
            Text(f"breaker {printable(found.key)}: {breaker_line(found)}", style="yellow")
        )
    if summary.problem:
        console.print(printable(summary.problem), markup=False)
    if story is not None:
        width = max((len(task.id) for task in tasks), default=0)
        for event, undone in story:
            for line in _lines(event, width, undone):
                console.print(Text(line, style="dim strike" if undone else ""), soft_wrap=True)
        return
    counts = Counter(task.state for task in tasks)
    console.print(
        Text(" · ".join(f"{count} {what}" for what, count in sorted(counts.items())), "dim")
    )
    if tasks:
        console.print(_task_table(tasks))


def print_why(text: str, task: str, *, as_json: bool, state: Path | None) -> int:
    directory = open_state(state)
    run = directory.find_run(text)
    try:
        live = _asked_live(directory, run, task)
        summary, shown, reasons = explain_task(run, task, live)
    except NotBegunError:
        raise UsageError(f"run {run.id} has not begun: it has no task {task!r} yet") from None
    if as_json:
        why = [msgspec.to_builtins(reason) for reason in reasons]
        print_json({"run": run.id, "task": msgspec.to_builtins(shown), "why": why})
        return 0
    console = _console()
    mark, style = STYLES.get(shown.state, ("·", ""))
    head = Text.assemble((task, "bold"), "  ", (f"{mark} {shown.state}", style))
    head.append(f"  {printable(summary.pipeline or '')} {run.id}, {summary.state}", "dim")
    console.print(head)
    for reason in reasons:
        console.print(_why_line(reason), soft_wrap=True)
    return 0


def _asked_live(directory: StateDirectory, run: RunDirectory, task: str) -> tuple[str, ...]:
    """What the supervisor that has the run adds; nothing, where none does or none answers: the
    journal's answer stands by itself."""
    if not run.is_owned():
        return ()
    try:
        with Client(directory, patience=_LIVE_SECONDS) as client:
            return client.why(run.id, task)
    except CasemateError:
        return ()


def _why_line(reason: Reason) -> Text:
    clock = "" if reason.at is None else datetime.fromtimestamp(reason.at).strftime("%H:%M:%S")
    line = Text(f"  {clock:8}  {printable(reason.text, 2 * TEXT_WIDTH)}")
    if reason.at is not None and reason.seq is None and (left := reason.at - time.time()) > 0:
        line.append(f"  in {left:.1f} s" if left < 60 else f"  in {_age(0.0, left)}", "dim")
    if reason.seq is not None:
        line.append(f"  (event {reason.seq})", "dim")
    return line


def _task_table(tasks: tuple[TaskSummary, ...]) -> Table:
    table = table_of("task", "state", "try", "since", "error", right=("try", "since"), long="error")
    for task in tasks:
        mark, style = STYLES.get(task.state, ("·", ""))
        error = f"{task.error.kind}: {task.error.message}" if task.error is not None else ""
        table.add_row(
            task.id,
            Text(f"{mark} {task.state}", style=style),
            str(task.attempt or ""),
            _age(task.since),
            Text(printable(error)),
        )
    return table


def _story(run: RunDirectory) -> Iterator[tuple[PipelineEvent, bool]]:
    return ((public(*told), undone) for told, undone in read_story(run))


def _lines(event: PipelineEvent, width: int, undone: bool = False) -> Iterator[str]:
    at = event.at.astimezone().strftime("%H:%M:%S")
    if event.task is None:
        yield f"{at} {'':{width}} {run_line(event)}"
        return
    for line in lines_of(event):
        yield f"{at} {event.task:{width}} {line}" + (" (undone)" if undone else "")


# ------------------------------------------------------------------------------------- checkpoints


def list_checkpoints(text: str, *, as_json: bool, state: Path | None) -> int:
    run = open_state(state).find_run(text)
    found = [event for event, _ in _story(run) if event.kind == "checkpoint.created"]
    print_checkpoints(run.id, found, as_json=as_json)
    return 0


def print_checkpoints(run: str, found: Sequence[PipelineEvent], *, as_json: bool) -> None:
    """`found`: the events that tell of them."""
    if as_json:
        print_json([event.data | {"at": event.as_json()["at"]} for event in found])
        return
    if not found:
        print(f"run {run}: no checkpoints", file=sys.stderr)
        return
    table = table_of(
        "checkpoint", "time", "tasks", "files", "size", "since the last one",
        right=("tasks", "files", "size"),
    )  # fmt: skip
    for event in found:
        data = event.data
        table.add_row(
            str(data["checkpoint"]),
            event.at.astimezone().strftime("%H:%M:%S"),
            str(data["total"]),
            str(data["files"]),
            bytes_of(data["bytes"]),
            Text(printable(", ".join(data["tasks"]), 60)),
        )
    _console().print(table)


# ------------------------------------------------------------------------------------------ events


def print_events(text: str, *, follow: bool, since: int, as_json: bool, state: Path | None) -> int:
    run = open_state(state).find_run(text)
    _, tasks = describe(run)
    try:
        print_each(_events(run, since, follow, whole=as_json), tasks, as_json=as_json)
    except KeyboardInterrupt:
        return 130
    if follow and describe(run)[0].state not in set(ENDINGS.values()):
        print(f"run {run.id}: no supervisor owns it any more", file=sys.stderr)
        return 1
    return 0


def print_each(
    events: Iterable[PipelineEvent], tasks: Sequence[TaskSummary], *, as_json: bool
) -> None:
    """As they come. `tasks`: those of the run, for whose names there is to be room."""
    width = max((len(task.id) for task in tasks), default=0)
    console = _console()
    for event in events:
        if as_json:
            print_json(event.as_json(), compact=True)
            sys.stdout.flush()
        else:
            for line in _lines(event, width):
                console.print(line, markup=False, soft_wrap=True)


def _events(run: RunDirectory, since: int, follow: bool, *, whole: bool) -> Iterator[PipelineEvent]:
    """To the end of what there is, or of the run: it has ended, or nobody is there to go on."""
    reader: JournalReader | None = None
    last = ""
    try:
        while True:
            # Asked before reading: what an owner wrote last is read after he let go.
            is_owned = run.is_owned()
            if reader is None:
                try:
                    reader = JournalReader(run)
                except NotBegunError:
                    if not (follow and is_owned):
                        return
            if reader is not None:
                while page := _page(reader, since, whole):
                    for event in page:
                        since = event.seq
                        last = event.kind if event.task is None else last
                        yield event
            if not follow or not is_owned or last in ENDINGS:
                return
            if not last and describe(run)[0].state in set(ENDINGS.values()):
                return  # it had ended before `since`
            time.sleep(_LOOK_SECONDS)
    finally:
        if reader is not None:
            reader.close()


def _page(reader: JournalReader, since: int, whole: bool) -> list[PipelineEvent]:
    if whole:
        return [public(event) for event in reader.events(since)]
    return [public(*outline) for outline in reader.outlines(since)]


# ------------------------------------------------------------------------------------------ output


def print_artifact(text: str, task: str | None, name: str, *, state: Path | None) -> int:
    """Of the newest attempt that has one of this name. To stdout alone: under which name a task's
    file is kept on this host is for its owner to say."""
    if task is None:
        raise UsageError("--artifact: name the TASK that handed it over")
    run = open_state(state).find_run(text)
    found = {
        event.data["name"]: event.seq for event, undone in _story(run)
        if event.kind == "task.artifact" and event.task == task and not undone
    }  # fmt: skip
    if name not in found:
        names = ", ".join(printable(each) for each in list(found)[-PATHS_NAMED:]) or "none"
        raise CasemateError(f"run {run.id}: task {task} handed over no {printable(name)}; {names}")
    with JournalReader(run) as reader:
        event = public(reader.events(found[name] - 1, 1)[0])
    sys.stdout.buffer.write(event.data["content"])
    sys.stdout.buffer.flush()
    return 0


def print_output(text: str, task: str | None, *, as_json: bool, state: Path | None) -> int:
    run = open_state(state).find_run(text)
    kinds = giving_kinds(*describe(run), task)
    seqs = [
        event.seq for event, undone in _story(run)
        if event.kind in kinds and event.task == task and not undone
    ]  # fmt: skip
    if not seqs:
        raise no_output(run.id, task)
    with JournalReader(run) as reader:
        event = public(reader.events(seqs[-1] - 1, 1)[0])
    print_given(event, as_json=as_json)
    return 0


def giving_kinds(
    summary: RunSummary, tasks: Iterable[TaskSummary], task: str | None
) -> tuple[str, ...]:
    """Kinds of events that have the outputs of a run (no task), or of a task of it."""
    if task is not None:
        if task not in {each.id for each in tasks}:
            raise UsageError(f"run {summary.id} has no task {task!r}")
        return ("task.completed", "task.skipped")
    if summary.state is not RunState.COMPLETED:
        raise CasemateError(
            f"run {summary.id} is {summary.state}: its outputs are there when it has completed; "
            f"`casemate output {summary.id} TASK` prints one task's"
        )
    return ("run.completed",)


def no_output(run: str, task: str | None) -> CasemateError:
    return CasemateError(f"run {run}: task {task} has no output: it has not completed")


def print_given(event: PipelineEvent, *, as_json: bool) -> None:
    given = event.data["output" if event.task is not None else "outputs"]
    print_json(codec.to_jsonable(given), compact=as_json)
