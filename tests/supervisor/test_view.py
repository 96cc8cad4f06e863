"""The live table, fed with events: what a person reads on a terminal of 80 columns."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from casemate.supervisor.cli.view import LiveView
from casemate.supervisor.cursor import PipelineEvent
from casemate.supervisor.pipeline import compile_document
from rich.console import Console

MIB = 2**20


class Watched:
    """A LiveView of one task `a`, and what its row says."""

    def __init__(self, folder: Path) -> None:
        document: dict[str, object] = {"name": "x", "tasks": {"a": {"command": ["true"]}}}
        self.text = io.StringIO()
        self.console = Console(file=self.text, width=80, height=24)
        self.view = LiveView(compile_document(document, root=folder), "ipc://x", self.console)

    def see(self, kind: str, attempt: int, **data: Any) -> str:
        at = datetime(2026, 11, 28, tzinfo=UTC)
        self.view.see(PipelineEvent(1, "run", "a", attempt, kind, at, data))
        self.console.print(self.view._render())
        return self.text.getvalue().splitlines()[-1]


def test_the_failure_before_a_retry_stays_visible(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.see("task.started", 1, pid=1)
    error = {"kind": "timeout.wall", "message": "too long", "usage": {"memory": 7 * MIB}}
    assert "timeout.wall: too" in watched.see("task.retrying", 1, error=error, delay=0.1)
    for kind, data in (
        ("task.started", {"pid": 2}),
        ("task.emitted", {"item": 1}),
        ("task.completed", {"output": None, "seconds": 1.26}),
    ):
        assert "after timeout.wall: " in watched.see(kind, 2, **data)
    error = {"kind": "crash", "message": "SIGSEGV"}
    row = watched.see("task.failed", 3, error=error)
    assert "failed: crash" in row and "after" not in row


def test_memory_is_that_of_the_ending_where_there_was_no_sample(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    assert "MiB" not in watched.see("task.started", 1, pid=1)
    error = {"kind": "error", "message": "x", "usage": {"memory": 7 * MIB}}
    assert "7.0 MiB" in watched.see("task.failed", 1, error=error)


def test_memory_is_the_most_that_was_measured(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.see("task.usage", 1, memory=9 * MIB)
    assert "9.0 MiB" in watched.see("task.usage", 1, memory=5 * MIB)
    assert "9.0 MiB" in watched.see("task.usage", 1, memory=None)


def test_a_task_that_was_skipped_is_told_of_beside_those_that_completed(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.see("task.skipped", 1, error={"kind": "error", "message": "x"}, output=None)
    assert "0 of 1 tasks completed, 1 skipped, in " in watched.view.summary()
