"""Whoever asks a Supervisor and gives up waiting harms nobody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

from casemate import Pipeline, Supervisor


def nothing(input: object) -> None:
    return None


def test_an_answer_that_nobody_waits_for_is_dropped(tmp_path: Path) -> None:
    pipeline = Pipeline("x")
    pipeline.task(id="a")(nothing)

    async def story() -> list[str]:
        async with Supervisor(state=tmp_path) as supervisor:
            asking = asyncio.create_task(supervisor.submit(pipeline))
            while not supervisor._answers:
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled()
            return [event.kind async for event in supervisor.execute(pipeline)]

    assert asyncio.run(story())[-1] == "run.completed"
