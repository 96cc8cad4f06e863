"""`Client` and `AsyncClient` drive from outside what `Supervisor` drives from inside."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from casemate import AsyncClient, Client, Pipeline, Supervisor, UsageError
from casemate.protocol.control import RunState
from casemate.supervisor.state import StateDirectory
from fakes import wait_until
from runs import Place, serving

# Of a supervisor alone: what is about its own life, and `take_up`, which is `serve`'s.
NOT_FROM_OUTSIDE = {
    "drain",
    "execute",
    "ping",
    "reconfigure",
    "revise",
    "start_submitted",
    "take_up",
    "warn_submitters",
    "wait_closed",
    "wait_committed",
}

TASKS = """
import time
def first(input):
    return 1
def second(input, ctx):
    ctx.emit("here")
    while not ctx.cancelled:
        time.sleep(0.01)
"""


def verbs(of: type) -> set[str]:
    return {name for name, each in vars(of).items() if callable(each) and name[0] != "_"}


def test_they_have_the_verbs_of_a_supervisor() -> None:
    assert verbs(Client) == verbs(AsyncClient)
    # To end one is the program's own affair, and what is read of it is read by whoever embeds it.
    more = {"runs", "show", "summary", "shutdown"}
    assert verbs(Client) - more == verbs(Supervisor) - NOT_FROM_OUTSIDE
    for name in verbs(Client) - {"submit", "events"}:
        inside = getattr(Supervisor, name, None) or getattr(AsyncClient, name)
        for of in (Client, AsyncClient):
            known = inspect.signature(inside).parameters
            assert list(inspect.signature(getattr(of, name)).parameters) == list(known), name


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "place")
    place.tasks(TASKS)
    tasks = {"first": {"execute": "tasks.py:first"}, "second": {"execute": "tasks.py:second"}}
    tasks["second"] |= {"needs": ["first"]}  # type: ignore[dict-item]
    place.write("chain.json", json.dumps({"name": "chain", "tasks": tasks}))
    return place


def states(client: Client) -> dict[str, RunState]:
    return {run.id: run.state for run in client.runs()}


def test_a_run_is_driven_from_outside(tmp_path: Path, place: Place) -> None:
    state = tmp_path / "state"
    StateDirectory.open(state)
    with serving(state), Client(state=state) as client:
        wait_until(lambda: any(r.accepts for r in StateDirectory(state).living_supervisors()))
        run = client.submit(place.path / "chain.json")
        seen = []
        for event in client.events(run):
            seen.append(event.kind)
            if event.kind == "task.emitted":
                break
        assert "task.completed" in seen
        client.pause(run)
        assert states(client)[run] is RunState.PAUSED
        client.rollback(run, "c0")
        client.resume(run[:10])
        wait_until(lambda: states(client)[run] is RunState.RUNNING)
        forked = client.fork(run, "c0")
        for each in (run, "last"):
            client.cancel(each, "enough")
        wait_until(lambda: set(states(client).values()) == {RunState.CANCELLED})
        assert set(states(client)) == {run, forked}
        with pytest.raises(UsageError, match="no run"):
            client.pause("zzzz")
        assert client.open_breaker("service", "1m").state == "open"
        assert [each.key for each in client.breakers()] == ["service"]
        assert client.reset_breaker("service").state == "closed"


def test_a_runs_files_are_compared_and_written_back(tmp_path: Path, place: Place) -> None:
    state = tmp_path / "state"
    StateDirectory.open(state)
    place.write("repo/file", "before\n")
    edit = {"command": ["sh", "-c", "echo after > file"]}
    place.write("edit.json", json.dumps(
        {"name": "edit", "workspace": "repo", "tasks": {"edit": edit}}
    ))  # fmt: skip
    with serving(state), Client(state=state) as client:
        wait_until(lambda: any(r.accepts for r in StateDirectory(state).living_supervisors()))
        run = client.submit(place.path / "edit.json")
        assert [event.kind for event in client.events(run)][-1] == "run.completed"
        summary, [task] = client.show(run)
        assert (summary.state, task.id, task.state) == (RunState.COMPLETED, "edit", "completed")
        assert [each.checkpoint for each in client.checkpoints(run)] == ["c0", "c1"]
        found = client.diff(run)
        assert found.paths == ("file",) and b"-before\n+after\n" in found.patch
        assert client.diff(run, attempt="edit/1").patch == found.patch
        assert client.diff(run, checkpoint="c0").patch == b""
        assert client.apply(run, dry_run=True) == client.apply(run)
    assert (place.path / "repo/file").read_text() == "after\n"


def test_a_run_that_nobody_owns_is_taken_up_by_who_serves(tmp_path: Path, place: Place) -> None:
    state = tmp_path / "state"
    StateDirectory.open(state)
    file = place.path / "chain.json"
    place.tasks("def first(input): return 1\ndef second(input): return 2\n")
    with serving(state), Client(state=state) as client:
        wait_until(lambda: any(r.accepts for r in StateDirectory(state).living_supervisors()))
        run = client.submit(file)
        assert [event.kind for event in client.events(run)][-1] == "run.completed"
        wait_until(lambda: not StateDirectory(state).run(run).is_owned())
        forked = client.fork(run, "c1")
        assert [event.kind for event in client.events(forked)][-1] == "run.completed"
        client.rollback(run, "c0")
        ends = [event.kind for event in client.events(run) if event.kind == "run.completed"]
        assert len(ends) == 2
    with Client(state=state) as client, pytest.raises(UsageError, match="no living supervisor"):
        client.fork(run, "c1")


def test_in_a_loop_a_pipeline_of_this_program(tmp_path: Path) -> None:
    state = tmp_path / "state"
    StateDirectory.open(state)
    pipeline = Pipeline("built")
    pipeline.task(lambda input: [input], id="wrap")

    async def story() -> list[Any]:
        async with AsyncClient(state=state) as client:
            run = await client.submit(pipeline, 7)
            outputs = [
                event.data["outputs"]
                async for event in client.events(run)
                if event.kind == "run.completed"
            ]
            assert [each.id for each in await client.runs()] == [run]
            with pytest.raises(UsageError):
                await client.resume(run)
            return outputs

    with serving(state):
        wait_until(lambda: any(r.accepts for r in StateDirectory(state).living_supervisors()))
        assert asyncio.run(story()) == [{"wrap": [7]}]
