"""The engine with real tasks in real sandboxes: what runs when, how it ends, what is told of it."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zmq
from casemate.protocol import codec
from casemate.protocol.errors import SetupRefused
from casemate.protocol.limits import JOURNAL_BACKLOG_SIZE, LINK_BUFFER_SIZE, MIB, VALUE_SIZE
from casemate.supervisor import journal
from casemate.supervisor.config import load_config
from casemate.supervisor.cursor import follow
from casemate.supervisor.engine import Engine
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE
from msgspec import Raw, msgpack
from runs import Embedded, History, Place, is_alive, since_start, traces

# A stuck task: it ends when it is killed.
HANG = "import time\ndef hang(input, ctx):\n    ctx.log('hanging')\n    time.sleep(3600)\n"


# --- the graph ------------------------------------------------------------------------------------


def test_a_chain_hands_outputs_down(house: Embedded, place: Place) -> None:
    place.tasks("""
        def a(input): return input + 1
        def b(input): return input["a"] * 10
        def c(input): return input
        """)
    spec = place.spec(tasks={"a": {}, "b": {"needs": ["a"]}, "c": {"needs": ["b"]}})
    history = house.run(spec, input=4)
    assert history.one("run.completed").data["outputs"] == {"c": {"b": 50}}
    assert [e.task for e in history.of("task.completed")] == ["a", "b", "c"]
    for above, below in (("a", "b"), ("b", "c")):
        assert history.seq("task.completed", above) < history.seq("task.ready", below)
    kinds = ["task.ready", "task.started", "task.completed"]
    assert all(history.kinds(task) == kinds for task in "abc")


def test_a_join_sees_each_branch_under_its_name(house: Embedded, place: Place) -> None:
    place.tasks("""
        def top(input): return "t"
        def left(input): return input["top"] + "l"
        def right(input): return input["top"] + "r"
        def join(input): return input
        """)
    history = house.run(
        place.spec(
            tasks={
                "top": {},
                "left": {"needs": ["top"]},
                "right": {"needs": ["top"]},
                "join": {"needs": ["left", "right"]},
            }
        )
    )
    assert history.output("join") == {"left": "tl", "right": "tr"}
    assert history.seq("task.ready", "join") > max(
        history.seq("task.completed", side) for side in ("left", "right")
    )


def test_a_task_without_an_edge_to_another_does_not_see_its_output(
    house: Embedded, place: Place
) -> None:
    place.tasks("""
        def a(input): return "secret"
        def b(input): return input
        def c(input): return input
        """)
    spec = place.spec(tasks={"a": {}, "b": {"needs": ["a"]}, "c": {"needs": ["b"]}})
    assert house.run(spec).output("c") == {"b": {"a": "secret"}}
    place.tasks("def a(input): return 'secret'\ndef c(input): return input\n")
    assert house.run(place.spec(tasks={"a": {}, "c": {}}), input="mine").output("c") == "mine"


def test_a_fan_out_keeps_to_max_parallel_and_loses_nobody(house: Embedded, place: Place) -> None:
    place.tasks("""
        import time
        def split(input): return list(range(12))
        def work(input, ctx):
            time.sleep(0.05)
            return int(ctx.task_id[1:])
        def total(input): return sum(input.values())
        """)
    workers = {f"w{n}": {"execute": "tasks.py:work", "needs": ["split"]} for n in range(12)}
    tasks = {"split": {}, **workers, "total": {"needs": list(workers)}}
    history = house.run(place.spec(tasks=tasks, max_parallel=3))
    assert history.output("total") == sum(range(12))
    assert history.peak() <= 3


def test_what_may_run_side_by_side_does(house: Embedded, place: Place) -> None:
    place.tasks(HANG)
    tasks = {name: {"execute": "tasks.py:hang"} for name in ("a", "b", "c")}
    live = house.start(place.spec(tasks=tasks))
    for task in tasks:
        live.wait("task.started", task)
    live.cancel()
    assert live.finish().peak() == 3


def test_an_empty_pipelines_and_a_single_tasks_run_end(house: Embedded, place: Place) -> None:
    place.tasks("def a(): return None\n")
    assert house.run(place.spec(tasks={"a": {}})).output("a") is None


def test_ready_tasks_start_in_the_order_of_their_ids(house: Embedded, place: Place) -> None:
    place.tasks("def work(input): return 1\n")
    tasks = {name: {"execute": "tasks.py:work"} for name in ("d", "b", "c", "a")}
    history = house.run(place.spec(tasks=tasks, max_parallel=1))
    assert [e.task for e in history.of("task.started")] == ["a", "b", "c", "d"]


# --- failure --------------------------------------------------------------------------------------


def test_a_task_is_retried_after_growing_delays(house: Embedded, place: Place) -> None:
    place.tasks("""
        def flaky(input, ctx):
            ctx.emit(ctx.attempt)
            if ctx.attempt < 3:
                raise ValueError(f"not yet: {ctx.attempt}")
            return ctx.attempt
        """)
    retry = {"attempts": 3, "delay": "100ms", "backoff": 3, "jitter": 0, "on": ["error"]}
    history = house.run(place.spec(tasks={"flaky": {"retry": retry}}))
    assert history.output("flaky") == 3
    assert history.items("flaky") == [1, 2, 3]
    first, second = history.of("task.retrying")
    assert (first.data["delay"], second.data["delay"]) == pytest.approx((0.1, 0.3))
    error = first.data["error"]
    assert (error["kind"], error["type"], error["message"]) == ("error", "ValueError", "not yet: 1")
    assert "tasks.py" in error["traceback"]
    for retrying in (first, second):
        again = next(e for e in history.events if e.kind == "task.ready" and e.seq > retrying.seq)
        # Wall clock, which is for people; half of it leaves room for a clock being slewed.
        assert (again.at - retrying.at).total_seconds() > retrying.data["delay"] / 2


def test_a_task_that_never_succeeds_fails_after_its_attempts(house: Embedded, place: Place) -> None:
    place.tasks("def bad(input): raise KeyError('gone')\n")
    retry = {"attempts": 3, "delay": "1ms"}
    history = house.run(place.spec(tasks={"bad": {"retry": retry}}))
    assert len(history.of("task.retrying")) == 2
    assert history.error("bad")["type"] == "KeyError"
    failed = history.one("run.failed").data
    assert failed["tasks"] == ["bad"]
    assert failed["error"]["kind"] == "error"


def test_a_kind_that_is_not_to_be_retried_is_final_at_once(house: Embedded, place: Place) -> None:
    place.tasks("def bad(input): raise ValueError\n")
    retry = {"attempts": 5, "delay": "1ms", "on": ["timeout"]}
    history = house.run(place.spec(tasks={"bad": {"retry": retry}}))
    assert history.kinds("bad") == ["task.ready", "task.started", "task.failed"]


def test_dependants_of_a_failure_fail_and_other_branches_go_on(
    house: Embedded, place: Place
) -> None:
    place.tasks("""
        def bad(input): raise ValueError("no")
        def good(input): return 1
        def join(input): return 2
        def after(input): return 3
        def other(input): return input
        """)
    history = house.run(
        place.spec(
            tasks={
                "bad": {},
                "good": {},
                "join": {"needs": ["bad", "good"]},
                "after": {"needs": ["join"]},
                "other": {"needs": ["good"]},
            }
        )
    )
    assert history.errors() == {
        "bad": "error", "join": "upstream_failed", "after": "upstream_failed",
    }  # fmt: skip
    assert "bad" in history.error("join")["message"]
    assert history.output("other") == {"good": 1}
    assert history.one("run.failed").data["tasks"] == ["bad"], "what broke, not what it took along"


def test_fail_fast_ends_what_runs_and_what_waits(house: Embedded, place: Place) -> None:
    place.tasks(HANG + "def bad(input): raise ValueError('no')\ndef later(input): return 1\n")
    tasks = {"bad": {"needs": ["first"]}, "hang": {}, "first": {"execute": "tasks.py:later"},
             "later": {"needs": ["hang"]}}  # fmt: skip
    history = house.run(place.spec(tasks=tasks, fail_fast=True))
    assert history.outcome == "run.failed"
    assert history.errors() == {"bad": "error", "hang": "cancelled", "later": "cancelled"}
    assert "fail_fast" in history.error("hang")["message"]


def test_cancel_kills_what_runs_and_cancels_what_waits(house: Embedded, place: Place) -> None:
    place.tasks(HANG + "def later(input): return 1\n")
    live = house.start(place.spec(tasks={"hang": {}, "later": {"needs": ["hang"]}}))
    pid = live.wait("task.started", "hang").data["pid"]
    assert is_alive(pid)
    live.cancel()
    history = live.finish()
    assert history.outcome == "run.cancelled"
    assert history.errors() == {"hang": "cancelled", "later": "cancelled"}
    assert not is_alive(pid)
    live.cancel()  # of a run that has ended: nothing happens
    assert house.run(place.spec(tasks={"later": {}})).output("later") == 1


def test_a_task_between_two_attempts_is_cancelled_at_once(house: Embedded, place: Place) -> None:
    place.tasks("def bad(input): raise ValueError\n")
    retry = {"attempts": 2, "delay": "1h", "max_delay": "1h"}
    live = house.start(place.spec(tasks={"bad": {"retry": retry}}))
    live.wait("task.retrying", "bad")
    live.cancel()
    assert live.finish().errors() == {"bad": "cancelled"}


# --- timeouts -------------------------------------------------------------------------------------

BUSY = "def busy(input):\n    while True: pass\n"
QUIET = "import time\ndef quiet(input, ctx):\n    ctx.emit(1)\n    time.sleep(3600)\n"
# Every process it starts leaves its session and ignores what can be ignored.
TREE = """
import os, signal, time
def tree(input, ctx):
    for _ in range(10):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True: pass
    ctx.emit("grown")
    time.sleep(3600)
"""


@pytest.mark.parametrize(
    ("source", "timeouts", "kind"),
    [
        (BUSY, {"wall": "300ms"}, "timeout.wall"),
        (QUIET, {"wall": "300ms"}, "timeout.wall"),
        (TREE, {"wall": "500ms"}, "timeout.wall"),
        (QUIET, {"idle": "300ms"}, "timeout.idle"),
        (BUSY, {"idle": "300ms"}, "timeout.idle"),
        (BUSY, {"cpu": "300ms"}, "timeout.cpu"),
        (TREE, {"cpu": "300ms"}, "timeout.cpu"),
        # No guest greets within a tenth of a millisecond.
        (BUSY, {"start": 0.0001}, "timeout.start"),
    ],
)
def test_a_task_past_its_limit_is_killed_with_all_it_started(
    house: Embedded, place: Place, source: str, timeouts: dict[str, str | float], kind: str
) -> None:
    place.tasks(source)
    name = next(name for name in ("busy", "quiet", "tree") if f"def {name}(" in source)
    # Without cgroups, pages that forked processes share are counted for each of them.
    task = {"timeouts": timeouts, "limits": {"memory": "512MiB"}}
    history = house.run(place.spec(tasks={name: task}))
    assert history.errors() == {name: kind}
    if kind != "timeout.start":
        took = since_start(history, "task.failed", name)
        assert (0 if "cpu" in timeouts else 0.2) < took < 20  # ten processes burn at once
    else:
        assert not history.of("task.started")


def test_a_task_that_keeps_talking_is_not_idle(house: Embedded, place: Place) -> None:
    place.tasks("""
        import time
        def chatty(input, ctx):
            for n in range(8):
                time.sleep(0.2)
                ctx.emit(n)
            return "done"
        """)
    history = house.run(place.spec(tasks={"chatty": {"timeouts": {"idle": "1.2s"}}}))
    assert history.output("chatty") == "done"
    assert history.items("chatty") == list(range(8))


def test_a_run_past_its_deadline_fails_with_what_it_has(house: Embedded, place: Place) -> None:
    place.tasks(HANG + "def quick(input): return 1\ndef later(input): return 1\n")
    tasks = {"quick": {}, "hang": {"needs": ["quick"]}, "later": {"needs": ["hang"]}}
    history = house.run(place.spec(tasks=tasks, timeout="700ms"))
    assert history.one("run.failed").data["error"]["kind"] == "timeout.run"
    assert history.errors() == {"hang": "timeout.run", "later": "timeout.run"}


def test_a_timeout_is_retried_as_any_failure(house: Embedded, place: Place) -> None:
    place.tasks("""
        import time
        def slow(input, ctx):
            if ctx.attempt == 1:
                time.sleep(3600)
            return ctx.attempt
        """)
    task = {"timeouts": {"wall": "1s"}, "retry": {"attempts": 2, "delay": "1ms", "on": ["timeout"]}}
    history = house.run(place.spec(tasks={"slow": task}))
    assert history.one("task.retrying").data["error"]["kind"] == "timeout.wall"
    assert history.output("slow") == 2


GRACEFUL = """
import asyncio, os, signal, time
def plain(input, ctx):
    try:
        ctx.emit("begun")
        time.sleep(3600)
    finally:
        ctx.emit("saved")
async def coroutine(input, ctx):
    try:
        ctx.emit("begun")
        await asyncio.sleep(3600)
    finally:
        ctx.emit("saved")
def generator(input):
    try:
        yield "begun"
        time.sleep(3600)
    finally:
        open("/tmp/closed", "w").close()
        yield "saved"
"""


@pytest.mark.parametrize("name", ["plain", "coroutine"])
def test_within_its_grace_a_task_saves_what_it_has(
    house: Embedded, place: Place, name: str
) -> None:
    place.tasks(GRACEFUL)
    timeouts = {"idle": "3s", "grace": "50s"}
    history = house.run(place.spec(tasks={name: {"timeouts": timeouts}}))
    assert history.items(name) == ["begun", "saved"]
    assert history.error(name)["kind"] == "timeout.idle"
    assert since_start(history, "task.failed", name) < 40, "it ended by itself, not by the kill"


def test_cancel_gives_the_grace_too(house: Embedded, place: Place) -> None:
    place.tasks(GRACEFUL)
    live = house.start(place.spec(tasks={"plain": {"timeouts": {"grace": "50s"}}}))
    live.wait("task.emitted", "plain")
    live.cancel()
    history = live.finish()
    assert history.items("plain") == ["begun", "saved"]
    assert history.errors() == {"plain": "cancelled"}


def test_who_ignores_the_request_is_killed_after_the_grace(house: Embedded, place: Place) -> None:
    place.tasks("""
        import time
        def stubborn(input, ctx):
            while True:
                try:
                    time.sleep(3600)
                except BaseException:
                    ctx.emit("no")
        """)
    timeouts = {"wall": "2s", "grace": "300ms"}
    history = house.run(place.spec(tasks={"stubborn": {"timeouts": timeouts}}))
    assert history.error("stubborn")["kind"] == "timeout.wall"
    assert history.items("stubborn") == ["no"]
    assert since_start(history, "task.failed", "stubborn") > 2.1


# --- forms of a task ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "items", "output"),
    [
        ("def it(input): return input", [], "in"),
        ("def it(input, ctx): ctx.emit(1); return ctx.task_id", [1], "it"),
        ("def it(input):\n    yield 1\n    yield 2\n    return 'end'", [1, 2], "end"),
        ("async def it(input): return input * 2", [], "inin"),
        ("async def it(input):\n    yield 1\n    yield 2", [1, 2], None),
        ("class C:\n    @staticmethod\n    def go(): return 7\nit = C.go", [], 7),
    ],
    ids=["plain", "context", "generator", "coroutine", "async generator", "assigned"],
)
def test_every_form_of_function_runs(
    house: Embedded, place: Place, source: str, items: list[int], output: object
) -> None:
    place.tasks(source)
    history = house.run(place.spec(tasks={"it": {}}), input="in")
    assert history.items("it") == items
    assert history.output("it") == output


def test_a_command_reads_its_input_and_writes_events(house: Embedded, place: Place) -> None:
    place.write("job.sh", """
        cat $CASEMATE_INPUT
        echo mistakes >&2
        echo '{"progress": {"done": 1, "total": 2}}' >&$CASEMATE_EVENTS_FD
        echo '{"emit": {"$bytes": "AAE="}}' >&$CASEMATE_EVENTS_FD
        echo '{"output": [1, null]}' >&$CASEMATE_EVENTS_FD
        """)  # fmt: skip
    task = {"command": ["sh", "/sources/job.sh"], "sources": ["job.sh"]}
    history = house.run(place.spec(tasks={"job": task}), input={"a": [1]})
    assert history.text("job", "stdout") == '{"a": [1]}'
    assert history.text("job", "stderr") == "mistakes\n"
    assert history.items("job") == [b"\0\1"]
    assert history.one("task.progress").data == {"done": 1.0, "total": 2.0}
    assert history.output("job") == [1, None]


@pytest.mark.parametrize(
    ("script", "kind"),
    [("exit 3", "error"), ("kill -SEGV $$", "crash"), ("kill -9 $$", "crash")],
)
def test_a_command_that_fails_says_how(
    house: Embedded, place: Place, script: str, kind: str
) -> None:
    history = house.run(place.spec(tasks={"job": {"command": ["sh", "-c", script]}}))
    assert history.errors() == {"job": kind}


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        ("import os\ndef it(input): os._exit(7)", "crash", "exited with code 7"),
        ("import os\ndef it(input): os.kill(os.getpid(), 11)", "crash", "SIGSEGV"),
        ("import sys\ndef it(input): sys.exit(3)", "error", "sys.exit(3)"),
        ("def it(input): return object()", "invalid_output", "object"),
        ("def it(input): return {'a': [1, {2, 3}]}", "invalid_output", "set"),
        ("def it(input):\n    a = []\n    a.append(a)\n    return a", "invalid_output", ""),
        ("def it(input): return it(input)", "error", "recursion"),
        ("def other(input): return 1", "error", "it"),
        ("import nowhere_to_be_found\ndef it(input): return 1", "error", "nowhere_to_be_found"),
        ("def it(input) return 1", "error", ""),
        ("def it(input): return 'x' * 300_000_000", "memory", ""),
        ("import time, threading\ndef it(input):\n"
         "    for _ in range(100): threading.Thread(target=time.sleep, args=(60,)).start()",
         "pids", ""),
        ("def it(input, ctx):\n    while True: ctx.emit('x' * 10000)", "output_limit", "bytes"),
        ("def it(input):\n    with open('/tmp/f', 'wb') as f:\n"
         "        while True: f.write(bytes(1 << 20))", "disk", ""),
    ],
)  # fmt: skip
def test_every_way_to_fail_has_its_kind(
    house: Embedded, place: Place, source: str, kind: str, says: str
) -> None:
    place.tasks("")
    (place.path / "tasks.py").write_text(source)
    limits = {"memory": "128MiB", "pids": 16, "output": "1MiB", "tmp": "4MiB"}
    history = house.run(place.spec(tasks={"it": {"limits": limits}}))
    error = history.error("it")
    assert (error["kind"], says in error["message"]) == (kind, True), error


# --- what is carried ------------------------------------------------------------------------------


def test_values_come_out_as_they_went_in(house: Embedded, place: Place) -> None:
    place.tasks("""
        def a(input, ctx):
            ctx.emit(input)
            return input
        def b(input): return input["a"]
        """)
    value = {
        "bytes": b"\x00\xff",
        "when": datetime(2026, 11, 22, 18, 20, 1, 123456, tzinfo=UTC),
        "numbers": [0, -1, 2**63, 1.5, True, None],
        "text": "ünïcødé \x1b[31m \n",
        "empty": [{}, [], "", b""],
    }
    history = house.run(place.spec(tasks={"a": {}, "b": {"needs": ["a"]}}), input=value)
    assert history.output("b") == value
    assert history.items("a") == [value]
    assert history.events[0].data["input"] == value
    shown = history.one("task.emitted").as_json()["data"]["item"]
    assert shown["bytes"] == {"$bytes": "AP8="}
    assert shown["when"] == {"$datetime": "2026-11-22T18:20:01.123456Z"}
    assert codec.from_jsonable(shown) == value


def test_large_values_go_by_file_both_ways(house: Embedded, place: Place) -> None:
    place.tasks("""
        import hashlib
        def make(input):
            return {"digest": hashlib.sha256(input).hexdigest(), "twice": input * 2}
        def check(input):
            twice = input["make"]["twice"]
            half = twice[:len(twice) // 2]
            return [input["make"]["digest"] == hashlib.sha256(half).hexdigest(), len(twice)]
        """)
    value = os.urandom(3 * MIB)
    spec = place.spec(tasks={"make": {}, "check": {"needs": ["make"]}})
    history = house.run(spec, input=value)
    assert history.output("check") == [True, 6 * MIB]
    assert history.output("make")["twice"] == value * 2
    assert history.events[0].data["input"] == value


@pytest.mark.parametrize("size", [900_000, MIB - 65536, MIB, MIB + 1])
def test_values_around_a_messages_size_are_whole(house: Embedded, place: Place, size: int) -> None:
    place.tasks("def a(input): return input\ndef b(input): return len(input['a'])\n")
    spec = place.spec(tasks={"a": {}, "b": {"needs": ["a"]}})
    assert house.run(spec, input=bytes(size)).output("b") == size


def test_an_output_too_large_to_carry_is_refused(house: Embedded, place: Place) -> None:
    place.tasks(f"def a(input): return bytes({VALUE_SIZE + 1})\n")
    task = {"limits": {"memory": "512MiB"}}
    error = house.run(place.spec(tasks={"a": task})).error("a")
    assert error["kind"] == "output_limit"
    assert str(VALUE_SIZE) in error["message"]


def test_items_keep_their_order(house: Embedded, place: Place) -> None:
    place.tasks("""
        def a(input, ctx):
            for n in range(5000):
                ctx.emit(n)
        """)
    assert house.run(place.spec(tasks={"a": {}})).items("a") == list(range(5000))


def test_logs_keep_stream_fields_and_what_was_dropped(house: Embedded, place: Place) -> None:
    place.tasks("""
        import sys
        def a(input, ctx):
            print("to stdout")
            print("to stderr", file=sys.stderr)
            ctx.log("spoken", n=1, data=b"x")
            sys.stdout.flush()
        def flood(input):
            for _ in range(1000):
                print("y" * 1023)
            return "done"
        """)
    history = house.run(place.spec(tasks={"a": {}, "flood": {"limits": {"output": "64KiB"}}}))
    assert history.text("a", "stdout") == "to stdout\n"
    assert history.text("a", "stderr") == "to stderr\n"
    [spoken] = [e for e in history.of("task.log", "a") if e.data["stream"] == "log"]
    assert (spoken.data["text"], spoken.data["fields"]) == ("spoken", {"n": 1, "data": b"x"})
    assert history.output("flood") == "done"
    logs = history.of("task.log", "flood")
    kept = sum(len(e.data["text"]) for e in logs)
    assert kept == 64 * 1024
    assert kept + sum(e.data["dropped"] for e in logs) == 1000 * 1024


def test_of_much_progress_the_newest_is_told(house: Embedded, place: Place) -> None:
    place.tasks("def a(input, ctx):\n    for n in range(1000): ctx.progress(n + 1, 1000)\n")
    told = house.run(place.spec(tasks={"a": {}})).of("task.progress")
    assert told[-1].data == {"done": 1000.0, "total": 1000.0}
    done = [event.data["done"] for event in told]
    assert done == sorted(done)


def test_a_started_task_tells_its_walls(house: Embedded, place: Place) -> None:
    place.tasks("def a(input): return 1\n")
    walls = house.run(place.spec(tasks={"a": {}})).one("task.started").data["walls"]
    assert walls["posture"]["no_new_privs"]
    assert walls["posture"]["seccomp"] == 2


def test_usage_is_told_while_it_runs_and_with_a_failure(house: Embedded, place: Place) -> None:
    place.tasks("""
        def eat(input):
            hoard = b"x" * 50_000_000
            while True: pass
        """)
    history = house.run(place.spec(tasks={"eat": {"timeouts": {"cpu": "1500ms"}}}))
    told = [event.data["memory"] for event in history.of("task.usage", "eat")]
    assert max(told) > 40_000_000
    error = history.error("eat")
    assert error["kind"] == "timeout.cpu"
    assert error["usage"]["cpu"] > 1
    assert error["usage"]["memory"] > 40_000_000


# --- the journal and who reads it -----------------------------------------------------------------


def test_what_an_observer_sees_is_in_the_journal_already(house: Embedded, place: Place) -> None:
    """Each event that comes over the socket is looked up at once."""
    place.tasks("""
        def a(input, ctx):
            for n in range(200):
                ctx.emit(n)
        """)
    state = StateDirectory(house.state)
    [record] = state.living_supervisors()
    seen: list[str] = []
    with zmq.Context() as context, context.socket(zmq.SUB) as observer:
        observer.linger = 0
        observer.rcvtimeo = int(PATIENCE * 1000)
        observer.subscribe(b"ev.")
        observer.subscribe(b"hb.")
        observer.connect(record.events)
        observer.recv_multipart()  # the welcome: from now on nothing is missed
        live = house.start(place.spec(tasks={"a": {}}))
        reader: JournalReader | None = None
        while "run.completed" not in seen:
            topic, header, _ = observer.recv_multipart()
            if not topic.startswith(f"ev.{live.run}.".encode()):
                continue  # of the run that a test before this one left to end
            head = msgpack.decode(header)
            reader = reader or JournalReader(state.run(live.run))
            [event] = reader.events(head["seq"] - 1, 1)
            assert (event.seq, event.kind) == (head["seq"], head["kind"])
            seen.append(event.kind)
        assert reader is not None
        reader.close()
    assert len(seen) == len(live.finish().events)


def test_a_slow_reader_misses_nothing(house: Embedded, place: Place) -> None:
    """Nothing is read before the run has ended; then all of it is there."""
    place.tasks("""
        def a(input, ctx):
            for n in range(3000):
                ctx.emit(n)
        """)
    live = house.start(place.spec(tasks={"a": {}}))
    whole = live.finish()

    async def later() -> History:
        return History([event async for event in house.supervisor.events(live.run)])

    assert house.call(later()).events == whole.events

    async def part() -> list[int]:
        return [event.seq async for event in house.supervisor.events(live.run, since=2990)]

    assert house.call(part()) == list(range(2991, len(whole.events) + 1))


def test_two_runs_at_once_stay_apart(house: Embedded, place: Place) -> None:
    place.tasks("""
        import time
        def a(input, ctx):
            for n in range(20):
                ctx.emit([input, n])
                time.sleep(0.005)
            return input
        def b(input): return input["a"]
        """)
    spec = place.spec(tasks={"a": {}, "b": {"needs": ["a"]}})
    lives = [house.start(spec, input=n) for n in range(6)]
    for number, live in enumerate(lives):
        history = live.finish()
        assert history.output("b") == number
        assert history.items("a") == [[number, n] for n in range(20)]


class _Gate:
    """The journal's writer waits at it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        write = journal._RunWriter.write

        def held(writer: Any, group: Any) -> Any:  # the writer's own, private
            if any(type(entry[3]).__name__ == "TaskEmitted" for entry in group.entries):
                assert self.opened.wait(PATIENCE)
            return write(writer, group)

        patch.setattr(journal._RunWriter, "write", held)


def test_a_flood_waits_for_the_disk_and_not_in_memory(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a disk that does not write, the engine stops reading at its bound, and all that was
    said arrives when the disk is back. Another task is killed on time meanwhile."""
    gate = _Gate(monkeypatch)
    place.tasks(BUSY + """
def flood(input, ctx):
    for n in range(4000):
        ctx.emit(bytes(15_000))
""")  # fmt: skip
    items = 4000
    spec = place.spec(
        tasks={"flood": {"limits": {"output": "128MiB"}}, "busy": {"timeouts": {"wall": "2s"}}}
    )

    async def story() -> History:
        config = load_config(state=tmp_path / "state")
        async with Engine(config.settings()) as engine:
            run = await engine.submit(spec, Raw(codec.encode_value(None)))
            while not engine._is_congested:
                await asyncio.sleep(0.005)
            while any(key.task == "busy" for key in engine._attempts):
                await asyncio.sleep(0.005)
            # Each attempt may have had one read's messages in hand when the bound was passed.
            assert engine._journal.backlog < JOURNAL_BACKLOG_SIZE + LINK_BUFFER_SIZE
            assert [key.task for key in engine._attempts] == ["flood"]
            gate.opened.set()
            return History([event async for event in follow(engine.state, engine, run)])

    history = asyncio.run(asyncio.wait_for(story(), PATIENCE)).check_laws()
    assert len(history.items("flood")) == items
    assert history.errors() == {"busy": "timeout.wall"}


@pytest.mark.parametrize(
    "broken", ["StateDirectory.open", "FrontProcess.start", "Sandboxes", "Sandboxes.wait_ready",
               "Journal", "FrontProcess.wait_ready"],
)  # fmt: skip
def test_an_engine_that_cannot_start_leaves_nothing_begun(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Whichever step of its start fails."""

    def refuse(*_: object) -> None:
        raise SetupRefused("for this test")

    monkeypatch.setattr(f"casemate.supervisor.engine.{broken}", refuse)

    async def story() -> None:
        async with Engine(load_config(state=tmp_path / "state").settings()):
            raise AssertionError("it started")

    before = traces()
    with pytest.raises(SetupRefused, match="for this test"):
        asyncio.run(story())
    assert traces() == before
    assert os.listdir(runtime) == []
