"""Every code block of the README does what it says: run as a stranger would run it.

A block is run by the language it is marked with; one in a language that nobody runs here fails. Of
a console each command is run, and what the README shows under it is looked for in what it printed,
as is a text block in what the console before it prints. Numbers, and names that differ from run to
run, count as equal; a line with an ellipsis stands for any number of lines.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from casemate import Client
from casemate.protocol.reference import json_schema
from casemate.supervisor.keys import read_clients
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE
from runs import Embedded, Place, free_ports

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]
DEMO = "examples/review/pipeline.yaml"
EQUALS = "=" * 23  # as many as fill the line


class Block(NamedTuple):
    line: int
    language: str
    text: str


class Step(NamedTuple):
    """A command of a console: where it is given, and what is shown under it."""

    where: str
    command: list[str]
    shown: list[str]


BLOCKS = [
    Block(README.count("\n", 0, found.start()) + 1, found[1], found[2])
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
]


def of(language: str) -> pytest.MarkDecorator:
    found = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", found, ids=[f"line {block.line}" for block in found])


def steps(block: Block) -> Iterator[Step]:
    for part in re.split(r"^(?=\w*\$ )", block.text, flags=re.MULTILINE):
        if part:
            line, *shown = part.splitlines()
            where, _, command = line.partition("$ ")
            yield Step(where, shlex.split(command, comments=True), shown)


def alike(line: str) -> str:
    """What two runs have in common of a line that both print."""
    line = re.sub(r"\b1m[0-9a-z]{10}\b|casemate-\w+", "NAME", line)
    line = re.sub(r'("most complex": )".*"', r"\1…", line)  # depends on Python's own sources
    line = re.sub(r"\d+(\.\d+)?", "0", line)
    return re.sub(r"[\s─]+", " ", line).strip()


def check_shown(shown: Iterable[str], printed: str) -> None:
    known = {alike(line) for line in printed.splitlines()}
    missing = [line for line in shown if line.strip() != "…" and alike(line) not in known]
    assert not missing, f"{missing} is not in\n{printed}"


class Stranger:
    """Somebody who has nothing yet; the folders of others are named by their prompt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def environment(self, where: str = "") -> dict[str, str]:
        home = self.folder / (where or "home")
        home.mkdir(exist_ok=True)
        own = {"HOME": home, "XDG_CONFIG_HOME": home / ".config", "CASEMATE_STATE": self.state}
        return os.environ | {name: str(path) for name, path in own.items()}

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def run(self, *command: str, where: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment(where),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=110,
        )

    def printed(self, *command: str, where: str = "") -> str:
        done = self.run(*command, where=where)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def stranger(tmp_path: Path) -> Stranger:
    return Stranger(tmp_path)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stranger, str]:
    """Who ran the demo, and what was printed. The attempts after the one that hangs on purpose get
    more time than the demo has patience for: this machine may be busy with other tests."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree((ROOT / DEMO).parent, folder / "review")
    file = folder / "review/pipeline.yaml"
    file.write_text(file.read_text().replace("wall: 3s", "wall: 9s"))
    stranger = Stranger(folder)
    return stranger, stranger.printed(*CASEMATE, "run", str(file))


def test_there_is_no_block_that_nobody_runs() -> None:
    assert {block.language for block in BLOCKS} == {
        "console", "json", "python", "text", "toml", "yaml",
    }  # fmt: skip


@of("python")
def test_python_runs(block: Block, stranger: Stranger, tmp_path: Path) -> None:
    file = tmp_path / "block.py"
    if "observe(" in block.text:  # somebody else's run
        file.write_text(next(each.text for each in BLOCKS if each.language == "python"))
        stranger.printed(sys.executable, str(file))
    file.write_text(block.text, encoding="utf-8")
    printed = stranger.printed(sys.executable, str(file))
    assert "hello world" in printed or "run.completed" in printed


@of("yaml")
def test_pipelines_are_sound(block: Block, stranger: Stranger, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    names = set(re.findall(r"agents\.py:(\w+)", block.text))
    (tmp_path / "agents.py").write_text("".join(f"def {name}(): ...\n" for name in names))
    (tmp_path / "pipeline.yaml").write_text(block.text, encoding="utf-8")
    assert "sound" in stranger.printed(*CASEMATE, "validate", str(tmp_path / "pipeline.yaml"))


@of("json")
def test_an_event_is_as_the_schema_has_it(block: Block) -> None:
    jsonschema.validate(json.loads(block.text.replace("1m85…", "1m8kf5g8z66f")), json_schema())


@of("toml")
def test_a_list_of_clients_is_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "clients.toml").write_text(block.text, encoding="utf-8")
    assert {each.name: each.may for each in read_clients(tmp_path)} == {
        "ada": "steer", "wall": "watch",
    }  # fmt: skip


# ---- consoles


def made(target: str, stranger: Stranger, request: pytest.FixtureRequest) -> str:
    """What `make TARGET` prints. The demo's command is run; the suite, that this is part of, is
    not: it prints a line for each of its commands."""
    commands = stranger.printed("make", "-n", target)
    if target == "demo":
        assert f"casemate run {DEMO}" in commands
        printed: str = request.getfixturevalue("demo")[1]
        return printed
    assert target == "test"
    said = {
        "ruff check": "All checks passed!",
        "mypy": "Success: no issues found in 0 source files",
        "pytest": f"{EQUALS} 0 passed in 0s (0:00:00) {EQUALS}",
    }
    return "\n".join(says for command, says in said.items() if command in commands)


def listening(stranger: Stranger, where: str, arguments: list[str]) -> None:
    """`casemate serve` at an address of this host, until it says that it serves there."""
    address = str(free_ports())
    arguments = [re.sub(r"[\d.]+:\d+", address, each) for each in arguments]
    serving = subprocess.Popen(
        [*CASEMATE, *arguments], env=stranger.environment(where), stdout=subprocess.PIPE, text=True
    )
    assert serving.stdout is not None
    try:
        assert serving.stdout.readline().rstrip().endswith(address)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(PATIENCE) == 0
    finally:
        serving.kill()
        serving.communicate()


def copied(stranger: Stranger, where: str, source: str, target: str) -> None:
    other, _, path = source.partition(":")
    own = stranger.folder / where / target.removeprefix("~/")
    shutil.copy(stranger.folder / other / path, own)
    assert (own / Path(path).name).read_text() == (stranger.folder / other / path).read_text()


TASKS = {"docs": {"command": ["sleep", "3600"]}} | {
    name: {"command": ["true"]} for name in ("inventory", "lint", "test")
}
REPORT = {"report": {"command": ["true"], "needs": ["docs", "inventory", "lint", "test"]}}
HUNG = {"timeouts": {"wall": "300ms"},
        "retry": {"attempts": 3, "delay": "40s", "jitter": 0.1, "on": ["timeout"]}}  # fmt: skip


@pytest.fixture
def reviews(stranger: Stranger, place: Place) -> Iterator[Any]:
    """Makes `last` a review whose docs hung and are to be tried again, or that still run."""
    with Embedded(stranger.state) as house:

        def begin(*, hung: bool) -> None:
            docs: dict[str, Any] = TASKS["docs"] | (HUNG if hung else {})
            spec = place.spec(name="review", tasks=TASKS | REPORT | {"docs": docs})
            time.sleep(0.002)  # a run's id has its millisecond
            live = house.start(spec)
            live.wait("task.retrying" if hung else "task.started", "docs")
            live.wait("task.completed", count=3)

        yield begin


@of("console")
def test_a_console_prints_what_is_shown(
    block: Block, stranger: Stranger, reviews: Any, request: pytest.FixtureRequest
) -> None:
    for step in steps(block):
        match step.command:
            case ["make", target]:
                made(target, stranger, request)
                continue
            case ["scp", source, target]:
                copied(stranger, step.where, source, target)
                continue
            case ["casemate", "serve", *arguments]:
                listening(stranger, step.where, ["serve", *arguments])
                continue
            case ["casemate", "breaker", "list"]:
                StateDirectory.open(stranger.state)
                with Client(state=stranger.state) as client:
                    client.open_breaker("model-api", "60s")
            case ["casemate", "show", "last", "--why", task]:
                reviews(hung=task == "docs")
            case ["casemate", *_]:
                pass
            case other:
                raise AssertionError(f"nobody runs {other}")
        printed = stranger.printed(*CASEMATE, *step.command[1:], where=step.where)
        # How much it used is told where it was measured, in units of its size.
        check_shown([line for line in step.shown if "It had used" not in line], printed)


@pytest.mark.parametrize(
    ("console", "text"),
    [pair for pair in itertools.pairwise(BLOCKS) if pair[1].language == "text"],
    ids=lambda block: f"line {block.line}",
)
def test_text_is_what_the_console_before_it_prints(
    console: Block, text: Block, stranger: Stranger, request: pytest.FixtureRequest
) -> None:
    [step] = steps(console)
    printed = made(step.command[1], stranger, request)
    check_shown([re.sub("={9,}", EQUALS, line) for line in text.text.splitlines()], printed)


def test_the_demo_kills_the_task_that_hangs_tries_it_again_and_completes(
    demo: tuple[Stranger, str],
) -> None:
    printed = demo[0].printed(*CASEMATE, "events", "last", "--json")
    events = [json.loads(line) for line in printed.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    hung = [event for event in events if event["task"] == "docs" and event["attempt"] == 1]
    assert hung[-1]["kind"] == "task.retrying"
    assert hung[-1]["data"]["error"]["kind"] == "timeout.wall"
    assert events[-1]["kind"] == "run.completed"
    assert events[-1]["data"]["outputs"]["report"]["tests"] == "passed"
    emitted = [event for event in events if event["kind"] == "task.emitted"]
    first_completed = next(e["seq"] for e in events if e["kind"] == "task.completed")
    assert emitted[0]["seq"] < first_completed, "items come while tasks run"
