"""Values by content: complete or absent, equal ones once, damaged ones never handed on."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.errors import LocalViolation
from casemate.supervisor import values
from casemate.supervisor.values import DamagedValueError, ValueStore

VALUE = b"a value " * 5000


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_a_value_comes_back_by_its_digest(tmp_path: Path) -> None:
    store = ValueStore(tmp_path / "values")
    digest = store.put(VALUE)
    assert digest == hashlib.sha256(VALUE).digest()
    assert store.get(digest, len(VALUE)) == VALUE
    assert store.put(memoryview(b"")) == hashlib.sha256(b"").digest()


def test_equal_values_are_one_file_that_nobody_else_may_read(tmp_path: Path) -> None:
    store = ValueStore(tmp_path)
    digest = store.put(VALUE)
    assert store.put(bytearray(VALUE)) == digest  # type: ignore[arg-type]  # any buffer will do
    name = digest.hex()
    assert files(tmp_path) == [f"{name[:2]}/{name}"]
    assert stat.S_IMODE(store.path(digest).stat().st_mode) == 0o400
    assert stat.S_IMODE((tmp_path / name[:2]).stat().st_mode) == 0o700


def test_a_value_beyond_the_bound_is_our_own_bug(tmp_path: Path) -> None:
    store = ValueStore(tmp_path, limit=100)
    store.put(b"x" * 100)
    with pytest.raises(LocalViolation, match="101 bytes"):
        store.put(b"x" * 101)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"b" + VALUE[1:]),
        lambda path: path.write_bytes(VALUE[:-1]),
        lambda path: path.write_bytes(VALUE + b"more"),
        lambda path: path.unlink(),
    ],
    ids=["changed", "cut", "grown", "gone"],
)
def test_a_damaged_value_is_not_handed_on(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    store = ValueStore(tmp_path)
    digest = store.put(VALUE)
    store.path(digest).chmod(0o600)
    damage(store.path(digest))
    with pytest.raises(DamagedValueError, match=digest.hex()):
        store.get(digest, len(VALUE))


def test_a_link_in_the_place_of_a_value_is_not_followed(tmp_path: Path) -> None:
    store = ValueStore(tmp_path / "values")
    digest = store.put(VALUE)
    elsewhere = tmp_path / "elsewhere"
    store.path(digest).rename(elsewhere)
    store.path(digest).symlink_to(elsewhere)
    with pytest.raises(OSError):
        store.get(digest, len(VALUE))
    assert store.put(VALUE) == digest
    assert store.get(digest, len(VALUE)) == VALUE


def test_a_cut_file_under_the_right_name_is_written_anew(tmp_path: Path) -> None:
    store = ValueStore(tmp_path)
    digest = store.put(VALUE)
    store.path(digest).chmod(0o600)
    store.path(digest).write_bytes(VALUE[:100])
    store.put(VALUE)
    assert store.get(digest, len(VALUE)) == VALUE


def test_the_next_owner_sweeps_what_a_dead_one_was_writing(tmp_path: Path) -> None:
    store = ValueStore(tmp_path)
    digest = store.put(VALUE)
    (tmp_path / "tmp" / "0123").write_bytes(b"half")
    store.sweep()
    assert files(tmp_path) == [str(store.path(digest).relative_to(tmp_path))]


def test_the_content_is_synced_before_the_name_and_the_name_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"fsync {kind}")
        fsync(descriptor)

    def watched_rename(source: Any, target: Any) -> None:
        steps.append("rename")
        rename(source, target)

    store = ValueStore(tmp_path)
    store.put(b"another value in the same store")
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    store.put(VALUE)
    assert steps[-4:] == ["fsync file", "rename", "fsync directory", "fsync directory"]
    # A value that is there already may have been left by one who died before the last step.
    steps.clear()
    store.put(VALUE)
    assert steps == ["fsync directory", "fsync directory"]


@pytest.mark.parametrize("name", ["open", "write", "fsync", "rename", "close", "mkdir"])
def test_whichever_call_fails_the_value_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = getattr(os, name)
    monkeypatch.setattr(values, "_CHUNK", 4096)
    for nth in range(1, 1000):
        store = ValueStore(tmp_path / f"{name}{nth}")
        calls = 0

        def fails_once(*arguments: Any, nth: int = nth, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                if name == "close":
                    real(*arguments)  # a failed close has closed
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails_once)
            try:
                digest: bytes | None = store.put(VALUE)
            except OSError as error:
                assert error.errno == 28
                digest = None
        if calls < nth:
            assert digest is not None and nth > 1
            return
        found = store.path(hashlib.sha256(VALUE).digest())
        if found.exists():
            assert found.read_bytes() == VALUE
        # And the next try succeeds, whatever the failed one left.
        assert store.get(store.put(VALUE), len(VALUE)) == VALUE
        store.sweep()
        assert len(files(tmp_path / f"{name}{nth}")) == 1
    raise AssertionError("a thousand calls for one value")
