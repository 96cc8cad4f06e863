"""Taking a file back from a task: whatever it planted there, nothing of ours is read or waited for.

The folder is a real one and the traps are those that a task can set; the same function takes real
outputs in test_engine.py.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from casemate.protocol import codec
from casemate.protocol.errors import RemoteViolation
from casemate.protocol.limits import VALUE_SIZE
from casemate.protocol.messages import Result
from casemate.supervisor.outbox import take_output
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from runs import Embedded, Place

CONTENT = b"\xc4\x05hello"


def told(content: bytes = CONTENT, size: int | None = None) -> Result:
    """What a guest says of a file with this content."""
    return Result(
        output=Raw(b"\xc0"),
        digest=sha256(content).digest(),
        size=len(content) if size is None else size,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outbox").mkdir()
    (tmp_path / "secret").write_bytes(CONTENT)  # of the host, with the very content that is told
    return tmp_path / "outbox"


@pytest.fixture
def outbox(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_a_file_as_it_was_told_is_taken(folder: Path, outbox: int) -> None:
    (folder / "output").write_bytes(CONTENT)
    assert bytes(take_output(outbox, told())) == CONTENT


def test_a_large_one_too(folder: Path, outbox: int) -> None:
    content = codec.encode_value(os.urandom(5_000_000))
    (folder / "output").write_bytes(content)
    assert bytes(take_output(outbox, told(content))) == content


def plant_directory(path: Path) -> None:
    path.mkdir()


def plant_fifo(path: Path) -> None:
    os.mkfifo(path)


def plant_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as planted:
        planted.bind(f"/proc/self/fd/{here}/output")
    os.close(here)


def plant_symlink(path: Path) -> None:
    path.symlink_to(path.parent.parent / "secret")


def plant_relative_symlink(path: Path) -> None:
    path.symlink_to("../secret")


def plant_symlink_within(path: Path) -> None:
    (path.parent / "real").write_bytes(CONTENT)
    path.symlink_to("real")


def plant_magic_link(path: Path) -> None:
    path.symlink_to("/proc/self/environ")


def plant_loop(path: Path) -> None:
    path.symlink_to("output")


def plant_hard_link(path: Path) -> None:
    os.link(path.parent.parent / "secret", path)


def plant_second_name(path: Path) -> None:
    path.write_bytes(CONTENT)
    os.link(path, path.parent / "other")


def plant_nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    "plant",
    [
        plant_directory,
        plant_fifo,
        plant_socket,
        plant_symlink,
        plant_relative_symlink,
        plant_symlink_within,
        plant_magic_link,
        plant_loop,
        plant_hard_link,
        plant_second_name,
        plant_nothing,
    ],
)
def test_what_is_not_a_regular_file_with_one_name_is_refused_at_once(
    folder: Path, outbox: int, plant: Callable[[Path], None]
) -> None:
    plant(folder / "output")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RemoteViolation, match="output"):
        take_output(outbox, told())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "result",
    [
        told(size=len(CONTENT) - 1),
        told(size=len(CONTENT) + 1),
        told(size=0),
        told(b"hEllo, "),
        told(size=VALUE_SIZE + 1),
        Result(output=Raw(b"\xc0"), digest=sha256(CONTENT).digest(), size=None),
        Result(output=Raw(b"\xc0"), digest=b"", size=len(CONTENT)),
    ],
    ids=["shorter", "longer", "empty", "other content", "over the cap", "no size", "no digest"],
)
def test_what_is_not_as_it_was_told_is_refused(folder: Path, outbox: int, result: Result) -> None:
    (folder / "output").write_bytes(CONTENT)
    with pytest.raises(RemoteViolation, match="output"):
        take_output(outbox, result)


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x92\x01", CONTENT + b"\xc0", b"\xc4\xff"])
def test_what_is_no_value_is_refused(folder: Path, outbox: int, content: bytes) -> None:
    """It would be spliced into other tasks' inputs as it is."""
    (folder / "output").write_bytes(content)
    with pytest.raises(RemoteViolation, match="value"):
        take_output(outbox, told(content))


def test_without_an_outbox_nothing_is_opened(folder: Path) -> None:
    """The sandbox died before it handed its folder over, and yet claims a file."""
    with pytest.raises(RemoteViolation):
        take_output(None, told())


def test_a_sparse_giant_is_refused_by_its_size_not_read(folder: Path, outbox: int) -> None:
    with (folder / "output").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RemoteViolation, match=str(1 << 40)):
        take_output(outbox, told())


VALUES = st.one_of(st.binary(max_size=40), st.integers(0, 1000), st.text(max_size=20)).map(
    codec.encode_value
)


@settings(max_examples=40)
@given(content=VALUES | st.binary(max_size=40), claimed=VALUES)
def test_only_the_told_content_is_ever_returned(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, claimed: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "outbox"
    folder.mkdir(exist_ok=True)
    (folder / "output").write_bytes(content)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        taken = bytes(take_output(fd, told(claimed)))
    except RemoteViolation:
        assert content != claimed
    else:
        assert taken == content == claimed
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "trick",
    [
        "os.symlink('/proc/1/environ', path)",
        "os.mkfifo(path)",
        "os.mkdir(path)",
        "open(path, 'w').write('mine'); os.chmod(path, 0)",
    ],
)
def test_what_a_task_puts_there_beforehand_is_not_its_output(
    house: Embedded, place: Place, trick: str
) -> None:
    """Its large output is written all the same, or it fails; nothing hangs and nothing leaks."""
    place.tasks(f"""
        import os
        def a(input):
            path = "/casemate/out/output"
            {trick}
            return b"x" * 2_000_000
        """)
    history = house.run(place.spec(tasks={"a": {}}))
    if history.outcome == "run.completed":
        assert history.output("a") == b"x" * 2_000_000
    else:
        assert history.error("a")["kind"] in {"output_limit", "error"}
    place.tasks("def a(input): return 1\n")
    assert house.run(place.spec(tasks={"a": {}})).output("a") == 1
