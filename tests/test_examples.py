"""The examples do what they say: run as a stranger would run them."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import wait_until

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Ours, with a state directory and no configuration of the developer's."""
    own = {"CASEMATE_STATE": str(tmp_path / "state"), "XDG_CONFIG_HOME": str(tmp_path)}
    return os.environ | own


def run(*command: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], env=env, capture_output=True, text=True, timeout=110
    )


def events_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_every_humaneval_program_passes(environment: dict[str, str]) -> None:
    done = run(sys.executable, EXAMPLES / "humaneval/run.py", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "164 of 164 verdicts as expected" in done.stdout


def test_every_sabotaged_program_gets_its_kind(environment: dict[str, str]) -> None:
    done = run(sys.executable, EXAMPLES / "humaneval/run.py", "--sabotage", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_outside_a_sandbox_the_sabotaged_program_reaches_its_socket() -> None:
    """So that its verdict tells of the wall, not of a listener that nobody reaches."""
    example = runpy.run_path(str(EXAMPLES / "humaneval/run.py"))
    check = runpy.run_path(str(EXAMPLES / "humaneval/check.py"))["check"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipeline, expected = example["build"](True, listener.getsockname()[1])
        task = next(name for name, (what, _) in expected.items() if what == "open a socket")
        spec = pipeline.document()["tasks"][task]["spec"]
        assert check(None, SimpleNamespace(spec=spec)) == "pass"
        listener.settimeout(10)
        listener.accept()[0].close()


def recorded_workflow(folder: Path) -> Path:
    """The small recorded one where it is at hand, else one of the same form: a diamond."""
    shared = ROOT.parent / "shared/data/wfinstances/helloworld-forkjoin-10-chameleon.json"
    if shared.exists():
        return shared
    edges: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
    tasks = [{"id": task, "name": task, "parents": parents} for task, parents in edges.items()]
    times = [{"id": task, "runtimeInSeconds": 1.0} for task in edges]
    workflow = {"specification": {"tasks": tasks}, "execution": {"tasks": times}}
    path = folder / "diamond.json"
    path.write_text(json.dumps({"workflow": workflow}), encoding="utf-8")
    return path


def test_a_recorded_workflow_keeps_its_order(environment: dict[str, str], tmp_path: Path) -> None:
    file = recorded_workflow(tmp_path)
    done = run(sys.executable, EXAMPLES / "wfinstances/run.py", file, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 out of order" in done.stdout


def started(*arguments: str | Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """A `casemate run --json` with a run that an observer can find."""
    command = [*CASEMATE, "run", *map(str, arguments), "--json"]
    running = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    state = Path(env["CASEMATE_STATE"])
    deadline = time.monotonic() + 60
    while not list(state.glob("supervisors/*.json")) or not list(state.glob("runs/[!.]*")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return running


OBSERVER = EXAMPLES / "observer/observer.py"


def check_observed(seen: str, running: subprocess.Popen[str]) -> None:
    assert running.stdout is not None
    journaled = events_of(running.stdout.read())
    observed = [line.split()[:3] for line in seen.splitlines()]
    assert observed == [[str(e["seq"]), e["task"] or "-", e["kind"]] for e in journaled]


def test_an_observer_without_casemate_sees_every_event_once(environment: dict[str, str]) -> None:
    with started(EXAMPLES / "review/pipeline.yaml", env=environment) as running:
        state = environment["CASEMATE_STATE"]
        seen = run(sys.executable, "-I", OBSERVER, state, "last", env=environment)
        assert seen.returncode == 0, seen.stderr
        check_observed(seen.stdout, running)


@pytest.fixture(scope="module")
def node_observer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a stranger would set it up."""
    missing = [name for name in ("npm", "node", "jq") if shutil.which(name) is None]
    if missing:
        # Where every change is tested there is no way round it.
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"no {' and no '.join(missing)} on this machine")
    folder = tmp_path_factory.mktemp("node") / "observer"
    shutil.copytree(OBSERVER.parent, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "install", "--no-audit", "--no-fund", f"--cache={folder.parent}/cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "observer.mjs"


def has_started(seen: Path) -> bool:
    return "hang task.started" in seen.read_text()


def test_late_observers_in_node_shell_and_python_see_the_same(
    environment: dict[str, str], tmp_path: Path, node_observer: Path
) -> None:
    file = tmp_path / "hang.yaml"
    file.write_text(
        "name: x\ntasks:\n  say: {command: [seq, '500']}\n"
        "  hang: {command: [sleep, '3600'], needs: [say]}\n",
        encoding="utf-8",
    )
    state = environment["CASEMATE_STATE"]
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    commands = [
        [sys.executable, "-I", str(OBSERVER)],
        ["node", str(node_observer)],
        ["sh", str(OBSERVER.with_name("observer.sh"))],
    ]
    with started(file, env=environment) as running:
        assert running.stdout is not None
        journaled = []
        for line in running.stdout:
            journaled.append(line)
            if '"kind":"task.started"' in line and '"task":"hang"' in line:
                break
        watching = []
        for number, command in enumerate(commands):
            with (tmp_path / f"{number}.txt").open("w") as out:
                each = subprocess.Popen([*command, state, "last"], env=environment, stdout=out)
            watching.append(each)
        for number in range(len(commands)):
            wait_until(partial(has_started, tmp_path / f"{number}.txt"))
        running.send_signal(signal.SIGINT)
        journaled += running.stdout.readlines()
        for each in watching:
            assert each.wait(60) == 0
    events = [json.loads(line) for line in journaled]
    expected = [[str(e["seq"]), e["task"] or "-", e["kind"]] for e in events]
    for number in range(len(commands)):
        lines = (tmp_path / f"{number}.txt").read_text().splitlines()
        assert [line.split()[:3] for line in lines] == expected, commands[number]


def test_an_observer_sees_a_cancelled_run_to_its_end(
    environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "hang.yaml"
    file.write_text("name: x\ntasks: {hang: {command: [sleep, '3600']}}\n", encoding="utf-8")
    state = environment["CASEMATE_STATE"]
    observer = [sys.executable, "-I", str(OBSERVER), state, "last"]
    with (
        started(file, env=environment) as running,
        subprocess.Popen(observer, stdout=subprocess.PIPE, text=True) as watching,
    ):
        assert watching.stdout is not None
        seen = ""
        while "task.started" not in seen:
            line = watching.stdout.readline()
            assert line
            seen += line
        running.send_signal(signal.SIGINT)
        seen += watching.communicate(timeout=60)[0]
        assert watching.returncode == 0
        check_observed(seen, running)
    assert " - run.cancelled " in seen


def test_the_observer_is_as_short_as_the_readme_says() -> None:
    lines = len(OBSERVER.read_text(encoding="utf-8").splitlines())
    assert lines < 40
    assert f"does that in {lines} lines" in README
