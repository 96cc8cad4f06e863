"""Leaving an engine at awkward moments: before an attempt is begun, around the last commit."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from casemate import Supervisor
from casemate.protocol import codec
from casemate.protocol.limits import MIB
from casemate.supervisor import engine as engine_module
from casemate.supervisor import hostpipe
from casemate.supervisor.config import load_config
from casemate.supervisor.engine import Engine
from casemate.supervisor.front import Frames, encode_frames
from casemate.supervisor.journal import Commit
from casemate.supervisor.pipeline import compile_document
from fakes import PATIENCE, wait_until
from msgspec import Raw


def test_a_task_whose_input_is_being_written_does_not_start(tmp_path: Path) -> None:
    document: dict[str, object] = {"name": "x", "tasks": {"a": {"command": ["sleep", "3600"]}}}
    spec = compile_document(document, root=tmp_path)
    large = Raw(codec.encode_value(bytes(2 * MIB)))  # too large for a message: goes by file

    async def story() -> None:
        async with asyncio.timeout(PATIENCE):
            async with Engine(load_config(state=tmp_path / "state").settings()) as engine:
                await engine.submit(spec, large)

    asyncio.run(story())


def test_a_last_commit_that_is_told_while_the_journal_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document: dict[str, object] = {"name": "x", "tasks": {"a": {"command": ["true"]}}}
    spec = compile_document(document, root=tmp_path)
    durable = threading.Event()
    raised: list[dict[str, Any]] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        async with asyncio.timeout(PATIENCE):
            async with Engine(load_config(state=tmp_path / "state").settings()) as engine:

                def hold_the_last(commit: Commit) -> Frames:
                    """In the writer thread: until Journal.close has begun."""
                    if commit.events[-1].kind == "run.completed":
                        durable.set()
                        wait_until(lambda: not engine._journal._books)
                    return encode_frames(commit)

                monkeypatch.setattr(engine_module, "encode_frames", hold_the_last)
                await engine.submit(spec, Raw(codec.encode_value(None)))
                while not durable.is_set():
                    await asyncio.sleep(0.001)

    asyncio.run(story())
    assert raised == []


def test_the_other_ends_death_met_by_a_write_is_the_end_of_the_stream() -> None:
    async def story() -> bytes | None:
        reader = asyncio.StreamReader()
        reader.set_exception(BrokenPipeError())  # as asyncio does when a write meets EPIPE
        return await hostpipe.read(reader)

    assert asyncio.run(story()) is None


def test_an_engine_whose_host_drops_around_the_last_commit_ends_in_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    document: dict[str, object] = {"name": "x", "tasks": {"a": {"command": ["true"]}}}
    spec = compile_document(document, root=tmp_path)

    async def drop(after: float) -> int:
        async with asyncio.timeout(PATIENCE), Supervisor(state=tmp_path / "state") as supervisor:
            async for event in supervisor.events(await supervisor.submit(spec)):
                if event.kind == "task.started":
                    break
            await asyncio.sleep(after)
            assert supervisor._writer is not None and supervisor._process is not None
            supervisor._writer.transport.abort()
            return await asyncio.to_thread(supervisor._process.wait)

    # From before the task's end to after the run's: about 10 ms on an idle machine.
    assert [asyncio.run(drop(step * 0.003)) for step in range(5)] == [0] * 5
    assert capfd.readouterr().err == ""
