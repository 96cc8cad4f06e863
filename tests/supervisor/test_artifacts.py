"""Files that an attempt hands over, from `ctx.artifact` to `casemate output --artifact`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.limits import ARTIFACTS, ARTIFACTS_SIZE, INLINE_VALUE_SIZE
from casemate.supervisor.config import load_config
from runs import Embedded, History, Place

CLI = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]
TASKS = """
import os
import socket
import sys

LARGE = bytes(range(256)) * 400

def report(input, ctx):
    os.makedirs("out")
    open("out/index.html", "w").write("<h1>all is well</h1>")
    open("/tmp/large.bin", "wb").write(LARGE)
    names = [ctx.artifact("out/index.html"), ctx.artifact("/tmp/large.bin")]
    open("out/index.html", "w").write("changed since")
    return names + [ctx.artifact("out/index.html", name="later.html")]

def fails(input, ctx):
    open("screenshot.png", "wb").write(b"PNG")
    ctx.artifact("screenshot.png")
    raise ValueError("no")

def hangs(input, ctx):
    open("trace", "w").write("so far")
    ctx.artifact("trace")
    while True:
        pass

def said(call):
    try:
        return call()
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"

def odd(input, ctx):
    os.symlink("/etc/passwd", "link")
    os.mkfifo("fifo")
    os.mkdir("folder")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    open("first", "w").write("x")
    os.link("first", "second")
    with open("sparse", "wb") as file:
        file.truncate(1 << 27)
    open("closed", "w").close()
    os.chmod("closed", 0)
    top = os.getcwd()
    os.chdir("/tmp")  # which goes with the sandbox: nobody has to remove it
    for _ in range(2500):  # a path longer than any call takes; Landlock walks it up each time
        os.mkdir("d")
        os.chdir("d")
    open("bottom", "w").close()
    deep = said(lambda: ctx.artifact("bottom", name="bottom"))
    os.chdir(top)
    paths = ["link", "fifo", "folder", "socket", "sparse", "closed", "missing"]
    paths += ["/dev/zero", "a\\0b"]
    names = ["../up", "/etc/passwd", "a\\nb", "", "x" * 5000, "\\udcff"]
    return {
        **{path: said(lambda: ctx.artifact(path)) for path in paths},
        **{f"as {name[:10]!a}": said(lambda: ctx.artifact("first", name=name)) for name in names},
        "hard link": said(lambda: ctx.artifact("second")),
        "again": said(lambda: ctx.artifact("second")),
        "deep": deep,
    }

def many(input, ctx):
    open("x", "w").close()
    return [said(lambda: ctx.artifact("x", name=str(n))) for n in range(ctx.spec["most"] + 1)]

def large(input, ctx):
    with open("x", "wb") as file:
        file.truncate(ctx.spec["most"])
    whole = said(lambda: ctx.artifact("x"))
    open("y", "w").write("y")
    return [whole, said(lambda: ctx.artifact("y"))]

def full(input, ctx):
    with open("x", "wb") as file:
        file.truncate(1 << 22)
    return said(lambda: ctx.artifact("x"))

"""
COMMAND = (
    "echo text > note.txt; "
    """printf '{"artifact": "note.txt"}\\n{"artifact": {"path": "note.txt", "name": "n"}}\\n' """
    ">&$CASEMATE_EVENTS_FD"
)
FAULTS = {
    "no_path": '{"artifact": 3}',
    "no_file": '{"artifact": "missing"}',
    "no_name": '{"artifact": {"path": "/etc/passwd", "name": 3}}',
    "more": '{"artifact": {"path": "/etc/passwd", "as": "x"}}',
}


class Ran:
    def __init__(self, state: Path, history: History) -> None:
        self.state = state
        self.history = history

    def artifacts(self, task: str) -> dict[str, dict[str, Any]]:
        return {event.data["name"]: event.data for event in self.history.of("task.artifact", task)}

    def casemate(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [*CLI, *words, "--state", str(self.state)]
        return subprocess.run(command, capture_output=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("artifacts")
    place = Place(folder)
    place.tasks(TASKS)
    (folder / "work").mkdir()
    tasks: dict[str, dict[str, Any]] = {
        "report": {}, "fails": {}, "odd": {}, "full": {"limits": {"tmp": "1MiB"}},
        "hangs": {"timeouts": {"wall": 1}},
        "many": {"spec": {"most": ARTIFACTS}},
        "large": {
            "spec": {"most": ARTIFACTS_SIZE}, "limits": {"memory": "256MiB", "tmp": "96MiB"},
        },
        "command": {"command": ["sh", "-c", COMMAND]},
        **{
            name: {"command": ["sh", "-c", f"echo '{line}' >&$CASEMATE_EVENTS_FD"]}
            for name, line in FAULTS.items()
        },
    }  # fmt: skip
    spec = place.spec(tasks=tasks, workspace="work", max_parallel=2)
    with Embedded(folder / "state", config=load_config(state=folder / "state")) as house:
        yield Ran(folder / "state", house.run(spec))


def test_a_file_is_handed_over_as_it_was_at_that_moment(ran: Ran) -> None:
    assert ran.history.output("report") == ["out/index.html", "large.bin", "later.html"]
    told = ran.artifacts("report")
    assert told["out/index.html"]["content"] == b"<h1>all is well</h1>"
    assert told["later.html"]["content"] == b"changed since"
    content = told["large.bin"]["content"]
    assert len(content) > INLINE_VALUE_SIZE
    assert content == bytes(range(256)) * 400
    assert told["large.bin"]["size"] == len(content)
    assert told["large.bin"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_artifacts_are_told_before_how_the_attempt_ended(ran: Ran) -> None:
    assert ran.history.kinds("report")[-4:] == ["task.artifact"] * 3 + ["task.completed"]


@pytest.mark.parametrize(("task", "kind"), [("fails", "error"), ("hangs", "timeout.wall")])
def test_they_are_kept_whatever_becomes_of_the_attempt(ran: Ran, task: str, kind: str) -> None:
    assert len(ran.artifacts(task)) == 1
    assert ran.history.error(task)["kind"] == kind


def test_a_command_hands_over_by_a_line(ran: Ran) -> None:
    told = ran.artifacts("command")
    assert {name: each["content"] for name, each in told.items()} == {
        "note.txt": b"text\n",
        "n": b"text\n",
    }


@pytest.mark.parametrize("task", FAULTS)
def test_a_command_that_says_nonsense_is_told_which_line(ran: Ran, task: str) -> None:
    assert "line 1 of $CASEMATE_EVENTS_FD" in ran.history.error(task)["message"]
    assert not ran.artifacts(task)


def test_what_is_no_plain_file_or_no_name_is_refused_to_the_task(ran: Ran) -> None:
    said = ran.history.output("odd")
    assert said["hard link"] == "second"  # its content is as good as any
    assert said["deep"] == "bottom"
    del said["hard link"], said["deep"]
    expected = {
        "link": "a symbolic link",
        "fifo": "a FIFO",
        "folder": "a folder",
        "socket": "a socket",
        "sparse": "134217728 bytes",
        "closed": "Permission denied",
        "missing": "No such file",
        "/dev/zero": "a device",
        "a\0b": "printable",
        "as '../up'": "relative path",
        "as '/etc/passw'": "relative path",
        "as 'a\\nb'": "printable",
        "as ''": "relative path",
        "as 'xxxxxxxxxx'": "5000 bytes",
        "as '\\udcff'": "no text",
        "again": "handed over before",
    }
    assert set(said) == set(expected)
    assert [name for name, words in expected.items() if words not in said[name]] == []
    assert sorted(ran.artifacts("odd")) == ["bottom", "second"]


def test_count_and_size_have_bounds(ran: Ran) -> None:
    *kept, refused = ran.history.output("many")
    assert kept == [str(number) for number in range(ARTIFACTS)]
    assert f"at most {ARTIFACTS}" in refused
    whole, one_more = ran.history.output("large")
    assert (whole, one_more.partition(":")[0]) == ("x", "ValueError")
    assert len(ran.artifacts("large")["x"]["content"]) == ARTIFACTS_SIZE


def test_an_artifact_that_finds_no_room_is_the_tasks_error(ran: Ran) -> None:
    assert "No space left" in ran.history.output("full")
    assert not ran.artifacts("full")


def test_output_writes_an_artifact_as_it_is(ran: Ran) -> None:
    done = ran.casemate("output", "last", "report", "--artifact", "large.bin")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == bytes(range(256)) * 400


def test_output_names_those_there_are(ran: Ran) -> None:
    done = ran.casemate("output", "last", "report", "--artifact", "nothing")
    assert done.returncode == 1
    assert b"later.html" in done.stderr
    assert ran.casemate("output", "last", "--artifact", "nothing").returncode == 2


def test_gc_keeps_them(ran: Ran) -> None:
    [run] = (ran.state / "runs").iterdir()
    values = sorted(file for file in (run / "values").rglob("*") if file.is_file())
    done = ran.casemate("gc", "--keep", "1")
    assert done.returncode == 0, done.stderr
    assert sorted(file for file in (run / "values").rglob("*") if file.is_file()) == values
