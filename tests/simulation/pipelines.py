"""Pipelines for simulated runs: small, of every shape, with limits that are soon reached.

Everything is drawn from a seeded `Random`, but never through its slow methods: a million seeds are
played. All times are multiples of an eighth, so that sums of them are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from casemate.protocol.answers import Action
from casemate.protocol.pipeline import Checkpoints, PipelineSpec, Rule, TaskSpec
from core.simulated import make_pipeline, make_task, raw

__all__ = ["Dice", "pipeline"]

T = TypeVar("T")
_STRATEGIES = (
    Checkpoints(),
    Checkpoints(),
    Checkpoints(every_task=False),
    Checkpoints(every_task=False, every=3),
    Checkpoints(every_task=False, after=("b",)),
)
_COVERED: tuple[tuple[str, ...], ...] = (
    (),
    ("timeout",),
    ("error", "crash", "timeout", "lost"),
    ("error", "memory", "protocol", "timeout.wall"),
)


_RULES = (
    Rule(on=("error", "crash"), do=Action.RETRY, after=0.5),
    Rule(on=("lost", "setup"), do=Action.RETRY),
    Rule(on=("timeout", "memory"), do=Action.SKIP, output=raw(7)),
    Rule(on=("error", "invalid_output", "crash"), do=Action.FALLBACK, to="x"),
    Rule(on=("crash", "protocol", "invalid_output"), do=Action.ROLLBACK, to="a"),
    Rule(on=("timeout",), do=Action.ROLLBACK, to="b"),
    Rule(on=("pids",), do=Action.FAIL),
)


# Pipelines may disagree about a key.
_BULKHEADS = (None, "k:1", "k:2", "l:1")
_BREAKERS = (None, "k:2:10:kill", "k:2:10:kill:5", "k:1:2:drain", "l:1:1:kill:0.5")
_RATES = (None, "1/2s", "k:1/s", "k:2/s", "l:2/5s")


class Dice:
    """What is drawn, from one source."""

    __slots__ = ("_next", "random")

    def __init__(self, random: Random) -> None:
        self.random = random
        self._next: Callable[[], float] = random.random

    def chance(self, share: float) -> bool:
        return self._next() < share

    def below(self, most: int) -> int:
        return int(self._next() * most)

    def pick(self, from_: Sequence[T]) -> T:
        return from_[int(self._next() * len(from_))]


def _task(dice: Dice, name: str, always: bool, is_limited: bool, has_breakers: bool) -> TaskSpec:
    pick = dice.pick
    how = dice.below(8)
    rules = tuple(pick(_RULES) for _ in range(1 + dice.below(3))) if how == 1 else ()
    return make_task(
        name,
        memory=pick((1, 1, 2, 5, 9)) if dice.chance(0.5) else 1,
        start=pick((1, 5)),
        wall=pick((None, 2, 6)),
        idle=pick((None, 1, 3)),
        cpu=pick((None, 1, 4)),
        grace=pick((0, 0, 1)),
        retry=pick((1, 2, 4)),
        delay=pick((0, 0.5, 3)),
        cap=pick((60, 4)),
        jitter=pick((0, 0.25)),
        on=pick(_COVERED),
        cores=pick((None, None, 0.125, 1.5, 9)),
        parallel=pick((None, 1)) if is_limited else None,
        bulkhead=pick(_BULKHEADS) if is_limited else None,
        rate=pick(_RATES) if is_limited else None,
        priority=pick((0, 0, 1, -1)),
        breaker=pick(_BREAKERS) if has_breakers else None,
        validate=dice.chance(0.2),
        recover=how == 0,
        rules=rules,
        fallbacks=("x", "y") if how < 2 else (),
        always=always,
    )


def pipeline(dice: Dice) -> PipelineSpec:
    names = "abcdef"[: dice.below(7)]
    density, streaming = dice.pick((0.2, 0.4)), dice.pick((0.0, 0.4))
    plain: list[tuple[str, str]] = []
    streams: list[tuple[str, str]] = []
    for place, source in enumerate(names):
        for to in names[place + 1 :]:
            if dice.chance(density):
                (streams if dice.chance(streaming) else plain).append((source, to))
    # An `always` task has something to clean up after, and nobody streams to it.
    is_limited, has_breakers = dice.chance(0.4), dice.chance(0.25)
    told = {to for _, to in plain} - {to for _, to in streams}
    return make_pipeline(
        [
            _task(dice, name, name in told and dice.chance(0.15), is_limited, has_breakers)
            for name in names
        ],
        plain,
        streams=streams,
        checkpoints=dice.pick(_STRATEGIES),
        fail_fast=dice.chance(0.2),
        timeout=dice.pick((None, None, None, 4, 30)),
        max_parallel=dice.pick((None, None, 1, 2)),
        priority=dice.pick((0, 0, 2)),
        retry_budget=dice.pick((1000, 1000, 3)),
        rollback_budget=dice.pick((3, 3, 1)),
    )
