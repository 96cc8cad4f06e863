"""The shape of a pipeline: its order, and every reason why there is none."""

from __future__ import annotations

import itertools

import pytest
from casemate.protocol.errors import UsageError
from casemate.protocol.pipeline import Edge
from casemate.supervisor.core.graph import Flaw, Graph, build, check, cycles
from hypothesis import given
from hypothesis import strategies as st

from .simulated import make_pipeline, make_task


def edges(text: str) -> list[Edge]:
    """`a>b b>c`"""
    return [Edge(source, to) for source, to in (pair.split(">") for pair in text.split())]


def graph(tasks: str, text: str = "") -> Graph:
    pairs = [(edge.source, edge.to) for edge in edges(text)]
    return build(make_pipeline((make_task(name) for name in tasks.split()), pairs))


def test_the_order_is_by_depth_then_id() -> None:
    assert graph("d c b a", "d>a b>a").order == ("b", "c", "d", "a")
    assert graph("a b c z", "z>a a>b z>c").order == ("z", "a", "c", "b")


def test_depth_is_the_longest_way_from_a_source() -> None:
    assert graph("a b c d", "a>d a>b b>c c>d").order == ("a", "b", "c", "d")


def test_upstream_is_in_id_order_and_dependants_in_the_order_they_become_ready() -> None:
    shape = graph("a c b d z e", "c>d a>d b>d a>z a>e e>z")
    assert shape.upstream["d"] == ("a", "b", "c")
    assert shape.dependants["a"] == ("d", "e", "z")


def test_sources_and_sinks() -> None:
    shape = graph("c b a lone", "c>b c>a")
    assert shape.sinks == ("a", "b", "lone")
    assert graph("").order == graph("").sinks == ()


def test_a_sound_graph_has_no_problem() -> None:
    assert check(["a", "b", "c"], edges("a>b b>c a>c")) == []


def test_duplicate_tasks_and_edges_are_named() -> None:
    problems = check(["a", "b", "a"], edges("a>b a>b"))
    assert [(problem.flaw, problem.tasks) for problem in problems] == [
        (Flaw.DUPLICATE_TASK, ("a",)),
        (Flaw.DUPLICATE_EDGE, ("a", "b")),
    ]
    assert problems[0].message == "task a: there are two with this id"
    assert problems[1].message == "edge a → b: given twice"


def test_a_dangling_edge_names_the_end_that_is_missing() -> None:
    one, both, twice = check(["a"], edges("a>b x>y z>z"))
    assert (one.flaw, one.tasks, one.edge) == (Flaw.DANGLING_EDGE, ("b",), Edge("a", "b"))
    assert one.message == "edge a → b: there is no task b"
    assert both.message == "edge x → y: there is no task x and no task y"
    assert twice.tasks == ("z",)


def test_a_cycle_is_named_with_its_path_along_the_edges() -> None:
    [problem] = check(["a", "b", "c", "d"], edges("b>c c>a a>b c>d"))
    assert problem.flaw is Flaw.CYCLE
    assert problem.tasks == ("a", "b", "c")
    assert problem.message == "cycle: a → b → c → a"


def test_a_task_that_needs_itself_is_a_cycle() -> None:
    assert cycles(["a"], edges("a>a")) == [("a",)]


def test_cycles_apart_are_each_named() -> None:
    assert sorted(cycles("abcdef", edges("a>b b>a c>d d>e e>c b>c e>f"))) == [
        ("a", "b"),
        ("c", "d", "e"),
    ]


def test_building_what_has_problems_tells_them_all() -> None:
    with pytest.raises(UsageError, match=r"pipeline p: .*no task x; cycle: a → b → a"):
        graph("a b", "a>b b>a a>x")


def test_ten_thousand_in_a_row_and_in_a_ring() -> None:
    names = [f"t{number:05}" for number in range(10_000)]
    row = [Edge(*pair) for pair in itertools.pairwise(names)]
    assert check(names, row) == []
    [ring] = cycles(names, [*row, Edge(names[-1], names[0])])
    assert ring == tuple(names)


SHAPES = st.lists(st.tuples(st.sampled_from("abcdefg"), st.sampled_from("abcdefg")), unique=True)


@given(SHAPES)
def test_a_graph_either_has_a_cycle_that_is_one_or_an_order_that_is_topological(
    pairs: list[tuple[str, str]],
) -> None:
    found = cycles("abcdefg", [Edge(*pair) for pair in pairs])
    seen: set[str] = set()
    for cycle in found:
        for source, to in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
            assert (source, to) in pairs
        assert not seen & set(cycle)
        seen |= set(cycle)
    if not found:
        shape = build(make_pipeline((make_task(name) for name in "abcdefg"), pairs))
        assert sorted(shape.order) == list("abcdefg")
        for source, to in pairs:
            assert shape.position[source] < shape.position[to]
            assert source in shape.upstream[to]
            assert to in shape.dependants[source]


@given(SHAPES)
def test_the_order_does_not_depend_on_how_it_was_written_down(
    pairs: list[tuple[str, str]],
) -> None:
    forward = [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]]
    names = list("abcdefg")
    written = build(make_pipeline(map(make_task, names), dict.fromkeys(forward)))
    names.reverse()
    backward = list(dict.fromkeys(forward))[::-1]
    assert build(make_pipeline(map(make_task, names), backward)) == written
