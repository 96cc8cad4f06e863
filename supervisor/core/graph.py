"""The shape of a pipeline: who sees whose output.

Pure functions over task ids and edges, each linear in tasks plus edges (and one sort). The order
that everything else uses is by depth (the longest path from a source), then id: it is topological,
it starts whole layers side by side, and adding an unrelated task does not reshuffle it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ...protocol.errors import UsageError
from ...protocol.pipeline import Edge, PipelineSpec

__all__ = ["Flaw", "Graph", "Problem", "arrange", "build", "check", "cycles", "downstream"]


class Flaw(StrEnum):
    DUPLICATE_TASK = "duplicate_task"
    DUPLICATE_EDGE = "duplicate_edge"
    DANGLING_EDGE = "dangling_edge"
    CYCLE = "cycle"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a pipeline cannot run. `tasks` are the ids concerned: of a cycle, its path without the
    return to its first task."""

    flaw: Flaw
    message: str
    tasks: tuple[str, ...]
    edge: Edge | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    order: tuple[str, ...]  # by depth, then id
    position: dict[str, int]  # where a task stands in `order`
    upstream: dict[str, tuple[str, ...]]  # over every edge, in id order
    inputs: dict[str, tuple[str, ...]]  # over plain edges, in id order: what its input names
    streams: dict[str, tuple[str, ...]]  # over stream edges, in id order
    dependants: dict[str, tuple[str, ...]]  # over every edge, in `order`, as they become ready
    takers: dict[str, tuple[str, ...]]  # over plain edges, in `order`
    readers: dict[str, tuple[str, ...]]  # over stream edges, in `order`
    sinks: tuple[str, ...]  # without dependants, in id order, as a run's outputs name them


def check(ids: Sequence[str], edges: Iterable[Edge]) -> list[Problem]:
    """Every reason why this is not a graph to run; empty: it is one."""
    problems: list[Problem] = []
    known: set[str] = set()
    for task in ids:
        if task in known:
            problems.append(
                Problem(Flaw.DUPLICATE_TASK, f"task {task}: there are two with this id", (task,))
            )
        known.add(task)
    seen: set[tuple[str, str]] = set()
    sound: list[Edge] = []
    for edge in edges:
        name = f"edge {edge.source} → {edge.to}"
        missing = tuple(dict.fromkeys(end for end in (edge.source, edge.to) if end not in known))
        if missing:
            text = f"{name}: there is no task {' and no task '.join(missing)}"
            problems.append(Problem(Flaw.DANGLING_EDGE, text, missing, edge))
        elif (edge.source, edge.to) in seen:
            ends = (edge.source, edge.to)
            problems.append(Problem(Flaw.DUPLICATE_EDGE, f"{name}: given twice", ends, edge))
        else:
            seen.add((edge.source, edge.to))
            sound.append(edge)
    for cycle in cycles(known, sound):
        path = " → ".join((*cycle, cycle[0]))
        problems.append(Problem(Flaw.CYCLE, f"cycle: {path}", cycle))
    return problems


def cycles(ids: Iterable[str], edges: Iterable[Edge]) -> list[tuple[str, ...]]:
    """Cycles that share no task, at least one in every knot; none means the graph has none.
    Each begins with its smallest id and follows the edges."""
    upstream: dict[str, list[str]] = {task: [] for task in sorted(ids)}
    for edge in sorted(edges):
        upstream[edge.to].append(edge.source)
    found: list[tuple[str, ...]] = []
    settled: set[str] = set()
    # Depth first against the edges, by hand: a chain of 10 000 would overflow Python's stack.
    path: list[tuple[str, Iterator[str]]] = []
    height: dict[str, int] = {}  # where a task that is not settled stands on the path
    for start in upstream:
        height[start] = 0
        path.append((start, iter(upstream[start])))
        while path:
            task, rest = path[-1]
            above = next((source for source in rest if source not in settled), None)
            if above is None:
                path.pop()
                settled.add(task)
            elif above in height:
                knot = [on_path for on_path, _ in path[height[above] :]]
                del path[height[above] :]
                settled.update(knot)
                knot.reverse()
                first = knot.index(min(knot))
                found.append((*knot[first:], *knot[:first]))
            else:
                height[above] = len(path)
                path.append((above, iter(upstream[above])))
    return found


def build(spec: PipelineSpec) -> Graph:
    """The graph of a pipeline that passes `check`, else `UsageError` with every problem."""
    ids = [task.id for task in spec.tasks]
    problems = check(ids, spec.edges)
    if problems:
        reasons = "; ".join(problem.message for problem in problems)
        raise UsageError(f"pipeline {spec.name}: {reasons}")
    return arrange(ids, spec.edges)


def arrange(ids: Sequence[str], edges: Iterable[Edge]) -> Graph:
    """The graph of what has passed `check`."""
    upstream: dict[str, list[str]] = {task: [] for task in ids}
    dependants: dict[str, list[str]] = {task: [] for task in ids}
    inputs: dict[str, list[str]] = {task: [] for task in ids}
    takers: dict[str, list[str]] = {task: [] for task in ids}
    streams: dict[str, list[str]] = {task: [] for task in ids}
    readers: dict[str, list[str]] = {task: [] for task in ids}
    for edge in edges:
        upstream[edge.to].append(edge.source)
        dependants[edge.source].append(edge.to)
        (streams if edge.stream else inputs)[edge.to].append(edge.source)
        (readers if edge.stream else takers)[edge.source].append(edge.to)

    depth = dict.fromkeys(ids, 0)
    missing = {task: len(sources) for task, sources in upstream.items()}
    settled = [task for task in ids if not missing[task]]
    for task in settled:  # grows while it is walked
        for dependant in dependants[task]:
            depth[dependant] = max(depth[dependant], depth[task] + 1)
            missing[dependant] -= 1
            if not missing[dependant]:
                settled.append(dependant)

    order = tuple(sorted(ids, key=lambda task: (depth[task], task)))
    position = {task: place for place, task in enumerate(order)}
    place = position.__getitem__
    return Graph(
        order=order,
        position=position,
        upstream={task: tuple(sorted(upstream[task])) for task in order},
        inputs={task: tuple(sorted(inputs[task])) for task in order},
        streams={task: tuple(sorted(streams[task])) for task in order},
        dependants={task: tuple(sorted(dependants[task], key=place)) for task in order},
        takers={task: tuple(sorted(takers[task], key=place)) for task in order},
        readers={task: tuple(sorted(readers[task], key=place)) for task in order},
        sinks=tuple(sorted(task for task in ids if not dependants[task])),
    )


def downstream(edges: Mapping[str, Iterable[str]], tasks: Iterable[str]) -> set[str]:
    """The tasks and all that can be reached from them over `edges`, however far."""
    found = set(tasks)
    pending = list(found)
    for task in pending:  # grows while it is walked
        for dependant in edges[task]:
            if dependant not in found:
                found.add(dependant)
                pending.append(dependant)
    return found
