"""Runs whose engine, zygote, front and guests are killed again and again, and that end all the
same.

Of each seed: a drawn pipeline runs once undisturbed; then again, with SIGKILLs planned by the same
seed. A kill waits until so many tasks have completed, then a moment more, then for its victim to be
there: one that falls into an engine's start, or into its taking over the run, is welcome. After an
engine's death the next supervisor resumes the run. In the end both runs must have completed and
left the same evidence, both journals must tell a story that can be true, nothing completed may have
been done twice, whatever an observer saw must be in the journal, and of all the processes none may
be left.

The same seed gives the same pipeline and the same plan; the moments themselves are the machine's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import lineage
from casemate import CasemateError, PipelineEvent, SetupRefused, Supervisor, UsageError
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.core.retry import BLAMELESS_RETRIES
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE
from runs import Place, descendants
from verifier import verify

from .evidence import differences, read_events, read_evidence, repetitions
from .shape import WORK, draw, make_base

__all__ = ["Outcome", "compare_run"]

VICTIMS = ("engine", "zygote", "front", "guest")
PARALLEL = 4

# Kills wait for a number of completed tasks out of this part of them: the last ones shall still
# have somebody to kill.
SHARE = 0.8

# A kill comes at most so long after what it waits for; the drawn tasks take as long.
LATEST = 0.15


@dataclass(frozen=True, slots=True)
class Kill:
    after: int  # tasks that have completed
    delay: float
    victim: str


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    struck: tuple[str, ...]
    lives: int  # engines that the run had
    attempts: int
    seconds: float
    problems: tuple[str, ...]


def plan(random: Random, tasks: int, kills: int) -> list[Kill]:
    drawn = [
        Kill(
            random.randrange(int(tasks * SHARE)), random.uniform(0, LATEST), random.choice(VICTIMS)
        )
        for _ in range(kills)
    ]
    return sorted(drawn, key=lambda kill: kill.after)


class Story:
    """One run, followed through all the lives of its supervisors."""

    def __init__(self, state: Path, random: Random) -> None:
        self.state = state
        self.run: str | None = None
        self.seen: list[PipelineEvent] = []
        self.completed = 0
        self.blameless: Counter[str | None] = Counter()  # failures that were not the task's own
        self.lives = 0
        self.killed: Counter[str] = Counter()
        self.struck: list[str] = []
        self._random = random
        # Whoever runs us may embed a supervisor as well, which is none of our victims.
        self._others = {each.pid for each in lineage.children(os.getpid())}
        self._told = asyncio.Condition()

    async def live(self, spec: PipelineSpec, seed: int) -> None:
        """Submit, and resume until it has ended."""
        while True:
            before = self.killed.copy()
            try:
                async with Supervisor(state=self.state, max_parallel=PARALLEL) as supervisor:
                    self.lives += 1
                    await self._begin(supervisor, spec, seed)
                    assert self.run is not None
                    since = self.seen[-1].seq if self.seen else 0
                    async for event in supervisor.events(self.run, since):
                        await self._note(event)
                return
            except CasemateError as error:
                # An engine does not start without a zygote. All else it survives.
                fatal = {"engine", "zygote"} if isinstance(error, SetupRefused) else {"engine"}
                if not fatal & (self.killed - before).keys():
                    raise
                if self.run is not None and self._has_ended():
                    return

    async def _begin(self, supervisor: Supervisor, spec: PipelineSpec, seed: int) -> None:
        """A run whose submission was cut off may be there or not, and may have begun or not."""
        for run in StateDirectory(self.state).run_ids():
            with suppress(UsageError):
                await supervisor.resume(run)
                self.run = run
                return
        self.run = await supervisor.submit(spec, {"seed": seed})

    def _has_ended(self) -> bool:
        assert self.run is not None
        events = read_events(self.state, self.run)
        return bool(events) and events[-1].kind in ("run.completed", "run.failed", "run.cancelled")

    async def _note(self, event: PipelineEvent) -> None:
        async with self._told:
            self.seen.append(event)
            self.completed += event.kind == "task.completed"
            if event.kind == "task.retrying":
                self.blameless[event.task] += event.data["error"]["kind"] in ("lost", "setup")
            self._told.notify_all()

    async def strike(self, kills: list[Kill]) -> None:
        for kill in kills:
            async with self._told:
                await self._told.wait_for(lambda kill=kill: self.completed >= kill.after)  # type: ignore[misc]
            await asyncio.sleep(kill.delay)
            while (name := await asyncio.to_thread(self._kill, kill.victim)) is None:
                await asyncio.sleep(0.001)
            self.struck.append(name)

    def _kill(self, victim: str) -> str | None:
        """Who was killed; None: it is not there at this moment."""
        if victim == "zygote" and max(self.blameless.values(), default=0) >= BLAMELESS_RETRIES:
            victim = "engine"  # a task that is lost once more fails for good, and rightly so
        try:
            pid = self._find(victim)
            self.killed[victim] += 1  # before its death can be noticed
            os.kill(pid, signal.SIGKILL)
        except (LookupError, ProcessLookupError):
            return None
        return victim

    def _find(self, victim: str) -> int:
        engine = lineage.engine(os.getpid(), self._others)
        match victim:
            case "engine":
                return engine
            case "zygote":
                return lineage.zygote(engine)
            case "front":
                return lineage.front(engine)
            case _:
                return self._random.choice(lineage.guests(engine))


async def disturb(state: Path, spec: PipelineSpec, seed: int, kills: list[Kill]) -> Story:
    story = Story(state, Random(seed))
    striking = asyncio.create_task(story.strike(kills))
    try:
        await story.live(spec, seed)
    finally:
        striking.cancel()
        with suppress(asyncio.CancelledError):
            await striking
    return story


def compare_run(
    folder: Path, seed: int, *, tasks: int, kills: int, streaming: float = 0.0
) -> Outcome:
    """Two runs of the pipeline of one seed below `folder`, undisturbed and disturbed."""
    place = Place(folder / "pipeline")
    place.tasks(WORK)
    make_base(place.path / "base")
    spec = place.spec(**draw(seed, tasks, streaming))
    before = set(descendants(os.getpid()))
    planned = plan(Random(seed), tasks, kills)
    with lineage.adopting():
        calm = asyncio.run(disturb(folder / "calm", spec, seed, []))
        began = time.monotonic()
        story = asyncio.run(disturb(folder / "disturbed", spec, seed, planned))
        seconds = time.monotonic() - began
        problems = []
        give_up = time.monotonic() + PATIENCE
        while left := set(descendants(os.getpid())) - before:
            if time.monotonic() > give_up:
                problems.append(f"processes left: {sorted(left)}")
                break
            time.sleep(0.01)
    assert calm.run is not None
    assert story.run is not None
    should_be = read_evidence(calm.state, calm.run)
    if should_be.ending != "run.completed":
        problems.append(f"undisturbed it ended in {should_be.ending}")
    for name, each in (("undisturbed", calm), ("disturbed", story)):
        told = verify(each.state, str(each.run), has_ended=True)
        problems += [f"{name}: {problem}" for problem in told]
    events = read_events(story.state, story.run)
    problems += differences(read_evidence(story.state, story.run), should_be)
    problems += repetitions(events)
    if story.seen != events[: len(story.seen)]:
        problems.append("an observer saw what is not in the journal")
    if len(story.struck) < kills:
        problems.append(f"over after {len(story.struck)} of {kills} kills")
    attempts = sum(event.kind == "task.started" for event in events)
    return Outcome(seed, tuple(story.struck), story.lives, attempts, seconds, tuple(problems))
