"""The snapshot of a run's sources: what is in it, what is not, and what it refuses."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.errors import LocalViolation, UsageError
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor import sources
from casemate.supervisor.pipeline import Allow, compile_document
from casemate.supervisor.sources import Snapshot, snapshot

TREE = {
    "agents.py": "import helpers",
    "helpers.py": "X = 1",
    ".env": "SECRET=1",
    "package/__init__.py": "",
    "package/inner/__init__.py": "",
    "package/inner/deep.py": "def run(): ...",
    "package/data.json": "{}",
    "package/__pycache__/deep.pyc": "bytecode",
    "package/.git/config": "token",
    "package/venv/pyvenv.cfg": "home = /usr",
    "package/venv/lib/x.py": "",
    "plain/loose.py": "",
}
PACKAGE = {
    "package/__init__.py",
    "package/data.json",
    "package/inner/__init__.py",
    "package/inner/deep.py",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name, text in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def spec(
    root: Path, execute: str | None = None, *named: str, allow: str = "path:/"
) -> PipelineSpec:
    task: dict[str, object] = {"sources": list(named)}
    task |= {"execute": execute} if execute else {"command": ["ls"]}
    document: dict[str, object] = {"name": "x", "tasks": {"a": task}}
    return compile_document(document, root=root, allow=Allow.parse([allow]))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("execute", "named", "copied"),
    [
        ("agents.py:f", (), {"agents.py"}),
        ("agents.py:f", ("helpers.py",), {"agents.py", "helpers.py"}),
        ("agents.py:f", ("agents.py",), {"agents.py"}),
        ("plain/loose.py:f", (), {"plain/loose.py"}),
        (
            "package/inner/deep.py:run",
            ("package/inner",),
            PACKAGE,
        ),
        ("helpers:f", (), {"helpers.py"}),
        (
            "package.inner.deep:run",
            (),
            PACKAGE,
        ),
        ("json.tool:main", (), set()),
        (None, (), set()),
        (None, ("plain",), {"plain/loose.py"}),
        (None, ("plain/../plain/./loose.py",), {"plain/loose.py"}),
    ],
)  # fmt: skip
def test_only_what_was_named_is_copied(
    root: Path, tmp_path: Path, execute: str | None, named: tuple[str, ...], copied: set[str]
) -> None:
    made = snapshot(spec(root, execute, *named), tmp_path / "sources")
    assert names(tmp_path / "sources") == copied
    assert made.files == len(copied)
    assert made.size == sum(len(TREE[name]) for name in copied)


def test_the_whole_folder_may_be_named(root: Path, tmp_path: Path) -> None:
    snapshot(spec(root, "agents.py:f", "."), tmp_path / "sources")
    left_out = {name for name in TREE if "__pycache__" in name or ".git" in name or "venv" in name}
    assert names(tmp_path / "sources") == set(TREE) - left_out


def test_contents_are_copied_and_modes_are_ours(root: Path, tmp_path: Path) -> None:
    (root / "agents.py").chmod(0o6755)
    (root / "package/data.json").chmod(0o600)
    before = os.umask(0o077)
    try:
        snapshot(spec(root, "agents.py:f", "package"), tmp_path / "sources")
    finally:
        os.umask(before)
    for path in (tmp_path / "sources", *(tmp_path / "sources").rglob("*")):
        expected = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.lstat().st_mode) == expected, path
    assert (tmp_path / "sources/agents.py").read_text() == TREE["agents.py"]


def test_the_digest_is_the_trees_and_nothing_elses(root: Path, tmp_path: Path) -> None:
    def digest(name: str, place: Path = root) -> str:
        return snapshot(spec(place, "agents.py:f", "package"), tmp_path / name).digest

    first = digest("1")
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    os.utime(moved / "agents.py", (1, 1))
    assert digest("2", moved) == first
    (root / ".env").write_text("not named")
    assert digest("3") == first
    (root / "agents.py").write_text("changed")
    assert digest("4") != first
    (root / "agents.py").write_text(TREE["agents.py"])
    (root / "package/data.json").rename(root / "package/data2.json")
    assert digest("5") != first


def test_an_empty_folder_made_before_is_filled(root: Path, tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir(mode=0o700)
    assert snapshot(spec(root, "agents.py:f"), tmp_path / "sources").files == 1
    with pytest.raises(LocalViolation, match="is not empty"):
        snapshot(spec(root, "agents.py:f"), tmp_path / "sources")


def test_what_lies_outside_is_placed_by_its_own_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "shared/lib").mkdir(parents=True)
    (tmp_path / "shared/lib/x.py").touch()
    (tmp_path / "shared/one.py").touch()
    snapshot(spec(root, None, "../shared/lib", "../shared/one.py"), tmp_path / "sources")
    assert names(tmp_path / "sources") == {"lib/x.py", "one.py"}


def test_two_files_that_would_be_one_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/helpers.py").touch()
    with pytest.raises(UsageError, match=r'would both be "helpers.py"; rename one of them'):
        snapshot(spec(root, None, "helpers.py", "../shared/helpers.py"), tmp_path / "sources")


# --- links and other things ----------------------------------------------------------------------


def test_a_link_to_a_file_in_the_same_place_counts_as_that_file(root: Path, tmp_path: Path) -> None:
    (root / "plain/link.py").symlink_to("../helpers.py")
    (root / "alias.py").symlink_to("agents.py")
    snapshot(spec(root, "alias.py:f", "plain"), tmp_path / "sources")
    assert names(tmp_path / "sources") == {"alias.py", "plain/link.py", "plain/loose.py"}
    assert not (tmp_path / "sources/alias.py").is_symlink()
    assert (tmp_path / "sources/plain/link.py").read_text() == TREE["helpers.py"]


def link_out(root: Path) -> None:
    (root / "plain/odd").symlink_to("/etc/passwd")


def link_up(root: Path) -> None:
    (root / "plain/odd").symlink_to("../../outside.py")
    (root.parent / "outside.py").touch()


def link_to_folder(root: Path) -> None:
    (root / "plain/odd").symlink_to("../package")


def link_to_itself(root: Path) -> None:
    (root / "plain/odd").symlink_to("odd")


def link_to_nothing(root: Path) -> None:
    (root / "plain/odd").symlink_to("nothing")


def fifo(root: Path) -> None:
    os.mkfifo(root / "plain/odd")


def link_to_fifo(root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "plain/odd").symlink_to("../fifo")


def unix_socket(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "plain/odd"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            link_out,
            r'"plain/odd" is a symbolic link to /etc/passwd, outside .*/project; put a copy',
        ),
        (
            link_up,
            r'"plain/odd" is a symbolic link to .*/outside.py, outside .*/project; put a copy',
        ),
        (
            link_to_folder,
            r'"plain/odd" is a symbolic link to a folder; name that folder in sources',
        ),
        (link_to_itself, r'"plain/odd" cannot be found: '),
        (link_to_nothing, r'"plain/odd" cannot be found: .*No such file'),
        (fifo, r'"plain/odd" is a FIFO; leave it out'),
        (link_to_fifo, r'"plain/odd" is a FIFO; leave it out'),
        (unix_socket, r'"plain/odd" cannot be read: it is a socket'),
    ],
)
def test_what_is_odd_is_refused_by_name(
    root: Path, tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(root)
    with pytest.raises(UsageError, match=f"^sources: {message}"):
        snapshot(spec(root, None, "plain"), tmp_path / "sources")


@pytest.mark.parametrize("moment", ["file", "folder"])
def test_a_link_swapped_in_between_leads_nowhere(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The race: what was a file when it was looked at is a link out when it is opened."""
    checked = os.stat

    def stat_then_swap(path: Any, **options: Any) -> os.stat_result:
        found = checked(path, **options)
        if moment == "file" and path == "deep.py":
            (root / "package/inner/deep.py").unlink()
            (root / "package/inner/deep.py").symlink_to("/etc/passwd")
        if moment == "folder" and path == "inner":
            (root / "package/inner").rename(root / "package/was")
            (root / "package/inner").symlink_to("/etc")
        return found

    named = spec(root, None, "package")
    monkeypatch.setattr(os, "stat", stat_then_swap)
    with pytest.raises(UsageError, match=r"cannot be read: Too many levels of symbolic links"):
        snapshot(named, tmp_path / "sources")


def test_a_folder_of_the_path_swapped_for_a_link_leads_nowhere(root: Path, tmp_path: Path) -> None:
    named = spec(root, "plain/loose.py:f")
    shutil.rmtree(root / "plain")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/loose.py").write_text("secret")
    (root / "plain").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match=r"is a symbolic link to .*/outside/loose.py, outside"):
        snapshot(named, tmp_path / "sources")


# --- bounds --------------------------------------------------------------------------------------


def refuse(root: Path, destination: Path, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        snapshot(spec(root, None, "plain"), destination)


def test_too_many_files_too_much_and_too_deep_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FILES", 3)
    for name in "abc":
        (root / f"plain/{name}.py").touch()
    refuse(root, tmp_path / "1", r'more than 3 files, at "plain/loose.py"; name less')
    monkeypatch.undo()
    with (root / "plain/big.bin").open("wb") as big:
        big.truncate(sources.SIZE + 1)
    refuse(root, tmp_path / "2", r'more than 128 MiB, at "plain/big.bin"; name less')
    assert sum(path.stat().st_size for path in (tmp_path / "2").rglob("*")) <= sources.SIZE + 2**20
    (root / "plain/big.bin").unlink()
    (root / "plain" / "/".join("d" * 70)).mkdir(parents=True)
    refuse(root, tmp_path / "3", r"is more than 64 folders deep")


def test_a_file_that_went_away_is_said_so(root: Path, tmp_path: Path) -> None:
    named = spec(root, "agents.py:f")
    (root / "agents.py").unlink()
    with pytest.raises(UsageError, match=r'^sources: "agents.py" cannot be found: .*No such file'):
        snapshot(named, tmp_path / "sources")


def test_every_descriptor_is_closed_again(root: Path, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    snapshot(spec(root, "agents.py:f", "."), tmp_path / "1")
    fifo(root)
    refuse(root, tmp_path / "2", "is a FIFO")
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_named_is_an_empty_snapshot(root: Path, tmp_path: Path) -> None:
    empty = snapshot(spec(root), tmp_path / "sources")
    assert empty == Snapshot(empty.digest, files=0, size=0)
    assert list((tmp_path / "sources").iterdir()) == []
