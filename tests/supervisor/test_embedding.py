"""A supervisor inside other programs: threads, a notebook, pytest, a host that blocks its own loop.

Programs with a loop of their own, two supervisors in one process and ten lives that leave nothing
behind are in test_api.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import pytest
from casemate import Pipeline, Supervisor
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE, wait_until
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from runs import Place, descendants, is_alive, traces

HANG = "import time\ndef hang(input):\n    time.sleep(3600)\n"


def test_a_host_that_blocks_its_loop_delays_no_kill(tmp_path: Path, place: Place) -> None:
    place.tasks(HANG)
    spec = place.spec(tasks={"hang": {"timeouts": {"wall": "300ms"}}})
    state = StateDirectory(tmp_path / "state")

    def is_judged(run: str) -> bool:
        with JournalReader(state.run(run)) as reader:
            return "task.failed" in {event.kind for event, _ in reader.decisions()}

    async def host() -> None:
        async with Supervisor(state=state.path) as supervisor:
            run = await supervisor.submit(spec)
            pid = 0
            async with aclosing(supervisor.events(run)) as events:  # type: ignore[type-var]
                while not pid:
                    event = await anext(events)
                    pid = event.data["pid"] if event.kind == "task.started" else 0
            # Nothing of this loop runs until the task is dead and the journal says so.
            wait_until(lambda: not is_alive(pid) and is_judged(run))

    asyncio.run(host())


def test_threads_run_pipelines_side_by_side_and_leave_nothing(tmp_path: Path) -> None:
    def run(number: int) -> object:
        pipeline = Pipeline(f"of-thread-{number}")
        pipeline.task(lambda input: input * number, id="times")
        return pipeline.run(input=7, state=tmp_path / "state").outputs["times"]

    with ThreadPoolExecutor(3) as threads:
        before = traces()
        assert list(threads.map(run, range(3))) == [0, 7, 14]
        fds, names, children = traces()
    assert children == before[2]
    assert len(fds) == len(before[0])
    assert [name for name in names if "casemate" in name] == []


def test_who_is_cancelled_while_he_enters_leaves_no_engine(tmp_path: Path) -> None:
    async def host() -> None:
        supervisor = Supervisor(state=tmp_path / "state")
        entering = asyncio.create_task(supervisor.__aenter__())
        while supervisor._process is None:
            await asyncio.sleep(0)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert supervisor._process.poll() is not None

    asyncio.run(host())  # what it needs once and for all
    before = traces()
    asyncio.run(host())
    assert traces() == before


# ---- a notebook


class Notebook:
    """A Jupyter kernel, and what its cells print."""

    def __init__(self, kernel: KernelManager, client: BlockingKernelClient) -> None:
        self.kernel = kernel
        self.client = client

    @property
    def pid(self) -> int:
        pid = getattr(self.kernel.provisioner, "pid", None)
        assert isinstance(pid, int)
        return pid

    def __call__(self, cell: str) -> str:
        """Run it to its end; raises what it raised."""
        printed: list[str] = []

        def hear(message: dict[str, dict[str, str]]) -> None:
            printed.append(message["content"].get("text", ""))

        reply = self.client.execute_interactive(
            textwrap.dedent(cell), output_hook=hear, timeout=PATIENCE, store_history=False
        )
        content = reply["content"]
        assert content["status"] == "ok", f"{content['ename']}: {content['evalue']}"
        return "".join(printed)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("notebook")
    own = {"HOME": str(folder), "IPYTHONDIR": str(folder), "CASEMATE_STATE": str(folder / "state")}
    kernel = KernelManager(connection_file=str(folder / "kernel.json"))
    kernel.start_kernel(env=os.environ | own, cwd=str(folder))
    client = kernel.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE)
        yield Notebook(kernel, client)
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
        kernel.cleanup_resources()


def test_a_notebook_runs_what_its_cells_define_beside_its_running_loop(notebook: Notebook) -> None:
    notebook("""
        from casemate import Pipeline, Supervisor, observe

        factor = 3
        pipeline = Pipeline("cells")

        @pipeline.task
        def double(input):
            return input * 2

        pipeline.task(lambda input: input["double"] * factor, id="triple", needs=["double"])
        """)
    assert notebook("print(pipeline.run(input=7).outputs)") == "{'triple': 42}\n"
    awaited = """
        async with Supervisor() as supervisor:
            kinds = [event.kind async for event in supervisor.execute(pipeline, 1)]
        print(kinds[0], kinds[-1], kinds == [event.kind async for event in observe("last")])
        """
    assert notebook(awaited) == "run.started run.completed True\n"
    assert descendants(notebook.pid) == []


def test_the_interrupt_button_ends_the_run_and_the_notebook_lives_on(notebook: Notebook) -> None:
    before = notebook("import threading; print(threading.active_count())")
    notebook("""
        from casemate import Pipeline
        hanging = Pipeline("hanging")

        @hanging.task
        def hang(input):
            import time
            time.sleep(3600)
        """)
    asked = notebook.client.execute("hanging.run()")
    wait_until(lambda: len(descendants(notebook.pid)) >= 3)  # an engine, its zygote, its front
    notebook.kernel.interrupt_kernel()
    while (reply := notebook.client.get_shell_msg(timeout=PATIENCE))["parent_header"][
        "msg_id"
    ] != asked:
        continue
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    wait_until(lambda: descendants(notebook.pid) == [])
    assert notebook("print(threading.active_count())") == before


# ---- pytest

TESTS = """
import asyncio
import pytest
from casemate import Pipeline, Supervisor

def double(input):
    return 2 * input

@pytest.fixture
def pipeline():
    pipeline = Pipeline("tested")
    pipeline.task(id="double")(double)
    return pipeline

@pytest.mark.parametrize("factor", [1, 2])
def test_of_this_file_and_of_this_test(pipeline, tmp_path, factor):
    pipeline.task(lambda input: input["double"] * factor, id="more", needs=["double"])
    assert pipeline.run(input=2, state=tmp_path).outputs == {"more": 4 * factor}

def test_in_a_loop(pipeline, tmp_path, capfd):
    async def kinds():
        async with Supervisor(state=tmp_path) as supervisor:
            return [event.kind async for event in supervisor.execute(pipeline, 1)]
    assert asyncio.run(kinds())[-1] == "run.completed"
    assert capfd.readouterr() == ("", "")
"""


def test_the_tests_of_others_run_pipelines_too(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(TESTS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
