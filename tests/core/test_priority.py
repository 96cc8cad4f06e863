"""The queue with lazy deletion behaves as a sorted list would, and stays small."""

from __future__ import annotations

from casemate.supervisor.core.priority import PriorityQueue, Queued
from hypothesis import given
from hypothesis import strategies as st


class Item(Queued):
    pass


def test_equal_keys_come_out_in_the_order_they_were_put() -> None:
    queue: PriorityQueue[float, Item] = PriorityQueue()
    first, second = Item(), Item()
    queue.put(1.0, first)
    queue.put(1.0, second)
    assert queue.first() == (1.0, first)
    queue.discard(first)
    assert queue.first() == (1.0, second)


ACTIONS = st.lists(
    st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 5))), max_size=300
)


@given(ACTIONS)
def test_the_first_is_always_the_smallest_of_those_in_it(
    actions: list[tuple[int, int | None]],
) -> None:
    queue: PriorityQueue[float, Item] = PriorityQueue()
    items = [Item() for _ in range(5)]
    inside: dict[int, tuple[int, int]] = {}
    for turn, (which, key) in enumerate(actions):
        if key is None:
            queue.discard(items[which])
            inside.pop(which, None)
        else:
            queue.put(float(key), items[which])
            inside[which] = (key, turn)
        first = queue.first()
        if not inside:
            assert first is None
        else:
            which = min(inside, key=lambda each: inside[each])
            assert first == (inside[which][0], items[which])


def test_an_item_that_comes_back_from_another_queue_stands_only_where_it_was_put() -> None:
    one: PriorityQueue[float, Item] = PriorityQueue()
    other: PriorityQueue[float, Item] = PriorityQueue()
    item = Item()
    one.put(1.0, item)
    one.discard(item)
    other.put(2.0, item)
    assert one.first() is None
    assert other.first() == (2.0, item)


def test_what_left_or_moved_does_not_pile_up() -> None:
    queue: PriorityQueue[float, Item] = PriorityQueue()
    stays = Item()
    queue.put(0.0, stays)
    for turn in range(10_000):
        item = Item()
        queue.put(1000.0 + turn, item)
        queue.put(2000.0 + turn, item)
        queue.discard(item)
        assert len(queue._entries) < 100
    assert queue.first() == (0.0, stays)
