"""Embedding: the Supervisor, its cursors, the synchronous shortcut, and what is left afterwards."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from casemate import CasemateError, Client, Pipeline, SetupRefused, Supervisor, Task, UsageError
from casemate.sandbox.cgroup import FOLDER
from casemate.supervisor.config import load_config
from casemate.supervisor.cursor import PipelineEvent, RunResult, collect
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE
from runs import Embedded, History, Place, descendants, is_alive, traces

HANG = "import time\ndef hang(input, ctx):\n    ctx.emit(1)\n    time.sleep(3600)\n"


# --- runs and readers -----------------------------------------------------------------------------


def test_dropping_the_iterator_does_not_stop_the_run(house: Embedded, place: Place) -> None:
    place.tasks("""
        import time
        def a(input, ctx):
            ctx.emit(1)
            time.sleep(0.2)
            return "done"
        """)
    spec = place.spec(tasks={"a": {}})

    async def story() -> list[PipelineEvent]:
        async with aclosing(house.supervisor.execute(spec)) as events:  # type: ignore[type-var]
            async for event in events:
                if event.kind == "task.emitted":
                    break
        assert event.kind == "task.emitted"
        return [each async for each in house.supervisor.events(event.run)]

    history = History(house.call(story())).check_laws()
    assert history.output("a") == "done"


def test_a_cancelled_reader_leaves_the_run_alone(house: Embedded, place: Place) -> None:
    place.tasks(HANG)
    live = house.start(place.spec(tasks={"hang": {}}))
    live.wait("task.emitted")

    async def impatient() -> None:
        async with asyncio.timeout(0.05):
            async for _ in house.supervisor.events(live.run):
                pass

    with pytest.raises(TimeoutError):
        house.call(impatient())
    live.cancel()
    assert live.finish().outcome == "run.cancelled"


def test_two_supervisors_in_one_process_share_a_state_directory(
    tmp_path: Path, place: Place
) -> None:
    place.tasks("def a(input, ctx): return ctx.run_id\n")
    spec = place.spec(tasks={"a": {}})
    with Embedded(tmp_path / "state") as one, Embedded(tmp_path / "state") as two:
        lives = [each.start(spec) for each in (one, two, one, two)]
        assert [live.finish().output("a") for live in lives] == [live.run for live in lives]
        assert len(list(StateDirectory(tmp_path / "state").living_supervisors())) == 2
    assert os.listdir(tmp_path / "state" / "supervisors") == []
    assert sorted(os.listdir(tmp_path / "state" / "runs")) == sorted(live.run for live in lives)


def test_leaving_kills_what_runs_and_keeps_what_was_said(tmp_path: Path, place: Place) -> None:
    place.tasks(HANG)
    with Embedded(tmp_path / "state") as house:
        live = house.start(place.spec(tasks={"hang": {}}))
        pid = live.wait("task.started").data["pid"]
        live.wait("task.emitted")
        engine = house.engine
    assert not is_alive(pid)
    assert not is_alive(engine)
    with pytest.raises(CasemateError, match="interrupted"):
        live.finish()
    with JournalReader(StateDirectory(tmp_path / "state").run(live.run)) as reader:
        kinds = [event.kind for event in reader.events()]
    assert kinds[:5] == [
        "run.started",
        "checkpoint.created",
        "task.ready",
        "task.started",
        "task.emitted",
    ]
    assert not StateDirectory(tmp_path / "state").run(live.run).is_owned()


def test_what_is_unknown_or_over_is_refused(house: Embedded, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        house.call(house.supervisor.cancel("nowhere"))
    supervisor = Supervisor(state=tmp_path / "state")
    with pytest.raises(CasemateError, match="async with"):
        asyncio.run(supervisor.cancel("a"))


def test_a_run_stays_over_where_going_back_was_refused(house: Embedded, place: Place) -> None:
    place.tasks("def a(input): return 1\n")
    history = house.run(place.spec(tasks={"a": {}}))
    with pytest.raises(UsageError, match="c99"):
        house.call(house.supervisor.rollback(history.run, "c99"))

    async def events() -> list[PipelineEvent]:
        async with asyncio.timeout(PATIENCE):
            return [each async for each in house.supervisor.events(history.run)]

    assert house.call(events())[-1].kind == "run.completed"


def test_of_two_who_go_back_at_once_neither_waits_for_the_runs_end(
    house: Embedded, place: Place
) -> None:
    """The first has taken it over and looks at its workspace while the second comes."""
    place.tasks("""
        import time
        def a(input, ctx):
            if ctx.attempt > 1:
                time.sleep(3600)
        """)
    (place.path / "repo").mkdir(exist_ok=True)
    for n in range(300):
        place.write(f"repo/{n}", "")
    spec = place.spec(tasks={"a": {}}, workspace="repo", defaults={"timeouts": {"wall": "2h"}})
    history = house.run(spec)

    async def both() -> None:
        back = (house.supervisor.rollback(history.run, before="a") for _ in range(2))
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*back)

    house.call(both())
    house.call(house.supervisor.cancel(history.run))


def test_what_the_program_makes_of_a_submission_is_its_own_affair(
    tmp_path: Path, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(run: str) -> None:
        raise ZeroDivisionError(run)

    place.tasks("def a(input): return 1\n")
    file = place.write("a.yaml", 'name: a\ntasks: {a: {execute: "tasks.py:a"}}\n')
    with (
        Embedded(tmp_path / "state", on_submitted=fails) as house,
        Client(state=house.state) as client,
    ):
        run = client.submit(file)
        assert [event.kind for event in client.events(run)][-1] == "run.completed"
    assert "ZeroDivisionError" in caplog.text


def test_a_state_directory_that_cannot_be_is_refused_at_the_door(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def enter() -> None:
        async with Supervisor(state=tmp_path / "file"):
            raise AssertionError("entered")

    with pytest.raises((UsageError, SetupRefused), match="file"):
        asyncio.run(enter())


# --- the synchronous shortcut ---------------------------------------------------------------------


@pytest.fixture
def pipeline(place: Place) -> Pipeline:
    place.tasks("def a(input): return input + 1\ndef b(input): return input['a'] * 2\n")
    pipeline = Pipeline("sync", root=place.path)
    pipeline.add_task(Task("a", "tasks.py:a"))
    pipeline.add_task(Task("b", "tasks.py:b", needs=["a"]))
    return pipeline


def test_run_in_one_call(pipeline: Pipeline, tmp_path: Path) -> None:
    result = pipeline.run(input=1, state=tmp_path / "state")
    assert (result.ok, result.state, result.outputs) == (True, "completed", {"b": 4})


def test_run_inside_a_running_loop_and_from_a_thread(pipeline: Pipeline, tmp_path: Path) -> None:
    run = functools.partial(pipeline.run, state=tmp_path / "state")

    async def inside() -> RunResult:
        return run(input=2)

    assert asyncio.run(inside()).outputs == {"b": 6}
    box: list[RunResult] = []
    thread = threading.Thread(target=lambda: box.append(run(input=3)))
    thread.start()
    thread.join(PATIENCE)
    assert box[0].outputs == {"b": 8}


def test_run_tells_of_failures_and_raises_mistakes(place: Place, tmp_path: Path) -> None:
    place.tasks("def a(input): raise ValueError('no')\n")
    pipeline = Pipeline("sync", root=place.path)
    pipeline.add_task(Task("a", "tasks.py:a"))
    result = pipeline.run(state=tmp_path / "state")
    assert (result.ok, result.state, result.errors["a"]["message"]) == (False, "failed", "no")
    pipeline.add_task(Task("b", "missing.py:b"))
    with pytest.raises(UsageError, match=r"missing\.py"):
        pipeline.run(state=tmp_path / "state")
    assert not [t for t in threading.enumerate() if t.name == "casemate-run"]


def test_functions_without_a_file_travel_by_value(house: Embedded) -> None:
    factor = 3
    pipeline = Pipeline("closures")

    @pipeline.task
    def triple(input: int) -> int:
        return input * factor

    pipeline.add_task(Task("plus", lambda input: input["triple"] + 1, needs=["triple"]))
    assert house.run(pipeline, input=5).output("plus") == 16


def test_the_default_state_directory_is_the_users(pipeline: Pipeline, own_settings: Path) -> None:
    result = pipeline.run(input=1)
    assert (own_settings / "runs" / result.run / "journal.db").is_file()


# --- .py files ------------------------------------------------------------------------------------


def test_a_py_file_is_loaded_behind_the_walls(house: Embedded, place: Place) -> None:
    marker = place.path / "touched-by-the-file"
    file = place.write("pipeline.py", f"""
        import os
        from pathlib import Path
        from casemate import Pipeline, Retry, Timeouts
        from helper import DOUBLE

        try:
            Path({str(marker)!r}).write_text("it ran outside")
        except OSError:
            pass
        assert os.getpid() < 10, "in a pid namespace of its own"
        pipeline = Pipeline("inside", sources=["helper.py"], timeouts=Timeouts(wall="20s"))

        @pipeline.task(retry=Retry(attempts=2, delay="1ms"))
        def a(input, ctx):
            if ctx.attempt == 1:
                raise ValueError
            return input * DOUBLE

        @pipeline.task(needs=[a])
        def b(input):
            return input["a"]
        """)  # fmt: skip
    place.write("helper.py", "DOUBLE = 2\n")
    history = house.run(file, input=21)
    assert history.output("b") == 42
    assert not marker.exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\n", "leaves no Pipeline"),
        ("from casemate import Pipeline\na = Pipeline('a')\nb = Pipeline('b')\n", "2 Pipelines"),
        ("raise ValueError('my own mistake')\n", "my own mistake"),
        ("def broken(:\n", "invalid syntax"),
        ("import os\nos._exit(4)\n", "exited with code 4"),
        ("from casemate import Pipeline\np = Pipeline('x')\np.run()\n", "__main__"),
        ("from casemate import Pipeline, Task\np = Pipeline('x')\np.add_task(Task('a', 'no.py:f'))",
         "no.py"),
    ],
)  # fmt: skip
def test_a_py_file_that_leaves_no_pipeline_is_refused_with_the_reason(
    house: Embedded, place: Place, source: str, says: str
) -> None:
    file = place.write("pipeline.py", source)
    with pytest.raises(UsageError, match="pipeline") as refused:
        house.run(file)
    assert says in str(refused.value)
    assert "pipeline.py" in str(refused.value)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input", "says"),
    [
        (object(), "object"),
        ({"a": [1, {2}]}, "set"),
        ({1: "x"}, "int"),
        (2**64, "int of 65 bits"),
    ],
)
def test_an_input_that_cannot_travel_is_refused_by_path_and_type(
    house: Embedded, place: Place, input: Any, says: str
) -> None:
    place.tasks("def a(input): return input\n")
    with pytest.raises((UsageError, ValueError), match="input") as refused:
        house.run(place.spec(tasks={"a": {}}), input=input)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.yaml", "name: x\ntasks: {a: {execute: 'no.py:f'}}\n", ["p.yaml:2", "no.py"]),
        ("p.yaml", "name: x\ntasks: {a: {excute: 'no.py:f'}}\n", ["p.yaml:2", "execute"]),
        ("p.toml", "name = 'x'\n[tasks.a]\ncommand = ['true']\nneeds = ['b']\n",
         ["p.toml:4", "needs[0]"]),
        ("p.json", '{"name": "x", "tasks": {"a": {"command": ["true"], "needs": ["a"]}}}',
         ["p.json", "a"]),
        ("p.yaml", ": : :", ["p.yaml"]),
        ("p.txt", "name: x", ["p.txt", ".yaml"]),
    ],
)  # fmt: skip
def test_a_file_with_a_mistake_is_refused_by_file_line_and_key(
    house: Embedded, place: Place, name: str, text: str, says: list[str]
) -> None:
    file = place.write(name, text)
    with pytest.raises(UsageError) as refused:
        house.run(file)
    for word in says:
        assert word in str(refused.value)


def test_a_missing_file_is_named(house: Embedded, tmp_path: Path) -> None:
    for name in ("nothing.yaml", "nothing.py"):
        with pytest.raises(UsageError, match=name):
            house.run(tmp_path / name)


# --- the environment ------------------------------------------------------------------------------


def test_a_variable_of_the_host_is_passed_on_only_where_allowed(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATES_TEST_KEY", "the key")
    monkeypatch.setenv("UNRELATED_SECRET", "of the host")
    place.write("pipeline.json", json.dumps({
        "name": "env",
        "tasks": {"a": {"execute": "tasks.py:a", "env": {"CASEMATES_TEST_KEY": None, "OWN": "1"}}},
    }))  # fmt: skip
    place.tasks("import os\ndef a(): return dict(os.environ)\n")
    with (
        Embedded(tmp_path / "state") as house,
        pytest.raises(UsageError, match="CASEMATES_TEST_KEY"),
    ):
        house.run(place.path / "pipeline.json")
    config = load_config(state=tmp_path / "state", allow=["env:CASEMATES_TEST_KEY"])
    with Embedded(tmp_path / "state", config=config) as house:
        seen = house.run(place.path / "pipeline.json").output("a")
    assert (seen["CASEMATES_TEST_KEY"], seen["OWN"]) == ("the key", "1")
    assert "of the host" not in seen.values()


def test_the_engine_does_not_hold_the_hosts_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNRELATED_SECRET", "of the host")
    with Embedded(tmp_path / "state") as house:
        for pid in (house.engine, *descendants(house.engine)):
            assert b"of the host" not in Path(f"/proc/{pid}/environ").read_bytes()


# --- nothing is left ------------------------------------------------------------------------------


def cgroups_of(engines: set[int]) -> list[str]:
    """What those engines left in the cgroup trees."""
    left: list[str] = []
    for _, names, _ in os.walk("/sys/fs/cgroup"):
        found = [(name, FOLDER.fullmatch(name)) for name in names]
        left += [name for name, is_ours in found if is_ours and int(is_ours["pid"]) in engines]
    return left


def test_ten_lives_leave_nothing_behind(tmp_path: Path, place: Place, runtime: Path) -> None:
    """No thread, descriptor, process, runtime folder, socket or cgroup; of files, the journals."""
    place.tasks(HANG + "def a(input, ctx): return bytes(2_000_000)\ndef b(input): return 1\n")
    good = place.spec(tasks={"a": {}, "b": {"needs": ["a"]}})
    bad = place.spec(tasks={"hang": {}})
    engines: set[int] = set()

    async def life(number: int) -> None:
        async with Supervisor(state=tmp_path / "state") as supervisor:
            assert supervisor._process is not None
            engines.add(supervisor._process.pid)
            result = await collect(supervisor.execute(good))
            assert result.ok
            if number % 2:  # leave with something under way
                run = await supervisor.submit(bad)
                async with aclosing(supervisor.events(run)) as events:  # type: ignore[type-var]
                    async for event in events:
                        if event.kind == "task.started":
                            break

    asyncio.run(life(0))  # imports and caches
    before = traces()
    engines.clear()
    for number in range(10):
        asyncio.run(life(number))
    assert traces() == before
    assert len(engines) == 10
    assert cgroups_of(engines) == []
    assert os.listdir(runtime) == []
    assert os.listdir(tmp_path / "state" / "supervisors") == []
    for run in (tmp_path / "state" / "runs").iterdir():
        assert {each.name for each in run.iterdir()} <= {
            "journal.db", "journal.db-shm", "journal.db-wal", "owner.lock", "sources", "values",
        }  # fmt: skip
