"""Leaving an engine while an attempt is not begun yet."""

from __future__ import annotations

import asyncio
from pathlib import Path

from casemate.protocol import codec
from casemate.protocol.limits import MIB
from casemate.supervisor.config import load_config
from casemate.supervisor.engine import Engine
from casemate.supervisor.pipeline import compile_document
from fakes import PATIENCE
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
