"""Landlock: the tables of each ABI, and what a child inside may still do."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from casemate.sandbox import landlock, syscalls
from forked import enter_user_namespace, forked, wait_status

HOST = landlock.abi()[0]

# From the kernel's documentation (userspace-api/landlock.rst), by hand.
HANDLED = {
    1: (0x1FFF, 0, 0),
    2: (0x3FFF, 0, 0),
    3: (0x7FFF, 0, 0),
    4: (0x7FFF, 3, 0),
    5: (0xFFFF, 3, 0),
    6: (0xFFFF, 3, 3),
    7: (0xFFFF, 3, 3),
}


@pytest.mark.parametrize("version", HANDLED)
def test_each_abi_handles_all_it_knows(version: int) -> None:
    table = landlock.rights(version)
    assert (table.fs, table.tcp, table.scopes) == HANDLED[version]


@pytest.mark.parametrize("version", HANDLED)
def test_grants_stay_within_what_is_handled(version: int) -> None:
    table = landlock.rights(version)
    for granted in (table.read, table.write, table.devices):
        assert granted & ~table.fs == 0
        assert granted & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK) == 0
    assert table.read & (landlock.WRITE_FILE | landlock.REFER | landlock.REMOVE_FILE) == 0
    assert table.devices & landlock.EXECUTE == 0


@pytest.mark.parametrize(("version", "size"), [(1, 8), (3, 8), (4, 16), (6, 24), (7, 24), (99, 24)])
def test_the_attributes_are_as_long_as_the_abi_knows_them(version: int, size: int) -> None:
    wall = landlock.prepare(version)
    assert len(wall.attributes) == size
    assert wall.version == min(version, landlock.ABI)


def test_tcp_is_handled_only_when_asked() -> None:
    assert struct.unpack("QQQ", landlock.prepare(6).attributes)[1] == 0
    assert struct.unpack("QQQ", landlock.prepare(6, deny_tcp=True).attributes)[1] == 3
    assert landlock.prepare(3, deny_tcp=True).rights.tcp == 0


def test_this_host_has_landlock() -> None:
    """casemate refuses to run without it, and so do the tests below."""
    assert HOST >= 1


@pytest.mark.parametrize("version", range(1, min(HOST, landlock.ABI) + 1))
def test_the_kernel_takes_the_ruleset_of_every_abi_up_to_its_own(version: int) -> None:
    for deny_tcp in (False, True):
        os.close(landlock.prepare(version, deny_tcp=deny_tcp).ruleset())


Tree = tuple[Path, Path, Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """(read-only, writable, hidden) folders, a file in each."""
    folders = tuple(tmp_path / name for name in ("seen", "own", "hidden"))
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_text("text")
    (folders[1] / "sub").mkdir()
    return folders[0], folders[1], folders[2]


def enter(tree: Tree, *, deny_tcp: bool = False, version: int = HOST) -> landlock.Wall:
    wall = landlock.prepare(version, deny_tcp=deny_tcp)
    ruleset = wall.ruleset()
    wall.allow(ruleset, os.fsencode(tree[0]), wall.rights.read)
    wall.allow(ruleset, os.fsencode(tree[1]), wall.rights.write)
    wall.allow(ruleset, b"/dev/null", wall.rights.devices)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    wall.restrict_self(ruleset)
    os.close(ruleset)
    return wall


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


@pytest.mark.parametrize("version", range(1, min(HOST, landlock.ABI) + 1))
@pytest.mark.parametrize("capable", [True, False])
def test_whether_it_stands_is_seen(tree: Tree, version: int, capable: bool) -> None:
    """Not for a want of capabilities: that is another refusal."""

    def look(*, inside: bool) -> bool:
        if not capable:
            syscalls.capset(0, 0, 0)
        if inside:
            enter(tree, version=version)
        return landlock.try_what_is_refused(str(tree[1]))

    assert forked(lambda: look(inside=True))
    assert not forked(lambda: look(inside=False))


DENIED = frozenset({"EACCES"})
DONE = frozenset({"done"})
# Moving or linking what may not be read into what may be written would give rights to it.
APART = frozenset({"EXDEV", "EACCES"})

Attempt = Callable[[Path, Path, Path], object]
ATTEMPTS: dict[str, tuple[frozenset[str], Attempt]] = {
    "read": (DONE, lambda seen, own, hidden: (seen / "file").read_text()),
    "list": (DONE, lambda seen, own, hidden: list(seen.iterdir())),
    "write": (DENIED, lambda seen, own, hidden: (seen / "file").write_text("x")),
    "make": (DENIED, lambda seen, own, hidden: (seen / "new").write_text("x")),
    "remove": (DENIED, lambda seen, own, hidden: (seen / "file").unlink()),
    "read own": (DONE, lambda seen, own, hidden: (own / "file").read_text()),
    "write own": (DONE, lambda seen, own, hidden: (own / "file").write_text("x")),
    "make own": (DONE, lambda seen, own, hidden: (own / "new").write_text("x")),
    "own folder": (DONE, lambda seen, own, hidden: (own / "folder").mkdir()),
    "own link": (DONE, lambda seen, own, hidden: (own / "link").symlink_to("file")),
    "own fifo": (DONE, lambda seen, own, hidden: os.mkfifo(own / "fifo")),
    "truncate own": (DONE, lambda seen, own, hidden: os.truncate(own / "file", 0)),
    "remove own": (DONE, lambda seen, own, hidden: (own / "file").unlink()),
    "read hidden": (DENIED, lambda seen, own, hidden: (hidden / "file").read_text()),
    "list hidden": (DENIED, lambda seen, own, hidden: list(hidden.iterdir())),
    "write hidden": (DENIED, lambda seen, own, hidden: (hidden / "file").write_text("x")),
    "through a link": (DENIED, lambda seen, own, hidden: (own / "out").read_text()),
    "device": (DONE, lambda seen, own, hidden: Path("/dev/null").write_bytes(b"x")),
    "other device": (DENIED, lambda seen, own, hidden: Path("/dev/zero").open("rb").close()),
    "move in": (APART, lambda seen, own, hidden: (hidden / "file").rename(own / "taken")),
    "link in": (APART, lambda seen, own, hidden: os.link(hidden / "file", own / "taken")),
}
if HOST >= 2:  # before, no file could be moved to another folder at all
    ATTEMPTS["move own"] = (
        DONE,
        lambda seen, own, hidden: (own / "file").rename(own / "sub" / "moved"),
    )
if HOST >= 3:  # before, truncating by path was nobody's right to refuse
    ATTEMPTS["truncate hidden"] = (
        DENIED,
        lambda seen, own, hidden: os.truncate(hidden / "file", 0),
    )


@pytest.mark.parametrize("name", ATTEMPTS)
def test_only_what_was_granted_can_be_done(tree: Tree, name: str) -> None:
    expected, attempt = ATTEMPTS[name]
    (tree[1] / "out").symlink_to(tree[2] / "file")

    def sealed() -> str:
        enter(tree)
        return outcome(lambda: attempt(*tree))

    assert forked(sealed) in expected
    assert (tree[2] / "file").read_text() == "text"
    # And it is Landlock that refused: without it every attempt succeeds.
    if expected is not DONE:
        assert forked(lambda: outcome(lambda: attempt(*tree))) == "done"


def test_a_leaked_descriptor_leads_nowhere(tree: Tree) -> None:
    leaked = os.open(tree[2], os.O_PATH)

    def through() -> str:
        return outcome(lambda: os.open("file", os.O_RDONLY, dir_fd=leaked))

    def sealed() -> str:
        enter(tree)
        return through()

    assert forked(through) == "done"
    assert forked(sealed) == "EACCES"
    os.close(leaked)


def test_what_was_not_granted_cannot_be_run(tree: Tree) -> None:
    def run() -> str:
        return outcome(lambda: os.execv("/bin/true", ["true"]))

    def sealed() -> str:
        enter(tree)
        return run()

    assert wait_status(run) == 0
    assert forked(sealed) == "EACCES"


def test_a_ruleset_made_once_serves_many_children(tree: Tree) -> None:
    wall = landlock.prepare(HOST)
    ruleset = wall.ruleset()
    wall.allow(ruleset, os.fsencode(tree[0]), wall.rights.read)

    def work() -> list[str]:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        wall.restrict_self(ruleset)
        return [
            outcome(lambda: (tree[0] / "file").read_text()),
            outcome(lambda: (tree[2] / "file").read_text()),
        ]

    assert [forked(work) for _ in range(3)] == [["done", "EACCES"]] * 3
    os.close(ruleset)


def test_a_mount_needs_a_rule_of_its_own_or_of_a_parent(tmp_path: Path) -> None:
    """The walk skips what is mounted over: the zygote's template counts on both halves."""
    (tmp_path / "point").mkdir()

    def work(granted: str) -> str:
        enter_user_namespace(syscalls.CLONE_NEWNS)
        syscalls.mount(b"tmpfs", os.fsencode(tmp_path / "point"), b"tmpfs")
        (tmp_path / "point" / "file").write_text("text")
        wall = landlock.prepare(HOST)
        ruleset = wall.ruleset()
        path = {"root": tmp_path / "point", "parent": tmp_path}.get(granted)
        if path is not None:
            wall.allow(ruleset, os.fsencode(path), wall.rights.read)
        else:
            wall.allow_fd(ruleset, under, wall.rights.read)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        wall.restrict_self(ruleset)
        return outcome(lambda: (tmp_path / "point" / "file").read_text())

    under = os.open(tmp_path / "point", os.O_PATH)
    assert forked(lambda: work("root")) == "done"
    assert forked(lambda: work("parent")) == "done"
    assert forked(lambda: work("mount point")) == "EACCES"
    os.close(under)


def test_mounting_ends_with_it(tree: Tree) -> None:
    def work() -> str:
        enter_user_namespace(syscalls.CLONE_NEWNS)
        enter(tree)
        return outcome(lambda: syscalls.mount(b"tmpfs", os.fsencode(tree[1]), b"tmpfs"))

    assert forked(work) == "EPERM"


def test_a_missing_path_is_an_error() -> None:
    wall = landlock.prepare(HOST)
    ruleset = wall.ruleset()
    with pytest.raises(FileNotFoundError):
        wall.allow(ruleset, b"/no/such/path", wall.rights.read)
    os.close(ruleset)


if HOST >= 4:

    def test_tcp_is_refused_where_it_was_asked_for(tree: Tree) -> None:
        listener = socket.create_server(("127.0.0.1", 0))

        def connect() -> str:
            with socket.socket() as client:
                return outcome(lambda: client.connect(listener.getsockname()))

        def bind() -> str:
            with socket.socket() as server:
                return outcome(lambda: server.bind(("127.0.0.1", 0)))

        def sealed() -> list[str]:
            enter(tree, deny_tcp=True)
            return [connect(), bind()]

        def without() -> list[str]:
            enter(tree)
            return [connect(), bind()]

        assert forked(sealed) == ["EACCES", "EACCES"]
        assert forked(without) == ["done", "done"]
        listener.close()


if HOST >= 6:

    def test_abstract_sockets_outside_cannot_be_reached(tree: Tree) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(b"\0casemate-test-%d" % os.getpid())
        listener.listen()

        def connect() -> str:
            with socket.socket(socket.AF_UNIX) as client:
                return outcome(lambda: client.connect(listener.getsockname()))

        def sealed() -> str:
            enter(tree)
            return connect()

        assert forked(connect) == "done"
        assert forked(sealed) == "EPERM"
        listener.close()

    def test_processes_outside_cannot_be_signalled(tree: Tree) -> None:
        parent = os.getpid()

        def sealed() -> tuple[str, str]:
            enter(tree)
            child = os.fork()
            if child == 0:
                signal.pause()
            return (
                outcome(lambda: os.kill(parent, 0)),
                outcome(lambda: os.kill(child, signal.SIGKILL)),
            )

        assert forked(lambda: outcome(lambda: os.kill(parent, 0))) == "done"
        assert forked(sealed) == ("EPERM", "done")
