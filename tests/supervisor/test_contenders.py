"""Several supervisors on one state directory, and several that want the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from casemate.supervisor.journal import JournalReader
from casemate.supervisor.overview import list_runs
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE
from runs import Place
from verifier import assert_true_story

CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]
PIPELINE = """\
    name: chain
    tasks:
      a: {execute: "tasks.py:a"}
      b: {execute: "tasks.py:b", needs: [a]}
    """


def all_at_once(place: Place, state: Path, *commands: list[str]) -> list[tuple[int, str]]:
    """How each ended, and what it said on stderr."""
    started = [
        subprocess.Popen(
            [*CASEMATE, *command, "--json"],
            cwd=place.path,
            env={**os.environ, "CASEMATE_STATE": str(state)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    said = [each.communicate(timeout=PATIENCE)[1] for each in started]
    return [(each.returncode, text) for each, text in zip(started, said, strict=True)]


def test_supervisors_that_find_no_state_directory_make_one_and_share_it(
    tmp_path: Path, place: Place
) -> None:
    place.tasks("def a(input): return 1\ndef b(input): return input['a'] + 1\n")
    place.write("p.yaml", PIPELINE)
    state = tmp_path / "deep" / "state"
    assert all_at_once(place, state, *[["run", "p.yaml"]] * 3) == [(0, "")] * 3
    found = list_runs(StateDirectory.open(state))
    assert [run.state for run in found] == ["completed"] * 3
    for run in found:
        assert_true_story(state, run.id, has_ended=True)


def test_of_those_who_resume_one_run_at_once_one_owns_it(tmp_path: Path, place: Place) -> None:
    place.tasks("""
        import time
        def a(input): return 1
        def b(input):
            time.sleep(0.5)
            return input["a"] + 1
        """)
    place.write("p.yaml", PIPELINE)
    state = tmp_path / "state"
    assert all_at_once(place, state, ["run", "p.yaml"]) == [(0, "")]
    assert all_at_once(place, state, ["fork", "last", "c1"]) == [(0, "")]
    run = StateDirectory.open(state).find_run("last")

    ended = all_at_once(place, state, *[["resume", run.id]] * 4)

    assert (0, "") in ended
    for code, said in ended:
        # Who came when it was owned has asked its owner, or was told that it has ended.
        assert code in (0, 2), said
        if code:
            assert "owned by a living supervisor" in said or "has ended" in said
            assert "Traceback" not in said
    assert_true_story(state, run.id, has_ended=True)
    with JournalReader(run) as reader:
        kinds = [event.kind for event in reader.events()]
    assert kinds.count("run.completed") == 1
    assert kinds[kinds.index("run.forked") :].count("task.completed") == 1
