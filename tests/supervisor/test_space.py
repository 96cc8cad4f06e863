"""What a run may take of the disk beside the limits of each attempt: its journal as a whole, and
what the file system has to keep free for everybody's journals."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from casemate.protocol import codec
from casemate.protocol.limits import MIB
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor import engine as engine_module
from casemate.supervisor.config import load_config
from casemate.supervisor.cursor import follow
from casemate.supervisor.engine import Engine
from fakes import PATIENCE
from msgspec import Raw
from runs import History, Place

CHATTY = """
import time
def talks(input, ctx):
    for n in range(40):
        ctx.emit(bytes(100_000))
    time.sleep(3600)
"""
WRITES = """
import time
def writes(input, ctx):
    name = ctx.task_id
    with open(name, "wb") as file:
        file.write(bytes(range(256)) * (4096 if name == "large" else 16))
    ctx.emit("written")
    time.sleep(3600)
"""


def story_of(spec: PipelineSpec, state: Path) -> History:
    async def story() -> History:
        async with Engine(load_config(state=state).settings()) as engine:
            run = await engine.submit(spec, Raw(codec.encode_value(None)))
            return History([event async for event in follow(engine.state, engine, run)])

    return asyncio.run(asyncio.wait_for(story(), PATIENCE)).check_laws()


def test_a_run_whose_tasks_said_too_much_in_all_fails(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is far below its own limit."""
    monkeypatch.setattr(engine_module, "RUN_JOURNAL_SIZE", 10 * MIB)
    place.tasks(CHATTY)
    tasks = {name: {"execute": "tasks.py:talks"} for name in ("a", "b", "c", "d")}
    history = story_of(place.spec(tasks=tasks), tmp_path / "state")
    error = history.one("run.failed").data["error"]
    assert error["kind"] == "output_limit"
    assert "the journal of a run may take 10MiB" in error["message"]


def test_it_does_not_matter_how_short_they_lived(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "RUN_JOURNAL_SIZE", 10 * MIB)
    place.tasks(CHATTY.replace("time.sleep(3600)", "pass"))
    names = [f"t{n}" for n in range(8)]
    tasks: dict[str, Any] = {name: {"execute": "tasks.py:talks"} for name in names}
    for before, name in itertools.pairwise(names):
        tasks[name]["needs"] = [before]
    history = story_of(place.spec(tasks=tasks), tmp_path / "state")
    assert history.one("run.failed").data["error"]["kind"] == "output_limit"
    assert 1 <= len(history.of("task.completed")) <= 4


def test_where_the_file_system_has_little_left_the_largest_layer_ends(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small one beside it is not what fills the disk."""
    statvfs = os.statvfs

    def nearly_full(path: Any) -> Any:
        found = statvfs(path)
        if Path(path).name != "layers":
            return found
        return SimpleNamespace(f_frsize=4096, f_blocks=1 << 30, f_bavail=1000)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    place.tasks(WRITES)
    (place.path / "repo").mkdir(exist_ok=True)
    tasks = {name: {"execute": "tasks.py:writes"} for name in ("large", "small")}
    spec = place.spec(tasks=tasks, workspace="repo", fail_fast=True)
    history = story_of(spec, tmp_path / "state")
    assert history.errors() == {"large": "disk", "small": "cancelled"}
    assert "4000KiB left, and 256MiB are kept" in history.error("large")["message"]
