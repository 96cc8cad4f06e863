"""Runs made by hand: real layers, and a journal that tells of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from casemate.protocol.events import (
    CheckpointCreated,
    ErrorKind,
    EventData,
    RunCompleted,
    RunRolledBack,
    RunStarted,
    TaskCompleted,
    TaskError,
    TaskFailed,
    TaskReady,
    TaskRetrying,
    TaskStarted,
)
from casemate.protocol.pipeline import Base, Edge
from casemate.supervisor.apply import ALLOW_ALL
from casemate.supervisor.changes import apply_run, find_files
from casemate.supervisor.core.graph import build
from casemate.supervisor.journal import Journal
from casemate.supervisor.pipeline import compile_document
from casemate.supervisor.state import StateDirectory
from casemate.supervisor.workspace import Workspace
from fakes import PATIENCE
from msgspec import Raw, structs
from overlaid import Operation, in_folder, in_overlay, look

__all__ = ["CHAIN", "ERROR", "FORK", "NIL", "Run"]

CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]
CHAIN = [("a", "b"), ("b", "c")]
FORK = [("a", "b"), ("a", "c")]
NIL = Raw(b"\xc0")
ERROR = TaskError(kind=ErrorKind.ERROR, message="no")


class Run:
    def __init__(
        self,
        place: Path,
        edges: Sequence[tuple[str, str]] = CHAIN,
        *,
        overlay: bool = True,
        base: Base = Base.LIVE,
    ) -> None:
        self.files = place / "project"
        for name in ("src/a", "src/b", "top", "old/x/y"):
            (self.files / name).parent.mkdir(parents=True, exist_ok=True)
            (self.files / name).write_text(f"{name}\n")
        (self.files / "empty").mkdir()
        tasks = sorted({task for edge in edges for task in edge})
        document: dict[str, object] = {
            "name": "x",
            "tasks": {t: {"command": ["true"]} for t in tasks},
        }
        self.spec = structs.replace(
            compile_document(document, root=place),
            edges=tuple(Edge(*edge) for edge in edges), workspace=str(self.files), base=base,
        )  # fmt: skip
        self.graph = build(self.spec)
        self.state = StateDirectory.open(place / "state")
        self.owned = self.state.create_run()
        self.id = self.owned.directory.id
        self.workspace = Workspace(self.owned.directory, self.spec, overlay=overlay)
        self.workspace.begin_run()
        self.layers: dict[str, str] = {}
        self.attempts = dict.fromkeys(tasks, 0)
        self._checkpoints = count()
        self._fresh: list[str] = []
        self._done: set[str] = set()
        self.head: str | None = None
        self.entries: list[tuple[str | None, int | None, float, EventData]] = []
        spec = Raw(msgspec.msgpack.encode(self.spec))
        self.tell(RunStarted(pipeline="x", input=NIL, seed=0, spec=spec))
        self.checkpoint()

    def tell(self, data: EventData, task: str | None = None) -> None:
        attempt = None if task is None else self.attempts[task]
        self.entries.append((task, attempt, time.time(), data))

    def checkpoint(self) -> str:
        made, total = f"c{next(self._checkpoints)}", len(self._done)
        self.tell(CheckpointCreated(
            checkpoint=made, parent=self.head, tasks=tuple(self._fresh), total=total,
            files=0, bytes=0,
        ))  # fmt: skip
        self.head, self._fresh = made, []
        return made

    def task(self, task: str, *operations: Operation, ends: str = "completed") -> dict[str, Any]:
        self.attempts[task] += 1
        name = f"{task}.{self.attempts[task]}"
        self.tell(TaskReady(), task)
        self.tell(TaskStarted(1, {}), task)
        stack = self.workspace.stack(self.graph, task, self.layers)
        made = self.workspace.begin(name, stack)
        if made.copy is not None:
            in_folder(Path(made.copy), operations)
            shown = look(Path(made.copy))
        else:
            shown = in_overlay(
                Path(made.base), Path(made.folder), made.lower, made.upper, operations
            )
        if ends == "completed":
            layer = self.workspace.commit(name, stack)
            if layer is not None:
                self.layers[task] = name
            self._done.add(task)
            self._fresh.append(task)
            self.tell(TaskCompleted(NIL, 0.0, layer), task)
        elif ends == "cut off":
            pass
        else:
            self.workspace.keep(name, stack)
            self.tell(TaskRetrying(ERROR, 0) if ends == "retrying" else TaskFailed(ERROR), task)
        return shown

    def undo(self, checkpoint: str, *tasks: str) -> None:
        self.tell(RunRolledBack(checkpoint=checkpoint, undone=tasks, generation=1))
        self.head, self._fresh = checkpoint, []
        for task in tasks:
            self.layers.pop(task, None)
            self._done.discard(task)

    def write(self) -> None:
        journal = Journal(lambda _: None, lambda _, error: pytest.fail(str(error)))
        journal.open(self.owned.directory)
        journal.append(self.id, self.entries)
        journal.close()
        self.owned.ownership.release()

    def end(self) -> None:
        self.tell(RunCompleted({}))
        self.write()

    def apply(self, **options: Any) -> Any:
        options.setdefault("allow", ALLOW_ALL)
        return apply_run(self.state, self.owned.directory, **options)[1]

    def paths(self, **options: Any) -> dict[str, str]:
        summary = find_files(self.state, self.owned.directory, **options).write_patch(None)
        return {entry.path: entry.new.kind for entry in summary.entries}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*CASEMATE, *arguments, "--state", str(self.state.path)],
            capture_output=True, timeout=PATIENCE,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr
        return done
