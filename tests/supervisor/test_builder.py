"""The Python API: what is built says the same as a file, and functions find their way."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
from casemate import Bulkhead, Limits, Pipeline, Rate, Retry, Task, Timeouts
from casemate.protocol import codec
from casemate.protocol import pipeline as protocol
from casemate.protocol.errors import UsageError
from casemate.protocol.pipeline import (
    CommandEntry,
    Edge,
    FileEntry,
    ModuleEntry,
    PickleEntry,
    PipelineSpec,
)
from casemate.supervisor.pipeline import compile_document

Load = Callable[..., ModuleType]

REVIEW = """
    from casemate import Limits, Pipeline, Retry, Timeouts

    pipeline = Pipeline("review", workspace="./repo")

    @pipeline.task(
        timeouts=Timeouts(wall="30s", idle="10s"),
        limits=Limits(memory="256MiB"),
        retry=Retry(attempts=3),
    )
    def analyze(input, ctx):
        for finding in ["a", "b"]:
            ctx.emit(finding)
        return {"files": 12}

    @pipeline.task(spec={"role": "refactorer", "model": "..."})
    async def refactor(input, ctx):
        return input

    @pipeline.task
    def report(input, ctx):
        yield 1

    pipeline.add_edge("analyze", "refactor")
    pipeline.add_edge(refactor, report)
"""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Import a file as a program would."""
    loaded = []

    def load(text: str, name: str = "review", folder: Path = tmp_path) -> ModuleType:
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        loaded.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        del sys.modules[name]


def compiled(pipeline: Pipeline) -> PipelineSpec:
    return compile_document(pipeline.document(), root=pipeline.root)


# --- the document --------------------------------------------------------------------------------


def test_the_readmes_example_becomes_the_document_a_file_would_hold(load: Load) -> None:
    assert load(REVIEW).pipeline.document() == {
        "name": "review",
        "workspace": "./repo",
        "tasks": {
            "analyze": {
                "execute": "review.py:analyze",
                "limits": {"memory": "256MiB"},
                "timeouts": {"wall": "30s", "idle": "10s"},
                "retry": {"attempts": 3},
            },
            "refactor": {
                "execute": "review.py:refactor",
                "spec": {"role": "refactorer", "model": "..."},
            },
            "report": {"execute": "review.py:report"},
        },
        "edges": [
            {"from": "analyze", "to": "refactor"},
            {"from": "refactor", "to": "report"},
        ],
    }


def test_it_lowers_like_any_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    spec = compiled(load(REVIEW).pipeline)
    assert spec.root == str(tmp_path)
    assert spec.workspace == str(tmp_path / "repo")
    assert spec.edges == (Edge("analyze", "refactor"), Edge("refactor", "report"))
    analyze, refactor, report = spec.tasks
    assert analyze.execute == FileEntry("review.py", "analyze")
    assert (analyze.limits.memory, analyze.timeouts.wall, analyze.timeouts.idle) == (2**28, 30, 10)
    assert analyze.retry.attempts == 3
    assert codec.decode_value(refactor.spec) == {"role": "refactorer", "model": "..."}
    assert report.limits == refactor.limits


def test_what_is_wished_of_the_host_is_in_the_document_as_a_file_has_it(tmp_path: Path) -> None:
    pipeline = Pipeline("x", root=tmp_path, ro=[Path("/data")], proc="readonly")
    pipeline.add_task(Task("a", command=["ls"], rw=("out",), degrade=["landlock"]))
    pipeline.add_task(Task("c", "json.tool:main", python=Path("venv")))
    pipeline.task(lambda: None, id="b", ro=["more"], network="host", proc="pids")
    document = pipeline.document()
    assert document["defaults"] == {"ro": ["/data"], "proc": "readonly"}
    tasks: Any = document["tasks"]
    assert tasks["a"] == {"command": ["ls"], "rw": ["out"], "degrade": ["landlock"]}
    assert tasks["c"] == {"execute": "json.tool:main", "python": "venv"}
    del tasks["b"]["execute"]
    assert tasks["b"] == {"ro": ["more"], "network": "host", "proc": "pids"}


def test_every_option_reaches_the_spec(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    pipeline = Pipeline(
        "all",
        root=tmp_path,
        workspace=Path("lib"),
        limits=Limits(pids=16),
        timeouts=Timeouts(wall=None),
        retry=Retry(on=("error",)),
        sources=["lib"],
        env={"A": "1"},
        network="none",
        fail_fast=True,
        timeout="1h",
        max_parallel=2,
        priority=3,
        stream_backlog="2MiB",
    )
    pipeline.add_task(Task("list", command=("ls", "-l")))
    pipeline.add_task(Task("watch", command=("cat",)))
    pipeline.add_edge("list", "watch", stream=True)
    pipeline.add_task(
        Task(
            "count",
            "json.tool:main",
            needs=["list"],
            spec={"a": (1, 2)},
            limits=Limits(memory=2**25, cpu=0.5, files=64, tmp="2MiB", disk="1MiB", output="1KiB"),
            timeouts=Timeouts(start=5, wall="1m", idle=3, cpu=2, grace=1),
            retry=Retry(attempts=2, delay=0, backoff=1, max_delay="5s", jitter=0),
            sources=[Path("lib")],
            env={"B": "2"},
            max_parallel=4,
            bulkhead=Bulkhead("api", 5),
            rate=Rate("10/min", key="api"),
            priority=-1,
            preload=("numpy", "numpy.linalg"),
        )
    )
    pipeline.task(lambda: None, id="often", rate="2/s", preload="json")
    spec = compiled(pipeline)
    first, _, second, often = spec.tasks
    assert (spec.fail_fast, spec.timeout, spec.max_parallel) == (True, 3600, 2)
    assert (spec.priority, second.priority, second.max_parallel) == (3, -1, 4)
    assert second.preload == ("numpy", "numpy.linalg")
    assert second.bulkhead == protocol.Bulkhead(key="api", max_parallel=5)
    assert second.rate == protocol.Rate(limit=10, period=60, key="api")
    assert often.preload == ("json",)
    assert often.rate == protocol.Rate(limit=2, period=1)
    assert spec.stream_backlog == 2**21
    assert first.execute == CommandEntry(("ls", "-l"))
    assert first.timeouts.wall is None
    assert (first.limits.pids, second.limits.pids) == (16, 16)
    assert second.execute == ModuleEntry("json.tool", "main")
    assert (second.limits.memory, second.limits.cpu, second.timeouts.grace) == (2**25, 0.5, 1)
    assert (second.retry.attempts, second.retry.max_delay, second.retry.on) == (2, 5, ("error",))
    assert second.env == {"A": "1", "B": "2"}
    assert second.sources == ("lib",)
    assert codec.decode_value(second.spec) == {"a": [1, 2]}
    assert spec.edges == (Edge("list", "count"), Edge("list", "watch", stream=True))
    assert pipeline.edges == (("list", "watch"),)


def test_what_was_not_said_is_not_in_the_document() -> None:
    assert Limits().document() == {}
    assert Timeouts(wall=None).document() == {"wall": None}
    assert Retry(attempts=2, on=["error"]).document() == {"attempts": 2, "on": ["error"]}
    assert Pipeline("x").document() == {"name": "x", "tasks": {}}


def test_a_document_may_be_made_twice(load: Load) -> None:
    pipeline = load(REVIEW).pipeline
    assert pipeline.document() == pipeline.document()


def test_a_wrong_option_is_told_as_in_a_file(load: Load) -> None:
    pipeline = load(
        """
        from casemate import Limits, Pipeline
        pipeline = Pipeline("x")
        @pipeline.task(limits=Limits(memory="lots"), needs="b")
        def a(input, ctx): ...
        """
    ).pipeline
    with pytest.raises(UsageError) as refusal:
        compiled(pipeline)
    assert str(refusal.value).splitlines() == [
        "pipeline x: 2 problems",
        "  pipeline x: tasks.a.limits.memory: 'lots' is not a size; write a number of bytes or a "
        "text such as 64KiB, 256MiB, 1.5GiB",
        '  pipeline x: tasks.a.needs[0]: there is no task "b"',
    ]


def test_an_option_that_does_not_exist_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="memroy"):
        Limits(memroy=1)  # type: ignore[call-arg]


def test_ids_edges_and_needs_take_texts_tasks_and_functions() -> None:
    pipeline = Pipeline("x")

    @pipeline.task(id="first")
    def a(input: Any, ctx: Any) -> None: ...

    second = pipeline.add_task(Task("second", command=["ls"]))

    @pipeline.task(needs=[a, second, "first"])
    def third(input: Any, ctx: Any) -> None: ...

    pipeline.add_edge(a, second)
    document: Any = pipeline.document()
    assert document["tasks"]["third"]["needs"] == ["first", "second", "first"]
    assert document["edges"] == [{"from": "first", "to": "second"}]
    assert [task.id for task in pipeline.tasks] == ["first", "second", "third"]
    assert pipeline.edges == (("first", "second"),)


def test_what_cannot_be_said_is_refused_on_the_spot() -> None:
    pipeline = Pipeline("x")

    def f(input: Any, ctx: Any) -> None: ...

    with pytest.raises(UsageError, match=r"x: f is the function of 0 of its tasks; name the task"):
        pipeline.add_edge(f, "b")
    pipeline.add_task(Task("a", f))
    with pytest.raises(UsageError, match=r"there is a task 'a' already; give one of them another"):
        pipeline.add_task(Task("a", f))
    pipeline.add_task(Task("b", f))
    with pytest.raises(UsageError, match=r"f is the function of 2 of its tasks"):
        pipeline.add_edge(f, "b")
    pipeline.add_task(Task("c", 3))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"task c: execute is 3; give a function, or a text such"):
        pipeline.document()


def test_the_decorator_gives_the_function_back() -> None:
    pipeline = Pipeline("x")

    def f(input: Any, ctx: Any) -> int:
        return 1

    assert pipeline.task(f) is f
    assert pipeline.task(id="g")(f) is f


# --- how functions travel ------------------------------------------------------------------------


def entry_of(pipeline: Pipeline, id: str) -> object:
    document: Any = pipeline.document()
    return document["tasks"][id]["execute"]


def test_a_function_of_another_file_travels_by_that_file(load: Load, tmp_path: Path) -> None:
    agents = load(
        "class Agent:\n    @staticmethod\n    def run(input, ctx): ...\n",
        "agents",
        tmp_path / "lib",
    )
    pipeline = Pipeline("x", root=tmp_path)
    pipeline.add_task(Task("a", agents.Agent.run))
    assert entry_of(pipeline, "a") == "lib/agents.py:Agent.run"


def test_a_function_of_an_installed_package_travels_by_its_module(tmp_path: Path) -> None:
    pipeline = Pipeline("x", root=tmp_path)
    pipeline.add_task(Task("a", json.dumps))
    assert entry_of(pipeline, "a") == "json:dumps"


def test_a_function_outside_the_folder_is_told_what_to_do(load: Load, tmp_path: Path) -> None:
    agents = load("def run(input, ctx): ...", "agents", tmp_path / "elsewhere")
    pipeline = Pipeline("x", root=tmp_path / "here")
    pipeline.add_task(Task("a", agents.run))
    with pytest.raises(UsageError) as refusal:
        pipeline.document()
    assert str(refusal.value) == (
        f"task a: run is in {tmp_path}/elsewhere/agents.py, outside the pipeline's folder "
        f"{tmp_path}/here; move it there, or give Pipeline(root=...) a folder that holds both"
    )


def test_a_decorated_function_is_still_found_by_its_name(load: Load) -> None:
    module = load(
        """
        import functools
        from casemate import Pipeline
        pipeline = Pipeline("x")

        def twice(function):
            @functools.wraps(function)
            def inner(input, ctx):
                return function(input, ctx) * 2
            return inner

        @pipeline.task
        @twice
        def below(input, ctx): return 1

        @twice
        @pipeline.task
        def above(input, ctx): return 1
        """
    )
    assert entry_of(module.pipeline, "below") == "review.py:below"
    assert entry_of(module.pipeline, "above") == "review.py:above"


@pytest.mark.parametrize(
    "made", ["lambda input, ctx: base + input", "make(base)", "partial(add, base)", "Adder(base)"]
)
def test_what_has_no_name_travels_by_value_with_what_it_uses(
    load: Load, tmp_path: Path, made: str
) -> None:
    load("base = 40\ndef add(a, b): return a + b", "helpers")
    module = load(
        f"""
        from functools import partial
        import helpers
        from helpers import base
        from casemate import Pipeline, Task

        def add(base, input, ctx=None): return helpers.add(base, input)
        def make(base):
            def local(input, ctx): return add(base, input)
            return local
        class Adder:
            def __init__(self, base): self.base = base
            def __call__(self, input, ctx): return add(self.base, input)

        pipeline = Pipeline("x")
        pipeline.add_task(Task("a", {made}))
        """
    )
    [task] = compiled(module.pipeline).tasks
    assert isinstance(task.execute, PickleEntry)
    # in a process that has never seen the module, as the sandbox has not
    code = "import sys, cloudpickle; print(cloudpickle.loads(sys.stdin.buffer.read())(2, None))"
    ran = subprocess.run(
        [sys.executable, "-c", code], input=task.execute.payload, capture_output=True, check=True,
        cwd=tmp_path.parent,
    )  # fmt: skip
    assert ran.stdout.strip() == b"42"
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_a_name_that_means_something_else_by_now_travels_by_value(load: Load) -> None:
    module = load(
        """
        from casemate import Pipeline
        pipeline = Pipeline("x")
        @pipeline.task
        def a(input, ctx): return 1
        def a(input, ctx): return 2
        """
    )
    [task] = compiled(module.pipeline).tasks
    assert isinstance(task.execute, PickleEntry)
    assert cloudpickle.loads(task.execute.payload)(None, None) == 1


def test_what_cannot_be_pickled_is_told_what_to_do() -> None:
    pipeline = Pipeline("x")
    lock = threading.Lock()
    pipeline.add_task(Task("a", lambda input, ctx: lock))
    with pytest.raises(UsageError) as refusal:
        pipeline.document()
    assert str(refusal.value).startswith(
        "task a: its function has no name the sandbox could find and cannot be pickled (TypeError:"
    )
    assert str(refusal.value).endswith("define it at the top level of a file")


def test_a_pickle_that_drags_data_along_is_refused() -> None:
    data = os.urandom(2**20)
    pipeline = Pipeline("x")
    pipeline.add_task(Task("a", lambda input, ctx: data))
    with pytest.raises(UsageError, match=r"is 1024 KiB, at most 512: it carries data along; hand"):
        compiled(pipeline)


def run_program(tmp_path: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, env=os.environ | env,
        cwd="/", check=False,
    )  # fmt: skip


def test_a_function_of_main_travels_by_its_file_and_the_folder_is_the_programs(
    tmp_path: Path,
) -> None:
    text = REVIEW + "\n    print(pipeline.document()['tasks']['analyze']['execute'], pipeline.root)"
    ran = run_program(tmp_path, text)
    assert ran.stdout.split() == ["program.py:analyze", str(tmp_path)], ran.stderr


def test_a_function_typed_at_a_prompt_travels_by_value() -> None:
    code = (
        textwrap.dedent(REVIEW) + "\nprint(type(pipeline.document()['tasks']['report']['execute']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "<class 'dict'>"


# --- in a sandbox --------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["CASEMATE_SANDBOX", "CASEMATE_RUN"])
def test_run_inside_a_sandbox_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(UsageError) as refusal:
        Pipeline("x").run()
    assert str(refusal.value) == (
        "pipeline x: run() was called inside a sandbox, most likely while the file of a task was "
        'being loaded; put the call under if __name__ == "__main__":'
    )


def loaded_by(code: str) -> set[str]:
    code = f"{code}\nimport sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


HEAVY = {
    "pydantic",
    "pydantic_settings",
    "zmq",
    "asyncio",
    "yaml",
    "cloudpickle",
    "sqlite3",
    "rich",
}


def test_importing_casemate_loads_nothing_else() -> None:
    loaded = loaded_by("import casemate; casemate.__version__, dir(casemate)")
    assert {name for name in loaded if name.startswith("casemate.")} == set()
    assert loaded & (HEAVY | {"msgspec", "dataclasses", "typing_extensions"}) == set()


def test_building_a_pipeline_loads_nothing_heavy() -> None:
    assert loaded_by(textwrap.dedent(REVIEW)) & HEAVY == set()


def test_a_guest_may_ask_for_its_context_type_without_the_supervisor() -> None:
    loaded = loaded_by("from casemate import RuntimeContext, TaskError, CasemateError")
    assert loaded & (HEAVY - {"zmq"}) == set()
    assert not any(name.startswith("casemate.supervisor") for name in loaded)


def test_every_public_name_is_there_and_says_where_it_lives() -> None:
    import casemate

    for name in casemate.__all__:
        assert name in dir(casemate)
        value = getattr(casemate, name)
        assert (
            name.startswith("__")
            or inspect.isclass(value)
            or callable(value)
            or name == "AgentSpec"
        )
    with pytest.raises(AttributeError, match="module 'casemate' has no attribute 'Pipelin'"):
        casemate.Pipelin  # noqa: B018
