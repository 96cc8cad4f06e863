"""Who gets which items, and who waits: the rules one by one, then whole runs of random pipelines.

In the last part every guest does what real ones do: it reads its streams in an order of its own,
blocks where nothing has come, says items of its own in between, and credits late. The journal
commits when it likes, pages are read when it likes, attempts fail. However it comes, every reader
gets every item once and in order, nothing is sent that is not durable, what is held in memory stays
within a window, and the pipeline comes to its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from random import Random

import msgspec
import pytest
from casemate.protocol.errors import RemoteViolation
from casemate.protocol.limits import (
    EVENT_SIZE,
    ITEM_SIZE,
    MIB,
    STREAM_CREDIT_ITEMS,
    STREAM_CREDIT_SIZE,
)
from casemate.supervisor.core import credit as module
from casemate.supervisor.core.credit import (
    Action,
    Credit,
    Give,
    GiveEnd,
    Hold,
    Name,
    ReadItems,
    Unheard,
    Wait,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

A, B, C, D = ("a", 1), ("b", 1), ("c", 1), ("d", 1)
ONE: dict[str, list[str]] = {"a": ["b"]}


def items(first: int, count: int, size: int = 1) -> list[tuple[int, Raw]]:
    """Events of these numbers, each an item that is its own number."""
    pad = b"x" * (size - 1)
    return [(seq, Raw(msgspec.msgpack.encode([seq, pad]))) for seq in range(first, first + count)]


def numbers(actions: list[Action], reader: Name = B) -> list[int]:
    """The items that a reader is sent."""
    return [
        msgspec.msgpack.decode(item)[0]
        for action in actions
        if isinstance(action, Give) and action.reader == reader
        for item in action.items
    ]


def of(actions: list[Action], kind: type[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, kind)]


def test_an_item_is_sent_when_it_is_durable_and_not_before() -> None:
    credit = Credit(ONE, MIB)
    credit.begins(B, [A])
    assert numbers(credit.said(A, items(1, 3))) == []
    assert numbers(credit.durable(2)) == [1, 2]
    assert numbers(credit.durable(9)) == [3]


def test_the_end_is_said_once_when_the_completion_is_durable_and_all_was_sent() -> None:
    credit = Credit(ONE, MIB)
    credit.begins(B, [A])
    credit.said(A, items(1, STREAM_CREDIT_ITEMS + 1))
    credit.completed(A, 1000)
    assert len(numbers(credit.durable(999))) == STREAM_CREDIT_ITEMS
    assert not of(credit.durable(1000), GiveEnd)  # one is still to be sent
    last = credit.credited(B, "a", STREAM_CREDIT_ITEMS)
    assert last[:2] == [Give(B, "a", (items(257, 1)[0][1],)), GiveEnd(B, "a")]
    assert not of(credit.credited(B, "a", 1), GiveEnd)


def test_a_speaker_is_held_when_a_window_was_said_and_not_credited() -> None:
    credit = Credit(ONE, MIB)
    credit.begins(B, [A])
    credit.said(A, items(1, STREAM_CREDIT_ITEMS - 1))
    assert of(credit.said(A, items(256, 1)), Hold) == [Hold(A, True)]
    credit.durable(256)
    assert of(credit.credited(B, "a", 1), Hold) == [Hold(A, False)]


def test_bytes_hold_as_items_do() -> None:
    credit = Credit(ONE, 10 * MIB)
    credit.begins(B, [A])
    assert Hold(A, True) in credit.said(A, items(1, 3, size=STREAM_CREDIT_SIZE // 2))
    # What is under way to a reader is within a window too.
    assert numbers(credit.durable(3)) == [1]
    assert numbers(credit.credited(B, "a", 1)) == [2]


def test_one_message_is_never_larger_than_may_be() -> None:
    credit = Credit(ONE, 10 * MIB)
    credit.said(A, items(1, 3, size=ITEM_SIZE // 2 - 10))
    credit.durable(3)
    [read] = of(credit.begins(B, [A]), ReadItems)
    assert isinstance(read, ReadItems)
    gives = of(credit.read(read, items(1, 3, size=ITEM_SIZE // 2 - 10), True), Give)
    assert [len(each.items) for each in gives if isinstance(each, Give)] == [2]


def test_a_slow_reader_holds_its_speaker_and_nobody_else() -> None:
    credit = Credit({"a": ["b", "c"], "d": ["c"]}, MIB)
    credit.begins(B, [A])
    credit.begins(C, [A, D])
    credit.said(A, items(1, STREAM_CREDIT_ITEMS))
    credit.said(D, items(300, 10))
    credit.durable(310)
    credit.credited(B, "a", STREAM_CREDIT_ITEMS)
    assert not of(credit.credited(C, "d", 10), Hold)
    assert of(credit.credited(C, "a", 1), Hold) == [Hold(A, False)]


def test_a_reader_that_has_ended_holds_nobody() -> None:
    credit = Credit(ONE, MIB)
    credit.begins(B, [A])
    credit.said(A, items(1, STREAM_CREDIT_ITEMS))
    assert of(credit.ended(B), Hold) == [Hold(A, False)]
    assert not of(credit.said(A, items(300, STREAM_CREDIT_ITEMS)), Hold)


def test_a_reader_that_begins_late_reads_the_journal_until_it_is_level() -> None:
    credit = Credit(ONE, MIB)
    credit.said(A, items(1, 10))
    credit.durable(10)
    started = credit.begins(B, [A])
    assert of(started, ReadItems) == [ReadItems(B, A, 0, 10)]
    assert not numbers(credit.said(A, items(11, 2)) + credit.durable(12))
    [read] = of(started, ReadItems)
    assert isinstance(read, ReadItems)
    first = credit.read(read, items(1, 7), False)
    assert numbers(first) == [1, 2, 3, 4, 5, 6, 7]
    assert of(first, ReadItems) == [ReadItems(B, A, 7, 12)]
    assert numbers(credit.read(ReadItems(B, A, 7, 12), items(8, 5), True)) == [8, 9, 10, 11, 12]
    credit.said(A, items(13, 1))
    assert numbers(credit.durable(13)) == [13]


def test_a_restarted_reader_gets_everything_from_the_first_item() -> None:
    credit = Credit(ONE, MIB)
    credit.begins(B, [A])
    credit.said(A, items(1, 5))
    credit.completed(A, 6)
    credit.durable(6)
    credit.credited(B, "a", 5)
    credit.ended(B)
    again = ("b", 2)
    assert of(credit.begins(again, [A]), ReadItems) == [ReadItems(again, A, 0, 5)]
    last = credit.read(ReadItems(again, A, 0, 5), items(1, 5), True)
    assert numbers(last, again) == [1, 2, 3, 4, 5]
    assert of(last, GiveEnd) == [GiveEnd(again, "a")]


def test_what_completed_in_an_earlier_life_is_read_from_the_journal() -> None:
    credit = Credit(ONE, MIB, durable=40)
    started = credit.begins(B, [("a", 3)], {"a"})
    assert of(started, ReadItems) == [ReadItems(B, ("a", 3), 0, 40)]
    last = credit.read(ReadItems(B, ("a", 3), 0, 40), [], True)
    assert of(last, GiveEnd) == [GiveEnd(B, "a")]


def test_a_completed_attempt_that_a_rollback_has_restored_is_read_from_the_journal() -> None:
    credit = Credit(ONE, MIB)
    credit.said(("a", 1), items(1, 2))
    credit.completed(("a", 1), 3)
    credit.said(("a", 2), items(10, 1))  # undone before it had completed
    credit.durable(20)
    credit.ended(("a", 2))
    assert of(credit.begins(B, [("a", 1)], {"a"}), ReadItems) == [ReadItems(B, ("a", 1), 0, 20)]


def test_a_page_for_a_reader_that_has_ended_is_dropped() -> None:
    credit = Credit(ONE, MIB)
    credit.said(A, items(1, 1))
    credit.durable(1)
    [read] = of(credit.begins(B, [A]), ReadItems)
    credit.ended(B)
    assert isinstance(read, ReadItems)
    assert credit.read(read, items(1, 1), True) == []


def test_without_a_reader_items_are_journaled_up_to_the_backlog() -> None:
    credit = Credit(ONE, 10 * EVENT_SIZE)
    assert credit.said(A, items(1, 10)) == []
    assert credit.said(A, items(11, 1)) == [Unheard(A, "b", 11 * EVENT_SIZE)]


def test_what_a_reader_had_dealt_with_does_not_count_against_the_backlog() -> None:
    credit = Credit(ONE, 10 * EVENT_SIZE)
    credit.begins(B, [A])
    credit.said(A, items(1, 20))
    credit.durable(20)
    credit.credited(B, "a", 15)
    credit.ended(B)
    assert not of(credit.said(A, items(21, 5)), Unheard)
    assert of(credit.said(A, items(26, 1)), Unheard) == [Unheard(A, "b", 11 * EVENT_SIZE)]


def test_what_was_dealt_with_once_stays_so_where_the_next_reader_gets_less_far() -> None:
    credit = Credit(ONE, 10 * EVENT_SIZE)
    credit.begins(B, [A])
    credit.said(A, items(1, 20))
    credit.durable(20)
    credit.credited(B, "a", 15)
    credit.ended(B)
    again = ("b", 2)
    credit.begins(again, [A])
    credit.ended(again)
    assert not of(credit.said(A, items(21, 5)), Unheard)
    assert of(credit.said(A, items(26, 1)), Unheard) == [Unheard(A, "b", 11 * EVENT_SIZE)]


def test_credit_for_what_was_not_sent_is_the_readers_fault() -> None:
    credit = Credit(ONE, MIB)
    credit.begins(B, [A])
    credit.said(A, items(1, 2))
    credit.durable(2)
    with pytest.raises(RemoteViolation, match="credit for 3 items of a, and 2 were under way"):
        credit.credited(B, "a", 3)
    with pytest.raises(RemoteViolation, match="credit for 'c', which it does not read"):
        credit.credited(B, "c", 1)


def test_an_idle_clock_stands_still_while_a_task_is_starved_or_held() -> None:
    credit = Credit(ONE, MIB)
    assert of(credit.begins(B, [A]), Wait) == [Wait(B, True)]
    assert of(credit.said(A, items(1, STREAM_CREDIT_ITEMS)), Wait) == [Wait(A, True)]
    assert of(credit.durable(256), Wait) == [Wait(B, False)]
    assert of(credit.credited(B, "a", 1), Wait) == [Wait(A, False)]
    assert of(credit.credited(B, "a", 255), Wait) == [Wait(B, True)]
    credit.completed(A, 300)
    assert of(credit.durable(300), Wait) == [Wait(B, False)]  # there is nothing to wait for


def diamond() -> Credit:
    """d reads all of b before it looks at c; both read a, and c says far more than b."""
    credit = Credit({"a": ["b", "c"], "b": ["d"], "c": ["d"]}, MIB)
    credit.begins(B, [A])
    credit.begins(C, [A])
    credit.begins(D, [B, C])
    return credit


def test_a_speaker_is_let_go_on_where_holding_it_would_be_a_deadlock() -> None:
    credit = diamond()
    credit.said(A, items(1, STREAM_CREDIT_ITEMS))
    credit.durable(256)
    credit.credited(B, "a", STREAM_CREDIT_ITEMS)  # b has said nothing yet
    # c is not held though d reads nothing of it: a waits for c, b for a, and d for b.
    assert not of(credit.said(C, items(300, STREAM_CREDIT_ITEMS)), Hold)
    assert of(credit.credited(C, "a", STREAM_CREDIT_ITEMS), Hold) == [
        Hold(A, False),
        Hold(C, True),
    ]


def test_who_waits_for_a_provisional_end_waits_for_all_that_it_read() -> None:
    credit = diamond()
    credit.said(A, items(1, 1))
    credit.said(C, items(300, STREAM_CREDIT_ITEMS))
    credit.durable(600)
    credit.ended(B)  # it needed no more; its result is final when a has completed
    # d waits for the end of b, and so for a. a is not held, though c is, and takes nothing.
    assert not of(credit.said(A, items(700, STREAM_CREDIT_ITEMS)), Hold)


# --- whole runs ----------------------------------------------------------------------------------

WINDOW = 8
MARGIN = 3  # messages that one read of a link may bring


class Guest:
    """One attempt: `program` yields the name of a stream to read, or None to say an item."""

    def __init__(self, name: Name, program: Iterator[str | None], reads: list[str]) -> None:
        self.name = name
        self.program = program
        self.wants = next(program, "")  # "": it is done
        self.outbox: deque[str | None] = deque()  # an upstream: a credit; None: an item
        self.come: dict[str, deque[int]] = {each: deque() for each in reads}
        self.got: dict[str, list[int]] = {each: [] for each in reads}
        self.ended: set[str] = set()
        self.in_hand = dict.fromkeys(reads, 0)
        self.owed = dict.fromkeys(reads, 0)
        self.sent = dict.fromkeys(reads, 0)  # to it, and not credited
        self.is_held = False
        self.is_early = False  # it left before it had read everything
        self.said = 0

    @property
    def is_done(self) -> bool:
        return self.wants == "" and not self.outbox

    def work(self) -> bool:
        """One step of its own; False: it cannot."""
        if self.wants == "" or len(self.outbox) >= MARGIN:
            return False
        if self.wants is None:
            self.outbox.append(None)
        else:
            stream, before = self.wants, len(self.outbox)
            self.owed[stream] += self.in_hand[stream]
            self.in_hand[stream] = 0
            if self.owed[stream] >= (WINDOW // 4 if self.come[stream] else 1):
                self.outbox += [stream] * self.owed[stream]
                self.owed[stream] = 0
            if self.come[stream]:
                self.got[stream].append(self.come[stream].popleft())
                self.in_hand[stream] = 1
            elif stream not in self.ended:
                return len(self.outbox) > before
        self.wants = next(self.program, "")
        return True


class World:
    """A host that does things in any order."""

    def __init__(self, random: Random, tasks: int) -> None:
        self.random = random
        self.tasks = [chr(ord("a") + number) for number in range(tasks)]
        self.sources = {
            task: [
                source for source in self.tasks[:place] if random.random() < 0.6
            ]
            for place, task in enumerate(self.tasks)
        }  # fmt: skip
        self.readers = {
            source: [task for task in self.tasks if source in self.sources[task]]
            for source in self.tasks
        }
        self.journal: list[tuple[int, Name, int | None]] = []
        self.durable = 0
        self.live: dict[str, Guest] = {}
        self.provisional: set[str] = set()
        self.completed: set[str] = set()
        self.attempts = dict.fromkeys(self.tasks, 0)
        self.said: dict[str, int] = dict.fromkeys(self.tasks, 0)
        self.outcome: dict[str, Guest] = {}
        self.pages: list[ReadItems] = []
        self.credit = Credit(self.readers, 1 << 40)

    def program(self, task: str) -> Iterator[str | None]:
        random = self.random
        streams = random.sample(self.sources[task], len(self.sources[task]))
        kind = random.choice(["one by one", "in turns", "at random", "early"])
        guest = self.live[task]
        if not streams:
            yield from [None] * random.randrange(5 * WINDOW)
        while streams:
            stream = streams[0] if kind == "one by one" else random.choice(streams)
            if kind == "in turns":
                stream = streams.pop(0)
                streams.append(stream)
            yield stream
            if stream in guest.ended and not guest.come[stream]:
                streams.remove(stream)
            yield from [None] * random.choice([0, 1, 1, 3])
            if kind == "early" and random.random() < 0.05:
                guest.is_early = True
                return

    def begin(self, task: str) -> bool:
        self.attempts[task] += 1
        name = (task, self.attempts[task])
        guest = self.live[task] = Guest(name, iter(()), self.sources[task])
        guest.program = self.program(task)
        guest.wants = next(guest.program, "")
        sources = [(source, self.attempts[source]) for source in self.sources[task]]
        if sources:
            self.act(self.credit.begins(name, sources))
        return True

    def is_startable(self, task: str) -> bool:
        return (
            task not in self.live
            and task not in self.provisional
            and task not in self.completed
            and all(
                source in self.live or source in self.provisional or source in self.completed
                for source in self.sources[task]
            )
        )

    def hear(self, task: str) -> bool:
        """The link is read once."""
        guest = self.live[task]
        said: list[tuple[int, Raw]] = []
        for _ in range(self.random.randint(1, MARGIN)):
            if not guest.outbox or guest.is_held:
                break
            upstream = guest.outbox.popleft()
            if upstream is not None:
                guest.sent[upstream] -= 1
                self.act(self.credit.credited(guest.name, upstream, 1))
                continue
            seq = len(self.journal) + 1
            self.journal.append((seq, guest.name, guest.said))
            said.append((seq, raw(guest.said)))
            guest.said += 1
        if said:
            self.act(self.credit.said(guest.name, said))
        if guest.is_done:
            self.end(task)
            self.provisional.add(task)
            self.outcome[task] = guest
            self.complete()
        return True

    def complete(self) -> None:
        for task in self.tasks:
            if task in self.provisional and all(s in self.completed for s in self.sources[task]):
                self.provisional.remove(task)
                self.completed.add(task)
                seq = len(self.journal) + 1
                name = (task, self.attempts[task])
                self.journal.append((seq, name, None))
                self.credit.completed(name, seq)

    def end(self, task: str) -> None:
        self.act(self.credit.ended(self.live.pop(task).name))

    def fail(self, task: str) -> None:
        """So do all that read what it said."""
        for reader in self.readers[task]:
            if reader in self.provisional:
                self.provisional.remove(reader)
                self.fail(reader)
            elif reader in self.live:
                self.fail(reader)
        if task in self.live:
            self.end(task)

    def commit(self) -> bool:
        self.durable = self.random.randint(self.durable + 1, len(self.journal))
        self.act(self.credit.durable(self.durable))
        return True

    def read(self) -> bool:
        asked = self.pages.pop(self.random.randrange(len(self.pages)))
        found = [
            (seq, raw(number))
            for seq, name, number in self.journal
            if name == asked.speaker and number is not None and asked.after < seq <= asked.until
        ]
        page = found[: self.random.randint(1, WINDOW)]
        self.act(self.credit.read(asked, page, page == found))
        return True

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Give(reader=reader, upstream=upstream, items=given):
                    guest = self.live[reader[0]]
                    assert guest.name == reader
                    assert upstream not in guest.ended
                    source = (upstream, self.attempts[upstream])
                    for item in given:
                        number = msgspec.msgpack.decode(item)
                        assert (source, number) in {
                            each[1:] for each in self.journal[: self.durable]
                        }
                        guest.come[upstream].append(number)
                    guest.sent[upstream] += len(given)
                    assert guest.sent[upstream] <= WINDOW
                case GiveEnd(reader=reader, upstream=upstream):
                    assert upstream in self.completed
                    assert upstream not in self.live[reader[0]].ended
                    self.live[reader[0]].ended.add(upstream)
                case Hold(speaker=speaker, is_held=is_held):
                    self.live[speaker[0]].is_held = is_held
                case ReadItems():
                    self.pages.append(action)
        for edges in self.credit._edges.values():
            assert all(len(edge.pending) <= WINDOW for edge in edges.values())

    def choices(self) -> list[Callable[[], bool]]:
        startable = [task for task in self.tasks if self.is_startable(task)]
        found: list[Callable[[], bool]] = [lambda t=t: self.begin(t) for t in startable]  # type: ignore[misc]
        for task, guest in self.live.items():
            found.append(guest.work)
            if guest.is_done or (guest.outbox and not guest.is_held):
                found.append(lambda t=task: self.hear(t))  # type: ignore[misc]
        if self.pages:
            found.append(self.read)
        if self.durable < len(self.journal):
            found.append(self.commit)
        return found


def raw(value: object) -> Raw:
    return Raw(msgspec.msgpack.encode(value))


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(2, 6), st.booleans())
def test_whatever_happens_every_reader_gets_everything_and_nothing_stands_still(
    seed: int, tasks: int, is_calm: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STREAM_CREDIT_ITEMS", WINDOW)
        patch.setattr(module, "STREAM_CREDIT_SIZE", WINDOW * EVENT_SIZE)
        random = Random(seed)
        world = World(random, tasks)
        for _ in range(0 if is_calm else 400):
            if (choices := world.choices()) and random.random() < 0.99:
                random.choice(choices)()
            elif world.live:
                world.fail(random.choice(sorted(world.live)))
        # From here on nothing fails, and everybody gets his turn.
        while len(world.completed) < tasks:
            moved = [choice() for choice in world.choices()]
            assert any(moved), "everybody waits"
        for guest in world.outcome.values():
            for source, got in guest.got.items():
                everything = list(range(world.outcome[source].said))
                assert got == everything[: len(got)]
                assert got == everything or guest.is_early
