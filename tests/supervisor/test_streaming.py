"""Stream edges with real processes: what one task emits, another reads while both run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import Embedded, Place

TASKS = """
import time
def count(input, ctx):
    for n in range(1000):
        ctx.emit(n)
    return "counted"
def double(input, ctx):
    for n in ctx.stream("count"):
        ctx.emit(2 * n)
def add(input, ctx):
    return sum(ctx.stream(ctx.spec["of"]))
"""


@pytest.fixture
def place(place: Place) -> Place:
    place.tasks(TASKS)
    return place


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Embedded]:
    with Embedded(tmp_path / "state", max_parallel=8) as house:
        yield house


def test_a_reader_gets_every_item_in_order_and_the_end(house: Embedded, place: Place) -> None:
    history = house.run(
        place.spec(
            tasks={"count": {}, "double": {}, "add": {"spec": {"of": "double"}}},
            edges=[
                {"from": "count", "to": "double", "stream": True},
                {"from": "double", "to": "add", "stream": True},
            ],
        )
    )
    assert history.outcome == "run.completed"
    assert history.items("double") == [2 * n for n in range(1000)]
    assert history.output("add") == sum(range(1000)) * 2
