"""Applying writes what the run made, or refuses and writes nothing; never through a link."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from casemate.protocol.errors import UsageError
from casemate.protocol.limits import PATHS_NAMED
from casemate.supervisor import apply
from casemate.supervisor.apply import (
    ALLOW_ALL,
    Applied,
    ApplyFailed,
    ApplyRefused,
    apply_changes,
)
from casemate.supervisor.layers import Resolved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import File, Folder, Link, Tree, build, changes_between, read_tree, whole

OURS = ".casemate-apply-"


class Place:
    def __init__(self, root: Path) -> None:
        self.base = root / "base"
        self.layers = root / "layers"
        self.outside = root / "outside"

    def lay(self, before: Tree, after: Tree) -> list[Resolved]:
        for folder in (self.base, self.layers):
            remove(folder)
        build(self.base, before)
        changes = changes_between(before, after, self.layers)
        self.layers.mkdir(exist_ok=True)
        return changes

    def apply(
        self,
        changes: list[Resolved],
        allow: frozenset[str] = ALLOW_ALL,
        changed: Iterable[str] | None = None,
        accept_base: bool = False,
    ) -> Applied:
        check = None if changed is None else lambda: changed
        return apply_changes(
            self.base,
            self.layers,
            changes,
            allow=allow,
            manifest_check=check,
            accept_base=accept_base,
        )


def remove(folder: Path) -> None:
    """Whatever modes its folders have."""
    if folder.exists():
        folder.chmod(0o755)
        for path in sorted(folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def assert_refused(
    place: Place, changes: list[Resolved], match: str, **options: object
) -> ApplyRefused:
    before = read_tree(place.base)
    with pytest.raises(ApplyRefused, match=match) as caught:
        place.apply(changes, **options)  # type: ignore[arg-type] # as the test names them
    assert read_tree(place.base) == before
    return caught.value


STORY_BEFORE: Tree = {
    "same": File(b"same"),
    "edit": File(b"old"),
    "chmod": File(b"mode", 0o644),
    "gone": File(b"gone"),
    "gone folder/x/y": File(b"gone"),
    "file to folder": File(b"old"),
    "folder to file/x/y": File(b"old"),
    "folder to file/z": Link("x"),
    "link to folder": Link("same"),
    "link": Link("same"),
    "file to link": File(b"old"),
    "link to file": Link("same"),
    "folder to link/x": File(b"old"),
    "open": Folder(0o755),
}
STORY_AFTER: Tree = {
    "same": File(b"same"),
    "edit": File(b"new"),
    "chmod": File(b"mode", 0o755),
    "file to folder/a": File(b"new"),
    "folder to file": File(b"new"),
    "link to folder/a/b": File(b"new"),
    "link": Link("edit"),
    "file to link": Link("edit"),
    "link to file": File(b"new", 0o600),
    "folder to link": Link("edit"),
    "open": Folder(0o700),
    "empty": Folder(0o750),
    "new/deep/file": File(b"new"),
    "sealed": Folder(0o555),
    "sealed/file": File(b"new", 0o444),
}


def test_the_workspace_becomes_what_the_run_made(place: Place) -> None:
    changes = place.lay(STORY_BEFORE, STORY_AFTER)
    applied = place.apply(changes)
    assert read_tree(place.base) == whole(STORY_AFTER)
    assert applied == Applied(written=11, size=25, removed=8, folders=8)


def test_a_second_apply_does_nothing(place: Place) -> None:
    changes = place.lay(STORY_BEFORE, STORY_AFTER)
    place.apply(changes)
    inode = (place.base / "edit").stat().st_ino
    # what the manifest says then is what we wrote ourselves
    assert place.apply(changes, changed=list(STORY_BEFORE)[1:]) == Applied(0, 0, 0, 0)
    assert (place.base / "edit").stat().st_ino == inode


NAMES = st.sampled_from(["a", "b", "c d", "é", "-x", "n\nl", os.fsdecode(b"\xff"), "z "])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
NODES = st.one_of(
    st.builds(File, st.binary(max_size=9), st.sampled_from([0o644, 0o755, 0o600, 0o444])),
    st.builds(Folder, st.sampled_from([0o755, 0o700, 0o555])),
    st.builds(Link, st.sampled_from(["a", "../b", "/etc"])),
)


def without_collisions(nodes: dict[str, File | Folder | Link]) -> Tree:
    leaves = {path for path, node in nodes.items() if not isinstance(node, Folder)}
    return {
        path: node
        for path, node in nodes.items()
        if not any(path.startswith(f"{leaf}/") for leaf in leaves)
    }


TREES = st.dictionaries(PATHS, NODES, max_size=8).map(without_collisions)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=TREES, after=TREES)
def test_any_tree_becomes_any_other(place: Place, before: Tree, after: Tree) -> None:
    changes = place.lay(before, after)
    place.apply(changes)
    assert read_tree(place.base) == whole(after)
    assert place.apply(changes) == Applied(0, 0, 0, 0)


def test_neither_order_of_changes_nor_what_is_absent_twice_matters(place: Place) -> None:
    changes = place.lay(STORY_BEFORE, STORY_AFTER)
    changes.append(Resolved("never/there", "absent", 0, None, None))
    place.apply(changes[::-1])
    assert read_tree(place.base) == whole(STORY_AFTER)


# --- what is carried -----------------------------------------------------------------------------


def test_holes_stay_holes(place: Place) -> None:
    build(place.base, {})
    build(place.layers / "t.1/upper", {})
    with (place.layers / "t.1/upper/a").open("wb") as file:
        file.truncate(1 << 32)
        file.seek(1 << 31)
        file.write(b"middle")
    place.apply([Resolved("a", "file", 0o644, "t.1", None)])
    seen = (place.base / "a").stat()
    assert seen.st_size == 1 << 32 and seen.st_blocks * 512 < 1 << 20
    with (place.base / "a").open("rb") as file:
        file.seek((1 << 31) - 1)
        assert file.read(8) == b"\0middle\0"


def test_attributes_of_a_user_are_carried_and_those_of_overlayfs_are_not(place: Place) -> None:
    changes = place.lay({"a": File(b"1"), "d": Folder()}, {"a": File(b"2"), "d": Folder(0o700)})
    upper = place.layers / "t.1/upper"
    for name in ("a", "d"):
        os.setxattr(upper / name, "user.note", b"kept")
        os.setxattr(upper / name, "user.overlay.origin", b"not ours to tell")
        os.setxattr(place.base / name, "user.old", b"gone")
    place.apply(changes)
    for name in ("a", "d"):
        assert os.listxattr(place.base / name) == ["user.note"]
    os.setxattr(upper / "a", "user.note", b"changed")
    assert place.apply(changes).written == 1
    assert os.getxattr(place.base / "a", "user.note") == b"changed"


def test_no_bit_that_lends_rights_is_carried(place: Place) -> None:
    build(place.base, {"shared": Folder()})
    (place.base / "shared").chmod(0o2755)
    upper = place.layers / "t.1/upper"
    build(upper, {"a": File(b""), "d": Folder(), "shared": Folder()})
    (upper / "a").chmod(0o6755)
    (upper / "d").chmod(0o3777)
    place.apply(
        [
            Resolved("a", "file", 0o6755, "t.1", None),
            Resolved("d", "folder", 0o3777, "t.1", None),
            Resolved("shared", "folder", 0o2700, "t.1", None),
        ]
    )
    assert (place.base / "a").stat().st_mode & 0o7777 == 0o755
    assert (place.base / "d").stat().st_mode & 0o7777 == 0o777
    # what the workspace itself had stays
    assert (place.base / "shared").stat().st_mode & 0o7777 == 0o2700


def test_what_is_made_belongs_to_whom_the_workspace_belongs(place: Place) -> None:
    changes = place.lay({}, {"d/a": File(b"1"), "l": Link("d")})
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    if os.geteuid() == 0:
        os.chown(place.base, owner, owner)
    place.apply(changes)
    for name in ("d", "d/a", "l"):
        assert (place.base / name).lstat().st_uid == owner


def test_a_layers_file_is_copied_and_never_shared(place: Place) -> None:
    changes = place.lay({"a": File(b"1")}, {"a": File(b"2")})
    source = place.layers / "t.1/upper/a"
    os.link(source, place.layers / "flat")
    place.apply(changes)
    assert (place.base / "a").stat().st_nlink == 1
    (place.base / "a").write_bytes(b"edited")
    assert source.read_bytes() == b"2" and source.stat().st_nlink == 2


def test_another_name_of_the_old_file_keeps_the_old_content(place: Place) -> None:
    changes = place.lay({"a": File(b"1")}, {"a": File(b"2")})
    os.link(place.base / "a", place.base / "b")
    place.apply(changes)
    assert (place.base / "b").read_bytes() == b"1"


def test_a_folder_that_may_not_be_written_to_is_and_stays_so(place: Place) -> None:
    before: Tree = {"d": Folder(0o555), "d/a": File(b"1"), "d/b": File(b"1")}
    changes = [
        change
        for change in place.lay(before, {"d": Folder(0o555), "d/a": File(b"2")})
        if change.path != "d"
    ]
    place.apply(changes)
    assert read_tree(place.base) == {"d": Folder(0o555), "d/a": File(b"2")}


# --- refusals ------------------------------------------------------------------------------------


def test_all_that_is_risky_is_named_at_once_and_nothing_is_written(place: Place) -> None:
    after: Tree = {
        ".git/hooks/pre-commit": File(b"", 0o755),
        ".envrc": File(b""),
        ".github/workflows/ci.yml": File(b""),
        "run.sh": File(b"", 0o755),
        "out": Link("/etc/passwd"),
        "harmless": File(b""),
    }
    changes = place.lay({}, after)
    refused = assert_refused(place, changes, "--allow", allow=frozenset())
    risky = {".git", ".git/hooks", *after} - {"harmless"} | {".github/workflows"}
    assert set(refused.risky) == risky
    named = frozenset({".envrc", "run.sh", "out"})
    refused = assert_refused(place, changes, "pre-commit", allow=named)
    assert set(refused.risky) == risky - named
    place.apply(changes, allow=named | {".git/", ".github/"})
    assert read_tree(place.base) == whole(after)


@pytest.mark.parametrize("allow", ["", "run", "run.sh/x", "run.sh/", "RUN.SH", "*"])
def test_only_the_path_itself_or_a_folder_allows(place: Place, allow: str) -> None:
    changes = place.lay({}, {"sub/run.sh": File(b"", 0o755)})
    assert_refused(place, changes, "executable", allow=frozenset({allow, f"sub/{allow}x"}))


def test_what_is_risky_but_there_already_needs_no_word(place: Place) -> None:
    build(place.base, {".envrc": File(b"1")})
    build(place.layers / "t.1/upper", {".envrc": File(b"1")})
    changes = [Resolved(".envrc", "file", 0o644, "t.1", None)]
    assert place.apply(changes, allow=frozenset()) == Applied(0, 0, 0, 0)


def test_a_workspace_that_changed_meanwhile_is_not_written_to(place: Place) -> None:
    changes = place.lay({"a": File(b"1")}, {"a": File(b"2")})
    paths = [f"f{number:03}" for number in range(PATHS_NAMED + 5)]
    refused = assert_refused(place, changes, "--accept-base", changed=paths)
    assert refused.changed == tuple(paths)
    assert "and 5 more" in str(refused) and "f019" in str(refused) and "f020" not in str(refused)
    place.apply(changes, changed=paths, accept_base=True)
    assert (place.base / "a").read_bytes() == b"2"


def plant_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "outside")


def plant_fifo(path: Path) -> None:
    os.mkfifo(path)


def plant_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as planted:
        planted.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def plant_file(path: Path) -> None:
    path.write_bytes(b"theirs")


@pytest.mark.parametrize("accept_base", [False, True])
@pytest.mark.parametrize("plant", [plant_link, plant_fifo, plant_socket, plant_file])
def test_a_folder_that_became_something_else_is_never_gone_through(
    place: Place, plant: Callable[[Path], None], accept_base: bool
) -> None:
    build(place.outside, {"a": File(b"outside")})
    changes = place.lay({"d/a": File(b"1"), "d/b": File(b"1")}, {"d/a": File(b"2")})
    shutil.rmtree(place.base / "d")
    plant(place.base / "d")
    inode = (place.base / "d").lstat().st_ino
    with pytest.raises(ApplyRefused, match="d") as caught:
        place.apply(changes, changed=["d", "d/a", "d/b"], accept_base=accept_base)
    assert caught.value.unexpected
    assert (place.base / "d").lstat().st_ino == inode
    assert read_tree(place.outside) == {"a": File(b"outside")}


@pytest.mark.parametrize("plant", [plant_fifo, plant_socket])
@pytest.mark.parametrize("after", [{"a": File(b"2")}, {"a": Link("x")}, {"a/b": File(b"2")}, {}])
def test_what_is_odd_in_the_workspace_is_not_replaced(
    place: Place, plant: Callable[[Path], None], after: Tree
) -> None:
    changes = place.lay({"a": File(b"1")}, after)
    (place.base / "a").unlink()
    plant(place.base / "a")
    with pytest.raises(ApplyRefused, match="a"):
        place.apply(changes)
    assert not (place.base / "a").is_file()


@pytest.mark.parametrize("plant", [plant_link, plant_fifo, plant_socket])
def test_what_is_planted_in_a_layer_is_refused_before_anything_is_written(
    place: Place, plant: Callable[[Path], None]
) -> None:
    changes = place.lay({"a": File(b"1")}, {"a": File(b"2"), "b": File(b"2")})
    (place.layers / "t.1/upper/b").unlink()
    plant(place.layers / "t.1/upper/b")
    assert_refused(place, changes, "not a regular file")


def test_a_link_in_a_layers_path_is_not_followed(place: Place) -> None:
    build(place.outside, {"a": File(b"secret")})
    build(place.base, {"d": Folder()})
    build(place.layers / "t.1/upper", {"d": Link("../../../outside")})
    changes = [Resolved("d/a", "file", 0o644, "t.1", None)]
    assert_refused(place, changes, "cannot be written")


def test_what_the_run_never_saw_is_not_deleted_with_its_folder(place: Place) -> None:
    changes = place.lay({"d/a": File(b"1")}, {})
    (place.base / "d/new").write_bytes(b"theirs")
    assert_refused(place, changes, "holds new")
    changes = place.lay({"d/a": File(b"1")}, {"d": File(b"2")})
    (place.base / "d/new").write_bytes(b"theirs")
    assert_refused(place, changes, "holds new")


def test_a_folder_that_is_gone_is_not_made_again_for_a_file(place: Place) -> None:
    changes = place.lay({"d/a": File(b"1")}, {"d/a": File(b"2")})
    shutil.rmtree(place.base / "d")
    only = [change for change in changes if change.path == "d/a"]
    assert_refused(place, only, "is gone")


def test_a_name_that_apply_itself_writes_under_is_refused(place: Place) -> None:
    changes = place.lay({}, {f"{OURS}0123456789abcdef": File(b"")})
    assert_refused(place, changes, "itself")


def test_a_workspace_that_became_a_link_is_not_entered(place: Place) -> None:
    changes = place.lay({}, {"a": File(b"1")})
    place.base.rename(place.outside)
    place.base.symlink_to(place.outside)
    with pytest.raises(UsageError, match="no link"):
        place.apply(changes)
    assert read_tree(place.outside) == {}


def test_two_do_not_write_at_a_time(place: Place) -> None:
    changes = place.lay({}, {"a": File(b"1")})
    seen = []

    def during() -> list[str]:
        with pytest.raises(UsageError, match="another apply"):
            place.apply(changes)
        seen.append(True)
        return []

    apply_changes(place.base, place.layers, changes, allow=ALLOW_ALL, manifest_check=during)
    assert seen and (place.base / "a").read_bytes() == b"1"


def test_modes_that_forbid_reading(place: Place) -> None:
    """Root reads all the same; so does anybody else what is their own."""
    after: Tree = {"a": File(b"1", 0), "b": File(b"2"), "d": Folder(0), "d/in": File(b"3", 0o200)}
    changes = place.lay({}, {**after, "d": Folder()})
    closed = place.layers / "t.1/upper/d"
    changes = [replace(c, mode=0) if c.path == "d" else c for c in changes]
    closed.chmod(0)
    place.apply(changes)
    assert (place.base / "d").stat().st_mode & 0o777 == 0
    assert place.apply(changes) == Applied(0, 0, 0, 0)
    assert place.apply(changes, changed=["a", "d", "d/in"]) == Applied(0, 0, 0, 0)
    assert (place.base / "d").stat().st_mode & 0o777 == closed.stat().st_mode & 0o777 == 0
    for opened in (closed, place.base / "d"):
        opened.chmod(0o700)
    assert {path: (place.base / path).stat().st_mode & 0o777 for path in ("a", "d/in")} == {
        "a": 0, "d/in": 0o200,
    }  # fmt: skip
    for path, content in (("a", b"1"), ("d/in", b"3")):
        (place.base / path).chmod(0o600)
        assert (place.base / path).read_bytes() == content


def test_no_descriptor_is_left_open(place: Place) -> None:
    changes = place.lay(STORY_BEFORE, STORY_AFTER)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ApplyRefused):
        place.apply(changes, changed=["x"])
    place.apply(changes)
    assert len(os.listdir("/proc/self/fd")) == before


# --- cut off -------------------------------------------------------------------------------------

WRITING = {
    "chmod", "fchmod", "fsync", "ftruncate", "mkdir", "pwrite", "removexattr", "rename", "rmdir",
    "setxattr", "symlink", "unlink",
}  # fmt: skip


class Killed(BaseException):
    """Nothing of the process runs after it, so no handler may do anything either."""


class Failing:
    """`os`, whose n-th writing call fails: that one alone, or as if killed before it."""

    def __init__(self, number: int, dies: bool) -> None:
        self._left = number
        self._dies = dies
        self.has_failed = False

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in WRITING and name != "open":
            return real

        def called(*arguments: object, **options: object) -> object:
            if name == "open" and not int(str(arguments[1])) & os.O_CREAT:
                return real(*arguments, **options)
            if self._dies and self.has_failed:
                raise Killed
            self._left -= 1
            if self._left == 0:
                self.has_failed = True
                raise Killed if self._dies else OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        return called


@pytest.mark.parametrize("dies", [False, True], ids=["fails", "killed"])
def test_whichever_call_fails_each_file_is_old_or_new_and_the_next_apply_makes_the_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    old, new = whole(STORY_BEFORE), whole(STORY_AFTER)
    kinds_differ = {
        path
        for path in old
        if path in new and isinstance(old[path], Folder) != isinstance(new[path], Folder)
    }
    manifest = [path for path in old if old[path] != new.get(path)] + list(new.keys() - old.keys())
    number = 0
    while True:
        number += 1
        changes = place.lay(STORY_BEFORE, STORY_AFTER)
        os.setxattr(place.layers / "t.1/upper/edit", "user.note", b"x")
        failing = Failing(number, dies)
        with monkeypatch.context() as patch:
            patch.setattr(apply, "os", failing)
            try:
                place.apply(changes)
            except (ApplyFailed, Killed) as error:
                assert isinstance(error, Killed) == dies
        if not failing.has_failed:
            break
        found = read_tree(place.base)
        for path in old.keys() | new.keys():
            node = found.get(path)
            if isinstance(node, Folder):
                assert isinstance(old.get(path), Folder) or isinstance(new.get(path), Folder)
            elif node is None:
                assert path not in old or path not in new or path in kinds_differ, (number, path)
            else:
                assert node in (old.get(path), new.get(path)), (number, path)
        others = found.keys() - old.keys() - new.keys()
        assert all(dies and path.rpartition("/")[2].startswith(OURS) for path in others)
        # what the manifest finds changed by then is our own work
        missing = [path for path in manifest if found.get(path) != old.get(path)]
        place.apply(changes, changed=[*missing, *others])
        assert read_tree(place.base) == new, number
    assert number > 60
