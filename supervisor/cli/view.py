"""What a person sees of a run: a live table on a terminal, plain lines elsewhere.

Both are fed the same events and know nothing else. Whatever a task wrote is escaped before it is
shown: control characters would let it repaint the terminal, markup would let it forge our words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...protocol import codec
from ...protocol.pipeline import PipelineSpec
from ..core import graph
from ..cursor import PipelineEvent

__all__ = ["LiveView", "PlainView", "View", "printable"]

STYLES = {
    "waiting": ("·", "dim"),
    "ready": ("·", "cyan"),
    "running": ("▶", "bold blue"),
    "paused": ("‖", "cyan"),
    "retrying": ("↻", "yellow"),
    "completed": ("✔", "green"),
    "failed": ("✘", "red"),
    "cancelled": ("✘", "magenta"),
    "skipped": ("→", "yellow"),
}
BECOMES = {
    "task.ready": "ready",
    "task.started": "running",
    "task.retrying": "retrying",
    "task.completed": "completed",
    "task.failed": "failed",
    "task.cancelled": "cancelled",
    "task.restarted": "waiting",
    "task.recovered": "waiting",
    "task.skipped": "skipped",
}
# One line of a task's own text on one screen line; 8 KiB of it may arrive in one event.
TEXT_WIDTH = 200

# The setting that would help comes last, behind a path of the task's.
REFUSAL_WIDTH = 500

# Of one output, when the run is over.
RESULT_LINES = 30


def printable(text: str, width: int = TEXT_WIDTH) -> str:
    """One harmless line: control characters and newlines as escapes, cut at `width`."""
    text = text[: 4 * width]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def brief(value: Any) -> str:
    """A task's value on one line."""
    try:
        return printable(msgspec.json.encode(codec.to_jsonable(value)).decode())
    except (TypeError, ValueError, RecursionError):
        return "(a value that cannot be shown)"


def shown(event: PipelineEvent, name: str) -> str:
    """One of an event's values, or the size of one that was left out for being large."""
    if name in event.omitted:
        return f"({bytes_of(event.omitted[name])})"
    return brief(event.data.get(name))


def lines_of(event: PipelineEvent) -> Iterator[str]:
    """What there is to say about an event; nothing for the mere noise (usage, ready)."""
    yield from _said(event)
    yield from refusals(event.data.get("error"))


def _said(event: PipelineEvent) -> Iterator[str]:
    data = event.data
    match event.kind:
        case "task.started":
            again = f", attempt {event.attempt}" if event.attempt != 1 else ""
            yield f"started (pid {data['pid']}{again})"
        case "task.emitted":
            yield f"item {shown(event, 'item')}"
        case "task.log":
            for line in data["text"].splitlines():
                yield f"{data['stream']}: {printable(line)}"
            if data.get("dropped"):
                yield f"{data['stream']}: {data['dropped']} bytes beyond the output limit dropped"
        case "task.progress":
            total = f" of {data['total']:g}" if data.get("total") is not None else ""
            yield f"progress {data['done']:g}{total}"
        case "task.artifact":
            yield f"artifact {printable(data['name'])} ({bytes_of(data['size'])})"
        case "task.completed":
            yield f"completed in {seconds(data['seconds'])}: {shown(event, 'output')}"
        case "task.retrying":
            yield f"{describe(data['error'])}; again in {seconds(data['delay'])}"
        case "task.recovered":
            how = "its fallback" if data["action"] == "fallback" else "a rollback to before"
            yield f"{describe(data['error'])}; goes on with {how} {printable(data['to'])}"
        case "task.skipped":
            yield f"{describe(data['error'])}; skipped, its output is {shown(event, 'output')}"
        case "task.restarted":
            yield f"to be done again: {printable(data['reason'])}"
        case "task.failed" | "task.cancelled":
            yield f"{event.kind.removeprefix('task.')}: {describe(data['error'])}"


def run_line(event: PipelineEvent) -> str:
    """An event of the run itself, in words."""
    data = event.data
    match event.kind:
        case "run.started":
            return f"run {event.run} started"
        case "run.failed":
            return f"run failed: {describe(data['error'])}"
        case "run.cancelled":
            return f"run cancelled: {printable(data['reason'])}"
        case "run.paused":
            return "run paused" + (", what runs is left to end" if data["drain"] else "")
        case "run.recovered":
            lost = f", lost: {printable(', '.join(data['lost']))}" if data["lost"] else ""
            return f"run taken over from a dead supervisor{lost}"
        case "run.rolled_back":
            where = data["checkpoint"] or f"before {data['before']}"
            undone = printable(", ".join(data["undone"]))
            restored = printable(", ".join(data["restored"]))
            return f"rolled back to {printable(where)}, undone: {undone or 'nothing'}" + (
                f", as it was then: {restored}" if restored else ""
            )
        case "run.forked":
            source = printable(data["source"])
            if data.get("changed"):
                changed = printable(", ".join(data["changed"]))
                return f"goes on from {source} with what was changed: {changed}"
            return f"forked from {source} at {printable(data['checkpoint'])}"
        case "checkpoint.created":
            told = [counted(data["total"], "task")]
            if data["files"]:
                told += [counted(data["files"], "file"), bytes_of(data["bytes"])]
            return f"checkpoint {printable(data['checkpoint'])}: {', '.join(told)}"
        case "breaker.opened":
            why = (
                f" after {counted(data['failures'], 'failure')}" if data["failures"] else " by hand"
            )
            return f"breaker {printable(data['key'])} opened{why}, for {seconds(data['open_for'])}"
        case "breaker.half_open":
            return f"breaker {printable(data['key'])} is half open: one attempt is let through"
        case "breaker.closed":
            return f"breaker {printable(data['key'])} closed"
        case "workspace.changed":
            paths = printable(", ".join(data["paths"]))
            files = counted(data["total"], "file")
            return f"{files} of the workspace changed by others: {paths}"
    return printable(event.kind.replace(".", " ").replace("_", " "))


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def bytes_of(size: int) -> str:
    if size >= 2**20:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**10:.1f} KiB" if size >= 2**10 else f"{size} B"


def counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def describe(error: dict[str, Any]) -> str:
    kind, message = error["kind"], printable(error["message"])
    name = f"{printable(error['type'])}: " if error.get("type") else ""
    return f"{kind}: {name}{message}"


def refusals(error: dict[str, Any] | None) -> Iterator[str]:
    """What walls refused before this error, and which setting would allow it."""
    for each in (error or {}).get("refused", ()):
        yield f"refused: {printable(each, REFUSAL_WIDTH)}"


@dataclass(slots=True)
class Row:
    state: str = "waiting"
    attempt: int = 0
    began: float | None = None
    seconds: float = 0.0
    memory: int | None = None
    items: int = 0
    last: str = ""
    after: str = ""  # the kind of the failure that this attempt comes after

    def newest(self) -> str:
        """The failure before it goes first: there may be room for no more."""
        if self.after and self.state in {"running", "completed"}:
            return f"after {self.after}: {self.last}"
        return self.last

    def elapsed(self, now: float) -> float:
        return self.seconds + (now - self.began if self.began is not None else 0.0)


class View:
    """What both views share: the state of every task, kept from events."""

    def __init__(self, spec: PipelineSpec, events: str) -> None:
        """`events`: the address of the event socket, for whoever wants to watch along."""
        self.spec = spec
        self.events = events
        self.rows = {task: Row() for task in graph.build(spec).order}
        self.run = ""
        self.began = time.monotonic()
        self.outcome = ""
        self.outputs: dict[str, Any] = {}
        self.omitted: dict[str, int] = {}
        self.errors: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def remember(self, event: PipelineEvent) -> None:
        """An event of an earlier life of the run: it counts, and is not shown."""
        View.see(self, event)
        if event.task is not None:
            row = self.rows[event.task]
            row.began, row.seconds = None, event.data.get("seconds", 0.0)
            # What ran then is dead.
            row.state = "waiting" if row.state == "running" else row.state

    def see(self, event: PipelineEvent) -> None:
        self.run = event.run
        if event.task is None:
            if event.kind in {"run.rolled_back", "run.forked"}:
                self.outcome = ""
                for undone in event.data["undone"]:
                    self.rows[undone] = Row()
                    self.errors.pop(undone, None)
            if event.kind in {"run.completed", "run.failed", "run.cancelled"}:
                self.outcome = event.kind.removeprefix("run.")
                self.outputs = event.data.get("outputs", {})
                self.omitted = {
                    name.removeprefix("outputs/"): size for name, size in event.omitted.items()
                }
            return
        row = self.rows[event.task]
        row.state = BECOMES.get(event.kind, row.state)
        row.attempt = event.attempt or row.attempt
        if event.kind in {"task.failed", "task.cancelled"}:
            self.errors[event.task] = event.data["error"]
        if event.kind == "task.started":
            row.began = time.monotonic()
        elif event.kind in BECOMES and row.began is not None:
            row.seconds = row.elapsed(time.monotonic())
            row.began = None
        elif event.kind == "task.emitted":
            row.items += 1
        error = event.data.get("error") or {}
        usage = event.data if event.kind == "task.usage" else error.get("usage") or {}
        row.memory = max(row.memory or 0, usage.get("memory") or 0) or None
        if event.kind == "task.retrying":
            row.after = error["kind"]
        for row.last in lines_of(event):
            pass

    def results(self) -> Iterator[str]:
        """What is left to say at the end: the final errors, or the run's outputs."""
        for task, error in self.errors.items():
            yield f"{task}: {describe(error)}"
            yield from (f"  {line}" for line in refusals(error))
        for task, output in self.outputs.items():
            if task in self.omitted:
                yield f"{task}: {bytes_of(self.omitted[task])} (--json has it whole)"
                continue
            text = json.dumps(codec.to_jsonable(output), indent=2, ensure_ascii=False)
            lines = [printable(line) for line in text.splitlines()]
            yield f"{task}: {lines[0]}"
            yield from lines[1:RESULT_LINES]
            if len(lines) > RESULT_LINES:
                yield f"… {len(lines) - RESULT_LINES} more lines (--json has them whole)"

    def summary(self) -> str:
        states = [row.state for row in self.rows.values()]
        done, skipped = states.count("completed"), states.count("skipped")
        took = seconds(time.monotonic() - self.began)
        outcome = self.outcome or "running"
        also = f", {skipped} skipped," if skipped else ""
        return f"{outcome}: {done} of {len(states)} tasks completed{also} in {took}"


# In the first line, and in the summary after the last.
_TOLD_ELSEWHERE = {"run.started", "run.completed", "run.failed", "run.cancelled"}


class PlainView(View):
    """One line an event, for pipes and logs."""

    def __init__(self, spec: PipelineSpec, events: str, console: Console) -> None:
        super().__init__(spec, events)
        self._console = console
        self._width = max(map(len, self.rows), default=0)

    def see(self, event: PipelineEvent) -> None:
        if event.kind == "run.started":
            name = printable(self.spec.name)
            self._print(f"run {event.run} · {name} · {len(self.rows)} tasks · {self.events}")
        super().see(event)
        if event.task is None and event.kind not in _TOLD_ELSEWHERE:
            at = event.at.astimezone().strftime("%H:%M:%S")
            self._print(f"{at} {'':{self._width}} {run_line(event)}")
        for line in lines_of(event):
            at = event.at.astimezone().strftime("%H:%M:%S")
            self._print(f"{at} {event.task:{self._width}} {line}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


class LiveView(View):
    """The graph as a table, as many rows as fit, redrawn a few times a second. A row ends with the
    newest of its task; after a retry with why there was one, too."""

    def __init__(self, spec: PipelineSpec, events: str, console: Console) -> None:
        super().__init__(spec, events)
        self._console = console
        self._graph = graph.build(spec)
        self._depth: dict[str, int] = {}
        for task in self.rows:
            above = self._graph.upstream[task]
            self._depth[task] = 1 + max((self._depth[u] for u in above), default=-1)
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=8, transient=False
        )

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def _render(self) -> RenderableType:
        now = time.monotonic()
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
        table.add_column("task", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("try", justify="right")
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("memory", justify="right", no_wrap=True)
        table.add_column("items", justify="right")
        table.add_column("last event", no_wrap=True, overflow="ellipsis", ratio=1)
        shown, hidden = self._visible()
        for task in shown:
            row = self.rows[task]
            mark, style = STYLES[row.state]
            elapsed = row.elapsed(now)
            table.add_row(
                Text("  " * min(self._depth[task], 8) + task),
                Text(f"{mark} {row.state}", style=style),
                str(row.attempt or ""),
                f"{elapsed:.1f} s" if elapsed else "",
                bytes_of(row.memory) if row.memory else "",
                str(row.items or ""),
                Text(row.newest(), style="dim"),
            )
        title = Text.assemble(
            (printable(self.spec.name), "bold"), f"  {self.run}  ", (self.summary(), "dim")
        )
        title.append(f"\n{self.events}", "dim")
        parts: list[RenderableType] = [title, table]
        if hidden:
            parts.append(Text(f"… and {hidden} more tasks", style="dim"))
        return Group(*parts)

    def _visible(self) -> tuple[list[str], int]:
        """As many tasks as the screen has room for: those where something happens come first, in
        graph order still."""
        room = max(self._console.size.height - 6, 5)
        tasks = list(self.rows)
        if len(tasks) <= room:
            return tasks, 0
        urgency = {"running": 0, "retrying": 0, "failed": 1, "ready": 2, "completed": 4}
        chosen = sorted(tasks, key=lambda task: urgency.get(self.rows[task].state, 3))[:room]
        kept = set(chosen)
        return [task for task in tasks if task in kept], len(tasks) - room
