"""What a run came to, read from its state directory alone.

Two runs of the same pipeline must leave the same evidence, whatever was done to them. A task's
effects are what its completed attempt said: a sandbox has no other way out. Attempts that were
killed may have said the same before (attempts are at-least-once); a *completed* one may not be
followed by another.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from casemate.supervisor.cursor import PipelineEvent, public
from casemate.supervisor.files import present_layers
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.layers import UPPER, Resolved
from casemate.supervisor.recovery import read_run
from casemate.supervisor.state import StateDirectory
from casemate.supervisor.workspace import Workspace

__all__ = ["Evidence", "differences", "read_events", "read_evidence", "repetitions"]


@dataclass(frozen=True)
class Evidence:
    ending: str
    final: Any
    outputs: dict[str, Any]
    effects: dict[str, list[Any]]
    files: dict[str, Any]  # path: kind, mode and content of all that differs from the base


def read_events(state: Path, run: str) -> list[PipelineEvent]:
    found: list[PipelineEvent] = []
    with JournalReader(StateDirectory(state).run(run)) as reader:
        while page := reader.events(found[-1].seq if found else 0):
            found += [public(event) for event in page]
    return found


def read_files(state: Path, run: str) -> dict[str, Any]:
    """What the layers of all that completed make of the base."""
    directory = StateDirectory(state).run(run)
    found = read_run(directory).state
    workspace = Workspace(directory, found.spec)
    stack = workspace.whole_stack(found.graph, present_layers(found))

    def content(change: Resolved) -> str | None:
        if change.kind != "file" or change.layer is None:
            return change.target
        file = workspace.store.root / change.layer / UPPER / change.path
        return hashlib.sha256(file.read_bytes()).hexdigest()

    return {
        change.path: (change.kind, oct(change.mode), content(change))
        for change in workspace.resolve(stack)
    }


def read_evidence(state: Path, run: str) -> Evidence:
    """Of a run that has ended; of each task the latest completed attempt."""
    events = read_events(state, run)
    outputs: dict[str, Any] = {}
    said: dict[tuple[str, int | None], list[Any]] = defaultdict(list)
    effects: dict[str, list[Any]] = {}
    for event in events:
        task = event.task or ""
        if event.kind == "task.emitted":
            said[task, event.attempt].append(event.data["item"])
        elif event.kind == "task.completed":
            outputs[task] = event.data["output"]
            effects[task] = said[task, event.attempt]
    files = read_files(state, run)
    return Evidence(events[-1].kind, events[-1].data.get("outputs"), outputs, effects, files)


def differences(is_so: Evidence, should_be: Evidence) -> list[str]:
    """A line for each part in which they differ, with the first tasks or paths it differs in."""
    found = []
    for part in fields(Evidence):
        left, right = getattr(is_so, part.name), getattr(should_be, part.name)
        if left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            keys = sorted(key for key in left | right if left.get(key) != right.get(key))
            found.append(f"{part.name} of {', '.join(keys[:5])} ({len(keys)} in all)")
        else:
            found.append(f"{part.name}: {left!r:.200}, and not {right!r:.200}")
    return found


def repetitions(events: list[PipelineEvent]) -> list[str]:
    """Where something began again that the journal had as completed."""
    completed: dict[str, int] = {}
    found = []
    for event in events:
        if event.kind in ("task.ready", "task.started") and event.task in completed:
            found.append(
                f"{event.kind} of {event.task} at {event.seq}: completed at {completed[event.task]}"
            )
        elif event.kind == "task.completed" and event.task is not None:
            completed[event.task] = event.seq
    return found
