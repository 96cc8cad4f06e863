"""A guest that listens: streams, saves, a deadline that moves.

As in `test_guest.py` each test forks a real guest that talks over a real socket.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate.protocol import codec
from casemate.protocol.limits import SAVED_SIZE, STREAM_CREDIT_ITEMS
from casemate.protocol.messages import (
    Credit,
    Deadline,
    Emit,
    End,
    Fail,
    Item,
    Log,
    Message,
    Result,
    Save,
    Saved,
)
from casemate.protocol.pipeline import FileEntry
from casemate.sandbox.guestlink import SEND_QUEUE
from fakes import FakeSupervisor, GuestHost, wait_until
from msgspec import Raw

TASK = FileEntry("agents.py", "task")


@pytest.fixture
def guest(guest_host: GuestHost, tmp_path: Path) -> Iterator[FakeSupervisor]:
    with FakeSupervisor(guest_host, tmp_path) as supervisor:
        yield supervisor


def value(message: Message) -> object:
    match message:
        case Emit(item=raw) | Save(state=raw) | Result(output=raw):
            return codec.decode_value(raw)
    raise AssertionError(message)


def credited(said: list[Message]) -> list[int]:
    return [message.items for message in said if isinstance(message, Credit)]


# -- streams ---------------------------------------------------------------------------------------

READERS = {
    "plain": "def task(input, ctx):\n    return list(ctx.stream('a'))\n",
    "async": "async def task(input, ctx):\n    return [item async for item in ctx.stream('a')]\n",
    "thread": """
import threading
def task(input, ctx):
    got = []
    reader = threading.Thread(target=lambda: got.extend(ctx.stream('a')))
    reader.start()
    reader.join()
    return got
""",
    "threads of a loop": """
import asyncio
async def task(input, ctx):
    return await asyncio.to_thread(list, ctx.stream('a'))
""",
}


@pytest.mark.parametrize("kind", READERS)
def test_every_kind_of_reader_gets_all_items_in_order(guest: FakeSupervisor, kind: str) -> None:
    guest.source("agents.py", READERS[kind])
    guest.start(TASK, streams=("a",))
    guest.give("a", 0, None, {"x": b"\x00"})
    for number in range(50):
        guest.give("a", number)
    guest.send(End(upstream="a"))
    said, outcome = guest.finish()
    assert value(outcome) == [0, None, {"x": b"\x00"}, *range(50)]
    # It came back after the last one too.
    assert sum(credited(said)) == 53


def test_credit_comes_in_quarters_and_before_it_waits(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(input, ctx):\n    for item in ctx.stream('a'): pass\n")
    guest.start(TASK, streams=("a",))
    guest.give("a", *range(STREAM_CREDIT_ITEMS))
    quarter = STREAM_CREDIT_ITEMS // 4
    for _ in range(4):
        assert guest.next() == Credit(upstream="a", items=quarter)
    guest.give("a", 1, 2, 3)
    assert guest.next() == Credit(upstream="a", items=3)
    guest.send(End(upstream="a"))
    said, outcome = guest.finish()
    assert said == []
    assert isinstance(outcome, Result)


def test_large_items_are_credited_by_their_size(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(input, ctx):\n    for item in ctx.stream('a'): pass\n")
    guest.start(TASK, streams=("a",))
    guest.give("a", *[bytes(300_000)] * 3)
    assert guest.next() == Credit(upstream="a", items=1)


def test_an_item_that_the_task_is_busy_with_is_not_credited(guest: FakeSupervisor) -> None:
    """Else a task that hangs in its last item would look as if it waited for another."""
    guest.source(
        "agents.py",
        "def task(input, ctx):\n    for item in ctx.stream('a'): ctx.emit(item)\n",
    )
    guest.start(TASK, streams=("a",))
    guest.give("a", 1)
    assert [type(guest.next()), type(guest.next())] == [Emit, Credit]


def test_a_stream_may_be_empty(guest: FakeSupervisor) -> None:
    guest.source("agents.py", READERS["plain"])
    guest.start(TASK, streams=("a",))
    guest.send(End(upstream="a"))
    said, outcome = guest.finish()
    assert said == []
    assert value(outcome) == []


LEAVERS = {
    "break": "def task(input, ctx):\n    for item in ctx.stream('a'):\n        return item\n",
    "async break": "async def task(input, ctx):\n"
    "    async for item in ctx.stream('a'):\n        return item\n",
    "not at all": "def task(input, ctx):\n    return 1\n",
    "twice": "def task(input, ctx):\n"
    "    for item in ctx.stream('a'): break\n"
    "    return next(ctx.stream('a')) - 1\n",
}


@pytest.mark.parametrize("kind", LEAVERS)
def test_a_task_may_end_without_reading_all(guest: FakeSupervisor, kind: str) -> None:
    guest.source("agents.py", LEAVERS[kind])
    guest.start(TASK, streams=("a", "b"))
    guest.give("a", 1, 2, 3)
    guest.give("b", 4)
    _, outcome = guest.finish()
    assert value(outcome) == 1


def test_a_generator_streams_through(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "async def task(input, ctx):\n    async for item in ctx.stream('a'): yield item * 2\n",
    )
    guest.start(TASK, streams=("a",))
    for number in range(3):
        guest.give("a", number)
        while isinstance(message := guest.next(), Credit):
            pass
        assert value(message) == number * 2
    guest.send(End(upstream="a"))
    assert isinstance(guest.finish()[1], Result)


def test_two_streams_at_once_and_a_loop_that_goes_on(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import asyncio\n"
        "async def read(ctx, name):\n"
        "    async for item in ctx.stream(name): ctx.emit([name, item])\n"
        "async def task(input, ctx):\n"
        "    ticks = 0\n"
        "    async def tick():\n"
        "        nonlocal ticks\n"
        "        while True:\n            ticks += 1\n            await asyncio.sleep(0.001)\n"
        "    ticking = asyncio.create_task(tick())\n"
        "    async with asyncio.TaskGroup() as group:\n"
        "        group.create_task(read(ctx, 'a'))\n        group.create_task(read(ctx, 'b'))\n"
        "        while ticks < 10: await asyncio.sleep(0)\n"
        "        ctx.emit('ticked')\n"
        "    ticking.cancel()\n",
    )
    guest.start(TASK, streams=("a", "b"))
    assert value(guest.next()) == "ticked"
    for name, number in [("b", 1), ("a", 2), ("b", 3)]:
        guest.give(name, number)
        while isinstance(message := guest.next(), Credit):
            pass
        assert value(message) == [name, number]
    guest.send(End(upstream="b"))
    guest.send(End(upstream="a"))
    assert isinstance(guest.finish()[1], Result)


def test_a_wait_that_is_given_up_loses_no_item(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import asyncio\n"
        "async def task(input, ctx):\n"
        "    stream, got = ctx.stream('a'), []\n"
        "    while True:\n"
        "        try:\n"
        "            got.append(await asyncio.wait_for(anext(stream), 0.0005))\n"
        "        except TimeoutError:\n            ctx.progress(len(got))\n"
        "        except StopAsyncIteration:\n            return got\n",
    )
    guest.start(TASK, streams=("a",))
    for number in range(30):
        guest.next()
        guest.give("a", number)
    guest.send(End(upstream="a"))
    _, outcome = guest.finish()
    assert value(outcome) == list(range(30))


def test_a_thread_may_emit_while_another_waits_for_an_item(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import threading\n"
        "def task(input, ctx):\n"
        "    def work():\n        for n in range(1000): ctx.emit(n)\n"
        "    thread = threading.Thread(target=work)\n    thread.start()\n"
        "    got = list(ctx.stream('a'))\n    thread.join()\n    return got\n",
    )
    guest.start(TASK, streams=("a",))
    said: list[Message] = [guest.next() for _ in range(1000)]
    assert [value(message) for message in said] == list(range(1000))
    guest.give("a", 1)
    guest.send(End(upstream="a"))
    assert value(guest.finish()[1]) == [1]


def test_items_come_while_every_other_thread_is_blocked_in_emit(
    guest: FakeSupervisor, tmp_path: Path
) -> None:
    guest.source(
        "agents.py",
        "import threading\n"
        "def task(input, ctx):\n"
        "    def work():\n        while True: ctx.emit(bytes(900_000)); print('sent')\n"
        "    for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "    for item in ctx.stream('a'): print('got', item)\n"
        "    return 'done'\n",
    )
    guest.start(TASK, streams=("a",))
    wait_until(lambda: guest.stdout().count("sent") >= SEND_QUEUE - 1)
    for number in range(20):
        guest.give("a", number)
        wait_until(lambda number=number: f"got {number}\n" in guest.stdout())  # type: ignore[misc]
    guest.send(End(upstream="a"))
    assert value(guest.finish()[1]) == "done"


def test_many_threads_share_a_stream(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import threading\n"
        "def task(input, ctx):\n"
        "    got = []\n"
        "    def work():\n"
        "        for item in ctx.stream('a'):\n"
        "            ctx.emit(item)\n            ctx.save(item)\n            got.append(item)\n"
        "    threads = [threading.Thread(target=work) for _ in range(6)]\n"
        "    [t.start() for t in threads]\n    [t.join() for t in threads]\n"
        "    return sorted(got)\n",
    )
    guest.start(TASK, streams=("a",))
    given, credit, emitted = 0, 64, 0
    while not isinstance(message := guest.next() if given else Saved(), Result):
        match message:
            case Save():
                guest.send(Saved())
            case Credit(items=items):
                credit += items
            case Emit():
                emitted += 1
        while given < 300 and credit:
            guest.give("a", given)
            given, credit = given + 1, credit - 1
            if given == 300:
                guest.send(End(upstream="a"))
    assert value(message) == list(range(300))
    assert emitted == 300
    assert credit <= 64


def test_a_task_without_a_descriptor_left_still_listens(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import os, resource\n"
        "def task(input, ctx):\n"
        "    top = os.dup(0)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (top, top))\n"
        "    ctx.emit('none left')\n"
        "    return list(ctx.stream('a'))\n",
    )
    guest.start(TASK, streams=("a",))
    assert value(guest.next()) == "none left"
    guest.give("a", 1)
    assert guest.next() == Credit(upstream="a", items=1)
    guest.send(End(upstream="a"))
    assert value(guest.finish()[1]) == [1]


def test_a_forked_child_does_not_listen(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import os\n"
        "def task(input, ctx):\n"
        "    if os.fork() == 0:\n"
        "        for act in (lambda: next(ctx.stream('a')), lambda: ctx.save(1)):\n"
        "            try:\n                act()\n"
        "            except RuntimeError as error: assert 'child' in str(error)\n"
        "            else: os._exit(9)\n"
        "        os._exit(ctx.deadline is None)\n"
        "    return os.waitstatus_to_exitcode(os.wait()[1])\n",
    )
    assert guest.output(TASK, streams=("a",), deadline=5.0) == 0


def test_an_item_that_is_no_value_is_an_error_and_the_next_one_comes(
    guest: FakeSupervisor,
) -> None:
    """What a task emits stays closed until another opens it."""
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    stream = ctx.stream('a')\n"
        "    try:\n        next(stream)\n"
        "    except Exception as error:\n        return [str(error), next(stream)]\n",
    )
    guest.start(TASK, streams=("a",))
    guest.send(Item(upstream="a", items=(Raw(b"\xa1\xff"), Raw(b"\x07"))))
    _, outcome = guest.finish()
    [problem, item] = value(outcome)  # type: ignore[misc]
    assert str(problem).startswith("an item of the stream 'a' is not a value: ")  # type: ignore[has-type]
    assert item == 7  # type: ignore[has-type]


def test_a_stream_that_no_edge_brings(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(input, ctx):\n    ctx.stream('x')\n")
    failure = guest.failure(TASK, streams=("a", "b"))
    assert failure.type is None
    assert failure.message.startswith("ctx.stream('x'): stream edges lead to t1 from: a, b")


# -- saving ----------------------------------------------------------------------------------------


def test_save_waits_until_the_state_is_durable(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import threading\n"
        "def task(input, ctx):\n"
        "    saved = threading.Event()\n"
        "    def tick():\n"
        "        while not saved.is_set(): ctx.emit(saved.is_set())\n"
        "    thread = threading.Thread(target=tick)\n    thread.start()\n"
        "    ctx.save({'line': 7})\n"
        "    saved.set()\n    thread.join()\n    return 'went on'\n",
    )
    guest.start(TASK)
    while isinstance(message := guest.next(), Emit):
        pass
    assert value(message) == {"line": 7}
    for _ in range(100):  # it does not go on by itself
        assert isinstance(guest.next(), Emit)
    guest.send(Saved())
    assert value(guest.finish()[1]) == "went on"


def test_the_next_attempt_finds_what_was_saved(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(input, ctx): return ctx.saved\n")
    assert guest.output(TASK, saved={"line": 7}) == {"line": 7}


def test_without_a_saved_state_there_is_none(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(input, ctx): return ctx.saved\n")
    assert guest.output(TASK) is None


def test_threads_take_turns_saving(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import threading\n"
        "def task(input, ctx):\n"
        "    def work(me):\n        for n in range(20): ctx.save([me, n])\n"
        "    threads = [threading.Thread(target=work, args=(me,)) for me in range(5)]\n"
        "    [t.start() for t in threads]\n    [t.join() for t in threads]\n",
    )
    guest.start(TASK)
    saved = []
    # The table of this end refuses a second SAVE before the SAVED.
    while isinstance(message := guest.next(), Save):
        saved.append(value(message))
        guest.send(Saved())
    assert isinstance(message, Result)
    assert sorted(saved, key=str) == sorted(([m, n] for m in range(5) for n in range(20)), key=str)


def test_a_state_too_large_is_refused_and_nothing_is_said(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    try: ctx.save(bytes(input))\n"
        "    except ValueError as error: return str(error)\n",
    )
    refusal = guest.output(TASK, SAVED_SIZE)
    assert refusal.startswith(f"saved state of {SAVED_SIZE + 5} bytes: at most {SAVED_SIZE}")


# -- ending early ----------------------------------------------------------------------------------

WAITERS = {
    "plain": "def task(input, ctx):\n"
    "    try:\n        for item in ctx.stream('a'): ctx.emit(item)\n"
    "    except Exception: ctx.log('not an Exception')\n"
    "    finally:\n        ctx.log('tidied', cancelled=ctx.cancelled)\n",
    "async": "async def task(input, ctx):\n"
    "    try:\n        async for item in ctx.stream('a'): ctx.emit(item)\n"
    "    finally:\n        ctx.log('tidied', cancelled=ctx.cancelled)\n",
    "async generator": "async def task(input, ctx):\n"
    "    try:\n        async for item in ctx.stream('a'): yield item\n"
    "    finally:\n        ctx.log('tidied', cancelled=ctx.cancelled)\n",
}


@pytest.mark.parametrize("kind", WAITERS)
def test_a_task_that_waits_for_an_item_is_interrupted(guest: FakeSupervisor, kind: str) -> None:
    guest.source("agents.py", WAITERS[kind])
    guest.start(TASK, streams=("a",))
    guest.give("a", 1)
    assert [type(guest.next()), type(guest.next())] == [Emit, Credit]
    guest.cancel()
    guest.terminate()
    [log], outcome = guest.finish()
    assert isinstance(log, Log)
    assert (log.text, codec.decode_value(log.fields)) == ("tidied", {"cancelled": True})
    assert isinstance(outcome, Fail)
    assert outcome.type == "casemate.sandbox.context.Cancelled"


def test_an_interrupted_save_does_not_hinder_the_next(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    try: ctx.save('first')\n"
        "    except BaseException as error:\n"
        "        ctx.emit(type(error).__name__)\n"
        "        ctx.save('second')\n"
        "        return 'saved'\n",
    )
    guest.start(TASK)
    assert value(guest.next()) == "first"
    guest.cancel()
    guest.terminate()
    assert value(guest.next()) == "Cancelled"
    guest.send(Saved())
    assert value(guest.next()) == "second"
    guest.send(Saved())
    assert value(guest.finish()[1]) == "saved"


@pytest.mark.parametrize("given", range(0, 40, 4))
def test_sigterm_at_any_moment_loses_no_item(guest: FakeSupervisor, given: int) -> None:
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    got = []\n"
        "    while True:\n"
        "        try:\n"
        "            ctx.emit('running')\n"
        "            for item in ctx.stream('a'): got.append(item)\n"
        "            return got\n"
        "        except BaseException: pass\n",
    )
    guest.start(TASK, streams=("a",))
    assert value(guest.next()) == "running"
    for number in range(40):
        if number == given:
            guest.terminate()
        guest.give("a", number)
    guest.send(End(upstream="a"))
    assert value(guest.finish()[1]) == list(range(40))


def test_whoever_still_listens_after_the_end_is_told(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import threading, time\n"
        "def listen(act):\n"
        "    try: act()\n    except RuntimeError as error: print('refused:', error)\n"
        "def task(input, ctx):\n"
        "    for act in (lambda: next(ctx.stream('a')), lambda: ctx.save(1)):\n"
        "        threading.Thread(target=listen, args=(act,), daemon=True).start()\n"
        "    next(ctx.stream('b'))\n",
    )
    guest.start(TASK, streams=("a", "b"))
    assert isinstance(guest.next(), Save)
    guest.give("b", 1)
    guest.finish()
    wait_until(lambda: guest.stdout().count("refused: the task has ended") == 2)


# -- the deadline ----------------------------------------------------------------------------------


def test_the_deadline_moves_however_late_it_is_looked_at(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    first = ctx.deadline\n"
        "    next(ctx.stream('a'))\n"
        "    return [first, ctx.deadline, ctx.cancelled]\n",
    )
    begun = time.monotonic()
    guest.start(TASK, streams=("a",), deadline=90.0)
    guest.send(Deadline(deadline=1e9))
    guest.give("a", 1)
    _, outcome = guest.finish()
    [first, moved, is_cancelled] = value(outcome)  # type: ignore[misc]
    assert begun + 90 <= first <= time.monotonic() + 90 or first == 1e9  # type: ignore[has-type]
    assert (moved, is_cancelled) == (1e9, False)  # type: ignore[has-type]


def test_reading_the_deadline_is_enough_to_notice(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    ctx.emit('running')\n"
        "    while ctx.deadline is not None: pass\n"
        "    while not ctx.cancelled: pass\n",
    )
    guest.start(TASK, deadline=90.0)
    guest.next()
    guest.send(Deadline(deadline=None))
    guest.cancel()
    assert isinstance(guest.finish()[1], Result)


# -- a supervisor that errs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([Item(upstream="x", items=(Raw(b"\x01"),))], "was sent ITEM of 'x', which is none of its"),
        ([End(upstream="x")], "was sent END of 'x', which is none of its streams: a"),
        ([End(upstream="a"), End(upstream="a")], "was sent END of 'a' after its END"),
    ],
)
def test_a_guest_that_is_sent_what_it_has_no_place_for_leaves(
    guest: FakeSupervisor, messages: list[Message], why: str
) -> None:
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    try:\n        while not ctx.cancelled: pass\n"
        "    except Exception: return 'an error of mine?'\n",
    )
    guest.start(TASK, streams=("a",))
    for message in messages:
        guest.send(message)
    with pytest.raises((EOFError, ConnectionError)):
        guest.finish()
    assert f"LocalViolation: guest: {why}" in guest.stderr()
