"""A run taken back to each of its checkpoints, and forked from each: it must end the same.

The run ends once; then, checkpoint by checkpoint and latest first, it is rolled back and goes on to
its end. What the checkpoint held may not be done again, all else is, and the evidence is that of
the first ending, byte for byte. Forks come before that, while there is an untouched original to
hold them against: its journal may not change by a byte. All journals must tell a story that can be
true.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from casemate import PipelineEvent, Supervisor
from runs import Place
from verifier import verify

from .evidence import Evidence, differences, read_events, read_evidence, read_files
from .shape import WORK, draw, make_base

__all__ = ["Returned", "return_everywhere"]

PARALLEL = 4


@dataclass(frozen=True, slots=True)
class Returned:
    checkpoints: int
    forks: int
    problems: tuple[str, ...]


def held(events: list[PipelineEvent]) -> dict[str, frozenset[str]]:
    """Checkpoint: the tasks it holds, by what each adds to its parent."""
    found: dict[str, frozenset[str]] = {}
    for event in events:
        if event.kind == "checkpoint.created":
            data = event.data
            below = found[data["parent"]] if data["parent"] is not None else frozenset()
            found[data["checkpoint"]] = below | frozenset(data["tasks"])
    return found


async def to_the_end(supervisor: Supervisor, run: str, since: int) -> list[PipelineEvent]:
    """The events after `since`. They may begin with those of an ending that was undone."""
    return [event async for event in supervisor.events(run, since)]


def compare(
    where: str,
    is_so: Evidence,
    events: list[PipelineEvent],
    kept: frozenset[str],
    since: int,
    should_be: Evidence,
) -> list[str]:
    problems = differences(is_so, should_be)
    done = {str(e.task) for e in events[since:] if e.kind == "task.completed"}
    if done != should_be.outputs.keys() - kept:
        wrong = sorted(done ^ (should_be.outputs.keys() - kept))
        problems.append(f"of {', '.join(wrong)} it was done again what it had, or not what it had")
    return [f"{where}: {problem}" for problem in problems]


async def _return_everywhere(
    folder: Path, seed: int, tasks: int, every: int, streaming: float
) -> Returned:
    place = Place(folder / "pipeline")
    place.tasks(WORK)
    make_base(place.path / "base")
    spec = place.spec(**draw(seed, tasks, streaming))
    state = folder / "state"
    problems: list[str] = []
    async with Supervisor(state=state, max_parallel=PARALLEL) as supervisor:
        run = await supervisor.submit(spec, {"seed": seed})
        await to_the_end(supervisor, run, 0)
        original = read_events(state, run)
        should_be = read_evidence(state, run)
        if should_be.ending != "run.completed":
            problems.append(f"undisturbed it ended in {should_be.ending}")
        checkpoints = held(original)
        chosen = list(checkpoints)[::-1][::every]
        for checkpoint in chosen:
            copy = await supervisor.fork(run, checkpoint)
            await to_the_end(supervisor, copy, 0)
            events = read_events(state, copy)
            since = next(event.seq for event in events if event.kind == "run.forked")
            where = f"fork from {checkpoint}"
            problems += compare(
                where, read_evidence(state, copy), events, checkpoints[checkpoint], since, should_be
            )
            problems += [f"{where}: {told}" for told in verify(state, copy, has_ended=True)]
            if read_events(state, run) != original or read_files(state, run) != should_be.files:
                problems.append(f"{where}: the original has changed")
        for checkpoint in chosen:
            before = len(read_events(state, run))
            await supervisor.rollback(run, checkpoint)
            await to_the_end(supervisor, run, before)
            events = read_events(state, run)
            where = f"rollback to {checkpoint}"
            problems += compare(
                where, read_evidence(state, run), events, checkpoints[checkpoint], before, should_be
            )
        problems += verify(state, run, has_ended=True)
    return Returned(len(chosen), len(chosen), tuple(problems))


def return_everywhere(
    folder: Path, seed: int, *, tasks: int, every: int = 1, streaming: float = 0.0
) -> Returned:
    """With every checkpoint of a drawn pipeline's run, or each `every`-th."""
    return asyncio.run(_return_everywhere(folder, seed, tasks, every, streaming))
