"""`diff` and `apply`: which layers count, and what they come to in the workspace."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from casemate.protocol.errors import UsageError
from casemate.protocol.events import RunFailed, RunStarted
from casemate.protocol.pipeline import Base
from casemate.supervisor.apply import ALLOW_ALL, ApplyRefused, apply_changes
from casemate.supervisor.gc import collect_garbage
from casemate.supervisor.layers import resolve
from casemate.supervisor.patch import write_patch
from casemate.supervisor.state import Ownership
from casemate.supervisor.workspace import Workspace
from fakes import PATIENCE
from handmade import ERROR, FORK, NIL, Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw, structs
from overlaid import Operation, as_git_sees, git_apply, in_folder, look
from test_layers_store import HISTORY, House

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
    git_apply(copy, done.stdout)
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


def test_what_tasks_closed_to_everybody_is_read_all_the_same(tmp_path: Path) -> None:
    """As root nothing is closed; to an ordinary user it is."""
    run = Run(tmp_path)
    run.task("a",
        ["write", "secret", "kept\n"], ["attribute", "secret", "noted"], ["chmod", "secret", 0],
        ["mkdir", "vault"], ["write", "vault/in", "deep\n"], ["attribute", "vault", "noted"],
        ["chmod", "vault/in", 0o200], ["chmod", "vault", 0],
    )  # fmt: skip
    run.task("b", ["mkdir", "half"], ["write", "half/in", "b\n"], ["chmod", "half", 0o600])
    run.task("c", ["write", "lost", "c\n"], ["chmod", "lost", 0], ends="failed")
    run.tell(RunFailed(ERROR, ("c",)))
    run.write()
    layers = [run.owned.directory.path / f"layers/{name}/upper" for name in ("a.1", "b.1")]
    modes = [path.stat().st_mode for upper in layers for path in upper.iterdir()]
    patch = run("diff", run.id)
    for line in (b"+kept\n", b"+deep\n", b"+b\n"):
        assert line in patch.stdout, patch.stderr
    assert b"+c\n" in run("diff", run.id, "--attempt", "c").stdout
    assert run.apply().written == 3
    assert run.apply().written == 0
    assert [path.stat().st_mode for upper in layers for path in upper.iterdir()] == modes
    secret, vault, half = (run.files / name for name in ("secret", "vault", "half"))
    for closed, mode in ((secret, 0), (vault, 0), (half, 0o600)):
        assert closed.stat().st_mode & 0o7777 == mode
        closed.chmod(0o700)
        assert (os.listxattr(closed) == ["user.note"]) == (closed != half)
    assert (vault / "in").stat().st_mode & 0o7777 == 0o200
    (vault / "in").chmod(0o600)
    found = [path.read_text() for path in (secret, vault / "in", half / "in")]
    assert found == ["kept\n", "deep\n", "b\n"]
    [dropped] = collect_garbage(run.state, keep=0)
    assert dropped.problem is None


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(history=HISTORY, copying=st.booleans())
def test_whatever_layers_did_git_apply_and_apply_make_of_the_base_what_they_show(
    tmp_path_factory: pytest.TempPathFactory, history: Any, copying: bool
) -> None:
    place = tmp_path_factory.mktemp("history")
    house = House(place, copying=copying)
    first, attempts = history
    in_folder(house.base, kept_open(first))
    for operations in attempts:
        house.layer(*kept_open(operations))
    shown = house.shown()
    changes = resolve(house.store, house.base, house.stack)
    root = house.store.root
    root.mkdir(exist_ok=True)
    copy = place / "copy"
    shutil.copytree(house.base, copy, symlinks=True)
    patch = io.BytesIO()
    write_patch(house.base, root, changes, patch)
    git_apply(copy, patch.getvalue())
    assert as_git_sees(look(copy)) == as_git_sees(shown)
    apply_changes(house.base, root, changes, allow=ALLOW_ALL, manifest_check=None)
    assert look(house.base) == shown


def kept_open(operations: Sequence[Operation]) -> list[Operation]:
    """Git and the tests look into folders too."""
    return [[*each[:2], each[2] | 0o100] if each[0] == "chmod" else each for each in operations]
