"""A supervisor that is reached from other hosts: whom the gate lets in, and what it says of others.

The gate is a process of its own behind a real tcp address; what it logs is read as a host's program
would read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from casemate import AsyncClient, CasemateError, Client, PipelineEvent, UsageError, observe
from casemate.protocol.control import Cancel, ControlError, Error, List, Pause, RunState, Submit
from casemate.protocol.limits import CONTROL_REQUEST_SIZE, REMOTE_REQUEST_SIZE
from casemate.supervisor.cli import main
from casemate.supervisor.keys import make_keys, read_public_key
from casemate.supervisor.remote import Address, Remote
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE, wait_until
from hostile_peers import BY_STRANGERS, Target, Where
from msgspec import msgpack
from runs import Embedded, Place, descendants, free_ports

TASKS = """
import time
def talk(input, ctx):
    for n in range(200):
        ctx.emit(n)
    ctx.emit("large" * 40_000)
    return "huge" * 300_000
def greet(input):
    return "hello"
def wait(input, ctx):
    ctx.emit("here")
    while not ctx.cancelled:
        time.sleep(0.01)
"""
GATE = "casemate.gate"
PATIENCE_MS = int(PATIENCE * 1000)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("offhost") / "place")
    place.tasks(TASKS)
    place.write(
        "story.yaml",
        """
        name: story
        tasks:
          talk: {execute: "tasks.py:talk"}
          wait: {execute: "tasks.py:wait", needs: [talk]}
        """,
    )
    place.write(
        "brief.yaml",
        """
        name: brief
        tasks:
          greet: {execute: "tasks.py:greet"}
          wait: {execute: "tasks.py:wait", needs: [greet]}
        """,
    )
    return place


@dataclass
class Elsewhere:
    """A supervisor with a gate, and folders of keys of its clients."""

    house: Embedded
    folder: Path
    address: Address
    names: dict[str, str] = field(default_factory=dict)
    ended: list[float | None] = field(default_factory=list)  # each time somebody told it to

    @property
    def at(self) -> str:
        return str(self.address)

    @property
    def gate(self) -> Any:
        gate = self.house.supervisor._gate
        assert gate is not None
        return gate

    def keys(self, name: str) -> Path:
        return self.folder / name

    def client(self, name: str, **more: Any) -> Client:
        return Client(at=self.at, keys=self.keys(name), **more)

    def socket(self, context: zmq.Context[Any], name: str, kind: int = zmq.DEALER) -> Any:
        """As a stranger would make one who has the keys."""
        made = context.socket(kind)
        made.linger = 0
        remote = Remote.of(self.at, self.keys(name))
        is_observer = kind in (zmq.SUB, zmq.XSUB)
        remote.connect(made, remote.events if is_observer else remote.control)
        return made

    def ask(self, name: str, body: bytes) -> Any:
        with zmq.Context() as context, self.socket(context, name) as dealer:
            dealer.send(body)
            assert dealer.poll(PATIENCE_MS)
            return msgpack.decode(dealer.recv())


def new_client(folder: Path, name: str) -> str:
    """A folder of keys of a client of the supervisor whose keys are in `folder/server`."""
    _, public = make_keys(folder / name, "client")
    (folder / name / "server.pub").write_bytes((folder / "server" / "server.pub").read_bytes())
    return public


def let_in(folder: Path, **lines: str) -> None:
    text = "".join(f"{name} = {line}\n" for name, line in lines.items())
    new = folder / "server" / "clients.new"
    new.write_text(text)
    new.rename(folder / "server" / "clients.toml")


def with_gate(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    make_keys(folder / "server", "server")
    ada, eve = (new_client(folder, name) for name in ("ada", "eve"))
    new_client(folder, "mallory")
    let_in(folder, ada=f'"{ada}"', eve=f'{{ key = "{eve}", may = "watch" }}')
    patch.setenv("CASEMATE_KEYS", str(folder / "server"))
    address = free_ports()
    ended: list[float | None] = []
    house = Embedded(
        folder / "state",
        listen=str(address),
        on_submitted=lambda run: None,
        on_shutdown=ended.append,
    )
    with house:
        yield Elsewhere(house, folder, address, {"ada": ada, "eve": eve}, ended)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """For tests that leave it as they found it."""
    with pytest.MonkeyPatch.context() as patch:
        yield from with_gate(tmp_path_factory.mktemp("elsewhere"), patch)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """For tests that hurt it."""
    yield from with_gate(tmp_path, monkeypatch)


class Log:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        caplog.set_level(logging.INFO, GATE)

    def found(self, *words: str) -> list[str]:
        said = [r.getMessage() for r in self._caplog.records if r.name == GATE]
        return [line for line in said if all(word in line for word in words)]

    def wait(self, *words: str, count: int = 1) -> None:
        wait_until(lambda: len(self.found(*words)) >= count)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


def compared(events: list[PipelineEvent]) -> list[tuple[object, ...]]:
    return [(e.seq, e.run, e.task, e.attempt, e.kind, e.at, e.data) for e in events]


# ------------------------------------------------------------------------------ who is let in


def test_from_elsewhere_a_run_is_submitted_watched_and_steered(
    shared: Elsewhere, place: Place, log: Log
) -> None:
    with shared.client("ada") as client:
        run = client.submit(place.path / "story.yaml")
        seen: list[PipelineEvent] = []
        for event in client.events(run):
            seen.append(event)
            if event.kind == "task.emitted" and event.data["item"] == "here":
                client.pause(run[:10])
                assert {r.id: r.state for r in client.runs()}[run] is RunState.PAUSED
                assert client.checkpoint(run) == "c1"
                forked = client.fork(run, "c0")
                client.rollback(run, "c0")
                client.resume(run)
                client.cancel(run, "enough")
                client.cancel(forked)
        assert client.open_breaker("service", "1m").state == "open"
        assert [each.key for each in client.breakers()] == ["service"]
        assert client.reset_breaker("service").state == "closed"
        with pytest.raises(UsageError, match="no run"):
            client.pause("zzzz")
    assert compared(seen) == compared(list(observe(run, state=shared.house.state)))
    assert seen[-1].kind == "run.cancelled"
    log.wait("ada (127.0.0.1) asks: cancel", run)


def test_a_run_that_has_ended_is_applied_forked_and_rolled_back_from_elsewhere(
    shared: Elsewhere, place: Place, cli: Cli
) -> None:
    workspace = place.path / "workspace"
    workspace.mkdir()
    tasks = {
        "edit": {"command": ["sh", "-c", "echo new > made; mkdir bin; echo > bin/tool"]},
        "risk": {"command": ["chmod", "+x", "bin/tool"], "needs": ["edit"]},
    }
    run = shared.house.run(place.spec(tasks=tasks, workspace="workspace")).events[0].run
    with shared.client("ada") as client:
        assert client.apply(run, allow=["bin/"], dry_run=True).written == 2
        with pytest.raises(UsageError, match=r"risky.*\n.*bin/tool"):
            client.apply(run)
        with pytest.raises(UsageError, match="name a folder"):
            client.apply(run, allow=["x"] * 17)
        assert not list(workspace.iterdir())
        at = ("--at", shared.at)
        code, out, err = cli("apply", run[:11], "--allow", "bin/", *at)
        assert (code, err) == (0, "") and out.startswith("2 written (5 B)")
        assert (workspace / "made").read_text() == "new\n"
        assert cli.json("apply", run, "--allow", "/", *at)["written"] == 0
        with pytest.raises(UsageError, match="do not leave their host"):
            client.diff(run)
        forked = client.fork(run, "c1")
        assert [event.kind for event in client.events(forked)][-1] == "run.completed"
        client.rollback(run, before="risk", accept_base=True)
        ended = [event for event in client.events(run) if event.kind == "run.completed"]
        assert len(ended) == 2
    # What a rollback has left of it is in the run's files.
    assert cli.json("output", run, "risk", *at) is None  # of a command
    assert cli("output", run, "edit", *at)[0] == 2


def test_who_may_steer_may_end_it(shared: Elsewhere, cli: Cli) -> None:
    with shared.client("ada") as client:
        client.shutdown("2s")
    code, out, err = cli("shutdown", "--at", shared.at)
    assert (code, out, err) == (0, f"the supervisor at {shared.at} is ending\n", "")
    assert shared.ended == [2.0, None]
    # One that takes submissions, and is not to be ended by others.
    shared.house.supervisor._on_shutdown = None
    with shared.client("ada") as client, pytest.raises(UsageError, match="its program's to end"):
        client.shutdown()


def test_in_a_loop_too(shared: Elsewhere, place: Place) -> None:
    async def story() -> list[PipelineEvent]:
        async with AsyncClient(at=shared.at, keys=shared.keys("ada")) as client:
            run = await client.submit(place.path / "story.yaml")
            seen = []
            async for event in client.events("last"):
                seen.append(event)
                if event.task == "wait" and event.kind == "task.emitted":
                    await client.cancel(run)
            return seen

    seen = asyncio.run(story())
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))


def test_who_may_only_watch_sees_all_and_steers_nothing(
    shared: Elsewhere, place: Place, log: Log
) -> None:
    live = shared.house.start(place.path / "story.yaml")
    live.wait("task.emitted", "wait")
    with shared.client("eve") as eve:
        assert live.run in {run.id for run in eve.runs()}
        for ask in (
            lambda: eve.cancel(live.run),
            lambda: eve.pause(live.run),
            lambda: eve.fork(live.run, "c0"),
            lambda: eve.submit(place.path / "story.yaml"),
            lambda: eve.reset_breaker("service"),
            lambda: eve.apply(live.run, dry_run=True),
            eve.shutdown,
        ):
            with pytest.raises(UsageError, match="eve may only watch"):
                ask()
        log.wait("refused a request of eve (127.0.0.1)", "may only watch, not cancel")
        watching = eve.events(live.run)
        seen = []
        for event in watching:
            seen.append(event)
            if event.task == "wait" and event.kind == "task.emitted":
                live.cancel()
    assert compared(seen) == compared(live.finish().events)


@pytest.mark.parametrize(
    "stranger", ["of_a_key_nobody_listed", "of_another_server", "without_keys"]
)
def test_a_stranger_is_turned_away_and_told_of(
    stranger: str, shared: Elsewhere, tmp_path: Path, log: Log
) -> None:
    keys = shared.keys("mallory")
    if stranger == "without_keys":
        with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
            plain.linger = 0
            plain.connect(shared.address.control)
            plain.send(msgpack.encode(List(version=1, id=1)))
            log.wait("greeting was cut short or not made with our key")
            assert not plain.poll(0)
    elif stranger == "of_a_key_nobody_listed":
        public = read_public_key(keys, "client")
        with shared.client("mallory") as mallory:
            with pytest.raises(CasemateError, match="does not know this client's key") as told:
                mallory.runs()
            assert public in str(told.value)
            log.wait("refused 127.0.0.1", public)
            with pytest.raises(CasemateError, match="does not know"):
                list(mallory.events("last"))
    else:
        make_keys(tmp_path / "other", "server")
        make_keys(tmp_path / "own", "client")
        (tmp_path / "own" / "server.pub").write_bytes((tmp_path / "other/server.pub").read_bytes())
        with (
            Client(at=shared.at, keys=tmp_path / "own") as lost,
            pytest.raises(CasemateError, match="does not have the key of"),
        ):
            lost.runs()
        log.wait("greeting was cut short or not made with our key")
    with shared.client("ada") as ada:
        ada.runs()


def adas_keys(folder: Path) -> Path:
    """Of one whose supervisor is not there."""
    make_keys(folder / "server", "server")
    new_client(folder, "ada")
    return folder / "ada"


def test_nobody_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.supervisor.remote._REACH_SECONDS", 0.1)
    ada = adas_keys(tmp_path)
    with (
        Client(at=str(free_ports()), keys=ada) as client,
        pytest.raises(CasemateError, match=r"no supervisor answers at 127\.0\.0\.1"),
    ):
        client.runs()


def test_an_observer_says_too_that_nobody_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.supervisor.remote._REACH_SECONDS", 0.5)
    # Shorter than it is waited for a connection: silence counts from when there is one.
    monkeypatch.setattr("casemate.supervisor.observing._SILENCE", 0.1)
    ada = adas_keys(tmp_path)
    at = str(free_ports())
    with pytest.raises(CasemateError, match="no supervisor answers at " + at):
        list(observe("last", at=at, keys=ada, patience=0.2))

    async def in_a_loop() -> None:
        async for _ in observe("last", at=at, keys=ada, patience=0.2):
            pass

    with pytest.raises(CasemateError, match="no supervisor answers at " + at):
        asyncio.run(in_a_loop())


def test_a_client_gives_up_in_its_time_and_not_when_it_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casemate.supervisor.remote._REACH_SECONDS", 0.1)
    monkeypatch.setattr("casemate.supervisor.control._FIRST_WAIT", 20.0)
    ada = adas_keys(tmp_path)
    began = time.monotonic()
    with (
        Client(at=str(free_ports()), keys=ada) as client,
        pytest.raises(CasemateError, match="no supervisor answers"),
    ):
        client.runs()
    assert time.monotonic() - began < 10.0


@pytest.mark.parametrize("at", ["_x:7601", "*:7601"])
def test_what_can_be_no_address_is_refused(tmp_path: Path, at: str) -> None:
    ada = adas_keys(tmp_path)
    with (
        Client(at=at, keys=ada) as client,
        pytest.raises(UsageError, match="no such address") as refused,
    ):
        client.runs()
    assert at in str(refused.value)
    with pytest.raises(UsageError, match="no such address"):
        list(observe("last", at=at, keys=ada))


def test_a_stranger_hears_no_event(shared: Elsewhere, place: Place, log: Log) -> None:
    with zmq.Context() as context:
        listening = [shared.socket(context, name, zmq.SUB) for name in ("ada", "mallory")]
        plain = context.socket(zmq.SUB)
        plain.linger = 0
        plain.connect(shared.address.events)
        for each in (*listening, plain):
            each.subscribe(b"")
        ada, mallory = listening
        assert ada.poll(PATIENCE_MS)
        shared.house.run(place.spec(tasks={"talk": {}}))
        while b"run.completed" not in ada.recv_multipart()[0]:
            assert ada.poll(PATIENCE_MS)
        log.wait("refused 127.0.0.1", read_public_key(shared.keys("mallory"), "client"))
        assert not mallory.poll(0) and not plain.poll(0)
        for each in (*listening, plain):
            each.close(0)


def test_who_may_only_watch_takes_no_event_from_the_others(
    elsewhere: Elsewhere, place: Place
) -> None:
    with (
        zmq.Context() as context,
        elsewhere.socket(context, "ada", zmq.SUB) as ada,
        elsewhere.socket(context, "eve", zmq.XSUB) as eve,
    ):
        ada.subscribe(b"ev.")
        eve.send(b"\x01hb.")
        assert eve.poll(PATIENCE_MS)
        elsewhere.house.run(place.spec(tasks={"greet": {}}))
        assert ada.poll(PATIENCE_MS)  # the gate asks the front for events
        # A message of hers, which begins as no subscription does; and one that ends ada's.
        for said in (b"\x02ev.", b"\x00ev."):
            eve.send(said)
            while eve.poll(0):
                eve.recv_multipart()
            eve.send(b"\x01hb.")  # is answered after what was said before it
            eve.send(b"\x00hb.")
            assert eve.poll(PATIENCE_MS)
            while ada.poll(0):
                ada.recv_multipart()
            elsewhere.house.run(place.spec(tasks={"greet": {}}))
            assert ada.poll(PATIENCE_MS), said


class Cli:
    """The command, in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch = patch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["casemate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    def json(self, *arguments: str) -> Any:
        code, out, err = self(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)


@pytest.fixture
def cli(
    shared: Elsewhere, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    """Of ada."""
    monkeypatch.setenv("CASEMATE_KEYS", str(shared.keys("ada")))
    return Cli(monkeypatch, capsys)


def test_the_commands_steer_by_address(shared: Elsewhere, place: Place, cli: Cli) -> None:
    at = ("--at", shared.at)
    run = cli.json("submit", str(place.path / "brief.yaml"), *at)["run"]
    with Client(state=shared.house.state) as client:
        wait_until(lambda: any(task.state == "completed" for task in client.show(run)[1]))
    assert cli.json("pause", run[:11], *at) == {"run": run}
    assert cli.json("checkpoint", run, *at)["checkpoint"] == "c1"
    assert cli.json("rollback", run, "c0", *at)["checkpoint"] == "c0"
    forked = cli.json("fork", run, "c0", *at)["run"]
    assert cli.json("resume", run, *at) == {"run": run}
    for each in (run, forked):
        assert cli("cancel", each, *at)[0] == 0
    followed = cli("events", run, "--follow", "--json", *at)[1].splitlines()
    assert json.loads(followed[-1])["kind"] == "run.cancelled"
    assert [json.loads(line)["seq"] for line in followed] == list(range(1, len(followed) + 1))


def test_the_commands_say_of_it_what_they_say_there(
    shared: Elsewhere, place: Place, cli: Cli
) -> None:
    at, here = ("--at", shared.at), ("--state", str(shared.house.state))
    # Of a run that has ended nothing changes between two questions.
    run = shared.house.run(place.spec(tasks={"greet": {}})).events[0].run
    for command in (
        ("show", run),
        ("checkpoints", run),
        ("events", run),
        ("output", run),
        ("output", run, "greet"),
        ("output", run, "nobody"),
    ):
        assert cli(*command, "--json", *at) == cli(*command, "--json", *here), command
    assert run in {each["id"] for each in cli.json("ps", *at)}
    for refused in (
        ("show", run, "--all"),
        ("output", run, "greet", "--artifact", "it"),
        ("pause", "zzzz"),
        ("ps", *here),
    ):
        code, out, err = cli(*refused, *at)
        assert (code, out) == (2, "") and err.startswith("casemate: "), refused


def test_the_commands_of_breakers_too(shared: Elsewhere, cli: Cli) -> None:
    at = ("--at", shared.at)
    assert cli.json("breaker", "open", "pipe", *at)["state"] == "open"
    assert "pipe" in {each["key"] for each in cli.json("breaker", "list", *at)}
    assert cli.json("breaker", "reset", "pipe", *at)["state"] == "closed"


# ------------------------------------------------------------------------------ what is refused


BAD = {
    "garbage": (b"\xc1\x00", ControlError.BAD_REQUEST, "not a request"),
    "nothing": (b"", ControlError.BAD_REQUEST, "not a request"),
    "deep": (b"\x91" * 100_000, ControlError.BAD_REQUEST, "not a request"),
    "of_an_old_version": (
        msgpack.encode({"version": 0, "id": 3, "verb": "pause", "run": "last"}),
        ControlError.BAD_REQUEST,
        "version 0: this casemate speaks version 1",
    ),
    "of_no_version": (
        msgpack.encode({"id": 3, "verb": "pause", "run": "last"}),
        ControlError.BAD_REQUEST,
        "version 0",
    ),
    "oversized": (
        msgpack.encode({"version": 1, "id": 3, "verb": "list", "x": "x" * REMOTE_REQUEST_SIZE}),
        ControlError.BAD_REQUEST,
        "bytes, of at most",
    ),
    "of_no_verb": (
        msgpack.encode({"version": 1, "id": 3, "verb": "erase"}),
        ControlError.BAD_REQUEST,
        "erase",
    ),
    "with_more_than_belongs_there": (
        msgpack.encode({"version": 1, "id": 3, "verb": "list", "more": 1}),
        ControlError.BAD_REQUEST,
        "more",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_request_that_is_none_is_refused_and_logged(
    what: str, shared: Elsewhere, log: Log
) -> None:
    body, kind, words = BAD[what]
    # With an empty part before it, so that an empty body is still a request.
    with zmq.Context() as context, shared.socket(context, "ada", zmq.REQ) as client:
        client.send(body)
        assert client.poll(PATIENCE_MS)
        error = msgpack.decode(client.recv(), type=Error).error
    assert (error.kind, words in error.message) == (kind, True), error
    log.wait("refused a request of ada (127.0.0.1)", words)
    assert shared.ask("ada", msgpack.encode(List(version=1, id=4)))["reply"] == "list"


def test_what_is_too_large_for_any_request_ends_its_connection_alone(shared: Elsewhere) -> None:
    with zmq.Context() as context, shared.socket(context, "ada") as client:
        events = client.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        client.send(b"x" * (CONTROL_REQUEST_SIZE + 1))
        assert events.poll(PATIENCE_MS)
        client.disable_monitor()
        events.close(0)
    assert shared.ask("ada", msgpack.encode(List(version=1, id=4)))["reply"] == "list"


def test_the_id_of_an_earlier_request_names_no_other(
    shared: Elsewhere, place: Place, log: Log
) -> None:
    live = shared.house.start(place.spec(tasks={"wait": {}}))
    live.wait("task.emitted")
    first = msgpack.encode(Pause(version=1, id="one", run=live.run))
    assert shared.ask("ada", first)["reply"] == "done"
    with shared.client("ada") as ada:
        ada.resume(live.run)
    # Said again, it is not done again.
    assert shared.ask("ada", first)["reply"] == "done"
    assert [event.kind for event in live.events].count("run.paused") == 1
    other = msgpack.encode(Pause(version=1, id="one", run=live.run, drain=True))
    assert "has named another request" in shared.ask("ada", other)["error"]["message"]
    log.wait("refused a request of ada", "has named another request")
    live.cancel()
    assert [event.kind for event in live.finish().events].count("run.paused") == 1


def test_what_a_client_asks_is_logged_up_to_a_bound_and_then_counted(
    elsewhere: Elsewhere, log: Log
) -> None:
    many = 1000
    with zmq.Context() as context, elsewhere.socket(context, "ada") as ada:
        for number in range(many):
            ada.send(msgpack.encode(Cancel(version=1, id=number, run="nobody", reason="")))
            while ada.poll(0):
                ada.recv()

        def told() -> tuple[int, int]:
            named = log.found("ada (127.0.0.1) asks: cancel nobody")
            counted = [int(line.split()[1]) for line in log.found("asked ", " more")]
            return len(named), sum(counted)

        wait_until(lambda: sum(told()) >= many)
    named, counted = told()
    assert named + counted == many and 100 <= named < many


def test_what_is_submitted_is_logged_by_its_name(shared: Elsewhere, log: Log) -> None:
    submit = Submit(version=1, id=1, submission="5ab" + "0" * 29, digest=b"0" * 32)
    shared.ask("ada", msgpack.encode(submit))
    log.wait("ada (127.0.0.1) asks: submit 5ab0000")


def test_a_recorded_conversation_says_nothing_when_it_is_played_again(
    shared: Elsewhere, place: Place, log: Log
) -> None:
    live = shared.house.start(place.spec(tasks={"wait": {}}))
    live.wait("task.emitted")
    with Recorder(shared.address) as recorder:
        address = Address("127.0.0.1", recorder.port)
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger = 0
            remote = Remote.of(shared.at, shared.keys("ada"))
            replace(remote, address=address).connect(client, address.control)
            client.send(msgpack.encode(Pause(version=1, id=1, run=live.run)))
            assert client.poll(PATIENCE_MS)
            assert msgpack.decode(client.recv())["reply"] == "done"
        said = bytes(recorder.said)
    with shared.client("ada") as ada:
        ada.resume(live.run)
    with socket.create_connection((shared.address.host, shared.address.port)) as again:
        again.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):
            again.sendall(said)
            while again.recv(4096):
                pass  # until it is hung up on
    log.wait("greeting was cut short or not made with our key")
    live.cancel()
    assert [event.kind for event in live.finish().events].count("run.paused") == 1


class Recorder:
    """Somebody on the way, who passes on and keeps what a client says."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.said = bytearray()
        self._thread = threading.Thread(target=self._pass_on)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)
        self._listener.close()

    def _pass_on(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection((self._address.host, self._address.port))
        back = threading.Thread(target=self._pump, args=(server, client, bytearray()))
        back.start()
        self._pump(client, server, self.said)
        back.join()
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                kept += data
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


# --------------------------------------------------------------------------- the list of clients


def test_the_list_counts_as_soon_as_it_changes(elsewhere: Elsewhere, log: Log) -> None:
    mallory = read_public_key(elsewhere.keys("mallory"), "client")
    with elsewhere.client("ada") as client:
        client.runs()
    let_in(elsewhere.folder, mallory=f'"{mallory}"')
    log.wait("1 clients from now on")
    with elsewhere.client("mallory") as client:
        client.runs()
    with elsewhere.client("ada") as client, pytest.raises(CasemateError, match="does not know"):
        client.runs()
    let_in(elsewhere.folder, ada=f'"{mallory}"', mallory=f'"{mallory}"')
    log.wait("the key is ada's as well", "the old keys stay in force")
    with elsewhere.client("mallory") as client:
        client.runs()


def test_who_is_struck_off_hears_nothing_more(elsewhere: Elsewhere, place: Place, log: Log) -> None:
    mallory = read_public_key(elsewhere.keys("mallory"), "client")
    live = elsewhere.house.start(place.spec(tasks={"wait": {}}))
    with zmq.Context() as context, elsewhere.socket(context, "eve", zmq.SUB) as eve:
        eve.subscribe(b"")
        assert eve.poll(PATIENCE_MS)
        let_in(elsewhere.folder, mallory=f'"{mallory}"')
        log.wait("1 clients from now on")
        log.wait("refused", elsewhere.names["eve"])
        while eve.poll(0):  # what was on its way
            eve.recv_multipart()
        live.wait("task.emitted")
        live.cancel()
        live.finish()
        with elsewhere.client("mallory") as client:
            events = list(client.events(live.run))
        assert events[-1].kind == "run.cancelled"
        assert not eve.poll(0)


def test_a_gate_that_dies_is_followed_by_another_and_observers_miss_nothing(
    elsewhere: Elsewhere, place: Place, log: Log
) -> None:
    live = elsewhere.house.start(place.path / "story.yaml")
    seen = []
    with elsewhere.client("ada") as client:
        for event in client.events(live.run):
            seen.append(event)
            if event.seq in (20, 100):
                wait_until(lambda: elsewhere.gate.pid is not None)
                os.kill(elsewhere.gate.pid, signal.SIGKILL)
                log.wait("the gate died", count=1 if event.seq == 20 else 2)
            if event.task == "wait" and event.kind == "task.emitted":
                client.cancel(live.run)
    assert compared(seen) == compared(live.finish().events)


# ------------------------------------------------------------------------------ its own walls


def listening(pid: int) -> set[int]:
    """The tcp ports that anything below `pid` listens at."""
    ports = set()
    for each in descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in psutil.Process(each).net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    ports.add(connection.laddr.port)
    return ports


def test_nothing_listens_on_tcp_unless_an_address_is_named(
    house: Embedded, shared: Elsewhere
) -> None:
    gate = {shared.address.port, shared.address.port + 1}
    assert listening(house.engine) == set() == listening(shared.house.engine)
    assert listening(os.getpid()) == gate


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda keys: (keys / "server.key").unlink(), "`casemate keys server"),
        (lambda keys: (keys / "clients.toml").unlink(), "nobody would be let in"),
        (lambda keys: (keys / "server.key").chmod(0o644), "chmod 600"),
        (lambda keys: (keys / "clients.toml").chmod(0o666), "chmod go-w"),
        (lambda keys: None, "Address already in use"),
    ],
    ids=["no_key", "no_list", "key_is_open", "list_is_open", "address_is_taken"],
)
def test_without_keys_of_its_own_or_an_address_it_does_not_begin(
    spoil: Callable[[Path], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    make_keys(keys, "server")
    spoil(keys)
    monkeypatch.setenv("CASEMATE_KEYS", str(keys))
    address = free_ports()
    with socket.create_server((address.host, address.port)):
        before = set(descendants(os.getpid()))
        with (
            pytest.raises(UsageError, match=re.escape(words)),
            Embedded(tmp_path / "s", listen=str(address)),
        ):
            pass
        wait_until(lambda: set(descendants(os.getpid())) <= before)


def test_a_gate_holds_no_secret_but_its_key_and_is_capped(
    shared: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = psutil.Process(shared.gate.pid)
    assert set(gate.environ()) <= {"PATH", "LANG", "LD_LIBRARY_PATH", "LC_CTYPE"}
    assert gate.open_files() == [] and gate.children() == []
    assert gate.rlimit(psutil.RLIMIT_NOFILE)[1] <= 512


# ------------------------------------------------------------------------------ hostile strangers


@pytest.mark.parametrize("attack", BY_STRANGERS.values(), ids=BY_STRANGERS)
def test_what_strangers_do_to_the_gate_nobody_on_this_host_notices(
    attack: Callable[[Target, Where], None], shared: Elsewhere, place: Place
) -> None:
    live = shared.house.start(place.spec(tasks={"wait": {}}))
    live.wait("task.emitted")
    state = StateDirectory(shared.house.state)
    [before] = state.living_supervisors()
    host, port = shared.address.host, shared.address.port
    with zmq.Context() as context, contextlib.ExitStack() as kept:
        target = Target((host, port + 1), (host, port), live.run, context, kept)
        for where in (target.events, target.control):
            attack(target, where)
        with Client(state=state.path) as client:
            client.pause(live.run)
            client.resume(live.run)
        [after] = state.living_supervisors()
        assert after.epoch == before.epoch
    with shared.client("ada") as ada:
        ada.cancel(live.run)
        assert list(ada.events(live.run))[-1].kind == "run.cancelled"
    live.finish()
