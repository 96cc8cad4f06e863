"""Layers on disk: what overlayfs and the copying fallback leave, what is made of it, and what a
hostile task cannot do with it. Overlays are mounted by the real kernel; see overlaid.py."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from casemate.protocol.errors import LocalViolation
from casemate.protocol.events import Layer
from casemate.supervisor import layers, trees
from casemate.supervisor.copying import Copies, copy_view
from casemate.supervisor.layers import (
    Change,
    DamagedLayerError,
    Kind,
    LayerStore,
    Resolved,
    View,
    conflicts,
    resolve,
)
from casemate.supervisor.trees import UnkeepableTree, Walk, open_folder, remove_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from overlaid import Operation, in_folder, in_overlay, look


class House:
    """A base and a store, and attempts that are made in them one after the other."""

    def __init__(self, place: Path, *, copying: bool = False) -> None:
        self.base = place / "base"
        self.base.mkdir(parents=True)
        self.store = LayerStore(place / "run" / "layers")
        (place / "run").mkdir()
        self.copying = copying
        self.copies = Copies(self.store)
        self.stack: list[str] = []
        self._numbers = count(1)

    def view(self, stack: Sequence[str] | None = None) -> View:
        return View(self.store, self.base, self.stack if stack is None else stack)

    def attempt(self, *operations: Operation, stack: Sequence[str] | None = None) -> str:
        """What an attempt leaves when it is dead, not committed yet."""
        name = f"t.{next(self._numbers)}"
        stack = self.stack if stack is None else stack
        if self.copying:
            with self.view(stack) as view:
                folder = self.copies.begin(name, view, 0o755, ())
            in_folder(folder, operations)
        else:
            self.store.begin(name)
            in_overlay(self.base, self.store.root, self.lower(stack), name, operations)
        return name

    def commit(self, name: str, stack: Sequence[str] | None = None) -> Layer | None:
        with self.view(stack) as view:
            if self.copying:
                self.copies.gather(name, view)
            return self.store.commit(name, view)

    def layer(self, *operations: Operation, stack: Sequence[str] | None = None) -> str:
        name = self.attempt(*operations, stack=stack)
        if self.commit(name, stack) is not None and stack is None:
            self.stack.append(name)
        return name

    def lower(self, stack: Sequence[str] | None = None) -> tuple[str, ...]:
        return self.store.lower(self.stack if stack is None else stack, self.base)

    def flat(self, stack: Sequence[str], below: Sequence[str] = ()) -> str:
        return self.store._flat(list(stack), list(below), self.base)

    def shown(self, stack: Sequence[str] | None = None) -> dict[str, Any]:
        """What a task would see over the stack."""
        name = f"look.{next(self._numbers)}"
        stack = self.stack if stack is None else stack
        if self.copying:
            with self.view(stack) as view:
                shown = look(self.copies.begin(name, view, 0o755, ()))
        else:
            self.store.begin(name)
            shown = in_overlay(self.base, self.store.root, self.lower(stack), name)
        self.store.discard(name)
        return shown

    def kinds(self, name: str) -> dict[str, Kind]:
        return {change.path: change.kind for change in self.store.changes(name)}


@pytest.fixture(params=["overlay", "copy"])
def house(tmp_path: Path, request: pytest.FixtureRequest) -> House:
    house = House(tmp_path, copying=request.param == "copy")
    plant(house.base)
    return house


def plant(base: Path) -> None:
    for folder in ("src/deep", "empty", "closed"):
        (base / folder).mkdir(parents=True)
    for name in ("top", "src/a", "src/b", "src/deep/c", "closed/d"):
        (base / name).write_text(f"content of {name}")
    (base / "link").symlink_to("src/a")
    (base / "src/b").chmod(0o600)


# --- what a layer holds --------------------------------------------------------------------------


def test_a_layer_tells_what_was_changed(house: House) -> None:
    name = house.attempt(
        ["write", "src/new", "12345"],
        ["append", "src/a", "!"],
        ["remove", "top"],
        ["mkdir", "made"],
        ["chmod", "empty", 0o700],
        ["link", "other", "nowhere"],
        ["remove", "link"],
        ["link", "link", "src/b"],
    )
    assert house.commit(name) == Layer(files=7, bytes=5 + len("content of src/a!"))
    assert house.kinds(name) == {
        "empty": Kind.FOLDER,
        "link": Kind.LINK,
        "made": Kind.FOLDER,
        "other": Kind.LINK,
        "src": Kind.PASSAGE,
        "src/a": Kind.FILE,
        "src/new": Kind.FILE,
        "top": Kind.WHITEOUT,
    }
    assert house.store.committed() == {name}
    assert sorted(os.listdir(house.store.root / name)) == ["changes", "upper"]


def test_an_attempt_that_changed_nothing_has_no_layer(house: House) -> None:
    name = house.attempt(
        ["write", "src/deep/tmp", "x"], ["remove", "src/deep/tmp"], ["mkdir", "m"], ["rmdir", "m"]
    )
    assert house.commit(name) is None
    assert os.listdir(house.store.root) == []
    assert house.commit(name) is None


def test_a_passage_for_nothing_is_not_kept(house: House) -> None:
    name = house.layer(
        ["write", "src/deep/tmp", "x"], ["remove", "src/deep/tmp"], ["remove", "top"]
    )
    assert house.kinds(name) == {"top": Kind.WHITEOUT}


def test_what_replaces_a_folder_hides_what_was_in_it(house: House) -> None:
    house.layer(["rmtree", "src"], ["write", "src", "now a file"], ["remove", "top"])
    house.layer(["remove", "src"], ["mkdir", "src"], ["write", "src/x", "x"], ["mkdir", "top"])
    shown = house.shown()
    assert [path for path in sorted(shown) if path.startswith(("src", "top"))] == [
        "src",
        "src/x",
        "top",
    ]
    with house.view() as view:
        assert view.find("src/a") is None
        assert view.find("src/a/b") is None
        found = view.find("src/x")
        assert found is not None and found.kind is Kind.FILE


def test_attributes_of_a_folder_are_a_change_and_those_it_came_with_are_none(house: House) -> None:
    (house.base / "kept").mkdir()
    (house.base / "bare").mkdir()
    os.setxattr(house.base / "kept", "user.note", b"from the base")
    layer = house.layer(["write", "kept/new", "x"], ["attribute", "bare", "of a task"])
    assert house.kinds(layer)["kept"] is Kind.PASSAGE
    assert house.kinds(layer)["bare"] is Kind.FOLDER
    told = {each.path: each.kind for each in resolve(house.store, house.base, house.stack)}
    assert told == {"bare": "folder", "kept/new": "file"}


def test_attributes_modes_links_and_sparse_files_survive(house: House) -> None:
    operations: list[Operation] = [
        ["attribute", "src/a", "of a file"],
        ["attribute", "src", "of a folder"],
        ["chmod", "src/deep", 0o750],
        ["sparse", "hole", 1 << 26],
        ["write", "odd \udcff name\n", "x"],
        ["hardlink", "second", "src/b"],
        ["rename", "top", "renamed"],
    ]
    house.layer(*operations)
    house.layer(["write", "another", ""])
    shown = house.shown()
    assert shown["src/a"][2] == {"user.note": b"of a file".hex()}
    assert shown["src"][2] == {"user.note": b"of a folder".hex()}
    assert shown["src/deep"][1] == 0o750
    assert shown["hole"][3] == (1 << 26) + 3
    assert shown["second"][1:] == shown["src/b"][1:]
    assert "top" not in shown and "renamed" in shown
    hole = house.store.root / house.stack[0] / "upper" / "hole"
    assert hole.stat().st_blocks * 512 < 1 << 20


def test_setuid_bits_are_stripped(house: House) -> None:
    name = house.layer(["write", "tool", "x"], ["chmod", "tool", 0o6755])
    assert (house.store.root / name / "upper/tool").stat().st_mode & 0o7777 == 0o755
    assert house.store.manifest(name)["tool"].mode == 0o755


def test_what_is_neither_file_nor_folder_nor_link_is_dropped(house: House) -> None:
    name = house.layer(["fifo", "pipe"], ["remove", "top"], ["fifo", "top"], ["write", "x", ""])
    assert house.kinds(name) == {"top": Kind.WHITEOUT, "x": Kind.FILE}
    assert "top" not in house.shown()
    if not house.copying:
        assert house.store.dropped(name) == ["pipe", "top"]


def test_a_committed_layer_can_be_asked_for_again(house: House) -> None:
    name = house.attempt(["write", "x", "1"])
    first = house.commit(name)
    assert house.commit(name) == first == Layer(1, 1)
    with pytest.raises(LocalViolation, match="begun twice"):
        house.store.begin(name)


@pytest.mark.parametrize("name", ["", "..", "a", "a/b.1", "flat-0123456789abcdef", ".a.1", "a.x"])
def test_only_attempts_have_layers(tmp_path: Path, name: str) -> None:
    with pytest.raises(LocalViolation, match="not the name"):
        LayerStore(tmp_path).begin(name)


def test_a_damaged_manifest_is_told(tmp_path: Path) -> None:
    house = House(tmp_path)
    name = house.layer(["write", "x", "1"])
    (house.store.root / name / "changes").write_bytes(b"\x81\xa1")
    with pytest.raises(DamagedLayerError, match=name):
        LayerStore(house.store.root).manifest(name)
    with pytest.raises(DamagedLayerError, match="not in"):
        house.store.manifest("other.1")


# --- random histories ----------------------------------------------------------------------------

PATHS = ["a", "b", "c", "a/a", "a/b", "b/a", "a/a/a", "a/a/b", "b/a/c"]
PATH = st.sampled_from(PATHS)
OPERATION: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.sampled_from(["write", "append", "attribute"]), PATH, st.sampled_from("xyz")),
    st.tuples(st.sampled_from(["mkdir", "remove", "rmdir", "rmtree", "mkdir", "rmtree"]), PATH),
    st.tuples(st.just("chmod"), PATH, st.sampled_from([0o700, 0o755, 0o644])),
    st.tuples(st.sampled_from(["link", "hardlink", "rename"]), PATH, PATH),
)
HISTORY = st.tuples(
    st.lists(OPERATION, max_size=12), st.lists(st.lists(OPERATION, max_size=6), max_size=4)
)


def applied(base: Path, store: LayerStore, resolved: list[Resolved]) -> dict[str, Any]:
    """`base` as `resolve` says that it has become, by the simplest means."""
    for each in reversed(resolved):
        path = base / each.path
        if each.kind == "absent":
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for each in resolved:
        path = base / each.path
        if each.kind == "absent":
            continue
        if not (each.kind == "folder" and path.is_dir() and not path.is_symlink()):
            path.unlink(missing_ok=True)
        if each.kind == "link":
            path.symlink_to(each.target or "")
        elif each.kind == "folder":
            path.mkdir(exist_ok=True)
        else:
            fd = store.open_file(each.layer or "", each.path)
            with os.fdopen(fd, "rb") as file:
                path.write_bytes(file.read())
        if each.kind != "link":
            path.chmod(each.mode)
    return look(base)


def without_attributes(shown: dict[str, Any]) -> dict[str, Any]:
    return {path: [part for part in entry if part.__class__ is not dict]
            for path, entry in shown.items()}  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=HISTORY)
def test_copies_overlays_flats_and_what_is_resolved_agree(
    tmp_path_factory: pytest.TempPathFactory, history: Any
) -> None:
    """The same operations in a real overlay and in copies show the same after every attempt; so
    does a copy of the overlay's layers, one flat of all, and the base with the changes applied."""
    place = tmp_path_factory.mktemp("history")
    first, attempts = history
    overlaid, copied = House(place / "1"), House(place / "2", copying=True)
    for house in (overlaid, copied):
        in_folder(house.base, first)
    for operations in attempts:
        for house in (overlaid, copied):
            house.layer(*operations)
        shown = overlaid.shown()
        assert copied.shown() == shown
    shown = overlaid.shown()
    copy = place / "copy"
    copy.mkdir()
    target = open_folder(copy)
    with overlaid.view() as view:
        copy_view(view, target, owner=None)
    os.close(target)
    assert look(copy) == shown
    if overlaid.stack:
        flat = overlaid.flat(overlaid.stack)
        assert overlaid.shown([flat]) == shown
        half = overlaid.flat(overlaid.stack[-2:], overlaid.stack[:-2])
        assert overlaid.shown([*overlaid.stack[:-2], half]) == shown
        assert resolve(overlaid.store, overlaid.base, [flat]) == [
            Resolved(each.path, each.kind, each.mode, each.layer and flat, each.target)
            for each in resolve(overlaid.store, overlaid.base, overlaid.stack)
        ]
    for house in (overlaid, copied):
        resolved = resolve(house.store, house.base, house.stack)
        assert without_attributes(applied(house.base, house.store, resolved)) == (
            without_attributes(shown)
        )


# --- deep stacks ---------------------------------------------------------------------------------


def test_two_hundred_layers_show_as_one(tmp_path: Path) -> None:
    house = House(tmp_path)
    plant(house.base)
    for number in range(200):
        house.store.begin(name := f"t.{number + 1}")
        upper = house.store.root / name / "upper"
        (upper / f"file{number % 50}").write_text(f"{number}")
        if number == 60:
            (upper / "src").mkdir(mode=0o755)
            layers.make_whiteout("a", fd := open_folder(upper / "src"))
            os.close(fd)
        if number == 150:
            fd = open_folder(upper)
            layers.make_whiteout("src", fd)
            os.close(fd)
        with house.view() as view:
            house.store.commit(name, view)
        house.stack.append(name)
        assert len(house.lower()) <= 31
    lower = house.lower()
    assert len(lower) == 12 + 8
    assert lower[0] == "t.200" and lower[-1].startswith("flat-")
    shown = house.shown()
    assert not any(path.startswith("src") for path in shown)
    assert (house.base / "src").is_dir()
    with house.view() as view:
        found = view.find("file0")
        assert found is not None and found.layers == ("t.151",)
        assert view.find("src/deep/c") is None
    assert "src/deep/c" in house.shown(house.stack[:150])
    assert "src/a" not in house.shown(house.stack[:150])
    assert "src/a" in house.shown(house.stack[:60])


@pytest.mark.parametrize("depth", [0, 1, 15, 16, 17, 255, 256, 257, 511, 512, 700])
def test_a_mount_never_takes_more_than_31_layers(tmp_path: Path, depth: int) -> None:
    store = LayerStore(tmp_path / "layers")
    names = []
    for number in range(depth):
        names.append(store.begin(f"t.{number}").parent.name)
        (tmp_path / "layers" / names[-1] / "upper" / "f").write_text(str(number))
        note = layers._Manifest(1, layers._note([Change("f", Kind.FILE, 0o644, 1)]))
        (store.root / names[-1] / "changes").write_bytes(msgspec.msgpack.encode(note))
    lower = store.lower(names, tmp_path)
    assert len(lower) <= 31
    assert store.lower(names, tmp_path) == lower
    assert LayerStore(store.root).lower(names, tmp_path) == lower
    if lower:
        assert (store.root / lower[0] / "upper/f").read_text() == str(depth - 1)
        oldest = store._ingredients(lower[-1]) | {lower[-1]}
        assert names[0] in oldest


def test_a_flat_lists_nothing_that_came_and_went_within_it(tmp_path: Path) -> None:
    house = House(tmp_path)
    plant(house.base)
    house.layer(["mkdir", "new"], ["write", "new/x", "1"], ["write", "src/x", "1"])
    house.layer(["remove", "new/x"], ["remove", "src/x"], ["remove", "src/a"])
    shown = house.shown()
    assert "new" in shown and "new/x" not in shown
    assert house.shown([house.flat(house.stack)]) == shown
    house.layer(["write", "new/y", "1"])
    house.layer(["remove", "new/y"])
    upper = house.flat(house.stack[2:], house.stack[:2])
    assert house.shown([*house.stack[:2], upper]) == shown


def test_a_flat_goes_on_hiding_what_lies_in_a_closed_folder(tmp_path: Path) -> None:
    house = House(tmp_path)
    plant(house.base)
    (house.base / "closed").chmod(0)  # also to us, but for root
    house.layer(["chmod", "closed", 0o700], ["remove", "closed/d"])
    assert "closed/d" not in house.shown([house.flat(house.stack)])


def test_a_half_made_flat_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path)
    for number in range(16):
        house.layer(["write", f"f{number}", "x"])
    real = os.link
    calls = count()

    def failing(*arguments: Any, **options: Any) -> None:
        if next(calls) == 7:
            raise OSError(errno.ENOSPC, "full")
        real(*arguments, **options)

    monkeypatch.setattr(os, "link", failing)
    with pytest.raises(OSError, match="full"):
        house.lower()
    assert len(os.listdir(house.store.root)) == 16
    [flat] = house.lower()
    assert len(os.listdir(house.store.root / flat / "upper")) == 16


def test_a_flat_of_an_earlier_boot_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path)
    for number in range(16):
        house.layer(["write", f"f{number}", "x"])
    monkeypatch.setattr(layers, "read_boot_id", lambda: "before")
    [flat] = house.lower()
    (house.store.root / flat / "upper/f3").unlink()
    monkeypatch.undo()
    assert LayerStore(house.store.root).lower(house.stack, house.base) == (flat,)
    assert (house.store.root / flat / "upper/f3").exists()


def test_a_discarded_layer_leaves_no_link_in_a_flat(tmp_path: Path) -> None:
    house = House(tmp_path)
    for number in range(16):
        house.layer(["write", f"f{number}", "x"])
    [flat] = house.lower()
    (house.store.root / ".t.0").mkdir()  # of a discard that was killed
    assert house.store.superfluous(house.stack[:-1]) == [".t.0", flat, house.stack[-1]]
    assert house.store.discard("t.3") > 0
    assert not [name for name in os.listdir(house.store.root) if name.startswith("flat-")]
    assert "t.3" not in os.listdir(house.store.root)


# --- conflicts -----------------------------------------------------------------------------------

FILE, LINK, FOLDER, PASSAGE, OPAQUE, WHITEOUT = Kind


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ({"x": FILE}, {"y": FILE}, []),
        ({"x": FILE}, {"x": FILE}, ["x"]),
        ({"x": FILE}, {"x": WHITEOUT}, ["x"]),
        ({"x": WHITEOUT}, {"x": WHITEOUT}, []),
        ({"x": FILE}, {"x": FOLDER}, ["x"]),
        ({"x": LINK}, {"x": FILE}, ["x"]),
        ({"d": FOLDER, "d/a": FILE}, {"d": FOLDER, "d/b": FILE}, []),
        ({"d": PASSAGE, "d/a": FILE}, {"d": PASSAGE, "d/b": FILE}, []),
        ({"d": PASSAGE, "d/a": FILE}, {"d": PASSAGE, "d/a": FILE}, ["d/a"]),
        ({"d": OPAQUE}, {"d": PASSAGE, "d/a": FILE}, ["d/a"]),
        ({"d": OPAQUE, "d/b": FILE}, {"d": PASSAGE, "d/a": WHITEOUT}, ["d/a"]),
        ({"d": WHITEOUT}, {"d": PASSAGE, "d/e": PASSAGE, "d/e/a": FILE}, ["d/e/a"]),
        ({"d": FILE}, {"d": PASSAGE, "d/a": FILE}, ["d/a"]),
        ({"d": OPAQUE}, {"d": OPAQUE}, ["d"]),
        ({"d": OPAQUE}, {"d": WHITEOUT}, ["d"]),
        ({"d": WHITEOUT}, {"da": FILE, "d.": FILE}, []),
    ],
)
def test_conflicts_are_exact(
    ours: dict[str, Kind], theirs: dict[str, Kind], found: list[str]
) -> None:
    a = [Change(path, kind, 0o755) for path, kind in ours.items()]
    b = [Change(path, kind, 0o755) for path, kind in theirs.items()]
    assert conflicts(a, b) == conflicts(b, a) == found


def test_two_modes_of_one_folder_conflict() -> None:
    changed = [Change("d", Kind.FOLDER, 0o700)]
    assert conflicts(changed, [Change("d", Kind.PASSAGE, 0o755)]) == ["d"]
    assert conflicts(changed, changed) == []


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    first=st.lists(OPERATION, max_size=8),
    ours=st.lists(OPERATION, max_size=4),
    theirs=st.lists(OPERATION, max_size=4),
)
def test_without_a_conflict_the_order_of_two_branches_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, first: Any, ours: Any, theirs: Any
) -> None:
    house = House(tmp_path_factory.mktemp("branches"))
    in_folder(house.base, first)
    names = [house.layer(*operations, stack=[]) for operations in (ours, theirs)]
    names = [name for name in names if name in house.store.committed()]
    if len(names) < 2 or conflicts(*(house.store.changes(name) for name in names)):
        return
    assert without_attributes(house.shown(names)) == without_attributes(house.shown(names[::-1]))


# --- hostile trees -------------------------------------------------------------------------------


@pytest.fixture
def pit(tmp_path: Path) -> Iterator[Path]:
    """A place for trees that nobody else can remove, pytest's own cleaning among them."""
    (tmp_path / "pit").mkdir()
    yield tmp_path / "pit"
    at = open_folder(tmp_path)
    remove_tree(at, "pit")
    os.close(at)


def deep(root: Path, depth: int) -> None:
    """A chain of folders far deeper than a path or a table of descriptors is long."""
    at = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


def test_a_tree_thousands_deep_is_refused_kept_and_removed(pit: Path) -> None:
    house = House(pit)
    house.store.begin("t.1")
    deep(house.store.root / "t.1" / "upper", 4_000)
    before = len(os.listdir("/proc/self/fd"))
    with house.view() as view:
        with pytest.raises(UnkeepableTree, match="4095 bytes"):
            house.store.commit("t.1", view)
        house.store.keep("t.1", view)
    assert house.store.size("t.1")[1] == 4_000
    assert house.store.committed() == set()
    house.store.discard("t.1")
    assert os.listdir(house.store.root) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path)
    upper = house.store.begin("t.1")
    for number in range(50):
        (upper / str(number)).touch()
    monkeypatch.setattr(trees.Walk.__init__, "__kwdefaults__", {
        **(trees.Walk.__init__.__kwdefaults__ or {}), "most": 40,
    })  # fmt: skip
    with house.view() as view, pytest.raises(UnkeepableTree, match="more than 40"):
        house.store.commit("t.1", view)
    assert house.store.size("t.1", most=10) == (0, 11)
    house.store.discard("t.1")
    assert os.listdir(house.store.root) == []


def test_nothing_planted_is_followed_or_waited_for(tmp_path: Path) -> None:
    """Links out, FIFOs, sockets, closed folders and files, names that are no text."""
    house = House(tmp_path)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("secret")
    upper = house.store.begin("t.1")
    (upper / "out").symlink_to(tmp_path / "secret")
    (upper / "up").symlink_to("../../../..")
    (upper / "loop").symlink_to("loop")
    os.mkfifo(upper / "fifo")
    with socket.socket(socket.AF_UNIX) as planted:
        here = os.open(upper, os.O_PATH)
        planted.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    os.mkdir(os.fsencode(upper) + b"/\xff\xfe\n")
    (upper / "closed").mkdir()
    (upper / "closed/file").write_text("inside")
    (upper / "closed/file").chmod(0)
    (upper / "closed").chmod(0)
    upper.chmod(0)
    with house.view() as view:
        assert house.store.commit("t.1", view) == Layer(files=6, bytes=6)
    assert house.kinds("t.1") == {
        "out": LINK, "up": LINK, "loop": LINK, "closed": FOLDER, "closed/file": FILE,
        "\udcff\udcfe\n": FOLDER,
    }  # fmt: skip
    assert house.store.dropped("t.1") == ["fifo", "socket"]
    assert stat.S_IMODE(upper.stat().st_mode) == 0o500
    with os.fdopen(house.store.open_file("t.1", "closed/file"), "rb") as file:
        assert file.read() == b"inside"
    flat = house.flat(["t.1"])
    assert house.store.changes(flat) == house.store.changes("t.1")
    house.store.discard("t.1")
    assert os.listdir(house.store.root) == []
    assert (tmp_path / "secret/key").read_text() == "secret"


def test_a_forged_attribute_does_not_hide_the_base(tmp_path: Path) -> None:
    """In a copy a task may set what overlayfs goes by."""
    house = House(tmp_path, copying=True)
    plant(house.base)
    name = house.attempt(["write", "src/new", "x"], ["write", "file", "x"])
    copy = house.store.root / name / "copy"
    for path in ("src", "file", "src/new"):
        os.setxattr(copy / path, b"user.overlay.opaque", b"y")
        os.setxattr(copy / path, b"user.overlay.redirect", b"/etc")
    house.commit(name)
    for path in ("src", "file", "src/new"):
        upper = house.store.root / name / "upper" / path
        assert not [x for x in os.listxattr(upper) if x.startswith("user.overlay")]
    assert house.kinds(name)["src"] in (PASSAGE, FOLDER)
    house.copying = False
    house.stack = [name]
    assert "src/deep/c" in house.shown()


def test_a_folder_moved_while_it_is_walked_ends_the_walk(pit: Path) -> None:
    deep(pit, 100)
    root = open_folder(pit)
    moved = False
    with pytest.raises(OSError) as caught:
        for step in Walk(root):
            if step.moment is trees.Moment.LEAVE and not moved:
                half = pit / "/".join("d" * 50)
                half.rename(pit / "elsewhere")
                moved = True
    assert caught.value.errno == errno.ESTALE
    remove_tree(root, "d")
    remove_tree(root, "elsewhere")
    os.close(root)
    assert os.listdir(pit) == []


# --- failing and dying ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "rename", "write", "unlink", "rmdir", "open", "fchmod"])
def test_whichever_call_of_a_commit_fails_the_layer_is_whole_or_not_there(
    house: House, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations: list[Operation] = [
        ["write", "src/new", "12"], ["write", "tool", "x"], ["chmod", "tool", 0o4755],
        ["rmtree", "closed"], ["fifo", "pipe"], ["write", "src/deep/t", ""],
        ["remove", "src/deep/t"],
    ]  # fmt: skip
    real = getattr(os, call)
    failed = True
    number = 0
    while failed:
        name = house.attempt(*operations)
        failed = False
        calls = count()

        def failing(
            *arguments: Any, calls: Any = calls, limit: int = number, **options: Any
        ) -> Any:
            nonlocal failed
            if next(calls) == limit:
                failed = True
                raise OSError(errno.EIO, "cut")
            return real(*arguments, **options)

        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(os, call, failing)
        try:
            told = house.commit(name)
        except OSError:
            told = None
        monkeypatch.undo()
        assert len(os.listdir("/proc/self/fd")) == before
        # as whoever comes next after the power has gone finds it
        found = LayerStore(house.store.root)
        if name in found.committed():
            assert {change.path for change in found.changes(name)} == {
                "closed", "src", "src/new", "tool"
            }  # fmt: skip
        else:
            assert told is None
        assert house.commit(name) == Layer(3, 3)
        assert sorted(os.listdir(house.store.root / name)) == ["changes", "upper"]
        house.store.discard(name)
        number += 1
    assert number > 1 or call in ("rmdir", "unlink", "fchmod")


def test_a_failed_attempt_is_kept_for_inspection(house: House) -> None:
    name = house.attempt(
        ["mkdir", "shut"], ["write", "shut/x", "x"], ["chmod", "shut", 0], ["remove", "top"]
    )
    with house.view() as view:
        if house.copying:
            house.copies.gather(name, view)
        house.store.keep(name, view)
        house.store.keep(name, view)
    assert house.store.committed() == set()
    assert house.kinds(name) == {"shut": FOLDER, "shut/x": FILE, "top": WHITEOUT}
    assert (house.store.root / name / "upper/shut/x").read_text() == "x"
    told = {each.path: each.kind for each in resolve(house.store, house.base, [name])}
    assert told == {"shut": "folder", "shut/x": "file", "top": "absent"}


def test_what_a_dead_owner_left_is_swept(tmp_path: Path) -> None:
    house = House(tmp_path)
    whole, unheard = house.layer(["write", "x", "1"]), house.layer(["write", "y", "1"])
    under_way = house.attempt(["write", "z", "1"])
    (house.store.root / f".flat-{'0' * 16}-aa").mkdir()
    (house.store.root / whole / "changes.unfinished").touch()
    store = LayerStore(house.store.root)
    assert store.sweep({whole, "lost.1"}) == {"lost.1"}
    assert store.committed() == {whole}
    assert sorted(os.listdir(store.root)) == sorted([whole, unheard, under_way])
    assert sorted(os.listdir(store.root / whole)) == ["changes", "upper"]
    assert sorted(os.listdir(store.root / unheard)) == ["kept", "upper"]
    assert os.listdir(store.root / under_way) == ["upper"]
    with house.view([]) as view:
        store.keep(under_way, view)
    assert store.manifest(under_way)["z"].kind is FILE
    assert LayerStore(tmp_path / "none").sweep({"a.1"}) == {"a.1"}


def test_a_layer_is_adopted_by_another_run(tmp_path: Path) -> None:
    house = House(tmp_path)
    plant(house.base)
    name = house.layer(
        ["rmtree", "src"], ["mkdir", "src"], ["write", "src/x", "x"], ["remove", "top"]
    )
    other = LayerStore(tmp_path / "other" / "layers")
    other.root.parent.mkdir()
    other.adopt(house.store, name)
    other.adopt(house.store, name)
    shown = house.shown()
    assert other.changes(name) == house.store.changes(name)
    house.store.discard(name)
    house.store = other
    assert house.shown() == shown


# --- whom it belongs to --------------------------------------------------------------------------


def test_layers_and_flats_belong_to_their_owner(tmp_path: Path) -> None:
    house = House(tmp_path, copying=True)
    plant(house.base)
    # only root can give files away
    owner = (1_900_000_000, 1_900_000_000) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    house.store = LayerStore(house.store.root, owner)
    house.copies = Copies(house.store)
    house.layer(["append", "src/a", "x"], ["remove", "top"], ["mkdir", "m"])
    for number in range(15):
        house.layer(["append", "src/b", str(number)])
    [flat] = house.lower()
    house.copying = False
    upper = house.store.begin("x.1")
    for root in (house.store.root / house.stack[0] / "upper", house.store.root / flat / "upper",
                 upper, house.store.root / "x.1" / "work"):  # fmt: skip
        for path in (root, *root.rglob("*")):
            if path.name not in ("a", "b"):  # written by root, in this test
                assert (path.lstat().st_uid, path.lstat().st_gid) == owner, path
    assert (house.store.root / "x.1").stat().st_mode & 0o777 == 0o711
