"""`diff` and `apply`: which layers count, and what they come to in the workspace. The runs are made
by hand: real layers, and a journal that tells of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from casemate.protocol.errors import UsageError
from casemate.protocol.events import (
    CheckpointCreated,
    ErrorKind,
    EventData,
    RunCompleted,
    RunFailed,
    RunRolledBack,
    RunStarted,
    TaskCompleted,
    TaskError,
    TaskFailed,
    TaskReady,
    TaskRetrying,
    TaskStarted,
)
from casemate.protocol.pipeline import Base, Edge
from casemate.supervisor.apply import ALLOW_ALL, ApplyRefused
from casemate.supervisor.changes import apply_run, find_files
from casemate.supervisor.core.graph import build
from casemate.supervisor.journal import Journal
from casemate.supervisor.pipeline import compile_document
from casemate.supervisor.state import Ownership, StateDirectory
from casemate.supervisor.workspace import Workspace
from fakes import PATIENCE
from msgspec import Raw, structs
from overlaid import Operation, in_folder, in_overlay, look

CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]
CHAIN = [("a", "b"), ("b", "c")]
FORK = [("a", "b"), ("a", "c")]
NIL = Raw(b"\xc0")
ERROR = TaskError(kind=ErrorKind.ERROR, message="no")


class Run:
    def __init__(
        self,
        place: Path,
        edges: Sequence[tuple[str, str]] = CHAIN,
        *,
        overlay: bool = True,
        base: Base = Base.LIVE,
    ) -> None:
        self.files = place / "project"
        for name in ("src/a", "src/b", "top", "old/x/y"):
            (self.files / name).parent.mkdir(parents=True, exist_ok=True)
            (self.files / name).write_text(f"{name}\n")
        (self.files / "empty").mkdir()
        tasks = sorted({task for edge in edges for task in edge})
        document: dict[str, object] = {
            "name": "x",
            "tasks": {t: {"command": ["true"]} for t in tasks},
        }
        self.spec = structs.replace(
            compile_document(document, root=place),
            edges=tuple(Edge(*edge) for edge in edges), workspace=str(self.files), base=base,
        )  # fmt: skip
        self.graph = build(self.spec)
        self.state = StateDirectory.open(place / "state")
        self.owned = self.state.create_run()
        self.id = self.owned.directory.id
        self.workspace = Workspace(self.owned.directory, self.spec, overlay=overlay)
        self.workspace.begin_run()
        self.layers: dict[str, str] = {}
        self.attempts = dict.fromkeys(tasks, 0)
        self._checkpoints = count()
        self._fresh: list[str] = []
        self._done: set[str] = set()
        self.head: str | None = None
        self.entries: list[tuple[str | None, int | None, float, EventData]] = []
        spec = Raw(msgspec.msgpack.encode(self.spec))
        self.tell(RunStarted(pipeline="x", input=NIL, seed=0, spec=spec))
        self.checkpoint()

    def tell(self, data: EventData, task: str | None = None) -> None:
        attempt = None if task is None else self.attempts[task]
        self.entries.append((task, attempt, time.time(), data))

    def checkpoint(self) -> str:
        made, total = f"c{next(self._checkpoints)}", len(self._done)
        self.tell(CheckpointCreated(
            checkpoint=made, parent=self.head, tasks=tuple(self._fresh), total=total,
            files=0, bytes=0,
        ))  # fmt: skip
        self.head, self._fresh = made, []
        return made

    def task(self, task: str, *operations: Operation, ends: str = "completed") -> dict[str, Any]:
        self.attempts[task] += 1
        name = f"{task}.{self.attempts[task]}"
        self.tell(TaskReady(), task)
        self.tell(TaskStarted(1, {}), task)
        stack = self.workspace.stack(self.graph, task, self.layers)
        made = self.workspace.begin(name, stack)
        if made.copy is not None:
            in_folder(Path(made.copy), operations)
            shown = look(Path(made.copy))
        else:
            shown = in_overlay(
                Path(made.base), Path(made.folder), made.lower, made.upper, operations
            )
        if ends == "completed":
            layer = self.workspace.commit(name, stack)
            if layer is not None:
                self.layers[task] = name
            self._done.add(task)
            self._fresh.append(task)
            self.tell(TaskCompleted(NIL, 0.0, layer), task)
        elif ends == "cut off":
            pass
        else:
            self.workspace.keep(name, stack)
            self.tell(TaskRetrying(ERROR, 0) if ends == "retrying" else TaskFailed(ERROR), task)
        return shown

    def undo(self, checkpoint: str, *tasks: str) -> None:
        self.tell(RunRolledBack(checkpoint=checkpoint, undone=tasks, generation=1))
        self.head, self._fresh = checkpoint, []
        for task in tasks:
            self.layers.pop(task, None)
            self._done.discard(task)

    def write(self) -> None:
        journal = Journal(lambda _: None, lambda _, error: pytest.fail(str(error)))
        journal.open(self.owned.directory)
        journal.append(self.id, self.entries)
        journal.close()
        self.owned.ownership.release()

    def end(self) -> None:
        self.tell(RunCompleted({}))
        self.write()

    def apply(self, **options: Any) -> Any:
        options.setdefault("allow", ALLOW_ALL)
        return apply_run(self.state, self.owned.directory, **options)[1]

    def paths(self, **options: Any) -> dict[str, str]:
        summary = find_files(self.state, self.owned.directory, **options).write_patch(None)
        return {entry.path: entry.new.kind for entry in summary.entries}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*CASEMATE, *arguments, "--state", str(self.state.path)],
            capture_output=True, timeout=PATIENCE,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr
        return done


STORY: dict[str, list[Operation]] = {
    "a": [
        ["rmtree", "old"], ["write", "bin", "\0\x01\xff" * 99], ["sparse", "large", 3 << 20],
        ["mkdir", "new"], ["write", "new/f", "x\n"], ["link", "ln", "new/f"],
        ["rmtree", "src"], ["mkdir", "src"], ["write", "src/c", "c\n"],
    ],
    "b": [
        ["mkdir", "old"], ["mkdir", "old/x"], ["write", "old/x/z", "z"],
        ["append", "new/f", "more\n"],
        ["attribute", "new/f", "kept"], ["remove", "top"], ["mkdir", "top"], ["mkdir", "void"],
        ["write", "top/in", "1"],
    ],
    "c": [["rename", "src/c", "src/d"], ["rmtree", "empty"], ["write", "empty", "now a file\n"]],
}  # fmt: skip


def as_git_sees(shown: dict[str, Any]) -> dict[str, Any]:
    """Files with whether they may be executed, and links."""
    return {
        path: entry[1:] if len(entry) == 2 else [bool(entry[1] & 0o100), *entry[3:]]
        for path, entry in shown.items() if len(entry) != 3
    }  # fmt: skip


@pytest.fixture(params=["overlay", "copy"])
def told(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Run, dict[str, Any]]:
    run = Run(tmp_path, overlay=request.param == "overlay")
    shown: dict[str, Any] = {}
    for task, operations in STORY.items():
        shown = run.task(task, *operations)
        run.checkpoint()
    run.end()
    return run, shown


def test_git_apply_makes_of_the_base_what_the_last_task_saw(
    told: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run, shown = told
    copy = tmp_path / "copy"
    shutil.copytree(run.files, copy, symlinks=True)
    done = run("diff", run.id)
    assert done.returncode == 0, done.stderr
    environment = {"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    subprocess.run(["git", "apply"], input=done.stdout, cwd=copy, env=environment, check=True)
    assert as_git_sees(look(copy)) == as_git_sees(shown)
    assert b"void" in done.stderr


def test_apply_makes_of_the_base_what_the_last_task_saw(
    told: tuple[Run, dict[str, Any]],
) -> None:
    run, shown = told
    before = look(run.files)
    dry = run.apply(dry_run=True)
    assert look(run.files) == before
    assert run.apply() == dry
    assert look(run.files) == shown
    assert (run.files / "large").stat().st_blocks * 512 < 1 << 20
    assert run.apply().written == 0
    assert run("diff", run.id).stdout == b""


KILLED = """
import os, signal, sys
from pathlib import Path
from casemate.supervisor import apply
from casemate.supervisor.changes import apply_run
from casemate.supervisor.state import StateDirectory
left = int(sys.argv[3])
def counted(call):
    def act(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments, **options)
    return act
for name in ("mkdir", "rmdir", "unlink", "rename", "chmod", "fsync"):
    setattr(apply.os, name, counted(getattr(os, name)))
state = StateDirectory.open_existing(Path(sys.argv[1]))
apply_run(state, state.find_run(sys.argv[2]), allow=["/"])
"""


def test_an_apply_that_is_killed_anywhere_is_finished_by_the_next(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (run.files / "shut").mkdir()
    (run.files / "shut/f").write_text("f")
    (run.files / "shut").chmod(0o555)
    run.workspace.accept_base()
    for task, operations in STORY.items():
        shown = run.task(task, *operations, *([["write", "shut/f", "g"]] if task == "a" else []))
    run.end()
    for at in count(0, 3):
        # as they were, down to inode and time: what is kept by hand is what the manifest noted
        kept = tmp_path / "kept"
        os.rename(run.files, kept)
        subprocess.run(["cp", "-a", kept, run.files], check=True)
        Workspace(run.owned.directory, run.spec).accept_base()
        done = subprocess.run(
            [sys.executable, "-c", KILLED, run.state.path, run.id, str(at)], timeout=PATIENCE
        )
        run.apply()
        assert look(run.files) == shown
        if done.returncode == 0:
            break
        assert done.returncode == -9
        os.rename(run.files, tmp_path / f"after-{at}")
        os.rename(kept, run.files)
    assert at > 10


def test_a_changed_base_a_risky_path_and_a_clash_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, FORK)
    run.task("a", ["write", ".envrc", "x"])
    run.task("b", ["write", "top", "from b\n"])
    run.task("c", ["write", "top", "from c\n"])
    run.end()
    with pytest.raises(UsageError, match="b and c both changed top"):
        run.apply()
    with pytest.raises(ApplyRefused, match="direnv"):
        run.apply(last=True, allow=[])
    assert not (run.files / ".envrc").exists()
    (run.files / "mine").write_text("x")
    with pytest.raises(ApplyRefused) as refused:
        run.apply(last=True)
    assert refused.value.changed == ("mine",)
    done = run("apply", run.id, "--last", "--json")
    assert done.returncode == 2
    assert set(json.loads(done.stdout)["refused"]["risky"]) == {".envrc"}
    assert run.apply(last=True, accept_base=True).written == 2
    assert (run.files / "top").read_text() == "from c\n"


def test_a_snapshot_is_compared_with_what_became_of_its_original(tmp_path: Path) -> None:
    run = Run(tmp_path, base=Base.SNAPSHOT)
    for task in "abc":
        run.task(task, ["append", "top", f"{task}\n"])
    run.end()
    (run.files / "src/a").write_text("mine")
    with pytest.raises(ApplyRefused) as refused:
        run.apply()
    assert refused.value.changed == ("src/a",)
    assert run.apply(accept_base=True).written == 1
    assert (run.files / "top").read_text() == "top\na\nb\nc\n"
    assert (run.files / "src/a").read_text() == "mine"
    assert run.paths() == {"top": "file"}


def test_a_checkpoint_has_the_attempts_of_its_time(tmp_path: Path) -> None:
    run = Run(tmp_path, [("a", "b")])
    run.task("a", ["write", "first", "1\n"])
    first = run.checkpoint()
    run.undo("c0", "a", "b")
    run.task("a", ["write", "second", "2\n"])
    run.task("b")
    run.end()
    assert run.paths() == {"second": "file"}
    assert run.paths(checkpoint=first) == {"first": "file"}
    assert run.paths(checkpoint="c0") == {}
    assert run.paths(attempt="a/1") == {"first": "file"}
    with pytest.raises(UsageError, match="no checkpoint 'c9'"):
        run.paths(checkpoint="c9")


def test_an_attempt_is_told_against_what_it_was_given(tmp_path: Path) -> None:
    run = Run(tmp_path, [("a", "b")])
    run.task("a", ["append", "top", "a\n"], ["write", "made", "a\n"], ["chmod", "src", 0o700])
    again: list[Operation] = [["append", "top", "b\n"], ["remove", "made"], ["chmod", "src", 0o755]]
    run.task("b", *again, ends="retrying")
    run.task("b", ["write", "made", "b\n"], ends="failed")
    run.tell(RunFailed(ERROR, ("b",)))
    run.write()
    assert run.paths() == {"made": "file", "src": "folder", "top": "file"}
    assert run.paths(attempt="b/1") == {"made": "absent", "src": "folder", "top": "file"}
    assert run.paths(attempt="b") == {"made": "file"}
    patch = run("diff", run.id, "--attempt", "b/1").stdout
    assert b"\n a\n+b\n" in patch and b"\n-a\n" in patch
    listed = json.loads(run("diff", run.id, "--attempt", "b", "--json").stdout)["paths"]
    assert [(each["change"], each["added"], each["removed"]) for each in listed] == [
        ("changed", 1, 1)
    ]
    for wrong, says in (("b/3", "latest is 2"), ("z/1", "no task"), ("b.1", "TASK/NUMBER")):
        with pytest.raises(UsageError, match=says):
            run.paths(attempt=wrong)


def test_an_attempt_that_died_with_its_supervisor_can_be_looked_at(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.task("a", ["write", "half", "x"], ends="cut off")
    run.write()
    ownership = Ownership.take(run.owned.directory)
    with pytest.raises(UsageError, match="still at work"):
        run.paths(attempt="a/1")
    ownership.release()
    assert run.paths(attempt="a/1") == {"half": "file"}
    assert run.paths() == {}
    with pytest.raises(UsageError, match="interrupted"):
        run.apply()


def test_without_a_workspace_there_is_one_clear_error(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for task in "abc":
        run.task(task)
    run.end()
    shutil.rmtree(run.files)
    for command in ("diff", "apply"):
        done = run(command, run.id)
        assert done.returncode == 2 and b"is gone" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    run = Run(tmp_path / "none")
    run.spec = structs.replace(run.spec, workspace=None)
    spec = Raw(msgspec.msgpack.encode(run.spec))
    run.entries[0] = (None, None, 0.0, RunStarted(pipeline="x", input=NIL, seed=0, spec=spec))
    run.write()
    assert b"has no workspace" in run("diff", run.id).stderr
