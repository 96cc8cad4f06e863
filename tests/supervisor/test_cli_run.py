"""The `casemate` command as a person or a script meets it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE, wait_until
from runs import Place, descendants, is_alive

CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]

TASKS = """
import os, time
def a(input, ctx):
    ctx.emit({"n": 1, "raw": b"x"})
    ctx.progress(1, 2)
    print("on stdout")
    return input
def b(input):
    return {"got": input["a"]}
def bad(input):
    raise ValueError("my own \\x1b[31m mistake")
def hang(input, ctx):
    ctx.emit("hanging")
    time.sleep(3600)
def files(input, ctx):
    return sorted(os.listdir(ctx.workspace))
"""
YAML = """
name: chain
tasks:
  a: {execute: "tasks.py:a"}
  b: {execute: "tasks.py:b", needs: [a]}
"""
TOML = """
name = "chain"
edges = [["a", "b"]]
[tasks.a]
execute = "tasks.py:a"
[tasks.b]
execute = "tasks.py:b"
"""
JSON = json.dumps({
    "name": "chain",
    "tasks": {"a": {"execute": "tasks.py:a"}, "b": {"execute": "tasks.py:b"}},
    "edges": [{"from": "a", "to": "b"}],
})  # fmt: skip
PY = """
from casemate import Pipeline, Task
pipeline = Pipeline("chain")
pipeline.add_task(Task("a", "tasks.py:a"))
pipeline.add_task(Task("b", "tasks.py:b", needs=["a"]))
"""
FILES = {"p.yaml": YAML, "p.toml": TOML, "p.json": JSON, "p.py": PY}

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


def single(task: str, **keys: object) -> str:
    return json.dumps({"name": "single", "tasks": {task: {"execute": f"tasks.py:{task}", **keys}}})


@pytest.fixture
def here(place: Place) -> Place:
    place.tasks(TASKS)
    for name, text in FILES.items():
        place.write(name, text)
    return place


@pytest.fixture
def casemate(here: Place, tmp_path: Path) -> Command:
    """The command, in the pipeline's folder; its state is beside it."""

    def run(*arguments: str, **more: Any) -> Done:
        done = subprocess.run(
            [*CASEMATE, *arguments],
            cwd=here.path,
            env={**os.environ, "CASEMATE_STATE": str(tmp_path / "state"), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            **more,
        )
        # Said by the clock: a busy machine may be slow to load a `.py` pipeline.
        done.stderr = re.sub(r"casemate: loading .* …\n", "", done.stderr)
        return done

    return run


def events_of(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_every_form_of_file_runs(casemate: Command, file: str) -> None:
    done = casemate("run", file, "--json", "--input", '{"x": [1, {"$bytes": "AAE="}]}')
    assert (done.returncode, done.stderr) == (0, "")
    events = events_of(done)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    for event in events:
        assert event.keys() == {"seq", "run", "task", "attempt", "kind", "at", "data"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["at"])
    assert events[0]["kind"] == "run.started"
    assert events[-1]["kind"] == "run.completed"
    assert events[-1]["data"]["outputs"] == {"b": {"got": {"x": [1, {"$bytes": "AAE="}]}}}
    [item] = [event["data"]["item"] for event in events if event["kind"] == "task.emitted"]
    assert item == {"n": 1, "raw": {"$bytes": "eA=="}}


def test_what_was_printed_is_what_is_journaled(casemate: Command, tmp_path: Path) -> None:
    events = events_of(casemate("run", "p.yaml", "--json"))
    with JournalReader(StateDirectory(tmp_path / "state").run(events[0]["run"])) as reader:
        kept = [(event.seq, event.kind) for event in reader.events()]
    assert [(event["seq"], event["kind"]) for event in events] == kept


def test_plain_lines_tell_the_story(casemate: Command) -> None:
    done = casemate("run", "p.yaml", "--input", '"hello"')
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    for words in (
        r"run \w{12} · chain · 2 tasks",
        r"a +started \(pid \d+\)", r"a +item", r"a +progress 1 of 2",
        r"a +stdout: on stdout", r"b +completed in", r"completed: 2 of 2 tasks", '"got": "hello"',
    ):  # fmt: skip
        assert re.search(words, done.stdout), words


def test_a_terminal_gets_the_live_view(here: Place, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*CASEMATE, "run", "p.yaml", "--state", str(tmp_path / "state")]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(command, cwd=here.path, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        while data := read_terminal(ours):
            shown += data
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "\x1b[" in text
    assert re.search(r"✔ completed", text)


def read_terminal(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # EIO: nobody has the other side open any more
        return b""


def test_a_failed_run_exits_1_and_says_why_on_one_harmless_line(
    casemate: Command, here: Place
) -> None:
    here.write("bad.json", single("bad"))
    done = casemate("run", "bad.json")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert re.search(r"failed: error: ValueError: my own \\x1b\[31m mistake", done.stdout)
    done = casemate("run", "bad.json", "--json")
    assert done.returncode == 1
    assert events_of(done)[-1]["kind"] == "run.failed"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nothing.yaml"], "nothing.yaml"),
        (["run", "nothing.py"], "nothing.py"),
        (["run", "tasks.py"], "leaves no Pipeline"),
        (["run", "p.yaml", "--input", "{"], "--input"),
        (["run", "p.yaml", "--input", "@nothing.json"], "nothing.json"),
        (["run", "p.yaml", "--input", '{"$bytes": "!"}'], "input"),
        (["run", "p.yaml", "--workspace", "nothing"], "nothing"),
        (["run", "broken.yaml"], "broken.yaml:3"),
        (["validate", "broken.yaml"], "broken.yaml:3"),
        (["run", "p.yaml", "--state", "tasks.py"], "tasks.py"),
        (["run"], "Missing argument"),
        (["run", "p.yaml", "--no-such-option"], "--no-such-option"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_bad_usage_exits_2_and_names_what_is_wrong(
    casemate: Command, here: Place, arguments: list[str], says: str
) -> None:
    here.write("broken.yaml", "name: x\ntasks:\n  a: {execute: 'tasks.py:a', needs: [b]}\n")
    done = casemate(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_pipeline_program_raises_cannot_repaint_the_terminal(
    casemate: Command, here: Place
) -> None:
    here.write("evil.py", "raise ValueError('\\x1b[2J gone \\x9b31m \\u202e')")
    done = casemate("validate", "evil.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert "\\x1b[2J gone \\x9b31m \\u202e" in done.stderr
    assert "ValueError" in done.stderr.splitlines()[-1]
    assert not set(done.stderr) & {"\x1b", "\x9b", "\u202e"}


def test_a_tasks_words_are_shown_as_they_are(casemate: Command, here: Place) -> None:
    says = {"command": ["echo", ":boom: [red]x[/red]"]}
    here.write("says.json", json.dumps({"name": "x", "tasks": {"a": says}}))
    assert "a stdout: :boom: [red]x[/red]\n" in casemate("run", "says.json").stdout


def test_where_no_sandbox_can_be_built_it_exits_3(casemate: Command, here: Place) -> None:
    """Such a place is the inside of a sandbox: no namespaces, no mounts. What needs none works."""
    here.write("alone.json", json.dumps({"name": "x", "tasks": {"a": {"command": ["true"]}}}))
    file = str(here.path / "alone.json")
    outer = ["exec", "--ro", str(here.path), "--", *CASEMATE]
    done = casemate(*outer, "run", file, "--state", "/tmp/state")
    assert (done.returncode, done.stdout) == (3, "")
    assert "inside another sandbox" in done.stderr and "Remedy: " in done.stderr
    assert "Traceback" not in done.stderr
    assert casemate(*outer, "validate", file).returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_signal_cancels_the_run(
    here: Place, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    here.write("hang.json", single("hang"))
    command = [*CASEMATE, "run", "hang.json", "--json", "--state", str(tmp_path / "state")]
    with subprocess.Popen(command, cwd=here.path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        events: list[dict[str, Any]] = []
        while not events or events[-1]["kind"] != "task.emitted":
            events.append(json.loads(process.stdout.readline()))
        below = descendants(process.pid)
        process.send_signal(number)
        events += [json.loads(line) for line in process.stdout]
        assert process.wait(PATIENCE) == code
    assert events[-1]["kind"] == "run.cancelled"
    assert number.name in events[-1]["data"]["reason"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    wait_until(lambda: not any(is_alive(pid) for pid in below))


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_signal_while_a_program_is_loaded_leaves_nothing(
    here: Place, tmp_path: Path, command: str
) -> None:
    here.write("slow.py", "import time\ntime.sleep(3600)\n")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {**os.environ, "TMPDIR": str(temporary), "CASEMATE_STATE": str(tmp_path / "state")}
    with subprocess.Popen(
        [*CASEMATE, command, "slow.py"], cwd=here.path, env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "casemate: loading slow.py …\n"
        wait_until(lambda: list(temporary.glob("casemate-describe-*/runs/*/journal.db")))
        below = descendants(process.pid)
        process.terminate()
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == ""
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not any(is_alive(pid) for pid in below))


def test_the_input_may_come_from_a_file(casemate: Command, here: Place) -> None:
    here.write("input.json", '{"from": "a file"}')
    events = events_of(casemate("run", "p.yaml", "--json", "--input", "@input.json"))
    assert events[-1]["data"]["outputs"] == {"b": {"got": {"from": "a file"}}}


def test_the_operator_chooses_the_workspace(casemate: Command, here: Place, tmp_path: Path) -> None:
    here.write("files.json", single("files"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "found").touch()
    events = events_of(
        casemate("run", "files.json", "--json", "--workspace", str(tmp_path / "elsewhere"))
    )
    assert events[-1]["data"]["outputs"] == {"files": ["found"]}


@pytest.mark.parametrize(
    "arguments",
    [["schema"], ["validate", "p.yaml"], ["run", "p.yaml", "--json"], ["run", "p.yaml"], ["-h"]],
)
def test_an_output_whose_reader_left_is_not_a_failure(here: Place, arguments: list[str]) -> None:
    """As in `casemate schema | head -1`: what a shell makes of SIGPIPE, and nothing said."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        done = subprocess.run(
            [*CASEMATE, *arguments],
            cwd=here.path,
            env={**os.environ, "CASEMATE_STATE": str(here.path / "state")},
            stdout=nobody,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_configuration_lying_about_is_not_read_and_that_is_said(
    casemate: Command, here: Place
) -> None:
    here.write("casemate.toml", "allow = ['network']\n")
    done = casemate("run", "p.yaml", "--json")
    assert done.returncode == 0
    assert "casemate.toml was not read" in done.stderr


# --- validate, schema, help -----------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_validate_accepts_what_runs(casemate: Command, file: str) -> None:
    done = casemate("validate", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{file}: chain, 2 tasks, 1 edges: sound\n"
    as_json = json.loads(casemate("validate", file, "--json").stdout)
    assert as_json == {"name": "chain", "tasks": ["a", "b"], "edges": 1}


def test_validate_names_every_problem_at_once(casemate: Command, here: Place) -> None:
    here.write("broken.yaml", """\
        name: x
        tasks:
          a: {execute: "nowhere.py:a", needs: [b]}
          c: {comand: [ls]}
        """)  # fmt: skip
    done = casemate("validate", "broken.yaml")
    assert done.returncode == 2
    for words in ("broken.yaml:3", "nowhere.py", '"b"', "broken.yaml:4", "command"):
        assert words in done.stderr


def test_validate_names_every_problem_as_json(casemate: Command, here: Place) -> None:
    here.write(
        "broken.yaml", "name: x\ntasks:\n  a: {execute: 'tasks.py:a', needs: [b], comand: x}\n"
    )
    here.write("evil.py", "raise ValueError('no')")
    for file, expected in (
        ("broken.yaml", [(3, "tasks.a.comand", "unknown key"), (3, "tasks.a.needs[0]", "no task")]),
        ("evil.py", [(None, None, "ValueError")]),
        ("nothing.yaml", [(None, None, "No such file")]),
    ):
        done = casemate("validate", file, "--json")
        assert (done.returncode, done.stderr) == (2, "")
        problems = json.loads(done.stdout)["problems"]
        assert {problem["file"] for problem in problems} == {file}
        assert len(problems) == len(expected)
        for (line, key, says), problem in zip(expected, problems, strict=True):
            assert (problem["line"], problem["key"]) == (line, key)
            assert says in problem["message"]


def test_validate_runs_nothing_and_leaves_nothing(casemate: Command, tmp_path: Path) -> None:
    assert casemate("validate", "p.py").returncode == 0
    assert not (tmp_path / "state" / "runs").exists()


def test_schema_is_a_json_schema(casemate: Command) -> None:
    schema = json.loads(casemate("schema").stdout)
    assert schema["type"] == "object"
    assert {"name", "tasks"} <= schema["properties"].keys()


def test_every_command_shows_an_example(casemate: Command) -> None:
    top = casemate("--help")
    assert top.returncode == 0
    commands = re.findall(r"^  (\w+)  ", top.stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"run", "exec", "validate", "schema", "doctor"} <= set(commands)
    for command in commands:
        done = casemate(command, "--help")
        assert done.returncode == 0
        assert f"Example: casemate {command}" in done.stdout
        verbs = re.findall(r"^  (\w+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE)
        for help in [casemate(command, verb, "--help").stdout for verb in verbs] or [done.stdout]:
            assert f"Example: casemate {command}" in help
            assert "--state" in help
