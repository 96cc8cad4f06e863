"""What casemate says of itself: nothing unasked, facts as JSON on request, never a task's words."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from casemate import UsageError
from casemate.supervisor import logs
from casemate.supervisor.config import load_config
from fakes import PATIENCE, wait_until
from runs import Embedded, Place, descendants

LOUD = 'def loud(input, ctx):\n    print("the task says")\n    raise ValueError("the task fails")\n'


def child(engine: int, word: bytes) -> int:
    [pid] = [p for p in descendants(engine) if word in Path(f"/proc/{p}/cmdline").read_bytes()]
    return pid


def run_and_hurt(state: Path, place: Place, log: str | None) -> str:
    """A run with its front killed meanwhile; its id."""
    place.tasks(LOUD)
    with Embedded(state, config=load_config(state=state, log=log)) as house:
        front = child(house.engine, b"front")
        os.kill(front, signal.SIGKILL)
        wait_until(lambda: front not in descendants(house.engine))
        return house.run(place.spec(tasks={"loud": {}})).run


def test_unasked_nothing_is_said(
    tmp_path: Path, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    run_and_hurt(tmp_path / "state", place, None)
    assert capfd.readouterr() == ("", "")


def test_asked_each_fact_is_a_line_of_json(
    tmp_path: Path, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_and_hurt(tmp_path / "state", place, "json")
    out, err = capfd.readouterr()
    lines: list[dict[str, Any]] = [json.loads(line) for line in err.splitlines()]
    assert out == "" and "the task" not in err
    assert {tuple(line)[:5] for line in lines} == {("at", "level", "logger", "pid", "message")}
    told = {(line["logger"], line["level"], line.get("run")) for line in lines}
    assert ("casemate.engine", "info", run) in told
    assert ("casemate.front", "warning", None) in told
    of_run = [line["message"] for line in lines if line.get("run") == run]
    assert [message.split(": ")[1].split()[0] for message in of_run] == ["begun,", "let"]


def test_a_configuration_that_names_no_kind_of_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--log: expected off, warnings, text or json"):
        load_config(state=tmp_path, log="loud")


@pytest.fixture
def own_logger() -> Any:
    logger = logging.getLogger("casemate")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield logger
    logger.handlers, logger.level, logger.propagate = before


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("off", []),
        ("warnings", ["casemate: it is \\x1b[2Jbroken"]),
        ("text", ["info casemate.x: it goes on", "warning casemate.x: it is \\x1b[2Jbroken"]),
    ],
)
def test_words_are_for_people_and_do_nothing_to_a_terminal(
    log: str,
    expected: list[str],
    own_logger: logging.Logger,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for kind in ("text", log):  # the second replaces the first
        logs.set_up(kind)
    told = logging.getLogger("casemate.x")
    told.info("it goes %s", "on")
    told.warning("it is \x1b[2Jbroken")
    logs.set_up("off")  # all is written
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(" ")[2] if log == "text" else line for line in lines] == expected


def test_json_has_what_was_given_beside_the_words_and_the_exception(
    own_logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("json")
    try:
        raise OSError("no\ndisk")
    except OSError:
        logging.getLogger("casemate.x").exception("it failed", extra={"run": "r", "odd": {1}})
    logs.set_up("off")
    [line] = capfd.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["level"], told["message"], told["run"], told["odd"]) == (
        "error", "it failed", "r", "{1}",
    )  # fmt: skip
    assert "OSError: no\ndisk" in told["exception"]


SAYS_MUCH = """
import logging, sys
from casemate.supervisor import logs
logs.set_up("json")
for n in range(5000):
    logging.getLogger("casemate.x").info("line %d", n)
print("said", flush=True)
sys.stdin.readline()
logging.getLogger("casemate.x").info("the last")
"""


def test_a_reader_that_stands_still_holds_up_nobody_and_is_told_what_was_left_out() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SAYS_MUCH],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.readline() == "said\n"
        process.stdin.close()
        lines = [json.loads(line)["message"] for line in process.stderr]
        assert process.wait(PATIENCE) == 0
    [told] = [line for line in lines if "left out" in line]
    kept, left_out = lines.index(told), int(told.split()[0])
    assert lines[:kept] == [f"line {n}" for n in range(kept)] and kept >= 1000
    assert left_out + len(lines) - 1 == 5001


def test_a_reader_that_never_reads_holds_up_no_end() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SAYS_MUCH],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.wait(PATIENCE) == 0
