"""How `casemate serve` ends when it is told to: at once, or when what runs has ended. Nothing is
lost either way, and a service manager hears of it."""

from __future__ import annotations

import signal
import socket
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from casemate.protocol.control import RunState
from casemate.protocol.errors import UsageError
from casemate.supervisor.cli.steer import shut_down
from casemate.supervisor.client import Client
from casemate.supervisor.config import load_config
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.overview import summarise
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE, wait_until
from runs import Place, Service, serving
from verifier import assert_true_story

# `held` ends when somebody puts a file into the folder that it is shown; `endless` never.
TASKS = """
import os, time
def held(input, ctx):
    ctx.emit("here")
    while not os.path.exists(f"{ctx.spec['shown']}/go"):
        time.sleep(0.01)
    return ctx.attempt
def endless(input, ctx):
    ctx.emit("here")
    if ctx.attempt == 1:
        time.sleep(3600)
    return ctx.attempt
def after(input):
    return "after"
"""
PIPELINE = """
name: ending
defaults: {limits: {memory: 128MiB, pids: 32}}
tasks:
  first: {execute: "tasks.py:NAME", ro: [SHOWN], spec: {shown: SHOWN}}
  after: {execute: "tasks.py:after", needs: [first]}
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "place")
    place.tasks(TASKS)
    shown = place.path / "shown"
    shown.mkdir()
    for name in ("held", "endless"):
        text = PIPELINE.replace("NAME", name).replace("SHOWN", str(shown))
        place.write(f"{name}.yaml", text)
    return place


def stands(state: Path, run: str) -> RunState:
    return summarise(StateDirectory(state).run(run)).state


def kinds(state: Path, run: str) -> list[tuple[str, str | None]]:
    """What is in its journal by now."""
    with JournalReader(StateDirectory(state).run(run)) as reader:
        return [(event.kind, event.task) for event in reader.events(0, 1000)]


def begun(service: Service, state: Path, file: Path) -> str:
    """Submitted, and its first task runs."""
    wait_until(service.said)
    run = submitted(state, file)
    wait_until(lambda: ("task.emitted", "first") in kinds(state, run))
    return run


def submitted(state: Path, file: Path) -> str:
    config = load_config(state=state, allow=[f"path:{file.parent}"])
    with Client(config=config) as client:
        return client.submit(file)


def serve(state: Path, place: Place, *arguments: str) -> AbstractContextManager[Service]:
    return serving(state, "--allow", f"path:{place.path}", *arguments)


def end(service: Service, times: int = 1) -> None:
    for _ in range(times):
        service.process.send_signal(signal.SIGTERM)


def test_draining_lets_what_runs_end_and_starts_nothing_more(tmp_path: Path, place: Place) -> None:
    state = tmp_path / "state"
    with serve(state, place, "--drain", "1h") as service:
        run = begun(service, state, place.path / "held.yaml")
        end(service)
        wait_until(lambda: "SIGTERM: what runs may end within 3600 s\n" in service.said())
        # Whoever submits now has submitted, and nothing of it starts.
        late = submitted(state, place.path / "endless.yaml")
        (place.path / "shown" / "go").touch()
        assert service.wait_ended() == (0, "")
    assert stands(state, run) is stands(state, late) is RunState.INTERRUPTED
    with serve(state, place):
        wait_until(lambda: stands(state, run) is RunState.COMPLETED)
        wait_until(lambda: ("task.emitted", "first") in kinds(state, late))
    told = kinds(state, run)
    assert told.count(("task.started", "first")) == 1  # it was left to end
    assert told.index(("run.recovered", None)) < told.index(("task.started", "after"))
    assert ("run.paused", None) not in told
    assert_true_story(state, run, has_ended=True)


def test_a_second_signal_suspends_what_is_left_to_drain(tmp_path: Path, place: Place) -> None:
    state = tmp_path / "state"
    with serve(state, place, "--drain", "1h") as service:
        run = begun(service, state, place.path / "endless.yaml")
        end(service)
        wait_until(lambda: any("may end within" in line for line in service.said()))
        end(service)
        assert service.wait_ended() == (0, "")
    assert stands(state, run) is RunState.INTERRUPTED
    with serve(state, place):
        wait_until(lambda: stands(state, run) is RunState.COMPLETED)
    assert_true_story(state, run, has_ended=True)


@pytest.mark.parametrize("arguments", [(), ("--drain", "10ms")])
def test_what_does_not_end_in_time_is_suspended(
    tmp_path: Path, place: Place, arguments: tuple[str, ...]
) -> None:
    state = tmp_path / "state"
    with serve(state, place, *arguments) as service:
        run = begun(service, state, place.path / "endless.yaml")
        end(service)
        assert service.wait_ended() == (0, "")
    assert stands(state, run) is RunState.INTERRUPTED


def test_who_may_steer_ends_it_as_a_signal_does(
    tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    with serve(state, place, "--drain", "1h") as service:
        run = begun(service, state, place.path / "endless.yaml")
        with Client(state=state) as client:
            client.shutdown()
            wait_until(lambda: "shutdown: what runs may end within 3600 s\n" in service.said())
            assert shut_down("0s", state=state) == 0  # and does not wait for it
        assert service.wait_ended() == (0, "")
    assert capsys.readouterr().out == f"the supervisor of {state} is ending\n"
    assert stands(state, run) is RunState.INTERRUPTED
    with pytest.raises(UsageError, match="nothing to end"):
        shut_down("0s", state=state)


def test_a_service_manager_hears_when_it_serves_that_it_lives_and_that_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{tmp_path}/notify")
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        monkeypatch.setenv("WATCHDOG_USEC", "30000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        state = tmp_path / "state"
        with serving(state, "--drain", "30s"):
            assert manager.recv(1000).decode() == f"READY=1\nSTATUS=serving {state}"
            for _ in range(3):
                assert manager.recv(1000) == b"WATCHDOG=1"
        while (last := manager.recv(1000).decode()) == "WATCHDOG=1":
            pass
        assert last.split("\n")[0::2] == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=60000000"]
