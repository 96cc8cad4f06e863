"""A history that breaks a promise, with ever less in it, told as a script that replays it.

A history is its moves. Played again with some of them left out, what cannot be any more is left out
too (`World.may_be`), and the fair host finishes as before. What still breaks in the same place is
kept: first without long stretches, then without single moves, then with simpler pipelines.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from random import Random

from casemate.protocol.errors import UsageError
from casemate.protocol.pipeline import PipelineSpec, TaskSpec
from casemate.supervisor.core.events import Submit
from core.simulated import make_task, submit
from msgspec import structs

from .host import Host, finish, roam
from .script import script
from .world import Move, World

__all__ = ["Broken", "explain", "replay", "shrink"]


class Broken(Exception):
    """`place`: which promise; `moves`: after what."""

    def __init__(self, error: Exception, moves: list[tuple[float, Move]]) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        self.place = f"{type(error).__name__} in {frame.name}: {frame.line}"
        self.moves = moves
        super().__init__(f"{self.place}\n{error}")


def replay(world: World, moves: list[tuple[float, Move]], is_faulty: bool) -> World:
    """The moves that can be, and a fair end; raises Broken."""
    now = 0.0
    try:
        for now, move in moves:
            if world.may_be(move):
                with contextlib.suppress(UsageError):
                    world.do(now, move)
        finish(world, now, is_faulty)
    except Exception as error:
        raise Broken(error, world.did) from error
    return world


def explain(seed: int) -> str:
    """What a seed breaks, and the least that breaks it."""
    host = Host(Random(seed))
    try:
        roam(host)
        finish(host.world, host.now, host.is_faulty)
    except Exception as error:
        broken = shrink(host, Broken(error, host.world.did))
        return f"{broken}\n\n{script(host.world, broken.moves)}"
    return "nothing: it cannot be repeated"


def shrink(host: Host, broken: Broken) -> Broken:
    """The least that breaks the same promise."""

    def breaks(moves: list[tuple[float, Move]]) -> Broken | None:
        try:
            replay(host.world.like(), moves, host.is_faulty)
        except Broken as found:
            if found.place == broken.place:
                return found
        return None

    if breaks(broken.moves) is None:
        return broken  # only chance made it break
    moves = broken.moves
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for fewer in _fewer(moves):
            if breaks(fewer) is not None:
                moves, is_smaller = fewer, True
                break
    found = breaks(moves)
    assert found is not None
    return found


def _fewer(moves: list[tuple[float, Move]]) -> Iterator[list[tuple[float, Move]]]:
    size = len(moves) // 2
    while size:
        for at in range(0, len(moves), size):
            yield moves[:at] + moves[at + size :]
        size //= 2
    for at, (now, move) in enumerate(moves):
        if isinstance(move, Submit):
            for spec in _simpler(move.spec):
                simpler = structs.replace(submit(move.run, spec), seed=move.seed)
                yield [*moves[:at], (now, simpler), *moves[at + 1 :]]


def _simpler(spec: PipelineSpec) -> Iterator[PipelineSpec]:
    for task in spec.tasks:
        left = tuple(each for each in spec.tasks if each is not task)
        edges = tuple(edge for edge in spec.edges if task.id not in (edge.source, edge.to))
        if all(not each.always or any(e.to == each.id for e in edges) for each in left):
            yield structs.replace(spec, tasks=left, edges=edges)
    for edge in spec.edges:
        kept = tuple(each for each in spec.edges if each is not edge)
        if not any(t.always and t.id == edge.to for t in spec.tasks):
            yield structs.replace(spec, edges=kept)
    for name, usual in (
        ("fail_fast", False),
        ("timeout", None),
        ("max_parallel", None),
        ("priority", 0),
    ):
        if getattr(spec, name) != usual:
            yield structs.replace(spec, **{name: usual})
    for at, task in enumerate(spec.tasks):
        for simpler in _plainer(task):
            tasks = (*spec.tasks[:at], simpler, *spec.tasks[at + 1 :])
            yield structs.replace(spec, tasks=tasks)


def _plainer(task: TaskSpec) -> Iterator[TaskSpec]:
    usual = make_task(task.id)
    if task != usual:
        yield usual
    for name in (
        "limits", "timeouts", "retry", "validate", "recover", "rules", "always",
        "max_parallel", "bulkhead", "rate", "priority",
    ):  # fmt: skip
        if getattr(task, name) != getattr(usual, name):
            yield structs.replace(task, **{name: getattr(usual, name)})
