"""The guest, without a sandbox around it: what it says for what a task does.

Each test forks a real guest that talks over a real socket.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate.protocol import codec
from casemate.protocol.limits import VALUE_SIZE
from casemate.protocol.messages import Cancel, Emit, Fail, Log, Message, Progress, Result
from casemate.protocol.pipeline import FileEntry, ModuleEntry, PickleEntry
from casemate.sandbox.context import PAYLOAD_SIZE
from casemate.sandbox.guestlink import SEND_QUEUE
from fakes import FakeSupervisor, GuestHost, wait_until

TASK = FileEntry("agents.py", "task")


@pytest.fixture
def guest(guest_host: GuestHost, tmp_path: Path) -> Iterator[FakeSupervisor]:
    with FakeSupervisor(guest_host, tmp_path) as supervisor:
        yield supervisor


def items(said: list[Message]) -> list[object]:
    return [codec.decode_value(message.item) for message in said if isinstance(message, Emit)]


# -- what is called, and how -----------------------------------------------------------------------

KINDS = {
    "plain": "def task(input, ctx):\n    ctx.emit(1)\n    ctx.emit(2)\n    return input\n",
    "async": """
import asyncio
async def task(input, ctx):
    ctx.emit(1)
    await asyncio.sleep(0)
    ctx.emit(2)
    return input
""",
    "generator": "def task(input, ctx):\n    yield 1\n    yield 2\n    return input\n",
    "decorated": """
import functools
def shielded(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)
    return inner
@shielded
async def task(input, ctx):
    ctx.emit(1)
    ctx.emit(2)
    return input
""",
    "partial": """
import functools
def work(extra, input, ctx):
    yield 1
    yield extra
    return input
task = functools.partial(work, 2)
""",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_function_emits_and_returns(guest: FakeSupervisor, kind: str) -> None:
    guest.source("agents.py", KINDS[kind])
    guest.start(TASK, {"n": 1})
    said, outcome = guest.finish()
    assert items(said) == [1, 2]
    assert isinstance(outcome, Result)
    assert outcome.digest is None
    assert codec.decode_value(outcome.output) == {"n": 1}


def test_an_async_generator_emits_and_gives_none(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import asyncio\n"
        "async def task(input):\n    yield 1\n    await asyncio.sleep(0)\n    yield 2\n",
    )
    guest.start(TASK)
    said, outcome = guest.finish()
    assert items(said) == [1, 2]
    assert isinstance(outcome, Result)
    assert codec.decode_value(outcome.output) is None


@pytest.mark.parametrize("is_marked", [False, True])  # by its code, by its signature
@pytest.mark.parametrize(
    ("parameters", "given"),
    [
        ("", []),
        ("input", ["INPUT"]),
        ("anything", ["INPUT"]),
        ("ctx", ["CTX"]),
        ("input, ctx", ["INPUT", "CTX"]),
        ("a, b, /", ["INPUT", "CTX"]),
        ("input, ctx=None", ["INPUT", "CTX"]),
        ("input, verbose=False", ["INPUT", False]),
        ("input=None, verbose=False", ["INPUT", False]),
        ("input, ctx, depth=3", ["INPUT", "CTX", 3]),
        ("input, *, ctx", ["INPUT", "CTX"]),
        ("*, ctx", ["CTX"]),
        ("*args", ["INPUT", "CTX"]),
        ("input, *args", ["INPUT", "CTX"]),
        ("*args, ctx", ["CTX", "INPUT"]),
        ("**fields", []),
    ],
)
def test_a_function_takes_what_it_names(
    guest: FakeSupervisor, parameters: str, given: list[object], is_marked: bool
) -> None:
    guest.source(
        "agents.py",
        f"def task({parameters}):\n"
        "    found = []\n"
        "    for value in locals().copy().values():\n"
        "        if value is not found and value != {}:\n"
        "            found += value if isinstance(value, tuple) else [value]\n"
        "    return ['CTX' if hasattr(v, 'run_id') else v for v in found]\n"
        f"if {is_marked}: task.mark = 1\n",
    )
    assert guest.output(TASK, "INPUT") == given


def test_a_function_that_wants_more_is_told_what_there_is(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(input, ctx, more): ...\n")
    failure = guest.failure(TASK)
    assert failure.kind == "error"
    assert failure.message == (
        "task takes input, ctx, more; a task takes (input, ctx), (input), (ctx) or ()"
    )


def test_functions_written_in_c(guest: FakeSupervisor) -> None:
    assert guest.output(ModuleEntry("math", "sqrt"), 9) == 3.0


def test_a_pickle_is_opened_in_the_guest(guest: FakeSupervisor) -> None:
    import cloudpickle  # type: ignore[import-untyped]

    bonus = 4
    entry = PickleEntry(cloudpickle.dumps(lambda input: [input + bonus, os.getpid()]), "<lambda>")
    assert guest.output(entry, 3) == [7, guest.pid]


def test_the_context_says_who_and_what(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import time\n"
        "def task(ctx):\n"
        "    return [ctx.run_id, ctx.task_id, ctx.attempt, ctx.spec, str(ctx.workspace),\n"
        "            0 < ctx.deadline - time.monotonic() <= 90, ctx.idempotency_key,\n"
        "            ctx.cancelled, type(ctx.workspace).__name__]\n",
    )
    spec = {"role": "linter", "params": {"n": 1}}
    assert guest.output(TASK, spec=spec, deadline=90.0, workspace="/workspace") == [
        "r1", "t1", 2, spec, "/workspace", True, "r1/t1", False, "PosixPath",
    ]  # fmt: skip


def test_without_limit_and_workspace_the_context_says_none(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(ctx): return [ctx.deadline, ctx.workspace, ctx.spec]\n")
    assert guest.output(TASK) == [None, None, None]


def test_words_come_in_order(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    ctx.log('began', n=1)\n"
        "    ctx.progress(1, 2)\n"
        "    ctx.emit({'line': 3})\n"
        "    ctx.progress(2)\n",
    )
    guest.start(TASK)
    said, _ = guest.finish()
    assert [type(message) for message in said] == [Log, Progress, Emit, Progress]


def test_a_large_input_comes_by_file(guest: FakeSupervisor, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(codec.encode_value({"text": "x" * 3_000_000}))
    guest.source("agents.py", "def task(input): return len(input['text'])\n")
    assert guest.output(TASK, input_file=str(path)) == 3_000_000


def test_the_guest_is_no_script_and_writes_no_bytecode(guest: FakeSupervisor) -> None:
    guest.source("helper.py", "A = 1\n")
    guest.source("agents.py", "import helper, sys\ndef task(): return [__name__, sys.argv]\n")
    assert guest.output(TASK) == ["agents", ["casemate-task"]]
    assert sorted(p.name for p in guest.sources.iterdir()) == ["agents.py", "helper.py"]


# -- outputs ---------------------------------------------------------------------------------------


def test_the_largest_output_of_a_message(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(input): return bytes(input)\n")
    header = len(codec.encode_value(bytes(PAYLOAD_SIZE))) - PAYLOAD_SIZE
    assert len(guest.output(TASK, PAYLOAD_SIZE - header)) == PAYLOAD_SIZE - header
    assert list(guest.outbox.iterdir()) == []


def test_a_larger_output_goes_by_file_with_its_digest(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(input): return b'\\x07' * input\n")
    outcome = guest.run(TASK, PAYLOAD_SIZE)
    assert isinstance(outcome, Result)
    data = (guest.outbox / "output").read_bytes()
    assert (outcome.size, outcome.digest) == (len(data), hashlib.sha256(data).digest())
    assert codec.decode_value(outcome.output) is None
    assert codec.decode_value(data) == b"\x07" * PAYLOAD_SIZE


def test_the_output_file_replaces_what_the_task_put_there(
    guest: FakeSupervisor, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    guest.source(
        "agents.py",
        "import os\ndef task(input):\n    os.symlink(*input)\n    return bytes(2_000_000)\n",
    )
    outcome = guest.run(TASK, [str(victim), str(guest.outbox / "output")])
    assert isinstance(outcome, Result)
    assert victim.read_text() == "untouched"
    assert not (guest.outbox / "output").is_symlink()


def test_an_output_beyond_all_bounds_is_refused(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def task(input): return bytes(input)\n")
    failure = guest.failure(TASK, VALUE_SIZE)
    assert failure.kind == "output_limit"
    assert str(VALUE_SIZE) in failure.message


def test_an_output_that_finds_no_room_says_so(guest: FakeSupervisor) -> None:
    guest.outbox.rmdir()
    guest.source("agents.py", "def task(): return bytes(2_000_000)\n")
    failure = guest.failure(TASK)
    assert failure.kind == "output_limit"
    assert failure.message.startswith("output of t1: 2000005 bytes found no room")


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        ("{'files': [1, {2}]}", "output.files[1]: set"),
        ("object()", "output: object"),
        ("{1: 2}", "output: key 1 (int)"),
        ("open('/dev/null')", "output: _io.TextIOWrapper"),
        ("2 ** 70", "output: int of 71 bits"),
    ],
)
def test_an_output_that_cannot_be_carried_names_path_and_type(
    guest: FakeSupervisor, returned: str, named: str
) -> None:
    guest.source("agents.py", f"def task(): return {returned}\n")
    failure = guest.failure(TASK)
    assert failure.kind == "invalid_output"
    assert failure.message.startswith(named)


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_is_told_from_the_tasks_own_code_on(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "class BadLine(ValueError): ...\n"
        "def parse(text):\n    raise BadLine(f'cannot read {text!r}')\n"
        "def task(input):\n    return parse(input)\n",
    )
    failure = guest.failure(TASK, "}{")
    assert (failure.kind, failure.type) == ("error", "agents.BadLine")
    assert failure.message == "cannot read '}{'"
    # Which part of a line is underlined differs between versions of Python.
    lines = [line for line in (failure.traceback or "").splitlines() if line.strip(" ^")]
    assert lines == [
        "Traceback (most recent call last):",
        f'  File "{guest.sources}/agents.py", line 5, in task',
        "    return parse(input)",
        f'  File "{guest.sources}/agents.py", line 3, in parse',
        "    raise BadLine(f'cannot read {text!r}')",
        "agents.BadLine: cannot read '}{'",
    ]


def test_a_refused_item_is_raised_where_the_task_yields_it(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "def task():\n"
        "    try:\n"
        "        yield {1}\n"
        "    except Exception as error:\n"
        "        yield str(error)\n"
        "    yield {2}  # here\n",
    )
    guest.start(TASK)
    said, outcome = guest.finish()
    [caught] = items(said)
    assert str(caught).startswith("item: set")
    assert isinstance(outcome, Fail)
    assert "yield {2}  # here" in (outcome.traceback or "")
    assert "casemate/sandbox" not in (outcome.traceback or "")


def test_a_refused_item_is_raised_where_an_async_task_yields_it(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "async def task(ctx):\n"
        "    try:\n        yield {1}\n"
        "    finally:\n        ctx.log('tidied')\n",
    )
    guest.start(TASK)
    said, outcome = guest.finish()
    assert [message.text for message in said if isinstance(message, Log)] == ["tidied"]
    assert isinstance(outcome, Fail)
    assert "yield {1}" in (outcome.traceback or "")


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("import sys; sys.exit(0)", "SystemExit", "called sys.exit(0)"),
        ("raise SystemExit('done')", "SystemExit", "called sys.exit('done')"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('odd')", "BaseException", "odd"),
        ("raise GeneratorExit", "GeneratorExit", "GeneratorExit"),
        ("task()", "RecursionError", "maximum recursion depth exceeded"),
        ("raise ExceptionGroup('two', [ValueError(1), KeyError(2)])", "ExceptionGroup", "two (2"),
        ("raise ValueError('\\udcff')", "ValueError", "\\udcff"),
        ("import helpers_nobody_named", "ModuleNotFoundError", "No module named 'helpers_nobod"),
        ("raise type('E', (Exception,), {'__str__': lambda s: 1 / 0})", "agents.E", "E (its str()"),
        ("1 +* 2", "SyntaxError", "invalid syntax"),
    ],
)
def test_whatever_is_raised_becomes_an_error(
    guest: FakeSupervisor, body: str, kind: str, message: str
) -> None:
    guest.source("agents.py", f"def task():\n    {body}\n")
    failure = guest.failure(TASK)
    assert (failure.kind, failure.type) == ("error", kind)
    assert failure.message.startswith(message)


def test_a_missing_module_points_to_sources(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "import helpers_nobody_named\ndef task(): ...\n")
    failure = guest.failure(TASK)
    assert "`sources`" in failure.message
    assert "import helpers_nobody_named" in (failure.traceback or "")
    assert "importlib" not in (failure.traceback or "")


def test_an_endless_message_and_a_deep_traceback_are_cut(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import sys\nsys.setrecursionlimit(20_000)\n"
        "def task(n=3000):\n"
        "    n = n or 3000\n"
        "    if n == 1:\n        raise ValueError('x' * 10_000_000)\n"
        "    task(n - 1)\n",
    )
    failure = guest.failure(TASK)
    assert "bytes cut" in failure.message
    assert failure.traceback is not None


def test_an_error_while_cleaning_up_an_error_shows_both(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "def task():\n    try:\n        raise ValueError('first')\n"
        "    finally:\n        raise KeyError('second')\n",
    )
    failure = guest.failure(TASK)
    assert failure.type == "KeyError"
    assert "ValueError: first" in (failure.traceback or "")


def test_a_task_that_runs_out_of_memory_can_still_say_so(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import resource\n"
        "def task():\n"
        "    used = int(open('/proc/self/statm').read().split()[5]) * 4096\n"
        "    room = used + 32 * 1024 * 1024\n"
        "    resource.setrlimit(resource.RLIMIT_DATA, (room, room))\n"
        "    kept = []\n"
        "    while True:\n        kept.append(bytes(100_000))\n",
    )
    failure = guest.failure(TASK)
    assert (failure.kind, failure.type) == ("error", "MemoryError")


def test_a_task_that_leaves_without_a_word_closes_the_link(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "import os\ndef task(ctx):\n    os._exit(0)\n")
    guest.start(TASK)
    with pytest.raises((EOFError, ConnectionError)):
        guest.finish()


# -- standard streams ------------------------------------------------------------------------------


def test_what_was_printed_is_out_before_the_result(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import sys\n"
        "def task():\n"
        "    print('no newline', end='')\n    print('to stderr', file=sys.stderr, end='')\n"
        "    print('', '\\udcff', 'ü', end='')\n",
    )
    guest.output(TASK)
    assert guest.stdout() == "no newline \\udcff ü"
    assert guest.stderr() == "to stderr"


def test_what_a_library_printed_is_out_too(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "import ctypes\ndef task(): ctypes.CDLL(None).printf(b'from C')\n")
    guest.output(TASK)
    assert guest.stdout() == "from C"


def test_lines_leave_as_they_end(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "import time\ndef task():\n    print('begun')\n    time.sleep(600)\n")
    guest.start(TASK)
    wait_until(lambda: guest.stdout() == "begun\n")


def test_closed_streams_disturb_nothing(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import sys\ndef task():\n    sys.stdout.close()\n    sys.stderr = None\n    return 1\n",
    )
    assert guest.output(TASK) == 1


def test_stdin_is_there_and_empty(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "import sys\ndef task(): return sys.stdin.read()\n")
    assert guest.output(TASK) == ""


# -- threads, children, backpressure ---------------------------------------------------------------


def test_many_threads_emit_whole_items(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import threading\n"
        "def task(input, ctx):\n"
        "    def work(me):\n"
        "        for n in range(200):\n            ctx.emit([me, n, 'x' * (n * me)])\n"
        "    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]\n"
        "    [t.start() for t in threads]\n    [t.join() for t in threads]\n",
    )
    guest.start(TASK)
    said, outcome = guest.finish()
    assert isinstance(outcome, Result)
    came = items(said)
    for me in range(8):
        assert [item for item in came if item[0] == me] == [  # type: ignore[index]
            [me, n, "x" * (n * me)] for n in range(200)
        ]


def test_a_slow_supervisor_holds_the_task_back(guest: FakeSupervisor, tmp_path: Path) -> None:
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    with open(input, 'wb', buffering=0) as sent:\n"
        "        for n in range(100):\n"
        "            ctx.emit(bytes(900_000))\n            sent.write(b'.')\n",
    )
    sent = tmp_path / "sent"
    guest.start(TASK, str(sent))
    # What can be under way: libzmq's queue, what its thread has in hand, one unfinished send;
    # the kernel's socket buffer holds less than one item.
    bound = SEND_QUEUE + 4
    wait_until(lambda: sent.exists() and sent.stat().st_size >= SEND_QUEUE - 1)
    received = 0
    while isinstance(guest.next(), Emit):
        received += 1
        assert sent.stat().st_size <= received + bound
    assert received == 100


def test_a_forked_child_cannot_speak_for_the_task(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import os\n"
        "def task(input, ctx):\n"
        "    read, write = os.pipe()\n"
        "    if os.fork() == 0:\n"
        "        try:\n            ctx.emit('from the child')\n"
        "        except RuntimeError as error:\n            os.write(write, str(error).encode())\n"
        "        assert not ctx.cancelled\n"
        "        return 'a second result'\n"
        "    os.close(write)\n"
        "    said = open(read).read()\n"
        "    return [said, os.waitstatus_to_exitcode(os.wait()[1])]\n",
    )
    guest.start(TASK)
    said, outcome = guest.finish()
    assert said == []
    assert isinstance(outcome, Result)
    refusal, code = codec.decode_value(outcome.output)
    assert "child" in refusal
    assert code == 0


def test_a_forked_child_that_raises_does_not_fail_the_task(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import os, sys\n"
        "def task():\n"
        "    if os.fork() == 0:\n        sys.exit(3)\n"
        "    return os.waitstatus_to_exitcode(os.wait()[1])\n",
    )
    assert guest.output(TASK) == 1


def test_a_pool_of_processes_works_inside_a_task(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import multiprocessing, warnings\n"
        "def square(n): return n * n\n"
        "def task(input):\n"
        "    warnings.simplefilter('ignore')\n"  # 3.12 warns of forks beside libzmq's thread
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        return pool.map(square, input)\n",
    )
    assert guest.output(TASK, [1, 2, 3]) == [1, 4, 9]


def test_sigterm_simply_ends_a_child_of_the_task(guest: FakeSupervisor) -> None:
    # An exception in the middle of a lock shared with others would hang them.
    guest.source(
        "agents.py",
        "import os, signal, time, warnings\n"
        "def task():\n"
        "    warnings.simplefilter('ignore')\n"
        "    here, there = os.pipe()\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.write(there, b'!')\n"
        "        time.sleep(600)\n"
        "    os.read(here, 1)\n"
        "    os.kill(pid, signal.SIGTERM)\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n",
    )
    assert guest.output(TASK) == -15


def test_a_child_of_the_task_inherits_three_descriptors(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import subprocess\n"
        "def task():\n"
        "    done = subprocess.run(['ls', '-l', '/proc/self/fd'], capture_output=True,\n"
        "                          close_fds=False, text=True)\n"
        "    return done.stdout.splitlines()[1:]\n",
    )
    # ls itself has the folder open.
    lines = [line for line in guest.output(TASK) if not line.endswith("/fd")]
    assert [line.split()[-3] for line in lines] == ["0", "1", "2"]


def test_after_the_result_the_guest_waits_and_its_threads_are_mute(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import threading, time\n"
        "def chatter(ctx):\n"
        "    try:\n"
        "        while True:\n            ctx.emit('still here')\n            time.sleep(0.001)\n"
        "    except RuntimeError as error:\n        print('refused:', error)\n"
        "def task(input, ctx):\n"
        "    threading.Thread(target=chatter, args=(ctx,), daemon=True).start()\n"
        "    return 'done'\n",
    )
    assert guest.output(TASK) == "done"
    wait_until(lambda: guest.stdout() == "refused: the task has ended; nothing more can be said\n")
    guest.terminate()  # not even this makes it leave: only a kill does
    os.kill(guest.pid, 0)


# -- ending early ----------------------------------------------------------------------------------


def test_a_task_can_ask_whether_it_is_cancelled(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import time\n"
        "def task(input, ctx):\n"
        "    ctx.emit('running')\n"
        "    while not ctx.cancelled:\n        time.sleep(0.001)\n"
        "    return ['stopped', ctx.cancelled]\n",
    )
    guest.start(TASK)
    assert isinstance(guest.next(), Emit)
    guest.cancel()
    _, outcome = guest.finish()
    assert isinstance(outcome, Result)
    assert codec.decode_value(outcome.output) == ["stopped", True]


ENDLESS = {
    "plain": "def task(input, ctx):\n"
    "    try:\n        ctx.emit('running')\n        while True: pass\n"
    "    except Exception: ctx.log('not an Exception')\n"
    "    finally:\n        ctx.log('tidied', cancelled=ctx.cancelled)\n",
    "sleeping": "import time\ndef task(input, ctx):\n"
    "    try:\n        ctx.emit('running')\n        time.sleep(600)\n"
    "    finally:\n        ctx.log('tidied', cancelled=ctx.cancelled)\n",
    "generator": "import time\ndef task(input, ctx):\n"
    "    try:\n        yield 'running'\n        time.sleep(600)\n"
    "    finally:\n        ctx.log('tidied', cancelled=ctx.cancelled)\n",
    "async": "import asyncio\nasync def task(input, ctx):\n"
    "    try:\n        ctx.emit('running')\n        await asyncio.sleep(600)\n"
    "    finally:\n        await asyncio.sleep(0)\n"
    "        ctx.log('tidied', cancelled=ctx.cancelled)\n",
    "async generator": "import asyncio\nasync def task(input, ctx):\n"
    "    try:\n        yield 'running'\n        await asyncio.sleep(600)\n"
    "    finally:\n        await asyncio.sleep(0)\n"
    "        ctx.log('tidied', cancelled=ctx.cancelled)\n",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_terminated_task_tidies_up(guest: FakeSupervisor, kind: str) -> None:
    guest.source("agents.py", ENDLESS[kind])
    guest.start(TASK)
    assert isinstance(guest.next(), Emit)
    guest.cancel()
    guest.terminate()
    said, outcome = guest.finish()
    [log] = said
    assert isinstance(log, Log)
    assert (log.text, codec.decode_value(log.fields)) == ("tidied", {"cancelled": True})
    assert isinstance(outcome, Fail)
    assert outcome.type == "casemate.sandbox.context.Cancelled"
    assert outcome.message == "cancelled by the supervisor"


def test_a_second_sigterm_does_not_interrupt_the_tidying(
    guest: FakeSupervisor, tmp_path: Path
) -> None:
    guest.source(
        "agents.py",
        "import os, signal, time\n"
        "def task(input, ctx):\n"
        "    try:\n        ctx.emit('running')\n        time.sleep(600)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        ctx.log('tidied')\n",
    )
    guest.start(TASK)
    assert isinstance(guest.next(), Emit)
    guest.terminate()
    said, outcome = guest.finish()
    assert [type(message) for message in said] == [Log]
    assert isinstance(outcome, Fail)


def test_a_task_blocked_in_emit_is_interrupted(guest: FakeSupervisor, tmp_path: Path) -> None:
    guest.source(
        "agents.py",
        "def task(input, ctx):\n"
        "    try:\n"
        "        while True:\n"
        "            ctx.emit(bytes(900_000))\n            print('sent')\n"
        "    finally:\n        print('interrupted')\n",
    )
    guest.start(TASK)
    wait_until(lambda: guest.stdout().count("sent") >= SEND_QUEUE - 1)
    guest.terminate()
    wait_until(lambda: "interrupted" in guest.stdout())
    _, outcome = guest.finish()
    assert isinstance(outcome, Fail)


def test_a_task_may_return_in_spite_of_being_cancelled(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import time\n"
        "def task(input, ctx):\n"
        "    try:\n        ctx.emit('running')\n        time.sleep(600)\n"
        "    except BaseException as error:\n        return ['saved', type(error).__name__]\n",
    )
    guest.start(TASK)
    assert isinstance(guest.next(), Emit)
    guest.terminate()
    _, outcome = guest.finish()
    assert isinstance(outcome, Result)
    assert codec.decode_value(outcome.output) == ["saved", "Cancelled"]


def test_a_coroutine_that_is_terminated_after_its_end_has_returned(guest: FakeSupervisor) -> None:
    guest.source(
        "agents.py",
        "import asyncio, os, signal\n"
        "async def task(input, ctx):\n"
        "    loop = asyncio.get_running_loop()\n"
        "    close = loop.close\n"
        "    loop.close = lambda: (close(), os.kill(os.getpid(), signal.SIGTERM))\n"
        "    return 'done'\n",
    )
    assert guest.output(TASK) == "done"


def test_a_guest_terminated_before_its_job_is_gone(guest: FakeSupervisor) -> None:
    guest.next()  # HELLO
    os.kill(guest.pid, signal.SIGTERM)
    with pytest.raises((EOFError, ConnectionError)):
        guest.next()


# -- a supervisor that errs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"", "empty message"),
        (b"\xff\x80", "message of kind 255"),
        (codec.encode(Cancel(grace=1.0)), "guest was sent CANCEL while greeted"),
    ],
)
def test_a_guest_that_is_told_nonsense_leaves_and_says_why(
    guest: FakeSupervisor, frame: bytes, why: str
) -> None:
    guest.next()  # HELLO
    guest.send_frame(frame)
    with pytest.raises((EOFError, ConnectionError)):
        guest.next()
    assert f"RemoteViolation: {why}" in guest.stderr()
