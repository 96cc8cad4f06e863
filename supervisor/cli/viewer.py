"""What a person who watches looks at, and what a key makes of it.

Pure, as the dashboard is: a key in, and out of it, where it asks for more than another look, a
`Wish` that whoever runs the view carries out. Nothing that steers happens by one key: each wish is
asked for, and a second key confirms it.

    TABLE ──enter──▶ TASK      ──?──▶ HELP      ──b, o──▶ CHOICE ──enter──▶ (a question)
      ▲───────────────── escape, q ────────────────────────────┘

A question waits in the bottom line, over whatever is shown; any key but y takes it back, and
^C leaves as it does everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from .dashboard import ACTIVE, Dashboard, Task

__all__ = ["Choice", "Filter", "Page", "Verb", "Viewer", "Wish"]


class Page(StrEnum):
    TABLE = "table"
    TASK = "task"
    HELP = "help"
    CHOICE = "choice"


class Filter(StrEnum):
    ALL = "all"
    ACTIVE = "active"
    FAILED = "failed"


class Verb(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    ROLLBACK = "rollback"
    LIST_CHECKPOINTS = "list checkpoints"
    LIST_RUNS = "list runs"
    OPEN = "open"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Wish:
    """`checkpoint` or `before`: where to roll back to. `run`: which one to open."""

    verb: Verb
    checkpoint: str | None = None
    before: str | None = None
    run: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of a list, and what choosing it wishes. `question`: asked first, if any."""

    label: str
    wish: Wish
    question: str = ""


_SHOWN = {
    Filter.ACTIVE: ACTIVE,
    Filter.FAILED: frozenset({"failed", "retrying", "skipped", "cancelled"}),
}
_NEXT = {Filter.ALL: Filter.ACTIVE, Filter.ACTIVE: Filter.FAILED, Filter.FAILED: Filter.ALL}


@dataclass(slots=True)
class Viewer:
    """`selected`: the task under the bar; None: the view follows what runs. `first`: the topmost
    row that is shown, of the table or of a page's text. `notice`: what the last wish came to."""

    page: Page = Page.TABLE
    filter: Filter = Filter.ALL
    selected: str | None = None
    first: int = 0
    title: str = ""
    choices: list[Choice] = field(default_factory=list)
    chosen: int = 0
    question: str = ""
    asked: Wish | None = None
    notice: str = ""
    is_bad: bool = False

    # ---- what is in sight

    def tasks(self, dashboard: Dashboard) -> list[Task]:
        wanted = _SHOWN.get(self.filter)
        return [task for task in dashboard.tasks.values() if wanted is None or task.state in wanted]

    def scroll(self, tasks: list[Task], room: int) -> list[Task]:
        """The rows that fit, moved as little as shows the selected one; without one, what runs."""
        if self.selected is not None:
            at = self._place(tasks)
            self.first = max(min(self.first, at), at - room + 1)
        else:
            active = (at for at, task in enumerate(tasks) if task.state in ACTIVE - {"ready"})
            # A little of what was done before it, and as much as fits of what comes.
            self.first = next(active, self.first + room // 4) - room // 4
        self.first = max(0, min(self.first, len(tasks) - room))
        return tasks[self.first : self.first + room]

    def _place(self, tasks: list[Task]) -> int:
        return next((at for at, task in enumerate(tasks) if task.id == self.selected), 0)

    # ---- what a key does

    def press(self, key: str, dashboard: Dashboard, room: int) -> Wish | None:
        """`room`: rows of a page; a page down is that many."""
        self.notice, self.is_bad = "", False
        if key == "ctrl+c":  # so come signals, and that the terminal is gone
            return Wish(Verb.LEAVE)
        if self.asked is not None:
            wish, self.asked, self.question = self.asked, None, ""
            if key in ("y", "Y"):
                return wish
            self.notice = "nothing was done"
            return None
        if self.page is not Page.TABLE and key in ("escape", "q", "left"):
            self._turn(Page.TABLE)
            return None
        match self.page:
            case Page.TABLE:
                return self._press_table(key, dashboard, room)
            case Page.CHOICE:
                return self._press_choice(key, room)
            case _:
                self.first = max(0, self.first + _moved(key, room, 10**6))
                return None

    def _press_table(self, key: str, dashboard: Dashboard, room: int) -> Wish | None:
        tasks = self.tasks(dashboard)
        if step := _moved(key, room, len(tasks)):
            self._move(tasks, step)
            return None
        match key:
            case "q":
                return Wish(Verb.LEAVE)
            case "?" | "h":
                self._turn(Page.HELP)
            case "escape":
                self.selected = None
            case "f":
                self.filter = _NEXT[self.filter]
                self.selected, self.first = None, 0
            case "enter" | "right" if tasks:
                self._move(tasks, 0)
                self._turn(Page.TASK)
            case "p":
                self._ask(f"Pause run {dashboard.run}? What runs is frozen.", Wish(Verb.PAUSE))
            case "r":
                return Wish(Verb.RESUME)
            case "c":
                self._ask(f"Cancel run {dashboard.run}? What runs is killed.", Wish(Verb.CANCEL))
            case "b":
                return Wish(Verb.LIST_CHECKPOINTS)
            case "o":
                return Wish(Verb.LIST_RUNS)
        return None

    def _press_choice(self, key: str, room: int) -> Wish | None:
        if key == "enter" and self.choices:
            choice = self.choices[self.chosen]
            self._turn(Page.TABLE)
            if not choice.question:
                return choice.wish
            self._ask(choice.question, choice.wish)
            return None
        self.chosen += _moved(key, room, len(self.choices))
        self.chosen = max(0, min(self.chosen, len(self.choices) - 1))
        return None

    def _move(self, tasks: list[Task], step: int) -> None:
        if not tasks:
            return
        at = self._place(tasks) if self.selected is not None else self.first
        self.selected = tasks[max(0, min(at + step, len(tasks) - 1))].id

    def _turn(self, page: Page) -> None:
        self.page, self.first = page, 0

    def _ask(self, question: str, wish: Wish) -> None:
        self.question, self.asked = question, wish

    # ---- what it is told

    def offer(self, title: str, choices: list[Choice], chosen: int = 0) -> None:
        self._turn(Page.CHOICE)
        self.title, self.choices, self.chosen = title, choices, chosen

    def say(self, notice: str, *, is_bad: bool = False) -> None:
        self.notice, self.is_bad = notice, is_bad


def _moved(key: str, room: int, whole: int) -> int:
    """How far a key moves whatever has rows."""
    return {
        "up": -1,
        "k": -1,
        "down": 1,
        "j": 1,
        "pageup": -room,
        "pagedown": room,
        " ": room,
        "home": -whole,
        "g": -whole,
        "end": whole,
        "G": whole,
    }.get(key, 0)
