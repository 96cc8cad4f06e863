"""A task that fails on a wall is told which, and what would allow it: through real sandboxes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from casemate import Limits, run_sandboxed
from casemate.protocol.limits import REFUSALS
from casemate.supervisor.config import load_config
from runs import Embedded, History, Place

TASKS = """
import errno, os, socket, subprocess, sys, urllib.request

ABROAD = ("192.0.2.1", 443)

def abroad(input):
    socket.create_connection(ABROAD)

def name(input):
    urllib.request.urlopen("http://example.com/")

def neighbour(input):
    urllib.request.urlopen("http://127.0.0.1:9/")

def packets(input):
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)

def shadow(input):
    open("/etc/shadow")

def processor(input):
    open("/proc/cpuinfo")

def usr(input):
    open("/usr/lib/x", "w")

def chroot(input):
    os.chroot("/tmp")

def mounted(input):
    raise OSError(errno.ENOSYS, "Function not implemented")

def scratch(input):
    with open("/tmp/x", "wb") as file:
        while True:
            file.write(bytes(1 << 16))

def large(input):
    with open("x", "wb") as file:
        while True:
            file.write(bytes(1 << 16))

def files(input):
    held = []
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))

def wrapped(input):
    try:
        socket.create_connection(ABROAD)
    except OSError as error:
        raise RuntimeError("the service cannot be reached") from error

def program(input):
    code = "import socket; socket.create_connection(('192.0.2.1', 443))"
    subprocess.run([sys.executable, "-c", code], check=True)

def missing(input):
    open("nothing-here")

def missing_in_usr(input):
    open("/usr/lib/nothing-here")

def closed(input):
    open("mine", "w").close()
    os.chmod("mine", 0)
    open("mine")

def own(input):
    raise ValueError("refused: all is allowed")

class Odd(OSError):
    @property
    def filename(self):
        raise SystemExit(0)

def odd(input):
    raise Odd(errno.ENOENT, "odd")

def many(input):
    error = None
    for number in range(1000):
        after = OSError(errno.EROFS, "no", f"/usr/{number}" + "x" * 10000)
        after.__cause__ = error
        error = after
    raise error
"""

MET = {
    "abroad": "connecting to '192.0.2.1:443'",
    "name": "resolving the name 'example.com'",
    "neighbour": "connecting to '127.0.0.1:9'",
    "packets": "a socket ('socket.socket(socket.AF_PACKET, socket.SOCK_RAW)')",
    "shadow": "opening '/etc/shadow'",
    "processor": "opening '/proc/cpuinfo'",
    "usr": "changing '/usr/lib/x'",
    "chroot": "what takes a privilege ('/tmp')",
    "mounted": "a system call that is not given",
    "scratch": "limits.tmp is 1MiB",
    "large": "limits.disk is 16MiB",
    "files": "limits.files is 64",
    "wrapped": "connecting to '192.0.2.1:443'",
    "program": "reaching the network",
}
UNMET = ("missing", "missing_in_usr", "closed", "own", "odd")
COMMANDS = {
    "unreached": ["python3", "-c", "import socket; socket.create_connection(('192.0.2.1', 443))"],
    "unresolved": ["python3", "-c", "import socket; socket.getaddrinfo('example.com', 80)"],
    "full": ["sh", "-c", "cat /dev/zero > /tmp/x"],
    "failed": ["false"],
}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    folder = tmp_path_factory.mktemp("denials")
    place = Place(folder)
    (folder / "tasks.py").write_text(TASKS)
    (folder / "work").mkdir()
    tasks: dict[str, object] = {
        name: {"execute": f"tasks.py:{name}"} for name in (*MET, *UNMET, "many")
    }
    tasks |= {name: {"command": command} for name, command in COMMANDS.items()}
    spec = place.spec(
        tasks=tasks,
        workspace="work",
        defaults={"limits": {"tmp": "1MiB", "disk": "16MiB", "files": 64}},
    )
    with Embedded(folder / "state", config=load_config(state=folder / "state")) as house:
        yield house.run(spec)


@pytest.mark.parametrize("task", MET)
def test_a_task_that_met_a_wall_is_told_which(history: History, task: str) -> None:
    assert any(MET[task] in each for each in history.error(task)["refused"])


@pytest.mark.parametrize("task", UNMET)
def test_a_tasks_own_mistake_is_no_walls_doing(history: History, task: str) -> None:
    assert not history.error(task).get("refused")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("unreached", "reaching the network"),
        ("unresolved", "asking a name server"),
        ("full", "limits.tmp is 1MiB"),
    ],
)
def test_of_a_command_is_told_what_the_kernel_counted(
    history: History, task: str, words: str
) -> None:
    assert any(words in each for each in history.error(task)["refused"])


def test_of_a_command_that_met_no_wall_nothing_is_guessed(history: History) -> None:
    assert not history.error("failed").get("refused")


def test_a_task_cannot_make_its_error_grow_by_refusals(history: History) -> None:
    refused = history.error("many")["refused"]
    assert len(refused) == REFUSALS
    assert all(len(each) < 1000 for each in refused)


def test_one_command_is_told_too() -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 443))"
    done = run_sandboxed([sys.executable, "-c", code])
    [sentence] = done.refused
    assert done.verdict == "error"
    assert sentence.startswith("reaching the network: ")
    assert run_sandboxed(["false"]).refused == ()
    assert run_sandboxed(["true"]).refused == ()


def test_a_command_that_needs_more_memory_is_told_the_limit() -> None:
    hoard = "kept = []\nwhile True: kept.append(b'x' * (1 << 20))"
    done = run_sandboxed([sys.executable, "-c", hoard], limits=Limits(memory="64MiB"))
    if done.verdict == "memory":  # else nothing but rlimits held it, and it died by itself
        assert any("limits.memory is 64MiB" in each for each in done.refused)
