"""A run's workspace: its base, the layers that a task sees, and where branches meet."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.errors import LocalViolation, UsageError
from casemate.protocol.events import Layer
from casemate.protocol.limits import PATHS_NAMED
from casemate.protocol.pipeline import Base, Conflict, Edge, PipelineSpec
from casemate.supervisor.core.graph import Graph, build
from casemate.supervisor.layers import DamagedLayerError, View
from casemate.supervisor.pipeline import compile_document
from casemate.supervisor.state import RunDirectory
from casemate.supervisor.workspace import Prepared, Workspace
from msgspec import structs
from overlaid import Operation, in_folder, in_overlay, look


class Run:
    """A run without an engine: its tasks do what the test says, at once."""

    def __init__(
        self,
        place: Path,
        edges: Sequence[tuple[str, str]] = (),
        *,
        overlay: bool = True,
        base: Base = Base.LIVE,
        conflict: Conflict = Conflict.FAIL,
    ) -> None:
        self.files = place / "project"
        self.files.mkdir(exist_ok=True)
        for name in ("src/a", "src/b", "top"):
            (self.files / name).parent.mkdir(exist_ok=True)
            (self.files / name).write_text(name)
        tasks = sorted({task for edge in edges for task in edge} or {"a"})
        document: dict[str, object] = {
            "name": "x",
            "tasks": {task: {"command": ["true"]} for task in tasks},
        }
        self.spec: PipelineSpec = structs.replace(
            compile_document(document, root=place),
            edges=tuple(Edge(*edge) for edge in edges),
            workspace=str(self.files),
            base=base,
            conflict=conflict,
        )
        self.directory = RunDirectory("0" * 12, place / "state" / "runs" / ("0" * 12))
        self.directory.path.mkdir(parents=True)
        self.graph: Graph = build(self.spec)
        self.overlay = overlay
        self.workspace = self.opened()
        self.workspace.begin_run()
        self.layers: dict[str, str] = {}
        self._attempts = count(1)

    def opened(self) -> Workspace:
        """As another life of the supervisor has it."""
        return Workspace(self.directory, self.spec, overlay=self.overlay)

    def attempt(self, task: str, *operations: Operation) -> tuple[Prepared, dict[str, Any]]:
        stack = self.workspace.stack(self.graph, task, self.layers)
        prepared = self.workspace.begin(f"{task}.{next(self._attempts)}", stack)
        if prepared.copy is not None:
            in_folder(Path(prepared.copy), operations)
            return prepared, look(Path(prepared.copy))
        return prepared, in_overlay(
            Path(prepared.base),
            Path(prepared.folder),
            prepared.lower,
            prepared.upper,
            operations,
        )

    def task(self, task: str, *operations: Operation) -> dict[str, Any]:
        """An attempt that completes; what it saw at its end."""
        prepared, shown = self.attempt(task, *operations)
        stack = self.workspace.stack(self.graph, task, self.layers)
        if self.workspace.commit(prepared.name, stack) is not None:
            self.layers[task] = prepared.name
        return shown

    def paths(self, task: str) -> tuple[str, ...]:
        clash = self.workspace.check(self.graph, task, self.layers)
        return () if clash is None else clash.paths


DIAMOND = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]


@pytest.fixture(params=["overlay", "copy"])
def diamond(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    return Run(tmp_path, DIAMOND, overlay=request.param == "overlay")


# --- what a task sees ----------------------------------------------------------------------------


def test_a_task_sees_what_those_it_depends_on_left_and_nothing_else(diamond: Run) -> None:
    diamond.task("a", ["write", "from-a", "1"], ["remove", "top"])
    diamond.task("b", ["write", "from-b", "2"], ["append", "src/a", "!"])
    shown = diamond.task("c", ["write", "from-c", "3"])
    assert set(shown) == {"src", "src/a", "src/b", "from-a", "from-c"}
    assert diamond.paths("d") == ()
    shown = diamond.task("d", ["remove", "from-b"])
    assert set(shown) == {"src", "src/a", "src/b", "from-a", "from-c"}
    assert shown["src/a"][3] == len("src/a!")
    assert sorted(look(diamond.files)) == ["src", "src/a", "src/b", "top"]
    assert diamond.workspace.changed() is None


def test_the_stack_is_in_the_order_of_the_graph_and_of_ancestors_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, [*DIAMOND, ("x", "y"), ("d", "e")])
    layers = {task: f"{task}.1" for task in "edcbaxy"}
    stack = run.workspace.stack
    assert stack(run.graph, "e", layers) == ("a.1", "b.1", "c.1", "d.1")
    assert stack(run.graph, "c", layers) == ("a.1",)
    assert stack(run.graph, "a", layers) == ()
    assert stack(run.graph, "e", {"b": "b.3", "y": "y.1"}) == ("b.3",)
    whole = run.workspace.whole_stack(run.graph, layers)
    assert whole == tuple(f"{task}.1" for task in run.graph.order)


def test_the_workspace_itself_keeps_its_mode(diamond: Run) -> None:
    diamond.files.chmod(0o750)
    prepared, _ = diamond.attempt("a", ["write", "x", "1"])
    folder = prepared.copy or f"{prepared.folder}/{prepared.upper}/upper"
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o750


def test_what_the_run_has_come_to_is_resolved_against_its_base(diamond: Run) -> None:
    diamond.task("a", ["rmtree", "src"])
    diamond.task("b", ["mkdir", "src"], ["write", "src/new", "1"])
    stack = diamond.workspace.whole_stack(diamond.graph, diamond.layers)
    assert {each.path: each.kind for each in diamond.workspace.resolve(stack)} == {
        "src/a": "absent",
        "src/b": "absent",
        "src/new": "file",
    }


# --- conflicts -----------------------------------------------------------------------------------


def test_branches_that_changed_one_path_conflict_where_they_meet(diamond: Run) -> None:
    diamond.task("a", ["append", "top", "0"])
    diamond.task("b", ["append", "top", "1"], ["write", "new", "b"], ["append", "src/b", "x"])
    diamond.task("c", ["append", "top", "2"], ["write", "new", "c"], ["rmtree", "src"])
    clash = diamond.workspace.check(diamond.graph, "d", diamond.layers)
    assert clash is not None
    assert clash.paths == ("new", "src/b", "top")
    assert clash.message == "tasks b and c both changed new, src/b, top"
    assert diamond.workspace.check(diamond.graph, "c", diamond.layers) is None
    assert diamond.workspace.check_whole(diamond.graph, diamond.layers) == clash


def test_what_one_saw_of_the_other_is_no_conflict(tmp_path: Path) -> None:
    run = Run(tmp_path, [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")])
    for task in "abc":
        run.task(task, ["append", "top", task])
    assert run.paths("d") == ()
    assert run.task("d")["top"][3] == len("top") + 3


def test_with_last_the_order_of_the_graph_decides(tmp_path: Path) -> None:
    run = Run(tmp_path, DIAMOND, conflict=Conflict.LAST)
    run.task("c", ["write", "top", "from c"])
    run.task("b", ["write", "top", "b"])
    assert run.paths("d") == ()
    assert run.task("d")["top"][3] == len("from c")


def test_a_conflict_names_a_few_paths_as_text(tmp_path: Path) -> None:
    run = Run(tmp_path, DIAMOND)
    for task in "bc":
        run.task(task, ["write", "\udcff", "x"], *(["write", f"f{n:02}", "x"] for n in range(30)))
    clash = run.workspace.check(run.graph, "d", run.layers)
    assert clash is not None and len(clash.paths) == 31
    assert clash.message.endswith(f"f{PATHS_NAMED - 1:02} and 11 more")
    assert clash.paths[-1] == "\\xff"


def test_a_hundred_branches_are_compared_at_once(tmp_path: Path) -> None:
    branches = [f"b{number:03}" for number in range(100)]
    run = Run(tmp_path, [edge for b in branches for edge in (("a", b), (b, "z"))])
    for branch in branches:
        run.workspace.store.begin(name := f"{branch}.1")
        folder = run.workspace.store.root / name / "upper"
        (folder / branch).touch()
        if branch in ("b040", "b077"):
            (folder / "shared").touch()
        with View(run.workspace.store, run.files, ()) as view:
            run.workspace.store.commit(name, view)
        run.layers[branch] = name
    clash = run.workspace.check(run.graph, "z", run.layers)
    assert clash is not None
    assert (clash.paths, clash.tasks) == (("shared",), ("b040", "b077"))


# --- the base ------------------------------------------------------------------------------------


def test_what_others_change_in_a_live_base_is_noticed(tmp_path: Path) -> None:
    run = Run(tmp_path, DIAMOND)
    assert run.workspace.changed() is None
    before = (run.files / "src/a").stat()
    (run.files / "src/a").write_text("SRC/A")  # of the same size
    os.utime(run.files / "src/a", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    (run.files / "top").unlink()
    (run.files / "new").mkdir()
    (run.files / "src").chmod(0o700)
    for workspace in (run.workspace, run.opened()):
        assert workspace.changes_of_base() == ["new", "src", "src/a", "top"]
        changed = workspace.changed()
        assert changed is not None
        assert changed.paths == ("new", "src", "src/a", "top") and changed.total == 4
    run.workspace.accept_base()
    assert run.opened().changed() is None


def test_a_state_directory_in_the_workspace_is_not_part_of_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.files = tmp_path
    run.spec = structs.replace(run.spec, workspace=str(tmp_path))
    run.overlay = False
    workspace = run.workspace = Workspace(
        run.directory, run.spec, overlay=False, state=tmp_path / "state"
    )
    workspace.begin_run()
    (tmp_path / "state" / "other").touch()
    assert workspace.changed() is None
    assert not [path for path in run.task("a") if path.startswith("state")]


def test_a_link_in_the_base_is_not_followed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.files / "out").symlink_to(outside)
    os.mkfifo(run.files / "pipe")
    run.workspace.accept_base()
    (outside / "new").touch()
    assert run.workspace.changed() is None


@pytest.mark.parametrize("overlay", [True, False])
def test_a_snapshot_stays_as_it_was(tmp_path: Path, overlay: bool) -> None:
    run = Run(tmp_path, DIAMOND, overlay=overlay, base=Base.SNAPSHOT)
    before = look(run.files, times=True)
    (run.files / "top").write_text("changed")
    (run.files / "src/a").unlink()
    assert run.workspace.changed() is None
    assert look(run.directory.path / "base", times=True) == before
    assert run.task("a") == look(run.directory.path / "base")
    run.workspace.begin_run()
    assert look(run.directory.path / "base", times=True) == before


@pytest.mark.parametrize("call", ["fsync", "rename", "open", "mkdir"])
def test_a_snapshot_is_whole_or_not_there(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.spec = structs.replace(run.spec, base=Base.SNAPSHOT)
    real, number, failed = getattr(os, call), 0, True
    while failed:
        failed = False
        calls = count()

        def failing(
            *arguments: Any, calls: Any = calls, limit: int = number, **options: Any
        ) -> Any:
            nonlocal failed
            if next(calls) == limit:
                failed = True
                raise OSError(errno.ENOSPC, "full")
            return real(*arguments, **options)

        workspace = run.opened()
        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(os, call, failing)
        with contextlib.suppress(OSError):
            workspace.begin_run()
        monkeypatch.undo()
        assert len(os.listdir("/proc/self/fd")) == before
        if workspace.base.exists():
            assert look(workspace.base) == look(run.files)
            for folder, _, files in os.walk(workspace.base, topdown=False):
                for name in files:
                    Path(folder, name).unlink()
                Path(folder).rmdir()
        number += 1
    assert number > 1


def test_a_base_that_is_not_there_or_not_noted_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (run.directory.path / "base.manifest").write_bytes(b"\x91")
    with pytest.raises(DamagedLayerError, match=r"base\.manifest"):
        run.opened().changed()
    run.spec = structs.replace(run.spec, workspace=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="no such folder"):
        run.opened().begin_run()
    run.spec = structs.replace(run.spec, workspace=None)
    with pytest.raises(LocalViolation, match="no workspace"):
        run.opened()


# --- attempts ------------------------------------------------------------------------------------


def test_a_failed_attempt_joins_nothing_and_can_be_looked_at(diamond: Run) -> None:
    prepared, _ = diamond.attempt("a", ["write", "half", "x"], ["remove", "top"])
    diamond.workspace.keep(prepared.name, ())
    assert set(diamond.task("b")) == {"src", "src/a", "src/b", "top"}
    assert [each.path for each in diamond.workspace.resolve((prepared.name,))] == ["half", "top"]
    assert diamond.workspace.store.committed() == set()


def test_another_life_goes_on_from_what_is_on_disk(diamond: Run) -> None:
    diamond.task("a", ["write", "from-a", "1"])
    lost, _ = diamond.attempt("b", ["write", "half", "x"])
    diamond.workspace = diamond.opened()
    assert diamond.workspace.store.sweep(set(diamond.layers.values())) == set()
    shown = diamond.task("b", ["write", "from-b", "2"])
    assert set(shown) == {"from-a", "from-b", "src", "src/a", "src/b", "top"}
    assert diamond.layers["b"] != lost.name


def test_a_copy_of_an_earlier_life_is_not_taken_for_ours(tmp_path: Path) -> None:
    run = Run(tmp_path, overlay=False)
    prepared, _ = run.attempt("a", ["write", "x", "1"])
    with pytest.raises(LocalViolation, match="another supervisor"):
        run.opened().commit(prepared.name, ())


def test_touched_but_equal_is_no_change_in_a_copy(tmp_path: Path) -> None:
    run = Run(tmp_path, overlay=False)
    prepared, _ = run.attempt("a", ["write", "top", "top"], ["chmod", "src/a", 0o644])
    os.utime(f"{prepared.copy}/src/b", (1, 1))
    assert run.workspace.commit(prepared.name, ()) is None


def test_committing_again_tells_the_same(diamond: Run) -> None:
    prepared, _ = diamond.attempt("a", ["write", "x", "123"])
    assert diamond.workspace.commit(prepared.name, ()) == Layer(1, 3)
    assert diamond.workspace.commit(prepared.name, ()) == Layer(1, 3)
