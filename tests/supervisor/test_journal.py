"""The journal: numbered in order, durable before told, no hole, whatever dies or fails."""

from __future__ import annotations

import functools
import os
import random
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.control import RunState
from casemate.protocol.errors import LocalViolation, UsageError
from casemate.protocol.events import (
    ErrorKind,
    Event,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunStarted,
    TaskCancelled,
    TaskCompleted,
    TaskEmitted,
    TaskError,
    TaskFailed,
    TaskLog,
    TaskProgress,
    TaskReady,
    TaskRetrying,
    TaskStarted,
    TaskUsage,
)
from casemate.protocol.limits import EVENT_SIZE, INLINE_VALUE_SIZE
from casemate.supervisor import journal as journal_module
from casemate.supervisor import state as state_module
from casemate.supervisor.journal import (
    SCHEMA_VERSION,
    Commit,
    Entry,
    Journal,
    JournalError,
    JournalReader,
    NotBegunError,
)
from casemate.supervisor.overview import summarise
from casemate.supervisor.state import (
    OwnedRun,
    Ownership,
    RunDirectory,
    StateDirectory,
    is_run_id,
    new_run_id,
)
from fakes import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, msgpack

LARGE = Raw(msgpack.encode(b"large " * INLINE_VALUE_SIZE))
LARGE_SIZE = len(LARGE)
SMALL = Raw(msgpack.encode("small"))
ERROR = TaskError(kind=ErrorKind.ERROR, message="no", type="ValueError", traceback="...")
SPEC = Raw(msgpack.encode({"name": "p", "tasks": [{"id": "a"}, {"id": "b"}, {"id": "c"}]}))
STARTED = RunStarted(pipeline="review", input=SMALL, seed=7, spec=SPEC)

EVERY_KIND: list[tuple[str | None, EventData]] = [
    (None, STARTED),
    ("a", TaskReady()),
    ("a", TaskStarted(pid=17, walls={"seccomp": True, "backing": {"memory": "cgroup"}})),
    ("a", TaskEmitted(SMALL)),
    ("a", TaskEmitted(LARGE)),
    ("a", TaskLog(stream="stdout", text="hello\n")),
    ("a", TaskLog(stream="log", text="hello", fields=LARGE, dropped=3)),
    ("a", TaskProgress(1, 2)),
    ("a", TaskUsage(memory=1, cpu=0.5, pids=2, disk=None)),
    ("a", TaskRetrying(ERROR, 1.5)),
    ("a", TaskCompleted(LARGE, 0.25)),
    ("b", TaskFailed(ERROR)),
    ("c", TaskCancelled(ERROR)),
    (None, RunCompleted({"a": LARGE, "b": SMALL, "c": LARGE})),
    (None, RunCompleted({})),
    (None, RunFailed(ERROR, ("b",))),
    (None, RunCancelled("by hand")),
]


class Kept:
    """A journal whose callbacks are kept; `wait` for what is to come."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.failures: list[tuple[str, Exception]] = []
        self.journal = Journal(self.commits.append, self._failed)

    def _failed(self, run: str, error: Exception) -> None:
        self.failures.append((run, error))

    def events(self, run: str) -> list[Event]:
        return [event for commit in self.commits if commit.run == run for event in commit.events]


@contextmanager
def kept() -> Iterator[Kept]:
    journal = Kept()
    try:
        yield journal
    finally:
        journal.journal.close()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(tmp_path / "state")


@pytest.fixture
def owned(state: StateDirectory) -> Iterator[OwnedRun]:
    run = state.create_run()
    yield run
    run.ownership.release()


def entries(*data: EventData, task: str | None = "a") -> list[Entry]:
    return [(task, 1, 1.5, one) for one in data]


def write(run: RunDirectory, items: list[Entry], last_seq: int = 0) -> list[Event]:
    with kept() as it:
        it.journal.open(run, last_seq=last_seq)
        it.journal.append(run.id, items)
    assert not it.failures
    return it.events(run.id)


def read(run: RunDirectory) -> list[Event]:
    """All of it, in pages."""
    found: list[Event] = []
    with JournalReader(run) as reader:
        while page := reader.events(found[-1].seq if found else 0, 100):
            found += page
    return found


def bare(event: Event) -> tuple[Any, ...]:
    """Raw compares by identity of its buffer's owner; bytes by content."""
    return (*(getattr(event, name) for name in event.__struct_fields__ if name != "data"),
            bytes(event.data))  # fmt: skip


def test_events_are_numbered_when_appended_and_committed_in_that_order(
    owned: OwnedRun, state: StateDirectory
) -> None:
    other = state.create_run()
    run = owned.directory
    with kept() as it:
        it.journal.open(run)
        it.journal.open(other.directory)
        assert it.journal.append(run.id, entries(TaskReady(), TaskProgress(1))) == range(1, 3)
        assert it.journal.append(other.directory.id, entries(TaskReady())) == range(1, 2)
        assert it.journal.append(run.id, []) == range(3, 3)
        for number in range(500):
            it.journal.append(run.id, entries(TaskProgress(number)))
    other.ownership.release()
    events = it.events(run.id)
    assert [event.seq for event in events] == list(range(1, 503))
    assert [bare(event) for event in read(run)] == [bare(event) for event in events]
    assert msgpack.decode(events[-1].data) == {"done": 499.0, "total": None}
    assert [event.seq for event in it.events(other.directory.id)] == [1]
    assert it.journal.backlog == 0


def test_every_kind_comes_back_as_it_was_committed(owned: OwnedRun) -> None:
    events = write(owned.directory, [(task, 1, 2.5, data) for task, data in EVERY_KIND])
    for event, (task, data) in zip(events, EVERY_KIND, strict=True):
        assert bytes(event.data) == msgpack.encode(data)
        assert (event.task, event.attempt, event.at) == (task, 1, 2.5)
    assert [bare(event) for event in read(owned.directory)] == [bare(event) for event in events]


def test_each_tasks_events_are_counted_apart_also_after_reopening(owned: OwnedRun) -> None:
    run = owned.directory
    write(run, entries(TaskReady(), TaskReady()) + entries(TaskReady(), task="b"))
    write(run, entries(TaskReady(), task="b") + entries(STARTED, task=None), last_seq=3)
    assert [(e.seq, e.task, e.task_seq) for e in read(run)] == [
        (1, "a", 1),
        (2, "a", 2),
        (3, "b", 1),
        (4, "b", 2),
        (5, None, None),
    ]


def test_what_queues_during_a_commit_becomes_one_commit(owned: OwnedRun) -> None:
    run = owned.directory
    entered, go_on = threading.Event(), threading.Event()
    sizes: list[int] = []

    def on_commit(commit: Commit) -> None:
        sizes.append(len(commit.events))
        entered.set()
        assert go_on.wait(60)

    journal = Journal(on_commit, lambda run, error: None)
    journal.open(run)
    journal.append(run.id, entries(TaskReady()))
    assert entered.wait(60)
    for number in range(1000):
        journal.append(run.id, entries(TaskProgress(number)))
    assert journal.backlog > 1000
    go_on.set()
    journal.close()
    assert sizes == [1, 1000]
    assert journal.backlog == 0


def test_the_last_commit_already_shows_the_backlog_it_has_cleared(owned: OwnedRun) -> None:
    """Links are paused above a backlog and go on in the callback: no later one may ever come."""
    seen: list[int] = []
    journal = Journal(lambda commit: seen.append(journal.backlog), lambda run, error: None)
    journal.open(owned.directory)
    while len(seen) < 20 and not any(seen):
        told = len(seen)
        journal.append(owned.directory.id, entries(TaskReady()))
        wait_until(lambda told=told: len(seen) > told)  # type: ignore[misc]
    journal.close()
    assert seen == [0] * 20


def test_nobody_hears_of_an_event_that_is_not_yet_in_the_journal(owned: OwnedRun) -> None:
    run = owned.directory
    seen: list[bool] = []

    def on_commit(commit: Commit) -> None:
        with JournalReader(run) as reader:
            seen.append(reader.last_seq() >= commit.events[-1].seq)

    journal = Journal(on_commit, lambda run, error: None)
    journal.open(run)
    for number in range(100):
        journal.append(run.id, entries(TaskEmitted(LARGE if number % 10 else SMALL)))
    journal.close()
    assert seen and all(seen)


def test_a_closed_runs_files_are_left_alone(owned: OwnedRun) -> None:
    run = owned.directory
    closed = threading.Event()
    with kept() as it:
        it.journal.open(run)
        it.journal.append(run.id, entries(TaskReady()))
        it.journal.close_run(run.id, closed.set)
        assert closed.wait(60)
        assert len(it.events(run.id)) == 1
        holders = [
            os.readlink(f"/proc/self/fd/{name}")
            for name in os.listdir("/proc/self/fd")
            if Path(f"/proc/self/fd/{name}").exists()
        ]
        assert not [path for path in holders if "journal.db" in path]
        with pytest.raises(LocalViolation, match="not open"):
            it.journal.append(run.id, entries(TaskReady()))
        # All of it is in the one file: the run can be copied as a database.
        wal = run.journal.with_name("journal.db-wal")
        assert not wal.exists() or wal.stat().st_size == 0


def test_breaking_the_rules_of_opening_is_our_own_bug(owned: OwnedRun) -> None:
    run = owned.directory
    with kept() as it:
        with pytest.raises(LocalViolation, match="not open"):
            it.journal.append(run.id, entries(TaskReady()))
        with pytest.raises(LocalViolation, match="not open"):
            it.journal.close_run(run.id)
        it.journal.open(run)
        with pytest.raises(LocalViolation, match="twice"):
            it.journal.open(run)


def test_a_journal_that_ends_elsewhere_than_its_owner_thinks_is_not_written(
    owned: OwnedRun,
) -> None:
    run = owned.directory
    write(run, entries(TaskReady(), TaskReady()))
    with kept() as it:
        it.journal.open(run, last_seq=1)
        it.journal.append(run.id, entries(TaskProgress(1)))
    assert [name for name, _ in it.failures] == [run.id]
    assert "seq 2, expected 1" in str(it.failures[0][1])
    assert not it.commits
    assert len(read(run)) == 2


# ---------------------------------------------------------------------------------- large values


def value_files(run: RunDirectory) -> list[Path]:
    return [path for path in run.values.rglob("*") if path.is_file()]


def test_equal_large_values_are_stored_once_and_outside_the_rows(owned: OwnedRun) -> None:
    run = owned.directory
    write(
        run,
        entries(*[TaskCompleted(LARGE, 1.0)] * 50)
        + entries(TaskEmitted(LARGE), RunCompleted({"z": LARGE})),
    )
    assert len(value_files(run)) == 1
    assert value_files(run)[0].read_bytes() == bytes(LARGE)
    assert run.journal.stat().st_size < len(LARGE)
    assert all(bytes(LARGE) in bytes(event.data) for event in read(run))


def test_outlines_have_nil_in_the_places_of_large_values_and_name_them(owned: OwnedRun) -> None:
    run = owned.directory
    with kept() as it:
        it.journal.open(run)
        it.journal.append(run.id, [(task, 1, 2.5, data) for task, data in EVERY_KIND])
    outlines = {seq: outline for c in it.commits for seq, outline in c.outlines.items()}
    with JournalReader(run) as reader:
        found = reader.outlines()
    assert {one.event.seq: one.omitted for one in found if one.omitted} == {
        5: {"item": len(LARGE)},
        7: {"fields": len(LARGE)},
        11: {"output": len(LARGE)},
        14: {"outputs/a": len(LARGE), "outputs/c": len(LARGE)},
    }
    assert msgpack.decode(found[13].event.data) == {"outputs": {"a": None, "b": "small", "c": None}}
    assert msgpack.decode(found[10].event.data) == {"output": None, "seconds": 0.25, "layer": None}
    # The writer tells the same to those who publish.
    assert {seq: bare(o.event) for seq, o in outlines.items()} == {
        one.event.seq: bare(one.event) for one in found if one.omitted
    }


PLACE = msgpack.encode([[8, len(LARGE), b"\x00" * 32, "item"]])


@pytest.mark.parametrize(
    "payload",
    [
        PLACE,
        msgpack.encode({"$digest": b"\x00" * 32, "offset": 6, "size": 10}),
        msgpack.encode(msgpack.Ext(1, PLACE)),
        msgpack.encode(PLACE),
        b"\xc0",
        b"\xc1",  # not msgpack at all: nothing here opens it
    ],
)
def test_a_payload_cannot_be_taken_for_a_reference(owned: OwnedRun, payload: bytes) -> None:
    data = TaskEmitted(Raw(payload))
    (event,) = write(owned.directory, entries(data))
    (found,) = read(owned.directory)
    assert bytes(found.data) == bytes(event.data) == msgpack.encode(data)
    assert not value_files(owned.directory)


SIZES = st.sampled_from(
    [0, 1, 100, INLINE_VALUE_SIZE - 1, INLINE_VALUE_SIZE, INLINE_VALUE_SIZE + 1, 40_000]
)
PAYLOADS = st.builds(lambda size, fill: Raw(bytes([fill]) * size), SIZES, st.integers(0, 255))
DATA = st.one_of(
    st.builds(TaskEmitted, PAYLOADS),
    st.builds(TaskCompleted, PAYLOADS, st.floats(allow_nan=False)),
    st.builds(RunCompleted, st.dictionaries(st.text(max_size=3), PAYLOADS, max_size=20)),
    st.builds(
        RunStarted, pipeline=st.text(), input=PAYLOADS, seed=st.integers(0, 9), spec=PAYLOADS
    ),
    st.builds(TaskLog, stream=st.just("log"), text=st.text(), fields=PAYLOADS),
)


@settings(max_examples=60)
@given(items=st.lists(DATA, min_size=1, max_size=5))
def test_whatever_is_cut_out_is_put_back_where_it_was(items: list[EventData]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = StateDirectory.open(Path(folder)).create_run()
        try:
            write(run.directory, entries(*items))
            found = [bytes(event.data) for event in read(run.directory)]
        finally:
            run.ownership.release()
    assert found == [msgpack.encode(item) for item in items]


# -------------------------------------------------------------------------------- crash, failure

CRASHING = """
import os, sys, time
from pathlib import Path
from casemate.protocol.events import TaskCompleted, TaskEmitted
from casemate.supervisor.journal import Journal, JournalReader
from casemate.supervisor.state import StateDirectory
from msgspec import Raw, msgpack
owned = StateDirectory.open(Path(sys.argv[1])).own_run(sys.argv[2])
run = owned.directory
last = 0
if run.journal.exists():
    with JournalReader(run) as reader:
        last = reader.last_seq()
def committed(commit):
    os.write(1, b"%d\\n" % commit.events[-1].seq)
def failed(run, error):
    os.write(1, b"failed %r\\n" % str(error).encode())
    os._exit(1)
journal = Journal(committed, failed)
journal.open(run, last_seq=last)
number = last
while True:
    while journal.backlog > 200_000:
        time.sleep(0.0005)
    items = []
    for _ in range(7):
        number += 1
        if number % 50 == 0:
            data = TaskCompleted(Raw(msgpack.encode(str(number) * 10_000)), 1.0)
        else:
            data = TaskEmitted(Raw(msgpack.encode(number)))
        items.append((f"t{number % 3}", 1, 0.0, data))
    journal.append(run.id, items)
"""


def test_killed_at_any_moment_the_journal_has_all_it_told_and_no_hole(
    state: StateDirectory,
) -> None:
    chance = random.Random(4)
    owned = state.create_run()
    owned.ownership.release()
    run = owned.directory
    told = 0
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", CRASHING, str(state.path), run.id], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            try:
                for _ in range(chance.randint(1, 60)):
                    told = int(child.stdout.readline())
            finally:
                child.kill()
            for line in child.stdout:
                if line.endswith(b"\n"):
                    told = int(line)
        found = read(run)  # every large value is read and checked on the way
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        assert len(found) >= told
        counted: dict[str | None, int] = {}
        for event in found:
            counted[event.task] = counted.get(event.task, 0) + 1
            assert event.task_seq == counted[event.task]
        assert summarise(run).state == RunState.INTERRUPTED
    assert told > 100


DISK_FULL = """
import os, resource, sys, time
from pathlib import Path
from casemate.protocol.events import TaskCompleted, TaskEmitted
from casemate.supervisor.journal import Journal
from casemate.supervisor.state import StateDirectory
from msgspec import Raw, msgpack
state = StateDirectory.open(Path(sys.argv[1]))
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for pages in range(0, 300, 7):
    owned = state.create_run()
    run = owned.directory.id
    told, failures = [0], []
    journal = Journal(lambda c: told.append(c.events[-1].seq), lambda r, e: failures.append(e))
    # No file may grow beyond this many pages: the n-th write fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (pages * 4096 + 100, unlimited))
    journal.open(owned.directory)
    for number in range(40):
        data = TaskEmitted(Raw(msgpack.encode("x" * 15_000)))
        if number % 10 == 9:
            data = TaskCompleted(Raw(msgpack.encode(str(number) * 40_000)), 1.0)
        journal.append(run, [("t", 1, 0.0, data)])
        while len(told) + len(failures) < number + 2 and not failures:
            time.sleep(0.0002)
    journal.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    owned.ownership.release()
    print(run, told[-1], len(failures), flush=True)
"""


def test_whichever_write_fails_it_is_told_once_and_nothing_later_is_committed(
    state: StateDirectory,
) -> None:
    child = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(state.path)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    endings = set()
    for line in child.stdout.splitlines():
        name, told, failures = line.split()
        run = state.run(name)
        found = read(run) if run.journal.exists() and run.journal.stat().st_size else []
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        # The failed commit itself may or may not have reached the disk; what follows it has not.
        assert int(told) <= len(found) <= int(told) + 1
        assert int(failures) == (0 if int(told) == 40 else 1)
        endings.add(int(told))
    assert {0, 40} < endings and len(endings) > 10


@pytest.mark.parametrize("name", ["fsync", "rename", "write", "open"])
def test_whichever_call_for_a_value_fails_its_event_is_not_committed(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = getattr(os, name)
    for nth in range(1, 1000):
        calls = 0
        armed = threading.Event()

        def fails_once(
            *arguments: Any, nth: int = nth, armed: threading.Event = armed, **options: Any
        ) -> Any:
            nonlocal calls
            if armed.is_set() and threading.current_thread().name == "casemate-journal":
                calls += 1
                if calls == nth:
                    raise OSError(5, "Input/output error")
            return real(*arguments, **options)

        owned = state.create_run()
        run = owned.directory
        with monkeypatch.context() as patch, kept() as it:
            patch.setattr(os, name, fails_once)
            it.journal.open(run)
            it.journal.append(run.id, entries(TaskReady()))
            wait_until(functools.partial(len, it.commits))
            armed.set()
            it.journal.append(run.id, entries(TaskCompleted(LARGE, 1.0)))
            it.journal.append(run.id, entries(TaskReady()))
            it.journal.close_run(run.id)
            it.journal.close()
            armed.clear()
        owned.ownership.release()
        if calls < nth:
            assert not it.failures and len(read(run)) == 3 and nth > 1
            return
        assert [(n, type(e)) for n, e in it.failures] == [(run.id, OSError)]
        assert len(it.events(run.id)) == len(read(run)) == 1
    raise AssertionError("a thousand calls for one value")


def test_one_runs_failure_is_not_anothers(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = state.create_run(), state.create_run()
    with kept() as it:
        it.journal.open(good.directory)
        it.journal.open(bad.directory)
        it.journal.append(bad.directory.id, entries(TaskReady()))
        wait_until(lambda: it.commits)
        bad.directory.values.chmod(0o500)
        bad.directory.values.rename(bad.directory.path / "gone")
        (bad.directory.path / "values").write_bytes(b"")
        for run in (good, bad):
            it.journal.append(run.directory.id, entries(TaskCompleted(LARGE, 1.0)))
            it.journal.append(run.directory.id, entries(TaskReady()))
    assert [name for name, _ in it.failures] == [bad.directory.id]
    assert len(read(good.directory)) == 2
    assert len(read(bad.directory)) == 1
    good.ownership.release()
    bad.ownership.release()


def test_a_bug_in_the_writer_is_told_to_every_run(
    owned: OwnedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    monkeypatch.setattr(journal_module._RunWriter, "write", lambda self, group: [].pop())
    with kept() as it:
        it.journal.open(owned.directory)
        it.journal.append(owned.directory.id, entries(TaskReady()))
    assert [(name, type(error)) for name, error in it.failures] == [
        (owned.directory.id, LocalViolation)
    ]
    assert len(died) == 1


# --------------------------------------------------------------------------------------- reading


def test_another_process_reads_while_the_writer_lives_and_after(owned: OwnedRun) -> None:
    script = """
        import sys
        from pathlib import Path
        from casemate.supervisor.journal import JournalReader
        from casemate.supervisor.state import RunDirectory
        path = Path(sys.argv[1])
        with JournalReader(RunDirectory(path.name, path)) as reader:
            print(reader.run, [(event.seq, len(event.data)) for event in reader.events()])
    """

    def ask() -> str:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(owned.directory.path)],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout.strip()

    run = owned.directory
    size = len(msgpack.encode(TaskEmitted(LARGE)))
    with kept() as it:
        it.journal.open(run)
        it.journal.append(run.id, entries(TaskEmitted(LARGE)))
        wait_until(lambda: it.commits)
        assert ask() == f"{run.id} [(1, {size})]"
        it.journal.append(run.id, entries(TaskReady()))
        wait_until(lambda: len(it.events(run.id)) == 2)
        assert ask() == f"{run.id} [(1, {size}), (2, 1)]"
    assert ask() == f"{run.id} [(1, {size}), (2, 1)]"


def test_pages_are_bounded_by_number_and_by_size(owned: OwnedRun) -> None:
    write(owned.directory, entries(*[TaskEmitted(LARGE)] * 5, *[TaskEmitted(SMALL)] * 5))
    with JournalReader(owned.directory) as reader:
        assert [event.seq for event in reader.events(2, 3)] == [3, 4, 5]
        assert [event.seq for event in reader.events(0, 10, 2 * len(LARGE) + 100)] == [1, 2]
        assert [event.seq for event in reader.events(0, 10, 1)] == [1]  # never none
        assert [event.seq for event in reader.events(10)] == []
        assert len(reader.outlines(0, 10, 2 * len(LARGE))) == 10
        assert len(reader.outlines(0, 10, 1)) == 1


def test_the_items_of_one_attempt_are_read_in_pages_of_a_size(owned: OwnedRun) -> None:
    both = [TaskEmitted(Raw(msgpack.encode(n))) for n in range(600)]
    mixed: list[Entry] = [(task, 1, 0.0, item) for item in both for task in "ab"]
    mixed += [("a", 1, 0.0, TaskEmitted(LARGE)), ("a", 2, 0.0, TaskEmitted(SMALL))]
    write(owned.directory, mixed)
    with JournalReader(owned.directory) as reader:
        found, is_all = reader.items("a", 1, since=0, until=10_000, size=LARGE_SIZE)
        assert ([msgpack.decode(item) for _, item in found], is_all) == (
            list(range(600)), False,
        )  # fmt: skip
        # What is larger than a page comes alone.
        rest, is_all = reader.items("a", 1, since=found[-1][0], until=10_000, size=1)
        assert ([item for _, item in rest], is_all) == ([LARGE], True)
        few, is_all = reader.items("b", 1, since=found[9][0], until=found[19][0], size=LARGE_SIZE)
        assert ([msgpack.decode(item) for _, item in few], is_all) == (
            list(range(9, 19)), True,
        )  # fmt: skip
        counted, is_all = reader.items("a", 1, since=0, until=10_000, size=10 * EVENT_SIZE)
        assert (len(counted), is_all) == (10, False)


def test_decisions_leave_out_what_a_task_sends_in_bulk(owned: OwnedRun) -> None:
    run = owned.directory
    write(run, [(task, 1, 0.0, data) for task, data in EVERY_KIND])
    with JournalReader(run) as reader:
        kinds = [found.event.kind for found in reader.decisions()]
        plan = reader._select(
            f"EXPLAIN QUERY PLAN SELECT seq FROM events WHERE {journal_module._BULK} ORDER BY seq",
            (),
        )
    assert not {"task.emitted", "task.log", "task.progress", "task.usage"} & set(kinds)
    assert len(kinds) == len(EVERY_KIND) - 6
    assert "decisions" in str(plan)


def test_a_reader_may_be_closed_under_a_thread_that_reads(owned: OwnedRun) -> None:
    """In a process of its own, which a mistake would kill."""
    script = """
        import random, sys, time
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from casemate.supervisor.journal import JournalError, JournalReader
        from casemate.supervisor.state import RunDirectory
        path = Path(sys.argv[1])
        chance = random.Random(5)
        def read_on(reader):
            while reader.events(chance.randrange(9)):
                pass
        with ThreadPoolExecutor() as threads:
            for _ in range(300):
                reader = JournalReader(RunDirectory(path.name, path))
                reading = threads.submit(read_on, reader)
                time.sleep(chance.random() / 200)
                reader.close()
                assert isinstance(reading.exception(), JournalError)
    """
    write(owned.directory, entries(*[TaskEmitted(SMALL)] * 300))
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(owned.directory.path)], check=True
    )


def test_reading_a_journal_that_is_not_there_makes_none(owned: OwnedRun) -> None:
    with pytest.raises(NotBegunError):
        JournalReader(owned.directory)
    assert not owned.directory.journal.exists()


def test_what_somebody_left_who_was_killed_while_he_made_the_journal_does_not_count(
    owned: OwnedRun,
) -> None:
    half = owned.directory.path / "journal.new"
    with closing(sqlite3.connect(half)) as database:
        database.execute("CREATE TABLE events (half)")
    half.with_name("journal.new-journal").write_bytes(b"half")
    assert summarise(owned.directory).state == RunState.RUNNING  # it is owned, and has not begun
    write(owned.directory, entries(TaskReady()))
    with JournalReader(owned.directory) as reader:
        assert reader.last_seq() == 1
    assert not list(owned.directory.path.glob("journal.new*"))


def test_an_emptied_journal_is_damaged_and_not_one_that_has_not_begun(owned: OwnedRun) -> None:
    write(owned.directory, entries(STARTED, task=None))
    owned.directory.journal.write_bytes(b"")
    assert "not a journal" in (summarise(owned.directory).problem or "")


def test_a_newer_journal_is_refused_with_its_version(owned: OwnedRun) -> None:
    run = owned.directory
    write(run, entries(STARTED, task=None))
    database = sqlite3.connect(run.journal)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(UsageError, match="version 99"), JournalReader(run) as reader:
        reader.events()
    with kept() as it:
        it.journal.open(run, last_seq=1)
    assert "version 99" in str(it.failures[0][1])
    assert summarise(run).state == RunState.DAMAGED


def test_an_older_journal_is_read_and_brought_forward_when_it_is_written(owned: OwnedRun) -> None:
    run = owned.directory
    write(run, entries(STARTED, task=None))
    with closing(sqlite3.connect(run.journal)) as database:
        database.execute("PRAGMA user_version = 1")
    with JournalReader(run) as reader:
        assert [event.kind for event in reader.events()] == ["run.started"]
    with kept() as it:
        it.journal.open(run, last_seq=1)
        it.journal.append(run.id, entries(RunPaused(), task=None))
    assert it.failures == []
    with closing(sqlite3.connect(run.journal)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    with JournalReader(run) as reader:
        assert [event.kind for event in reader.events()] == ["run.started", "run.paused"]


@pytest.mark.parametrize("cut", [0.0, 0.5])
def test_a_damaged_journal_is_a_clear_error(owned: OwnedRun, cut: float) -> None:
    run = owned.directory
    write(run, entries(*[TaskEmitted(Raw(msgpack.encode("x" * 9000)))] * 50))
    whole = run.journal.read_bytes()
    half = int(len(whole) * cut)
    run.journal.write_bytes(whole[:half] if cut else b"not a database, " * 500)
    with pytest.raises(JournalError, match=r"journal\.db"), JournalReader(run) as reader:
        reader.events()


def as_ordinary_user(folder: Path, script: str) -> str:
    """Run `script` with sys.argv[1] = folder, as a user to whom permissions mean something."""
    drop = ""
    if os.geteuid() == 0:
        drop = "os.setgroups([]); os.setresgid(54321, 54321, 54321); os.setresuid(*[54321] * 3)\n"
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 54321, 54321, follow_symlinks=False)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys, sqlite3, msgspec\nfrom pathlib import Path\n"
            "from casemate.protocol.errors import UsageError\n"
            "from casemate.supervisor.journal import *\n"
            "from casemate.supervisor.overview import list_runs\n"
            "from casemate.supervisor.state import *\n"
            f"{drop}{textwrap.dedent(script)}",
            str(folder),
        ],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder whose parents everybody may pass, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        for path in (Path(folder), *Path(folder).rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)


def test_a_run_on_a_read_only_medium_can_be_read(reachable: Path) -> None:
    state = StateDirectory.open(reachable)
    owned = state.create_run()
    write(owned.directory, entries(STARTED, task=None) + entries(TaskEmitted(LARGE)))
    owned.ownership.release()
    owned.directory.path.chmod(0o500)
    script = f"""
        state = StateDirectory.open_existing(Path(sys.argv[1]))
        run = state.find_run("last")
        with JournalReader(run) as reader:
            print([len(event.data) > {INLINE_VALUE_SIZE} for event in reader.events()])
        print(list_runs(state)[0].state)
    """
    assert as_ordinary_user(reachable, script) == "[False, True]\ninterrupted"


# ----------------------------------------------------------------------- state directory, owners


def test_run_ids_sort_by_creation_and_are_safe_names() -> None:
    made = [new_run_id() for _ in range(2000)]
    assert made == sorted(set(made))
    assert all(is_run_id(run_id) for run_id in made)
    for bad in ("", "..", "a/b", made[0] + "x", made[0].upper(), made[0][:-1] + "\n"):
        assert not is_run_id(bad)


def test_a_new_run_is_owned_from_the_moment_it_can_be_seen(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    rename = os.rename

    def watched(source: Any, target: Any) -> None:
        assert state.run_ids() == []
        rename(source, target)
        seen.extend(RunDirectory(name, state.runs / name).is_owned() for name in state.run_ids())

    monkeypatch.setattr(os, "rename", watched)
    owned = state.create_run()
    assert seen == [True]
    owned.ownership.release()
    assert not owned.directory.is_owned()


def test_a_run_has_one_owner_and_asking_does_not_disturb_it(
    state: StateDirectory, owned: OwnedRun
) -> None:
    with pytest.raises(UsageError, match=f"pid {os.getpid()}"):
        state.own_run(owned.directory.id)
    assert owned.directory.is_owned()
    owned.ownership.release()
    owned.ownership.release()
    assert not owned.directory.is_owned()
    again = state.own_run(owned.directory.id)
    assert owned.directory.is_owned()
    again.ownership.release()
    with pytest.raises(UsageError, match="no run"):
        state.own_run(new_run_id())


def test_a_killed_owner_owns_nothing(state: StateDirectory, owned: OwnedRun) -> None:
    run = owned.directory
    owned.ownership.release()
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from casemate.supervisor.state import StateDirectory\n"
            "owned = StateDirectory.open(Path(sys.argv[1])).own_run(sys.argv[2])\n"
            "print('mine', flush=True); time.sleep(600)",
            str(state.path),
            run.id,
        ],
        stdout=subprocess.PIPE,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"mine\n"
            assert run.is_owned()
            with pytest.raises(UsageError, match=f"pid {child.pid}"):
                Ownership.take(run)
        finally:
            child.kill()
    assert not run.is_owned()
    Ownership.take(run).release()


def test_runs_are_found_by_prefix_and_last(state: StateDirectory) -> None:
    with pytest.raises(UsageError, match="no run 'last'"):
        state.find_run("last")
    runs = [state.create_run() for _ in range(3)]
    ids = [run.directory.id for run in runs]
    for run in runs:
        run.ownership.release()
    assert state.run_ids() == ids
    assert state.find_run("last").id == ids[-1]
    assert state.find_run(ids[0]).id == ids[0]
    with pytest.raises(UsageError, match="ambiguous"):
        state.find_run(ids[0][:4])
    for text in ("", "zzzz", "../runs", "."):
        with pytest.raises(UsageError, match="no run"):
            state.find_run(text)
    with pytest.raises(UsageError, match="not a run id"):
        state.run("../../etc")


def test_the_state_directory_is_ours_alone(tmp_path: Path) -> None:
    old_umask = os.umask(0)
    try:
        state = StateDirectory.open(tmp_path / "a" / "state")
        run = state.create_run()
    finally:
        os.umask(old_umask)
    run.ownership.release()
    for path in (state.path, state.runs, state.supervisors, run.directory.path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(run.directory.lock.stat().st_mode) == 0o600
    # Looser below by mistake: mended. Writable by others above: refused.
    state.runs.chmod(0o777)
    StateDirectory.open(state.path)
    assert stat.S_IMODE(state.runs.stat().st_mode) == 0o700
    state.path.chmod(0o770)
    with pytest.raises(UsageError, match="others may write"):
        StateDirectory.open(state.path)


def test_a_state_directory_that_cannot_serve_is_a_clear_refusal(
    tmp_path: Path, reachable: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="--state"):
        StateDirectory.open(tmp_path / "file")
    with pytest.raises(UsageError, match="--state"):
        StateDirectory.open(tmp_path / "file" / "below")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "runs").symlink_to("/tmp")
    with pytest.raises(UsageError, match="--state"):
        StateDirectory.open(tmp_path / "linked")
    script = """
        root = Path(sys.argv[1])
        for name in ("read-only", "new"):
            try:
                StateDirectory.open(root / name)
            except UsageError as error:
                print(error)
        root.joinpath("read-only").chmod(0o700)
        state = StateDirectory.open(root / "read-only")
        state.runs.chmod(0o500)
        try:
            state.create_run()
        except UsageError as error:
            print(error)
    """
    (reachable / "read-only").mkdir()
    (reachable / "read-only").chmod(0o500)
    reachable.chmod(0o500)
    lines = as_ordinary_user(reachable, script).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "Permission denied" in line and "--state or $CASEMATE_STATE" in line


def test_another_users_state_directory_is_refused(tmp_path: Path) -> None:
    theirs, owner = Path("/usr"), 0
    if os.geteuid() == 0:
        theirs, owner = tmp_path / "theirs", 54321
        theirs.mkdir()
        os.chown(theirs, owner, owner)
    with pytest.raises(UsageError, match=f"belongs to uid {owner}"):
        StateDirectory.open(theirs)
    with pytest.raises(UsageError, match=f"belongs to uid {owner}"):
        StateDirectory.open_existing(theirs)


def test_the_default_state_directory_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CASEMATE_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/x/state")
    assert StateDirectory.default_path() == Path("/x/state/casemate")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/u")
    assert StateDirectory.default_path() == Path("/home/u/.local/state/casemate")
    monkeypatch.setenv("CASEMATE_STATE", "/elsewhere")
    assert StateDirectory.default_path() == Path("/elsewhere")


def test_dead_supervisors_are_told_from_living_ones(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = state.announce("ipc:///e", "ipc:///c", 5)
    second = state.announce("ipc:///e2", "ipc:///c2", 6)
    assert path.name == f"{os.getpid()}.json" != second.name
    assert state.announce("ipc:///e", "ipc:///c", 7, path) == path
    assert sorted(one.epoch for one in state.living_supervisors()) == [6, 7]
    # The same pid, given to another process since; and another boot.
    text = path.read_text()
    (state.supervisors / "1.json").write_text(
        text.replace(f'"pid":{os.getpid()}', '"pid":1').replace('"epoch":7', '"epoch":8')
    )
    (state.supervisors / "2.json").write_text(
        text.replace(state_module.read_boot_id(), "another boot")
    )
    (state.supervisors / "3.json").write_text("half a rec")
    assert sorted(one.epoch for one in state.living_supervisors()) == [6, 7]
    assert sorted(os.listdir(state.supervisors)) == sorted([path.name, second.name, "3.json"])
    # What runs in another pid namespace cannot be judged from here, and is left alone.
    second.write_bytes(second.read_bytes().replace(b'"pid_namespace":', b'"pid_namespace":1'))
    assert [one.epoch for one in state.living_supervisors()] == [7]
    assert second.exists()
