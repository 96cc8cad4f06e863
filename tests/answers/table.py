"""The table: each kind of error × (retry, skip, fallback, rollback, fail), each cell a real run.

A run has one `task`, and budgets of 1 each. `task` fails in one way, with a rule (or a
`recover` function) for that kind, and what became of it is told by its events in a few words:

    retry     it is tried again, and is good then
    skip      what the rule gives is its output: `after`, which needs it, gets that
    fallback  another function is called in its place
    rollback  the run goes back to before `before`, which it needs, and then it is good
    fail      it fails at once, whatever its retry policy would say

Some causes are still there the next time, whoever is called: then the answer is carried out, fails
by the same kind, and the budget of 1 ends it. What is not the task's fault (`setup`, `lost`) has
its own three tries before anybody is asked. And what no attempt of a task can help (its upstream
failed, the run was cancelled, or is over its deadline) is asked of nobody.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from casemate.protocol.errors import UsageError
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.pipeline import Allow, compile_document
from runs import Embedded, History, Live

__all__ = [
    "ACTIONS",
    "KINDS",
    "UNASKED",
    "Cell",
    "Kind",
    "cells",
    "is_refused",
    "run_cells",
    "unasked",
]

TESTS = Path(__file__).parent.parent

ACTIONS: dict[str, dict[str, object]] = {
    "retry": {"after": 0},
    "skip": {"output": "skipped"},
    "fallback": {"fallback": "other"},
    "rollback": {"to": "before"},
    "fail": {},
}

BLAMELESS_TRIES = 3


@dataclass(frozen=True, eq=False)
class Kind:
    """How one kind of error is provoked. `stays`: whatever is called meets it again."""

    kind: str
    way: str
    keys: dict[str, object] = field(default_factory=dict)
    stays: bool = False
    name: str = ""  # where a kind has several
    tries: int = 0  # before anybody is asked


KINDS = (
    Kind("error", "error"),
    Kind("invalid_output", "invalid_output"),
    Kind(
        "invalid_output", "not_valid", {"validate": "answers/tasks.py:is_good"},
        name="invalid_output (validate)",
    ),
    Kind("timeout.start", "error", {"timeouts": {"start": 0.0001}}, stays=True),
    Kind("timeout.wall", "busy", {"timeouts": {"wall": "1s"}}),
    Kind("timeout.idle", "silent", {"timeouts": {"idle": "1s"}}),
    Kind("timeout.cpu", "busy", {"timeouts": {"cpu": "300ms"}}),
    Kind("memory", "balloon", {"limits": {"memory": "64MiB"}}),
    Kind("pids", "threads", {"limits": {"pids": 16}}),
    Kind("disk", "large_file", {"limits": {"disk": "1MiB"}}),
    Kind("output_limit", "flood", {"limits": {"output": "1MiB"}}),
    Kind("crash", "crash"),
    Kind("violation", "violation"),
    Kind("conflict", "error", stays=True),
    Kind("protocol", "protocol"),
    # More environment than a sandbox can be given.
    Kind(
        "setup", "error", {"env": {"A": "a" * 100_000, "B": "b" * 100_000}},
        stays=True, tries=BLAMELESS_TRIES,
    ),
    Kind("lost", "victim", tries=BLAMELESS_TRIES),
    # Opened by hand, for longer than the table takes; a fallback goes the same way.
    Kind(
        "breaker_open", "error",
        {"breaker": {"key": "shut", "failures": 1, "open_for": "1h", "wait": "200ms"}}, stays=True,
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cell:
    kind: Kind
    action: str
    is_function: bool  # the answer comes from a `recover` function; else from a rule

    @property
    def name(self) -> str:
        return self.kind.name or self.kind.kind

    def spec(self, workspace: Path) -> PipelineSpec:
        act = "answers/tasks.py:{}".format
        recover: object = act(self.action)
        if not self.is_function:
            rule = {"on": [self.kind.kind], "do": self.action, **ACTIONS[self.action]}
            recover = [rule]
        task: dict[str, object] = {
            "execute": act("act"),
            "spec": {"way": self.kind.way, "good": self.kind.tries + 2},
            "sources": ["hostile"],
            "recover": recover,
            "fallbacks": {"other": act("instead")},
            **self.kind.keys,
        }
        tasks: dict[str, object] = {"task": task}
        if self.action == "rollback":
            tasks["before"] = {"execute": act("before")}
            task["needs"] = ["before"]
        if self.action == "skip":
            tasks["after"] = {"execute": act("after"), "needs": ["task"]}
        document: dict[str, object] = {
            "name": f"{self.kind.kind}-{self.action}",
            "defaults": {"limits": {"memory": "128MiB", "pids": 32}, "timeouts": {"wall": "60s"}},
            "retry_budget": 1,
            "rollback_budget": 1,
            "tasks": tasks,
        }
        if self.kind.kind == "conflict":
            # Both change the same file, until one of them is done again.
            tasks["before"] = {"execute": act("write")}
            tasks["beside"] = {"execute": act("write")}
            task["needs"] = ["before", "beside"]
            document["workspace"] = str(workspace)
        return compile_document(document, root=TESTS, allow=Allow.parse([f"path:{workspace}"]))

    def expected(self) -> str:
        kind, again = self.kind.kind, f"failed({self.kind.kind})"
        tried = f"retrying({kind}) " * self.kind.tries
        if self.is_function and kind in ("setup", "timeout.start"):
            return f"{tried}{again}"  # the sandbox of its recover meets the same
        # One of the two that clashed is done again, and writes elsewhere this time.
        is_mended = self.kind.kind == "conflict"
        good = "completed(good)"
        match self.action:
            case "retry":
                return f"{tried}retrying({kind}) {again if self.kind.stays else good}"
            case "skip":
                # It has an output then, but the files that it was to see clash for others as well.
                got = kind if self.kind.kind == "conflict" else "skipped"
                return f"{tried}skipped({kind}) after({got})"
            case "fallback":
                by = again if self.kind.stays else "completed(by the fallback)"
                return f"{tried}recovered({kind}, fallback) {by}"
            case "rollback":
                then = tried + again if self.kind.stays and not is_mended else good
                return f"{tried}recovered({kind}, rollback) before again {then}"
        return f"{tried}{again}"


def received(history: History) -> str:
    """What became of `task`, in the words of `expected`."""
    return " ".join(_words(history))


def _words(history: History) -> Iterator[str]:
    for event in history.events:
        data = event.data
        kind = data["error"]["kind"] if "error" in data else ""
        match event.kind, event.task:
            case (("task.retrying" | "task.failed" | "task.cancelled" as ending), "task"):
                yield f"{ending.removeprefix('task.')}({kind})"
            case "task.skipped", "task":
                yield f"skipped({kind})"
            case "task.recovered", "task":
                yield f"recovered({kind}, {data['action']})"
            case "run.rolled_back", _:
                yield f"{data['before']} again"
            case "task.completed", "task":
                yield f"completed({data['output']})"
            case "task.completed", "after":
                yield f"after({data['output']})"
            case "task.failed", "after" if history.of("task.skipped", "task"):
                yield f"after({kind})"


def cells(*, functions: bool = True) -> list[Cell]:
    ways = (False, True) if functions else (False,)
    return [Cell(kind, action, way) for kind in KINDS for action in ACTIONS for way in ways]


def run_cells(house: Embedded, folder: Path, chosen: list[Cell]) -> list[str]:
    """What was received for each, all of them at once."""
    folder.mkdir()
    if any(cell.kind.kind == "breaker_open" for cell in chosen):
        house.call(house.supervisor.open_breaker("shut", "1h"))
    lives = [house.start(cell.spec(folder)) for cell in chosen]
    victims = [
        live for cell, live in zip(chosen, lives, strict=True) if cell.kind.kind == "lost"
    ]  # fmt: skip
    # Whoever it is that answers is asked after the last of its own tries.
    for count in range(1, BLAMELESS_TRIES + 2):
        for live in victims:
            live.wait("task.emitted", "task", count)
            os.kill(live.wait("task.started", "task", count).data["pid"], signal.SIGKILL)
    return [received(live.finish()) for live in lives]


# What nobody is asked about.


def _upstream_failed(house: Embedded, live: Live) -> None:
    live.wait("task.failed", "before")


def _cancelled(house: Embedded, live: Live) -> None:
    live.wait("task.started", "task")
    live.cancel()


def _nothing(house: Embedded, live: Live) -> None:
    pass


UNASKED: dict[str, tuple[str, Callable[[Embedded, Live], None]]] = {
    "upstream_failed": ("failed(upstream_failed)", _upstream_failed),
    "cancelled": ("cancelled(cancelled)", _cancelled),
    "timeout.run": ("cancelled(timeout.run)", _nothing),
}


def unasked(house: Embedded, kind: str) -> str:
    """What became of a task whose `recover` skips whatever it is asked about."""
    act = "answers/tasks.py:{}".format
    before = {"execute": act("act"), "spec": {"way": "error", "good": 9}, "sources": ["hostile"]}
    document: dict[str, object] = {
        "name": kind,
        "tasks": {
            "before": before if kind == "upstream_failed" else {"execute": act("before")},
            "task": {
                "execute": act("act"),
                "spec": {"way": "silent", "good": 9},
                "sources": ["hostile"],
                "needs": ["before"],
                "recover": act("skip"),
            },
        },
    }
    if kind == "timeout.run":
        document["timeout"] = "1s"
    live = house.start(compile_document(document, root=TESTS))
    UNASKED[kind][1](house, live)
    return received(live.finish())


def is_refused(kind: str) -> bool:
    """Whether a rule for this kind is refused with the pipeline."""
    rule = {"on": [kind], "do": "fail"}
    task = {"execute": "answers/tasks.py:act", "recover": [rule]}
    try:
        compile_document({"name": "x", "tasks": {"task": task}}, root=TESTS)
    except UsageError:
        return True
    return False
