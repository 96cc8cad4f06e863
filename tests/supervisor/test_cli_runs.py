"""The commands over a state directory, on runs that `casemate run` made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from casemate.supervisor.cli.app import app
from casemate.supervisor.gc import collect_garbage
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE
from runs import Place
from typer.testing import CliRunner

CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]

TASKS = """
def a(input, ctx):
    print("evil \\x1b[31m")
    return {"raw": b"x", "text": "\\x9b \\u202e ü"}
def b(input):
    return {"got": 1}
def bad(input):
    raise ValueError("my \\x1b mistake")
"""


class Desk:
    def __init__(self, path: Path) -> None:
        self.place = Place(path / "pipeline")
        self.place.tasks(TASKS)
        self.state = path / "state"
        self.place.write("good.yaml", """\
            name: chain
            tasks: {a: {execute: "tasks.py:a"}, b: {execute: "tasks.py:b", needs: [a]}}
            """)  # fmt: skip
        self.place.write("bad.yaml", 'name: x\ntasks: {bad: {execute: "tasks.py:bad"}}\n')
        self.runs = [self.run(file) for file in ("good.yaml", "bad.yaml", "good.yaml")]

    def run(self, file: str) -> str:
        run: str = json.loads(self("run", file, "--json").stdout.splitlines()[0])["run"]
        return run

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*CASEMATE, *arguments],
            cwd=self.place.path,
            env={**os.environ, "CASEMATE_STATE": str(self.state), "COLUMNS": "80"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert "Traceback" not in done.stderr
        if arguments[0] != "run":
            assert not set(done.stdout + done.stderr) & {"\x1b", "\x9b", "\u202e"}
        return done

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def casemate(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


def test_ps_lists_runs_the_newest_first(casemate: Desk) -> None:
    listed = casemate.json("ps")
    assert [run["id"] for run in listed] == casemate.runs[::-1]
    assert [(run["state"], run["done"], run["tasks"]) for run in listed] == [
        ("completed", 2, 2),
        ("failed", 0, 1),
        ("completed", 2, 2),
    ]
    lines = casemate("ps").stdout.splitlines()
    assert len(lines) == 5 and max(map(len, lines)) <= 80


def test_show_tells_of_tasks_and_all_tells_the_story(casemate: Desk) -> None:
    shown = casemate.json("show", "last")
    assert [(task["id"], task["state"]) for task in shown["tasks"]] == [
        ("a", "completed"),
        ("b", "completed"),
    ]
    story = casemate.json("show", casemate.runs[1], "--all")["story"]
    assert [event["kind"] for event in story][-2:] == ["task.failed", "run.failed"]
    assert not any(event["undone"] for event in story)
    assert "ValueError" in casemate("show", casemate.runs[1], "--all").stdout


def test_events_are_what_the_journal_has_and_follow_ends_with_the_run(casemate: Desk) -> None:
    done = casemate("events", "last", "--follow", "--since", "2", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(3, 3 + len(events)))
    assert events[-1]["kind"] == "run.completed"
    assert casemate("events", "last", "--follow", "--since", "999").stdout == ""
    assert "evil \\x1b[31m" in casemate("events", "last").stdout


def test_output_is_json_in_the_documented_shape(casemate: Desk) -> None:
    assert casemate.json("output", "last") == {"b": {"got": 1}}
    value = {"raw": {"$bytes": "eA=="}, "text": "\x9b \u202e ü"}
    assert casemate.json("output", "last", "a") == value
    assert "ü" in casemate("output", "last", "a").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["output", "BAD"], 1, "is failed"),
        (["output", "BAD", "bad"], 1, "no output"),
        (["output", "last", "zz"], 2, "no task 'zz'"),
        (["show", "zz"], 2, "no run 'zz'"),
        (["show", "1"], 2, "ambiguous"),
        (["show"], 2, "Missing argument"),
        (["rollback", "last"], 2, "one of the two"),
        (["rollback", "last", "c1", "--before", "a"], 2, "one of the two"),
        (["events", "last", "--since", "-1"], 2, "--since"),
        (["gc", "--older", "soon"], 2, "--older"),
    ],
)
def test_what_cannot_be_exits_1_and_what_was_said_wrong_exits_2(
    casemate: Desk, arguments: list[str], code: int, says: str
) -> None:
    done = casemate(*[word.replace("BAD", casemate.runs[1]) for word in arguments])
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_a_unique_prefix_will_do(casemate: Desk) -> None:
    run = casemate.runs[0]
    short = next(run[:n] for n in range(1, 13) if not any(
        other.startswith(run[:n]) for other in casemate.runs[1:]))  # fmt: skip
    assert casemate.json("show", short)["run"]["id"] == run


# --------------------------------------------------------------------------------------- completion


def shell_asks(line: str) -> dict[str, str]:
    """As typer's script for fish does."""
    return {
        "_CASEMATE_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": line,
    }


@pytest.fixture
def tab(casemate: Desk, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, str]]:
    """What a tab at the end of a line offers."""
    monkeypatch.setenv("CASEMATE_STATE", str(casemate.state))

    def offered(line: str) -> dict[str, str]:
        asked = shell_asks(f"casemate {line}")
        done = CliRunner().invoke(app, [], prog_name="casemate", env=asked)
        words = (each.partition("\t") for each in done.output.splitlines())
        return {word: told for word, _, told in words if word}

    return offered


def test_a_tab_offers_runs_and_what_the_named_run_has(
    casemate: Desk, tab: Callable[[str], dict[str, str]]
) -> None:
    good, bad, newest = casemate.runs
    told = {newest: "chain completed", bad: "x failed", good: "chain completed"}
    assert tab("show ") == {**told, "last": "the newest run"}
    assert tab(f"pause {bad[:-1]}").keys() == {
        run for run in casemate.runs if run.startswith(bad[:-1])
    }
    for line in ("show RUN --why ", "output RUN ", "rollback RUN --before "):
        line = line.replace("RUN", good)
        assert tab(line) == {"a": "completed", "b": "completed"}, line
    assert tab(f"output {bad} ") == {"bad": "failed"}
    assert tab(f"diff {good} --attempt b") == {"b/1": "completed"}
    for line in ("rollback last c", "fork last ", "diff last --checkpoint "):
        assert tab(line) == {"c0": "0 tasks", "c1": "1 task", "c2": "2 tasks"}, line


def test_a_tab_offers_nothing_where_nothing_can_be_read(
    tab: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    assert tab(f"show --state {tmp_path / 'none'} ") == {}
    assert tab("output zz ") == {}
    assert tab("breaker reset ") == {}


def test_a_tab_offers_nothing_of_this_host_where_another_is_asked(
    casemate: Desk, tab: Callable[[str], dict[str, str]]
) -> None:
    for line in ("show", "show last --why", "pause", "rollback last"):
        assert tab(f"{line} "), line
        verb, *more = line.split()
        assert tab(" ".join((verb, "--at 10.0.0.5:7601", *more, ""))) == {}, line


def test_a_shell_is_told_by_the_command_itself(casemate: Desk) -> None:
    asked = {"CASEMATE_STATE": str(casemate.state), **shell_asks("casemate show la")}
    done = subprocess.run(
        CASEMATE, env=os.environ | asked, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.stdout.split(), done.stderr) == (["last", "the", "newest", "run"], "")


# ---------------------------------------------------------------------------------------------- gc


def ended(casemate: Desk, tmp_path: Path) -> StateDirectory:
    subprocess.run(["cp", "-a", casemate.state, tmp_path / "copy"], check=True)
    return StateDirectory.open(tmp_path / "copy")


def test_gc_drops_ended_runs_beyond_the_newest_and_nothing_owned(
    casemate: Desk, tmp_path: Path
) -> None:
    state = ended(casemate, tmp_path)
    interrupted = state.create_run()
    interrupted.ownership.release()
    owned = state.own_run(casemate.runs[0])
    dry = list(collect_garbage(state, keep=0, dry_run=True))
    assert {one.run for one in dry} == set(casemate.runs[1:])
    dropped = list(collect_garbage(state, keep=1))
    assert [(one.run, one.problem) for one in dropped] == [(casemate.runs[1], None)]
    assert dropped[0].bytes > 0
    assert state.run_ids() == sorted([casemate.runs[0], casemate.runs[2], interrupted.directory.id])
    assert list(collect_garbage(state, keep=0, older=3600)) == []
    [kept] = collect_garbage(state, runs=[casemate.runs[0]])
    assert kept.problem is not None and "owned" in kept.problem
    owned.ownership.release()
    [gone] = collect_garbage(state, runs=[interrupted.directory.id])
    assert gone.problem is None
    assert interrupted.directory.id not in state.run_ids()


def test_gc_takes_apart_any_tree_and_follows_no_link(casemate: Desk, tmp_path: Path) -> None:
    state = ended(casemate, tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    run = state.run(casemate.runs[0]).path
    (run / "link").symlink_to(precious)
    os.mkfifo(run / "fifo")
    (run / "shut" / "below").mkdir(parents=True)
    (run / "shut" / "below" / "file").touch()
    (run / "shut" / "below").chmod(0o500)
    (run / "shut").chmod(0)
    here = os.getcwd()
    try:
        os.chdir(run)
        for _ in range(3000):
            os.mkdir("deep")
            os.chdir("deep")
    finally:
        os.chdir(here)
    # And what a gc left that was killed.
    os.rename(state.run(casemate.runs[1]).path, state.runs / f".gone-{casemate.runs[1]}")
    dropped = list(collect_garbage(state, keep=0))
    assert [one.problem for one in dropped] == [None] * 3
    assert os.listdir(state.runs) == []
    assert (precious / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "command",
    ["resume", "pause", "cancel", "checkpoint", "rollback RUN c0", "fork RUN c0"],
)
def test_a_run_whose_supervisor_died_before_its_first_event_never_began(
    command: str, tmp_path: Path, casemate: Desk
) -> None:
    state = StateDirectory.open(tmp_path)
    owned = state.create_run()
    owned.ownership.release()
    verb, *rest = command.replace("RUN", owned.directory.id).split()
    done = casemate(verb, *(rest or [owned.directory.id]), "--state", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"run {owned.directory.id} never began" in done.stderr
    [listed] = casemate.json("ps", "--state", str(tmp_path))
    assert (listed["state"], listed["done"], listed["tasks"]) == ("interrupted", 0, 0)
    assert casemate("events", "last", "--state", str(tmp_path)).stdout == ""


def test_a_task_that_was_skipped_is_done(tmp_path: Path, casemate: Desk) -> None:
    skip = {"on": ["error"], "do": "skip"}
    spec = {"name": "x", "tasks": {"a": {"command": ["false"], "recover": [skip]}}}
    (tmp_path / "skip.json").write_text(json.dumps(spec))
    state = str(tmp_path / "state")
    done = casemate("run", str(tmp_path / "skip.json"), "--state", state)
    assert done.returncode == 0, done.stderr
    [listed] = casemate.json("ps", "--state", state)
    assert (listed["state"], listed["done"], listed["tasks"]) == ("completed", 1, 1)
