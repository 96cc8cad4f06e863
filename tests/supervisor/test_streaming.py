"""Stream edges with real processes: what one task emits, another reads while both run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.limits import STREAM_CREDIT_ITEMS
from casemate.supervisor.cursor import public
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.state import StateDirectory
from fakes import wait_until
from runs import LAST, Embedded, Place, is_alive
from verifier import assert_true_story

TASKS = """
import asyncio, time
from casemate.protocol.messages import Credit

def count(input, ctx):
    for n in range(ctx.spec.get("to", 1000)):
        ctx.emit(n)
    return "counted"

def many(input, ctx):
    for n in range(ctx.spec["to"]):
        ctx.emit({"n": n, "pad": "x" * ctx.spec.get("pad", 0)})

def add(input, ctx):
    return sum(ctx.stream(ctx.spec.get("of", "count")))

def double(input, ctx):
    for n in ctx.stream(ctx.spec.get("of", "count")):
        ctx.emit(2 * n)

def lazy(input, ctx):
    total = 0
    for n in ctx.stream("count"):
        total += n
        if n % 100 == 0:
            time.sleep(0.01)
    return total

def stuck(input, ctx):
    next(ctx.stream(ctx.spec["of"]))
    ctx.emit("has one")
    time.sleep(3600)

def alone(input, ctx):
    return "done"

def given(input, ctx):
    return input

def orderly(input, ctx):
    try:
        endless(input, ctx)
    finally:
        ctx.save("the last")

def first_three(input, ctx):
    stream = ctx.stream("count")
    return [next(stream) for _ in range(3)]

def moody(input, ctx):
    got = []
    for n in ctx.stream("count"):
        got.append(n)
        if ctx.attempt == 1 and n == 700:
            raise ValueError("not today")
    return sum(got)

def shaky(input, ctx):
    for n in range(1000):
        ctx.emit(ctx.attempt * 10_000 + n)
        if ctx.attempt == 1 and n == 700:
            raise ValueError("not today")

def endless(input, ctx):
    while True:
        ctx.emit("x" * 1000)

def one_by_one(input, ctx):
    return [sum(ctx.stream(name)) for name in ("few", "all")]

def few(input, ctx):
    for n in ctx.stream("count"):
        if n % 1000 == 999:
            ctx.emit(n)

def all(input, ctx):
    for n in ctx.stream("count"):
        ctx.emit(n)

async def together(input, ctx):
    async def one(name):
        return sum([n async for n in ctx.stream(name)])
    return await asyncio.gather(one("few"), one("all"))

def patient(input, ctx):
    got = list(ctx.stream(ctx.spec["of"]))
    ctx.emit("has all")
    if ctx.attempt == 1:
        time.sleep(3600)
    return len(got)

def size(input, ctx):
    return sum(len(item["pad"]) for item in ctx.stream("many"))

def paced(input, ctx):
    for n in range(1500):
        ctx.emit(n)
        time.sleep(0.001)

def slowly(input, ctx):
    for n in range(3):
        time.sleep(2.5 if n == 1 else 0)
        ctx.emit(n)

def liar(input, ctx):
    for n in ctx.stream("count"):
        ctx._speaker.send(Credit(upstream="count", items=256))

def stranger(input, ctx):
    ctx._speaker.send(Credit(upstream="alone", items=1))
    time.sleep(3600)
"""


@pytest.fixture
def place(place: Place) -> Place:
    place.tasks(TASKS)
    return place


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One for all: no run of these leaves anything behind that another could meet."""
    with Embedded(tmp_path_factory.mktemp("house") / "state", max_parallel=8) as house:
        yield house


def streams(*edges: str) -> list[dict[str, Any]]:
    """`streams("a b", "b c")`: a streams to b and b to c."""
    found = (edge.split() for edge in edges)
    return [{"from": source, "to": to, "stream": True} for source, to in found]


def test_a_reader_gets_every_item_in_order_and_the_end(house: Embedded, place: Place) -> None:
    tasks = {"count": {}, "double": {}, "add": {"spec": {"of": "double"}}}
    history = house.run(place.spec(tasks=tasks, edges=streams("count double", "double add")))
    assert history.outcome == "run.completed"
    assert history.items("double") == [2 * n for n in range(1000)]
    assert history.output("add") == sum(range(1000)) * 2


def test_a_chain_of_five_streaming_tasks_runs_side_by_side(house: Embedded, place: Place) -> None:
    names = ["count", "b", "c", "d", "e"]
    tasks: dict[str, Any] = {
        after: {"execute": "tasks.py:double", "spec": {"of": before}}
        for before, after in pairwise(names)
    }
    edges = [f"{before} {after}" for before, after in pairwise(names)]
    history = house.run(place.spec(tasks={"count": {}, **tasks}, edges=streams(*edges)))
    assert history.items("e") == [16 * n for n in range(1000)]
    for before, after in pairwise(names):
        assert history.seq("task.ready", after) < history.seq("task.completed", before)


def test_a_slow_reader_holds_its_producer_and_nothing_else(house: Embedded, place: Place) -> None:
    endless = {"execute": "tasks.py:endless", "limits": {"output": "4MiB"}}
    live = house.start(
        place.spec(
            tasks={"held": endless, "free": endless, "stuck": {"spec": {"of": "held"}}},
            edges=streams("held stuck"),
        )
    )
    live.wait("task.emitted", "stuck")
    # The same code, which nobody reads, has said all that it may: 4000 items of 1 KB.
    assert live.wait("task.failed", "free").data["error"]["kind"] == "output_limit"
    # Beyond the window come one read of the link and what lay in its buffers.
    said = sum((event.kind, event.task) == ("task.emitted", "held") for event in live.events)
    assert STREAM_CREDIT_ITEMS <= said < 1000
    live.cancel()
    assert live.finish().outcome == "run.cancelled"


def test_readers_of_one_producer_go_at_their_own_speeds(house: Embedded, place: Place) -> None:
    tasks: dict[str, Any] = {"count": {}, "lazy": {}, "add": {}}
    history = house.run(place.spec(tasks=tasks, edges=streams("count lazy", "count add")))
    assert history.output("lazy") == history.output("add") == sum(range(1000))


@pytest.mark.parametrize("reader", ["one_by_one", "together"])
def test_a_reader_of_several_streams_may_read_them_in_any_order(
    house: Embedded, place: Place, reader: str
) -> None:
    """One by one it waits for `few` while `all` is full; both wait for `count`."""
    history = house.run(
        place.spec(
            tasks={"count": {"spec": {"to": 5000}}, "few": {}, "all": {}, reader: {}},
            edges=streams("count few", "count all", f"few {reader}", f"all {reader}"),
        )
    )
    assert history.output(reader) == [sum(range(999, 5000, 1000)), sum(range(5000))]


def test_a_reader_that_needs_no_more_lets_its_producer_run_on(
    house: Embedded, place: Place
) -> None:
    history = house.run(
        place.spec(
            tasks={
                "count": {"spec": {"to": 5000}},
                "first_three": {},
                "alone": {"needs": ["first_three"]},
            },
            edges=streams("count first_three"),
        )
    )  # fmt: skip
    assert history.output("first_three") == [0, 1, 2]
    assert len(history.items("count")) == 5000
    # Its result was provisional until then, and nothing built on it.
    assert history.seq("task.completed", "count") < history.seq("task.completed", "first_three")
    assert history.seq("task.completed", "first_three") < history.seq("task.started", "alone")


def test_a_reader_that_failed_gets_everything_again_from_the_first_item(
    house: Embedded, place: Place
) -> None:
    tasks = {"count": {}, "moody": {"retry": {"attempts": 2, "delay": 0}}}
    history = house.run(place.spec(tasks=tasks, edges=streams("count moody")))
    assert history.output("moody") == sum(range(1000))
    assert len(history.of("task.started", "count")) == 1


def test_readers_begin_again_when_their_producer_does(house: Embedded, place: Place) -> None:
    tasks = {"shaky": {"retry": {"attempts": 2, "delay": 0}},
             "double": {"spec": {"of": "shaky"}}, "add": {"spec": {"of": "double"}}}  # fmt: skip
    history = house.run(place.spec(tasks=tasks, edges=streams("shaky double", "double add")))
    assert history.output("add") == 2 * sum(range(20_000, 21_000))


def test_one_at_a_time_a_stream_goes_by_way_of_the_journal(tmp_path: Path, place: Place) -> None:
    tasks = {"count": {"spec": {"to": 3000}}, "double": {}, "add": {"spec": {"of": "double"}}}
    with Embedded(tmp_path / "state", max_parallel=1) as house:
        history = house.run(place.spec(tasks=tasks, edges=streams("count double", "double add")))
    assert history.output("add") == 2 * sum(range(3000))
    assert history.peak() == 1


def test_items_that_nobody_reads_yet_are_kept_up_to_the_backlog(
    tmp_path: Path, place: Place
) -> None:
    spec = place.spec(
        tasks={
            "many": {"spec": {"to": 1000, "pad": 10_000}},
            "reader": {"execute": "tasks.py:add"},
        },
        edges=streams("many reader"),
        stream_backlog="1MiB",
    )
    with Embedded(tmp_path / "state", max_parallel=1) as house:
        history = house.run(spec)
    assert history.errors() == {"many": "output_limit", "reader": "upstream_failed"}
    assert (
        "wait for reader, which does not run yet, and stream_backlog is 1MiB"
        in (history.error("many")["message"])
    )


def test_large_items_come_whole(house: Embedded, place: Place) -> None:
    history = house.run(
        place.spec(
            tasks={"many": {"spec": {"to": 12, "pad": 900_000}}, "size": {}},
            edges=streams("many size"),
        )
    )  # fmt: skip
    assert history.output("size") == 12 * 900_000


def test_a_command_reads_a_stream_as_lines_of_a_fifo(house: Embedded, place: Place) -> None:
    history = house.run(
        place.spec(
            tasks={
                "count": {},
                "sum": {
                    "command": [
                        "sh", "-c",
                        'awk \'{s += $1} END {printf "{\\"output\\": %d}\\n", s}\' '
                        '"$CASEMATE_STREAM_COUNT" >&"$CASEMATE_EVENTS_FD"',
                    ]
                },
            },
            edges=streams("count sum"),
        )
    )  # fmt: skip
    assert history.output("sum") == sum(range(1000))


def test_a_command_need_not_read_its_stream(house: Embedded, place: Place) -> None:
    tasks: dict[str, Any] = {"count": {"spec": {"to": 3000}}, "deaf": {"command": ["true"]}}
    history = house.run(place.spec(tasks=tasks, edges=streams("count deaf")))
    assert history.output("deaf") is None
    assert len(history.items("count")) == 3000


def test_a_command_that_has_closed_its_stream_holds_nobody(house: Embedded, place: Place) -> None:
    full = "head -n 1 $CASEMATE_STREAM_COUNT; sleep 3600"
    tasks: dict[str, Any] = {
        "count": {"spec": {"to": 3000}},
        "full": {"command": ["sh", "-c", full]},
    }
    live = house.start(place.spec(tasks=tasks, edges=streams("count full")))
    live.wait("task.completed", "count")
    live.cancel()
    assert live.finish().outcome == "run.cancelled"


def test_an_idle_clock_stands_still_while_a_task_waits_for_another(
    house: Embedded, place: Place
) -> None:
    tasks = {"slowly": {}, "add": {"spec": {"of": "slowly"}, "timeouts": {"idle": "2s"}}}
    history = house.run(place.spec(tasks=tasks, edges=streams("slowly add")))
    assert history.output("add") == 3


def test_a_task_that_only_reads_streams_has_an_empty_input(house: Embedded, place: Place) -> None:
    tasks = {"alone": {}, "given": {}, "both": {"execute": "tasks.py:given"}}
    edges = [*streams("alone given", "alone both"), ["given", "both"]]
    history = house.run(place.spec(tasks=tasks, edges=edges), {"the run's": "own"})
    assert history.output("given") == {}
    assert history.output("both") == {"given": {}}


def test_a_producer_that_is_held_can_save_when_it_is_asked_to_end(
    house: Embedded, place: Place
) -> None:
    timeouts = {"wall": "3s", "grace": "60s"}
    tasks = {"orderly": {"timeouts": timeouts}, "stuck": {"spec": {"of": "orderly"}}}
    history = house.run(place.spec(tasks=tasks, edges=streams("orderly stuck")))
    assert history.one("task.saved", "orderly").data["state"] == "the last"
    assert history.error("orderly")["kind"] == "timeout.wall"


@pytest.mark.parametrize(
    ("guest", "message"),
    [
        ("liar", "credit for 256 items of count"),
        ("stranger", "credit for 'alone', which it does not read"),
    ],
)
def test_a_guest_that_credits_what_it_was_not_sent_is_killed(
    house: Embedded, place: Place, guest: str, message: str
) -> None:
    tasks: dict[str, Any] = {"count": {}, guest: {}, "alone": {}}
    history = house.run(place.spec(tasks=tasks, edges=streams(f"count {guest}")))
    assert history.errors() == {guest: "protocol"}
    assert message in history.error(guest)["message"]
    assert history.output("count") == "counted"


# --- coming back ---------------------------------------------------------------------------------

PACED: dict[str, Any] = {
    "tasks": {"paced": {}, "double": {"spec": {"of": "paced"}}, "add": {"spec": {"of": "double"}}},
    "edges": streams("paced double", "double add"),
}
TOTAL = 2 * sum(range(1500))


def ends(state: Path, run: str) -> list[Any]:
    """What each ending of the run gave, once it has ended and not begun again."""
    with JournalReader(StateDirectory(state).run(run)) as reader:
        found = [public(event) for event, _ in reader.outlines(0, 100_000)]
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    return [event.data.get("outputs", event.kind) for event in found if event.kind in LAST]


def test_a_run_that_was_killed_in_mid_stream_ends_as_if_it_had_not_been(
    tmp_path: Path, place: Place
) -> None:
    state = tmp_path / "state"
    with Embedded(state, max_parallel=8) as house:
        live = house.start(place.spec(**PACED))
        live.wait("task.emitted", "double", 300)
        pid = live.wait("task.started", "add").data["pid"]
        os.kill(house.engine, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid))
    with Embedded(state, max_parallel=8) as house:
        house.call(house.supervisor.resume(live.run))
        wait_until(lambda: ends(state, live.run))
    assert ends(state, live.run) == [{"add": TOTAL}]


def test_what_had_been_streamed_to_its_end_is_read_from_the_journal_by_the_next_supervisor(
    tmp_path: Path, place: Place
) -> None:
    state = tmp_path / "state"
    tasks: dict[str, Any] = {"count": {}, "patient": {"spec": {"of": "count"}}}
    with Embedded(state) as house:
        live = house.start(place.spec(tasks=tasks, edges=streams("count patient")))
        live.wait("task.emitted", "patient")  # it has read everything
        live.wait("task.completed", "count")
        os.kill(house.engine, signal.SIGKILL)
    with Embedded(state) as house:
        house.call(house.supervisor.resume(live.run))
        wait_until(lambda: ends(state, live.run))
    assert ends(state, live.run) == [{"patient": 1000}]
    with JournalReader(StateDirectory(state).run(live.run)) as reader:
        started = [each.task for each in reader.events(0, 10_000) if each.kind == "task.started"]
    assert started == ["count", "patient", "patient"]


def test_items_that_cannot_be_read_again_fail_the_run(tmp_path: Path, place: Place) -> None:
    state = tmp_path / "state"
    spec = place.spec(
        tasks={"many": {"spec": {"to": 3, "pad": 20_000}}, "patient": {"spec": {"of": "many"}}},
        edges=streams("many patient"),
    )
    with Embedded(state) as house:
        live = house.start(spec)
        live.wait("task.emitted", "patient")
        live.wait("task.completed", "many")
        os.kill(house.engine, signal.SIGKILL)
    for value in StateDirectory(state).run(live.run).values.rglob("*"):
        if value.is_file():
            value.unlink()
    with Embedded(state) as house:
        house.call(house.supervisor.resume(live.run))
        wait_until(lambda: ends(state, live.run))
    assert ends(state, live.run) == ["run.failed"]


@pytest.mark.parametrize("drain", [False, True])
def test_a_pause_in_mid_stream_changes_nothing(house: Embedded, place: Place, drain: bool) -> None:
    live = house.start(place.spec(**PACED))
    live.wait("task.emitted", "double", 300)
    house.call(house.supervisor.pause(live.run, drain=drain))
    house.call(house.supervisor.resume(live.run))
    assert live.finish().output("add") == TOTAL


def test_a_rollback_in_mid_stream_begins_the_stream_anew(house: Embedded, place: Place) -> None:
    live = house.start(place.spec(**PACED))
    live.wait("task.emitted", "double", 300)
    house.call(house.supervisor.rollback(live.run, "c0"))
    history = live.finish()
    assert history.output("add") == TOTAL
    assert len(history.of("task.started", "paced")) == 2


@pytest.mark.parametrize("undone", ["paced", "double", "add"])
def test_a_run_that_has_ended_is_done_again_from_any_of_its_streams(
    house: Embedded, place: Place, undone: str
) -> None:
    run = house.run(place.spec(**PACED)).run
    house.call(house.supervisor.rollback(run, before=undone))
    wait_until(lambda: len(ends(house.state, run)) == 2)
    assert ends(house.state, run) == [{"add": TOTAL}] * 2


def test_a_fork_reads_the_streams_of_what_it_was_copied_from(house: Embedded, place: Place) -> None:
    run = house.run(place.spec(**PACED)).run
    copy = house.call(house.supervisor.fork(run, "c1"))  # where the producer had completed
    wait_until(lambda: ends(house.state, copy))
    assert ends(house.state, copy) == [{"add": TOTAL}]


def test_a_producer_that_is_given_back_as_it_was_is_read_from_the_journal(
    house: Embedded, place: Place
) -> None:
    run = house.run(place.spec(**PACED)).run
    house.call(house.supervisor.rollback(run, before="paced"))
    wait_until(lambda: len(ends(house.state, run)) == 2)
    house.call(house.supervisor.rollback(run, "c1"))  # which holds its first attempt
    wait_until(lambda: len(ends(house.state, run)) == 3)
    assert ends(house.state, run) == [{"add": TOTAL}] * 3
    assert_true_story(house.state, run, has_ended=True)
