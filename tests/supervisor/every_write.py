"""A run, with one fault at each of its writes in turn; then it is taken up again.

    python every_write.py FAULT FOLDER [COUNT SEED]

prints at how many writes it has been disturbed: at every one, or at COUNT that SEED chooses.

The core, the journal, the layers and the copy that a fork makes are the real ones. Only the tasks
are none: each is told to have completed at once, with a file and an output that follow from its
inputs, large for some. When the run has completed it is forked at a checkpoint, and the copy goes
on to its end. The process has no threads, so that it may fork.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
from casemate.protocol.errors import CasemateError, LocalViolation
from casemate.protocol.events import ErrorKind, TaskError
from casemate.protocol.limits import INLINE_VALUE_SIZE
from casemate.protocol.pipeline import Checkpoints
from casemate.supervisor.core.commands import Command, Fetch, Kill, Record, Spawn
from casemate.supervisor.core.events import (
    Adopt,
    Ended,
    FailRun,
    Fetched,
    Input,
    Rollback,
    Started,
    Submit,
    Told,
)
from casemate.supervisor.core.scheduler import Scheduler
from casemate.supervisor.core.state import RunStanding, RunState
from casemate.supervisor.files import Files, Overlays, begin_files, present_layers
from casemate.supervisor.gc import collect_garbage
from casemate.supervisor.journal import Commit, Journal, JournalReader, NotBegunError
from casemate.supervisor.overview import describe
from casemate.supervisor.recovery import fork, read_outputs, read_run
from casemate.supervisor.state import OwnedRun, StateDirectory
from core.simulated import make_pipeline, make_task, raw
from faulty import disturbed
from msgspec import Raw
from verifier import verify

TASKS = "abcd"
SPEC = make_pipeline(
    [make_task(name) for name in TASKS],
    [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")],
    checkpoints=Checkpoints(every_task=True),
)
FORKED_AT = "c2"
STOPPED = 3  # a write failed, and the run cannot go on here


class AlwaysOverlays(Overlays):
    """Nothing is mounted here: tasks write straight into what would be the upper folder."""

    def work(self, folder: Path, base: Path) -> bool:
        return True


class Supervisor:
    """One run from where it is to its end, each step durable before the next."""

    def __init__(self, owned: OwnedRun, files: Files, tell: Callable[[int], None]) -> None:
        self.owned = owned
        self.run = owned.directory.id
        self.files = files
        self.core = Scheduler(2, 1000)
        self.tell = tell
        self.appended = self.committed = 0
        self.failure: Exception | None = None
        self.changed = threading.Condition()
        self.journal = Journal(self._committed, self._failed)

    def _committed(self, commit: Commit) -> None:
        with self.changed:
            self.committed = commit.events[-1].seq
            self.tell(self.committed)
            self.changed.notify()

    def _failed(self, _: str, error: Exception) -> None:
        with self.changed:
            self.failure = error
            self.changed.notify()

    def go(self, *inputs: Input, last_seq: int = 0) -> None:
        self.appended = self.committed = last_seq
        self.journal.open(self.owned.directory, last_seq=last_seq)
        waiting = list(inputs)
        try:
            for now, each in enumerate(waiting):  # grows while it is walked
                for command in self.core.step(float(now), each):
                    waiting += self._carry_out(command)
                with self.changed:
                    self.changed.wait_for(
                        lambda: self.failure is not None or self.committed == self.appended
                    )
                if self.failure is not None:
                    break
        finally:
            self.journal.close()
        if self.failure is not None:
            raise self.failure

    def _carry_out(self, command: Command) -> list[Input]:
        if isinstance(command, Record):
            entry = (command.task, command.attempt, 0.0, command.data)
            self.appended = self.journal.append(self.run, [entry]).stop - 1
        elif isinstance(command, Spawn):
            key = (command.run, command.task, command.attempt)
            return [Started(*key, pid=1), Told(*key)]
        elif isinstance(command, Kill):
            return self._work(command)
        elif isinstance(command, Fetch):
            return [Fetched(self.run, read_outputs(self.owned.directory, command.outputs))]
        return []

    def _work(self, kill: Kill) -> list[Input]:
        state = self.core.state(self.run)
        inputs = state.graph.inputs[kill.task]
        heard = [len(memoryview(self.core.output(self.run, each))) for each in inputs]
        output = raw([kill.task * (INLINE_VALUE_SIZE if kill.task in "bd" else 1), sum(heard)])
        key = (kill.run, kill.task, kill.attempt)
        try:
            given = self.files.given(state, kill.task, kill.attempt)
            prepared = self.files.begin(given)
            seen = [Path(prepared.folder, name, "upper") for name in prepared.lower]
            names = sorted(each.name for upper in seen for each in upper.iterdir())
            below = Path(prepared.folder, prepared.upper, "upper")
            (below / f"by-{kill.task}").write_text(f"saw {' '.join(names)}\n" * 500)
            layer = self.files.complete(given.name, 1 << 30)
        except (OSError, CasemateError) as error:
            failure = TaskError(kind=ErrorKind.DISK, message=f"cannot be kept: {error}")
            return [FailRun(kill.run, failure), Ended(*key, output=None, error=failure)]
        assert not isinstance(layer, TaskError)
        return [Ended(*key, output=output, error=None, layer=layer)]


def begin(folder: Path, tell: Callable[[int], None]) -> int:
    try:
        base = folder / "base"
        base.mkdir(parents=True)
        (base / "given").write_text("before")
        state = StateDirectory.open(folder / "state")
        spec = msgspec.structs.replace(SPEC, workspace=str(base))
        owned = state.create_run(lambda run: begin_files(run, spec, state.path))
        files = Files.of_run(owned.directory, spec, AlwaysOverlays(), state.path)
        assert files is not None
        run = owned.directory.id
        Supervisor(owned, files, tell).go(Submit(run, spec, Raw(b"\xc0"), raw(spec), 7))
        if read_run(owned.directory).state.standing is RunStanding.COMPLETED:
            copy, found = fork(state, owned.directory, FORKED_AT)
            adopt = Adopt(copy.directory.id, found.state, fork=(run, FORKED_AT))
            supervise(state, copy, found.state, adopt, last_seq=found.last_seq)
    except LocalViolation:
        raise  # a bug of ours, no answer to a fault
    except (OSError, sqlite3.Error, CasemateError):
        return STOPPED
    return 0


def supervise(
    state: StateDirectory, owned: OwnedRun, found: RunState, *inputs: Input, last_seq: int
) -> None:
    layers = frozenset(read_run(owned.directory).layers)
    files = Files.recover(owned.directory, found, layers, AlwaysOverlays(), state.path)
    assert files is not None
    Supervisor(owned, files, lambda _: None).go(*inputs, last_seq=last_seq)


def take_up(state: StateDirectory, run: str) -> bool:
    """False: there was nothing to go on with."""
    owned = state.own_run(run)
    try:
        found = read_run(owned.directory)
        adopt = Adopt(run, found.state)
        if found.state.standing is RunStanding.FAILED:
            [failure] = found.state.failures.values()
            assert failure.error.kind is ErrorKind.DISK, failure
            back = Rollback(run, found.state.head, None)
            supervise(state, owned, found.state, adopt, back, last_seq=found.last_seq)
        elif not found.state.has_ended:
            supervise(state, owned, found.state, adopt, last_seq=found.last_seq)
    except NotBegunError:
        return False
    finally:
        owned.ownership.release()
    return True


def outcome(state: StateDirectory, run: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """Its outputs, and the files that its tasks have made."""
    directory = state.run(run)
    with JournalReader(directory) as reader:
        last = reader.events(reader.last_seq() - 1, 1)[0]
    assert last.kind == "run.completed", last.kind
    decoded = msgspec.msgpack.decode(last.data, type=dict[str, dict[str, Raw]])
    outputs = {name: bytes(value) for name, value in decoded["outputs"].items()}
    layers = present_layers(read_run(directory).state)
    made = [
        file
        for name in layers.values()
        for file in (directory.path / "layers" / name / "upper").iterdir()
    ]
    return outputs, {file.name: file.read_text() for file in made}


def check(folder: Path, told: list[int], undisturbed: Path) -> None:
    """Whatever was told is in the journal, what is there is true, and each run comes to its end."""
    whole = StateDirectory.open(undisturbed / "state")
    expected, of_copy = (outcome(whole, run) for run in whole.run_ids())
    assert of_copy == expected
    state = StateDirectory.open(folder / "state")
    runs = state.run_ids()
    assert runs or not told
    for number, run in enumerate(runs):
        directory = state.run(run)
        durable = max(told, default=0) if number == 0 else 0  # nothing is told of the copy
        with contextlib.suppress(NotBegunError), JournalReader(directory) as reader:
            last_seq = reader.last_seq()
            assert last_seq >= durable, (last_seq, durable)
            assert not last_seq or verify(state.path, run) == []
        summary, tasks = describe(directory)
        assert summary.state in {"interrupted", "completed", "failed"}, summary
        done = {task.id: task.attempt for task in tasks if task.state == "completed"}
        if not take_up(state, run):
            assert not durable and number == 0
            continue
        assert verify(state.path, run, has_ended=True) == []
        assert outcome(state, run) == expected
        _, tasks = describe(directory)
        for task in tasks:
            assert done.get(task.id, task.attempt) == task.attempt, f"{task.id} was done again"
    for dropped in collect_garbage(state, runs=[]):
        assert dropped.problem is None
    assert all(name in runs for name in os.listdir(state.runs))


def in_a_fork(work: Callable[[], None]) -> bool:
    """Whether `work` came to its end. It may leave threads behind: here there must be none."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        except (AssertionError, CasemateError, OSError):
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def disturb(fault: str, folder: Path, nth: int) -> int:
    """One run with one fault, and what comes after; how many writes there were."""
    place = folder / str(nth)
    found = disturbed(lambda tell: begin(place, tell), folder, fault, nth)
    if fault in ("EIO", "ENOSPC") or found.calls < nth:
        assert found.status in (0, STOPPED), found
    else:
        assert found.status == -signal.SIGKILL, found
    assert in_a_fork(lambda: check(place, found.told, folder / "0")), f"{fault} at write {nth}"
    shutil.rmtree(place)
    return found.calls


def main() -> int:
    fault, folder = sys.argv[1], Path(sys.argv[2])
    first = disturbed(lambda tell: begin(folder / "0", tell), folder, fault, 0)
    assert first.status == 0, first
    if sys.argv[3:]:
        count, seed = map(int, sys.argv[3:])
        chosen = random.Random(seed).sample(range(1, first.calls), count)
        print(sum(disturb(fault, folder, nth) >= nth for nth in chosen))
        return 0
    nth = 1
    while disturb(fault, folder, nth) >= nth:
        nth += 1
    print(nth - 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
