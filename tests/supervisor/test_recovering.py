"""What is done about failures, with real processes: outputs validated, errors recovered from, and
what cleans up. Every check has a sandbox of its own that is given one value and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from casemate import RecoveryAction
from casemate.protocol import codec
from casemate.supervisor.builder import Pipeline, Task
from casemate.supervisor.config import load_config
from runs import Embedded, History, Place
from verifier import assert_true_story

TASKS = """
import os, sys, time
from casemate import RecoveryAction, ValidationResult

def number(input, ctx):
    return {"n": ctx.attempt}

def large(input):
    return "x" * 3_000_000

def boom(input):
    raise ValueError("no")

def cheap(input, ctx):
    return {"by": "cheap", "input": input, "attempt": ctx.attempt}

def is_second(output):
    print("looking at", output)
    return ValidationResult(output["n"] >= 2, [f"n is {output['n']}", "and no more"])

def is_long(output):
    return len(output) == 3_000_000

async def is_second_later(output):
    return output["n"] >= 2

def alone(output):
    seen = {"cwd": os.getcwd(), "workspace": os.path.exists("/workspace/file")}
    seen |= {name: os.environ.get(name) for name in ("OPEN", "SECRET")}
    return ValidationResult(False, [repr(seen)])

def hang(given):
    time.sleep(3600)

def crash(given):
    os.abort()

def nonsense(given):
    return "yes"

def use_fallback(error):
    assert (error.kind, error.message, error.type) == ("error", "no", "ValueError")
    assert "in boom" in error.traceback
    return RecoveryAction.fallback("cheap")

def skip(error):
    return RecoveryAction.skip({"instead": error.message, "large": "x" * 3_000_000})

def undeclared(error):
    return RecoveryAction.fallback("dear")

def again(error):
    return RecoveryAction.retry(0)

def back(error):
    return RecoveryAction.rollback("first")

def speak(given):
    from casemate.sandbox import guest
    import gc
    from casemate.sandbox.guestlink import Link
    from casemate.protocol.messages import Emit
    from msgspec import Raw
    [link] = [each for each in gc.get_objects() if isinstance(each, Link)]
    link.send(Emit(Raw(b"\\xc0")))
    return True

class Busy(Exception):
    retry_after = 0.05

def busy(input, ctx):
    if ctx.attempt == 1:
        raise Busy("later")

def first(input, ctx):
    return ctx.attempt

def second(input):
    if input["first"] < 2:
        raise RuntimeError("on what the first one did")
    return input["first"]

def sleep(input, ctx):
    ctx.emit("here")
    time.sleep(3600)

def clean(input):
    return input
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "pipeline")
    place.tasks(TASKS)
    return place


def ran(house: Embedded, place: Place, **tasks: dict[str, Any]) -> History:
    history = house.run(place.spec(tasks=tasks))
    assert_true_story(house.state, history.run, has_ended=True)
    return history


FUNCTIONS = {"execute": "tasks.py:number", "retry": {"attempts": 3, "delay": 0}}


@pytest.mark.parametrize("check", ["is_second", "is_second_later"])
def test_an_output_that_is_not_valid_is_tried_again(
    house: Embedded, place: Place, check: str
) -> None:
    history = ran(house, place, a={**FUNCTIONS, "validate": f"tasks.py:{check}"})
    error = history.one("task.retrying").data["error"]
    assert error["kind"] == "invalid_output"
    if check == "is_second":
        assert error["reasons"] == ["n is 1", "and no more"]
        assert error["message"] == "n is 1; and no more"
        assert "looking at {'n': 1}" in history.text("a", "stdout")
    assert history.output("a") == {"n": 2}


def test_a_schema_is_held_against_the_output(house: Embedded, place: Place) -> None:
    schema = {"properties": {"n": {"minimum": 2}, "m": {"type": "string"}}, "required": ["m"]}
    history = ran(
        house,
        place,
        good={"execute": "tasks.py:number", "output_schema": {"type": "object"}},
        bad={"execute": "tasks.py:number", "output_schema": schema},
        none={"execute": "tasks.py:number", "output_schema": {"type": "nothing"}},
        both={**FUNCTIONS, "output_schema": {"type": "object"}, "validate": "tasks.py:is_second"},
    )
    assert history.output("good") == {"n": 1}
    assert history.output("both") == {"n": 2}
    assert history.error("bad")["reasons"] == [
        "output.n: 1 is less than the minimum of 2",
        "output: 'm' is a required property",
    ]
    assert history.error("none")["kind"] == "invalid_output"
    assert "output_schema.type: 'nothing' is not valid" in history.error("none")["message"]


def test_a_schema_is_whole_and_nothing_is_fetched_for_it(house: Embedded, place: Place) -> None:
    place.write("schema.json", '{"type": "string"}')
    history = ran(
        house,
        place,
        file={
            "execute": "tasks.py:number",
            "sources": ["schema.json"],
            "output_schema": {"$ref": "file:///sources/schema.json"},
        },
        draft={
            "execute": "tasks.py:number",
            "output_schema": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        },
    )
    told = "output_schema: file:///sources/schema.json is not in it, and is not fetched"
    assert history.error("file")["message"] == f"its validation gave no answer: error: {told}"
    assert history.output("draft") == {"n": 1}


def test_a_large_output_is_validated_as_well(house: Embedded, place: Place) -> None:
    history = ran(house, place, large={"validate": "tasks.py:is_long"})
    assert len(history.output("large")) == 3_000_000


def test_a_check_sees_its_value_and_nothing_else(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write("work/file", "")
    task = {
        "execute": "tasks.py:number",
        "validate": "tasks.py:alone",
        "env": {"OPEN": "1", "SECRET": None},
    }
    monkeypatch.setenv("SECRET", "s3cret")
    config = load_config(state=tmp_path / "state", allow=["env:SECRET"])
    with Embedded(tmp_path / "state", config=config) as house:
        spec = place.spec(tasks={"a": task}, workspace="work", allow=config.allow)
        history = house.run(spec)
    [seen] = history.error("a")["reasons"]
    assert seen == "{'cwd': '/tmp', 'workspace': False, 'OPEN': '1', 'SECRET': None}"


@pytest.mark.parametrize(
    ("check", "why"),
    [
        ("boom", "error: ValueError: no"),
        ("crash", "crash: the process was killed by SIGABRT"),
        ("hang", "timeout.wall: ran longer than 2 s"),
        ("nonsense", "error: validate returned str; it returns a ValidationResult(ok, reasons)"),
        ("speak", "protocol: Emit of a validate"),
        ("gone", "error: tasks.py has no 'gone'"),
    ],
)
def test_a_validation_that_gives_no_answer_leaves_the_output_invalid(
    house: Embedded, place: Place, check: str, why: str
) -> None:
    task = {
        "execute": "tasks.py:number", "validate": f"tasks.py:{check}", "timeouts": {"wall": 2},
    }  # fmt: skip
    history = ran(house, place, a=task)
    error = history.error("a")
    assert error["kind"] == "invalid_output"
    assert error["message"].startswith(f"its validation gave no answer: {why}")
    assert not history.of("task.emitted")


def test_a_recover_is_given_the_error_and_names_a_fallback(house: Embedded, place: Place) -> None:
    history = ran(
        house,
        place,
        boom={
            "recover": "tasks.py:use_fallback",
            "fallbacks": {"cheap": "tasks.py:cheap", "never": ["false"]},
        },
    )
    recovered = history.one("task.recovered").data
    assert (recovered["action"], recovered["to"]) == ("fallback", "cheap")
    assert recovered["error"]["kind"] == "error"
    assert history.output("boom") == {"by": "cheap", "input": None, "attempt": 2}


def test_a_recover_may_skip_with_an_output_however_large(house: Embedded, place: Place) -> None:
    history = ran(
        house, place, boom={"recover": "tasks.py:skip"}, clean={"needs": ["boom"]}
    )  # fmt: skip
    skipped = history.one("task.skipped").data
    assert skipped["error"]["message"] == "no"
    assert skipped["output"]["instead"] == "no"
    assert history.output("clean") == {"boom": skipped["output"]}
    assert history.outcome == "run.completed"


@pytest.mark.parametrize(
    ("check", "why"),
    [
        ("boom", "recover gave no answer: error: ValueError: no"),
        ("crash", "recover gave no answer: crash: the process was killed by SIGABRT"),
        ("hang", "recover gave no answer: timeout.wall: ran longer than 2 s"),
        ("nonsense", "recover gave no answer: error: recover returned str; it returns a Recovery"),
        ("speak", "recover gave no answer: protocol: Emit of a recover"),
        ("undeclared", "recover gave no answer that can be: it asked for the fallback 'dear'"),
    ],
)
def test_a_recover_that_fails_hangs_or_lies_counts_as_no_answer_and_that_is_said(
    house: Embedded, place: Place, check: str, why: str
) -> None:
    history = ran(
        house,
        place,
        a={
            "execute": "tasks.py:boom",
            "recover": f"tasks.py:{check}",
            "retry": {"attempts": 2, "delay": 0},
            "timeouts": {"wall": 2},
        },
    )
    for error in (history.one("task.retrying").data["error"], history.error("a")):
        assert error["kind"] == "error"
        assert error["message"].startswith(f"no; {why}")


def test_a_run_in_which_tasks_are_retried_for_ever_ends_with_its_budget(
    house: Embedded, place: Place
) -> None:
    tasks = {"boom": {"recover": "tasks.py:again"}}
    history = house.run(place.spec(tasks=tasks, retry_budget=4))
    assert len(history.of("task.started", "boom")) == 5
    assert history.error("boom")["message"] == (
        "no; recover: the run's retry_budget of 4 is used up"
    )


def test_a_rollback_does_the_upstream_task_again_and_is_bounded(
    house: Embedded, place: Place
) -> None:
    history = ran(
        house, place, first={}, second={"needs": ["first"], "recover": "tasks.py:back"}
    )  # fmt: skip
    assert history.one("run.rolled_back").data["before"] == "first"
    assert [e.data["output"] for e in history.of("task.completed", "first")] == [1, 2]
    assert history.output("second") == 2
    rules = [{"on": "error", "do": "rollback", "to": "first"}]
    tasks = {"first": {}, "boom": {"needs": ["first"], "recover": rules}}
    bounded = house.run(place.spec(tasks=tasks))
    assert len(bounded.of("run.rolled_back")) == 3
    assert bounded.error("boom")["message"] == (
        "no; recover: the run's rollback_budget of 3 is used up"
    )


def test_an_exception_says_how_long_to_wait(house: Embedded, place: Place) -> None:
    history = ran(house, place, busy={"retry": {"attempts": 2, "delay": 0, "jitter": 0}})
    retrying = history.one("task.retrying").data
    assert (retrying["delay"], retrying["error"]["retry_after"]) == (0.05, 0.05)


def test_what_cleans_up_runs_after_a_failure_and_after_a_cancel(
    house: Embedded, place: Place
) -> None:
    clean = {"needs": ["first", "boom"], "always": True}
    history = ran(house, place, first={}, boom={}, clean=clean)
    assert history.outcome == "run.failed"
    assert history.output("clean") == {"first": 1}
    tasks: dict[str, Any] = {"sleep": {}, "clean": {"needs": ["sleep"], "always": True}}
    live = house.start(place.spec(tasks=tasks))
    live.wait("task.emitted")
    live.cancel()
    cancelled = live.finish()
    assert cancelled.outcome == "run.cancelled"
    assert cancelled.output("clean") == {}


def test_a_second_cancel_ends_what_cleans_up_too(house: Embedded, place: Place) -> None:
    tasks: dict[str, Any] = {
        "sleep": {},
        "clean": {"execute": "tasks.py:sleep", "needs": ["sleep"], "always": True},
    }
    live = house.start(place.spec(tasks=tasks))
    live.wait("task.emitted", "sleep")
    live.cancel()
    live.wait("task.emitted", "clean")
    live.cancel()
    assert live.finish().errors() == {"sleep": "cancelled", "clean": "cancelled"}


def test_the_builder_says_the_same(house: Embedded, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("def other(input):\n    return 'other'\n")
    pipeline = Pipeline("built", root=tmp_path)
    wanted = os.urandom(4)  # a closure: these functions go by pickle

    def boom(input: Any) -> Any:
        raise ValueError("no")

    def check(output: Any) -> bool:
        return bool(output == wanted)

    def recover(error: Any) -> RecoveryAction:
        return RecoveryAction.fallback("good" if error.kind == "invalid_output" else "bad")

    pipeline.add_task(
        Task(
            "a",
            boom,
            validate=check,
            recover=recover,
            fallbacks={"bad": "other.py:other", "good": lambda: wanted},
            output_schema={"not": {"type": "null"}},
        )
    )
    pipeline.add_task(Task("b", command=["true"], needs=["a"], always=True))
    history = house.run(pipeline)
    assert history.output("a") == codec.decode_value(codec.encode_value(wanted))
    assert [e.data["to"] for e in history.of("task.recovered")] == ["bad", "good"]
    assert history.outcome == "run.completed"
