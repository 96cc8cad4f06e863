"""A dashboard as lines of a screen: what `watch` shows.

Pure: a dashboard, where the viewer looks, a size and the time in, lines out. As many as the screen
has, none wider than it; what a small one has no room for is left out from the right and from the
middle, so that the state of the run and the keys are always there.

    pipeline  run  ▶ running                                        12:03
    ✔ 120 completed  ▶ 4 running  · 276 waiting          412 MiB · 3.1 cores
    ━━━━━━━━━━━━━━━━━━━━━━━
    task               state       try     time    memory    cpu  latest
    ...
    ── events ───────────────────────────────────────────────────────────
    ...
    p pause  c cancel  b roll back  ...

All text is made of `Text`, in which nothing is markup, and of words that are printable already.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from rich.text import Text

from ...protocol.control import RunState
from .dashboard import UPSTREAM, Dashboard, Line, Task
from .show import RUN_STYLES
from .view import STYLES, bytes_of, describe, printable, refusals
from .viewer import Filter, Page, Viewer

__all__ = ["draw", "table_room"]

# States in the order in which a person asks for them.
_ORDER = (
    "failed",
    "running",
    "paused",
    "retrying",
    "lost",
    "completed",
    "skipped",
    "cancelled",
    UPSTREAM,
    "waiting",
)

# "lost": what ran when the supervisor died.
_STYLES = STYLES | {"lost": ("↯", "yellow"), UPSTREAM: ("✘", "dim red")}

_DONE = (
    "completed", "skipped", "failed", "cancelled", UPSTREAM, "running", "paused", "retrying",
)  # fmt: skip

_HELP = (
    ("↑ ↓  j k", "select a task; page up, page down, home and end too"),
    ("enter", "all there is about the selected task"),
    ("escape", "back; in the table: follow what runs again"),
    ("f", "show all tasks, those under way, those that failed"),
    ("p", "pause the run: what runs is frozen, clocks and all"),
    ("r", "resume it"),
    ("c", "cancel it"),
    ("b", "roll it back: to a checkpoint, or to before the selected task"),
    ("o", "open another run"),
    ("q", "leave; the run goes on"),
    ("", ""),
    ("upstream", "a task that was not tried, because one before it failed"),
    ("time", "of this attempt; pauses do not count"),
    ("memory", "the most that this attempt had"),
    ("cpu", "of a core, while it runs; then the seconds it took of them"),
)

_KEYS = "p pause  r resume  c cancel  b rollback  f filter  ⏎ task  o runs  ? help  q leave"
_FEWER_KEYS = "p pause  r resume  c cancel  b rollback  f filter  ⏎ task  ? help  q leave"
_FEWEST_KEYS = "? help  q leave"
_PAGE_KEYS = "↑ ↓ scroll  escape back"
_CHOICE_KEYS = "↑ ↓ select  ⏎ choose  escape back"

_HEAD = 3  # title, counts, bar
_FIXED = 42  # of a row: all but the task and the latest line
_LATEST = 16  # a shorter one tells nothing
_INDENTS = 8  # deeper tasks are not moved further to the right


def table_room(height: int) -> int:
    """Rows of tasks on a screen of that height."""
    return max(1, height - _HEAD - 1 - _tail_room(height) - 1)


def _tail_room(height: int) -> int:
    """Lines of the tail, its title among them; none where there is hardly room for a table."""
    return 0 if height < 14 else 1 + max(4, height // 4)


def draw(dashboard: Dashboard, viewer: Viewer, width: int, height: int, now: float) -> list[Text]:
    body = max(0, height - _HEAD - 1)
    lines = [*_head(dashboard, width, now)]
    match viewer.page:
        case Page.TABLE:
            lines += _table(dashboard, viewer, width, height, now)
            lines += _tail(dashboard, viewer, width, height)
        case Page.TASK:
            lines += _scrolled(viewer, _about(dashboard, viewer, width, now), body)
        case Page.HELP:
            told = [Text.assemble((f"  {key:10}", "bold"), words) for key, words in _HELP]
            lines += _scrolled(viewer, [Text(), *told], body)
        case Page.CHOICE:
            lines += _choices(viewer, body)
    lines = lines[: height - 1]
    lines += [Text() for _ in range(height - 1 - len(lines))]
    lines.append(_foot(dashboard, viewer, width))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines[:height]


# ---- the three lines that are always there


def _head(dashboard: Dashboard, width: int, now: float) -> Iterable[Text]:
    mark, style = RUN_STYLES[dashboard.state]
    standing = (f"{mark} {dashboard.state}", style)
    left = Text.assemble(
        (f" {printable(dashboard.pipeline or '…', 40)}", "bold"),
        f"  {dashboard.run}  ",
        standing if dashboard.seen else ("… reading its journal", "dim"),
    )
    yield _beside(left, Text(_clock(dashboard.elapsed(now)), "bold"), width)
    counts = dashboard.counts()
    counts["waiting"] += counts["ready"]
    told = Text(" ")
    for state in _ORDER:
        if counts[state]:
            mark, style = _STYLES[state]
            told.append(f"{mark} {counts[state]} {state}  ", style)
    used = ""
    if (memory := dashboard.memory()) or dashboard.share():
        used = f"{bytes_of(memory)} · {dashboard.share():.1f} cores"
    yield _beside(told, Text(used, "dim"), width)
    if not dashboard.is_told:
        yield _lost(dashboard)
    else:
        yield _bar(dashboard, width)


def _lost(dashboard: Dashboard) -> Text:
    if dashboard.state is RunState.INTERRUPTED:
        words = f"no supervisor has this run: `casemate resume {dashboard.run}` goes on with it"
    else:
        words = "its supervisor does not answer; looking for it"
    return Text(f" {words}", "bold yellow")


def _bar(dashboard: Dashboard, width: int) -> Text:
    """How far it is: one cell for so many tasks, those that are done from the left."""
    counts, room = dashboard.counts(), max(1, width - 2)
    whole = max(1, sum(counts.values()))
    bar, done = Text(" "), 0
    for state in _DONE:
        before = done * room // whole
        done += counts[state]
        cells = done * room // whole - before
        bar.append("━" * (cells or (counts[state] > 0 and before < room)), _STYLES[state][1])
    bar.truncate(width - 1)
    bar.append("─" * (width - 1 - bar.cell_len), "dim")
    return bar


def _beside(left: Text, right: Text, width: int) -> Text:
    """The right one gives way."""
    gap = width - left.cell_len - right.cell_len - 1
    if gap > 0:
        left.append(" " * gap)
        left.append_text(right)
    return left


# ---- the table


def _table(
    dashboard: Dashboard, viewer: Viewer, width: int, height: int, now: float
) -> Iterable[Text]:
    room = table_room(height)
    tasks = viewer.tasks(dashboard)
    shown = viewer.scroll(tasks, room)
    longest = max((_indent(task) + len(task.id) for task in dashboard.tasks.values()), default=4)
    rest = width - 1 - _FIXED
    has_latest = rest - longest >= _LATEST
    name = max(12, min(longest, rest - _LATEST * has_latest))
    head = f" {'task':{name}}  {'state':11}{'try':>3}{'time':>8}{'memory':>11}{'cpu':>7}"
    yield Text(head + "  latest" * has_latest, "dim")
    for task in shown:
        row = _row(task, name, now, has_latest=has_latest)
        if task.id == viewer.selected:
            row.append(" " * max(0, width - row.cell_len))
            row.truncate(width, overflow="ellipsis")
            row.stylize("reverse")
        yield row
    if not shown and dashboard.tasks:
        yield Text(f" no task is {'under way' if viewer.filter is Filter.ACTIVE else 'failed'}")
    for _ in range(room - max(1, len(shown))):
        yield Text()


def _indent(task: Task) -> int:
    return 2 * min(task.depth, _INDENTS)


def _row(task: Task, name: int, now: float, *, has_latest: bool) -> Text:
    mark, style = _STYLES.get(task.state, ("·", ""))
    elapsed = task.elapsed(now)
    cpu = ""
    if task.began is not None and task.share is not None:
        cpu = f"{task.share:.0%}"
    elif task.cpu is not None:
        cpu = f"{task.cpu:.1f}s"
    shown = Text(" " * _indent(task) + task.id)
    shown.truncate(name, overflow="ellipsis", pad=True)
    row = Text(" ").append_text(shown).append("  ")
    row.append(f"{mark} {task.state:9}", style)
    row.append(f"{task.attempt or '':>3}{_clock(elapsed) if elapsed else '':>8}")
    row.append(f"{bytes_of(task.memory) if task.memory else '':>11}{cpu:>7}  ")
    if not has_latest:
        return row
    if task.error is not None and task.state in {"failed", "retrying", UPSTREAM}:
        row.append(describe(task.error), style)
    else:
        row.append(task.last, "dim")
    return row


def _tail(dashboard: Dashboard, viewer: Viewer, width: int, height: int) -> Iterable[Text]:
    room = _tail_room(height)
    if not room:
        return
    tasks, fitting = len(viewer.tasks(dashboard)), table_room(height)
    where = ""
    if tasks > fitting or viewer.filter is not Filter.ALL:
        what = "" if viewer.filter is Filter.ALL else f"{viewer.filter} "
        last = min(viewer.first + fitting, tasks)
        where = f" {what}tasks {min(viewer.first + 1, last)}–{last} of {tasks} ──"
    yield Text("── events " + "─" * max(0, width - 10 - len(where)) + where, "dim")
    latest = [*dashboard.lines][-(room - 1) :]
    named = max((len(line.task or "") for line in latest), default=0)
    for line in latest:
        yield _event(line, min(named, width // 4))


def _event(line: Line, named: int) -> Text:
    at = datetime.fromtimestamp(line.at).strftime("%H:%M:%S")
    task = Text(line.task or "")
    task.truncate(named, overflow="ellipsis", pad=True)
    return Text.assemble((f" {at} ", "dim"), task, " ", (line.text, "" if line.task else "bold"))


# ---- pages


def _about(dashboard: Dashboard, viewer: Viewer, width: int, now: float) -> list[Text]:
    task = dashboard.tasks.get(viewer.selected or "")
    if task is None:
        return [Text(" no such task")]
    mark, style = _STYLES.get(task.state, ("·", ""))
    head = Text.assemble((f" {task.id}", "bold"), "  ", (f"{mark} {task.state}", style))
    told = [f"attempt {task.attempt}"] if task.attempt else []
    if elapsed := task.elapsed(now):
        told.append(_clock(elapsed))
    if task.memory:
        told.append(f"{bytes_of(task.memory)} at most")
    if task.cpu is not None:
        told.append(f"{task.cpu:.1f} s of cpu")
    head.append("  " + " · ".join(told), "dim")
    lines = [head, Text()]
    if task.error is not None:
        lines.append(Text(f" {describe(task.error)}", "red"))
        lines += [Text(f" {line}", "yellow") for line in refusals(task.error)]
        trace = task.error.get("traceback") or ""
        lines += [Text(f"   {printable(line)}", "dim") for line in trace.splitlines()]
        lines.append(Text())
    lines += [_event(line._replace(task=None), 0) for line in dashboard.about(task.id)]
    return [part for line in lines for part in _wrapped(line, width)]


def _wrapped(line: Text, width: int) -> Iterable[Text]:
    """What does not fit goes on below, where it began."""
    while line.cell_len > width > 20:
        cut = width
        while line[:cut].cell_len > width:
            cut -= 1
        yield line[:cut]
        line = Text("   ").append_text(line[cut:])
    yield line


def _choices(viewer: Viewer, room: int) -> Iterable[Text]:
    yield Text(f" {viewer.title}", "bold")
    room -= 1
    first = max(0, min(viewer.chosen - room // 2, len(viewer.choices) - room))
    for at, choice in enumerate(viewer.choices[first : first + room], first):
        mark, style = ("▸", "reverse") if at == viewer.chosen else (" ", "")
        yield Text(f" {mark} {choice.label} ", style)
    if not viewer.choices:
        yield Text("   there is none", "dim")


def _scrolled(viewer: Viewer, lines: list[Text], room: int) -> list[Text]:
    viewer.first = max(0, min(viewer.first, len(lines) - room))
    return lines[viewer.first : viewer.first + room]


def _foot(dashboard: Dashboard, viewer: Viewer, width: int) -> Text:
    if viewer.question:
        return Text.assemble((f" {viewer.question} ", "bold"), ("y", "bold reverse"), " / n")
    if viewer.notice:
        return Text(f" {viewer.notice}", "bold red" if viewer.is_bad else "bold green")
    fitting = (keys for keys in (_KEYS, _FEWER_KEYS) if len(keys) < width)
    keys = next(fitting, _FEWEST_KEYS)
    keys = {Page.TABLE: keys, Page.CHOICE: _CHOICE_KEYS}.get(viewer.page, _PAGE_KEYS)
    return Text(f" {keys}", "dim")


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
