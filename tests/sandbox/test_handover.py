"""A file becomes an artifact by being copied once, and whatever is no plain file is refused."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from casemate.protocol.limits import MIB
from casemate.sandbox.handover import copy_out


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    folder = tmp_path / "outbox"
    folder.mkdir()
    return folder


def test_size_and_digest_are_those_of_the_copy(tmp_path: Path, outbox: Path) -> None:
    content = os.urandom(3 * MIB + 7)
    (tmp_path / "report").write_bytes(content)
    told = copy_out(str(tmp_path / "report"), str(outbox / "artifact-1"), 4 * MIB)
    assert told == (len(content), hashlib.sha256(content).digest())
    assert (outbox / "artifact-1").read_bytes() == content


def test_an_empty_file_is_one_too(tmp_path: Path, outbox: Path) -> None:
    (tmp_path / "empty").touch()
    assert copy_out(str(tmp_path / "empty"), str(outbox / "a"), 0)[0] == 0


def link(path: Path) -> None:
    (path.parent / "target").write_text("there")
    path.symlink_to("target")


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(path.parent, os.O_PATH)  # the path itself may be too long
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def dig(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


ODD: dict[str, Callable[[Path], object]] = {
    "a symbolic link": link,
    "a folder": os.mkdir,
    "a FIFO": os.mkfifo,
    "a socket": bind,
    "1099511627776 bytes": dig,
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_plain_file_of_a_sane_size_is_refused(
    tmp_path: Path, outbox: Path, what: str
) -> None:
    ODD[what](tmp_path / "odd")
    with pytest.raises(ValueError, match=what):
        copy_out(str(tmp_path / "odd"), str(outbox / "a"), MIB)
    assert os.listdir(outbox) == []


def test_a_device_is_refused_and_not_read(outbox: Path) -> None:
    with pytest.raises(ValueError, match="a device"):
        copy_out("/dev/zero", str(outbox / "a"), MIB)


def test_a_file_that_grows_while_it_is_read_is_given_up_at_the_bound(
    tmp_path: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "growing"
    path.write_bytes(bytes(MIB))
    read = os.read

    def read_and_grow(fd: int, size: int) -> bytes:
        with path.open("ab") as file:
            file.write(bytes(MIB))
        return read(fd, size)

    monkeypatch.setattr(os, "read", read_and_grow)
    with pytest.raises(ValueError, match="are left"):
        copy_out(str(path), str(outbox / "a"), 4 * MIB)
    assert os.listdir(outbox) == []


def test_a_path_that_no_system_call_takes_is_an_error(tmp_path: Path, outbox: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        copy_out("a/" * 10_000, str(outbox / "a"), MIB)
    with pytest.raises(ValueError, match="null"):
        copy_out("a\0b", str(outbox / "a"), MIB)


def test_what_lies_in_the_place_of_the_copy_is_replaced_and_not_followed(
    tmp_path: Path, outbox: Path
) -> None:
    (tmp_path / "report").write_text("new")
    (tmp_path / "victim").write_text("old")
    (outbox / "a").symlink_to(tmp_path / "victim")
    copy_out(str(tmp_path / "report"), str(outbox / "a"), MIB)
    assert (tmp_path / "victim").read_text() == "old"
    assert (outbox / "a").read_text() == "new"
