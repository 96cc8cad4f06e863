"""A supervisor, and runs in it with attacks as tasks and a well-behaved task behind each
(`<attack>-then`), so that what an attack leaves broken shows.

What is seen of an attempt is gathered while the run's events come.
"""

from __future__ import annotations

import asyncio
import fnmatch
import functools
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
from casemate import Limits, Pipeline, Supervisor, Task, Timeouts
from casemate.supervisor.api import RunResult
from casemate.supervisor.config import Config, load_config
from casemate.supervisor.cursor import collect

from .attack import Attack
from .inside import mark_of
from .require import NotContained
from .seen import Seen
from .target import Target

__all__ = ["AFTER", "Arena", "wait_until"]

# Only turns a hang into a failure.
PATIENCE = 60.0

# Of every task that has none of its own: far above what any takes, on an emulated processor too.
CLOCKS = {"start": "1m", "wall": "1m"}

AFTER = "-then"

# As many attacks at a time, on small hosts too: most of them wait for something.
PARALLEL = 4

T = TypeVar("T")


class Arena:
    """One engine in a loop and thread of its own, with a state directory of its own."""

    def __init__(self, folder: Path, target: Target, **settings: Any) -> None:
        """`settings`: of `load_config`, as flags."""
        self.target = target
        self.state = folder / "state"
        self.config: Config = load_config(
            state=self.state,
            max_parallel=PARALLEL,
            allow=[f"path:{target.workspace}"],
            **settings,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="arena")
        self._supervisor = Supervisor(config=self.config)
        self.target.input["state"] = str(self.state)

    def __enter__(self) -> Self:
        self._thread.start()
        before = {child.pid for child in psutil.Process().children()}
        try:
            self._do(self._supervisor.__aenter__())
        except BaseException:
            self._end_loop()
            raise
        [self.engine] = [c for c in psutil.Process().children() if c.pid not in before]
        self.target.input["pid"] = self.engine.pid
        self.target.input["group"] = os.getpgid(self.engine.pid)
        events = Path(self._supervisor.events_endpoint.removeprefix("ipc://"))
        self.target.input["events"] = str(events)
        self.target.input["control"] = str(events.with_name("control.sock"))
        # A run keeps none once it has ended; its attempts hold about a dozen each.
        self.descriptors = self.engine.num_fds()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._supervisor.__aexit__())
        self._end_loop()
        if left := cgroups_of(self.engine.pid):
            raise NotContained(f"cgroups outlived their engine: {left}")

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def pipeline(self, name: str, root: Path) -> Pipeline:
        return Pipeline(name, root=root, workspace=self.target.workspace)

    def add(self, pipeline: Pipeline, attack: Attack) -> None:
        """The attack as a task, and a well-behaved one to come after it."""
        given = {"memory": "128MiB", "pids": 64, **getattr(attack.module, "LIMITS", {})}
        clocks = CLOCKS | getattr(attack.module, "TIMEOUTS", {})
        pipeline.add_task(
            Task(attack.name, attack.entry, limits=Limits(**given), timeouts=Timeouts(**clocks))
        )
        pipeline.add_task(
            Task(
                attack.name + AFTER,
                attack.good,
                limits=Limits(memory="64MiB", pids=16),
                timeouts=Timeouts(**CLOCKS),
            )
        )

    def run(
        self, pipeline: Pipeline, on_end: Callable[[Seen], object] | None = None
    ) -> dict[str, Seen]:
        """Everything seen, by task; `on_end` is told of each task when it has its verdict."""
        return self._do(self._run(pipeline, on_end))

    def result(self, pipeline: Pipeline) -> RunResult:
        return self._do(collect(self._supervisor.execute(pipeline, self.target.input)))

    async def _run(
        self, pipeline: Pipeline, on_end: Callable[[Seen], object] | None
    ) -> dict[str, Seen]:
        seen = {task.id: Seen(task.id) for task in pipeline.tasks}
        pids: dict[str, int] = {}
        async for event in self._supervisor.execute(pipeline, self.target.input):
            if event.task is None:
                continue
            one = seen[event.task]
            one.events.append(event)
            mark = mark_of(event.run, event.task)
            match event.kind:
                case "task.started":
                    pids[event.task] = event.data["pid"]
                    one.was_alive = event.data["pid"] > 0
                case "task.emitted" if str(event.data.get("item")).startswith("planted"):
                    await asyncio.to_thread(wait_until, functools.partial(is_marked, mark))
                    one.was_marked = True
                    # Its workspace is a layer of its own; what it sees of the host at once is this.
                    (self.state / "runs" / event.run / "sources" / f"{event.task}.go").touch()
                case "task.completed" | "task.failed":
                    one.is_alive = is_alive(pids[event.task]) if event.task in pids else False
                    one.is_marked = one.was_marked and is_marked(mark)
                    if on_end is not None:
                        on_end(one)
        return seen

    def sandboxes(self) -> list[str]:
        """The names of all processes in sandboxes: what hangs below the zygote."""
        return [
            process.name()
            for launcher in self.engine.children()
            for zygote in launcher.children()
            for process in zygote.children(recursive=True)
            if process.status() != psutil.STATUS_ZOMBIE
        ]

    def peak_memory(self) -> int:
        """The most that the engine ever had resident."""
        for line in Path(f"/proc/{self.engine.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
        raise LookupError("VmHWM")


def wait_until(holds: Callable[[], object]) -> None:
    """Wait for a condition that nothing announces."""
    give_up = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() >= give_up:
            raise NotContained("waited in vain")
        time.sleep(0.002)


def cgroups_of(engine: int) -> list[Path]:
    """The folders that an engine has, or left behind; its name holds its pid. Those of others come
    and go meanwhile, which `os.walk` passes over."""
    return [
        Path(above, name)
        for above, names, _ in os.walk("/sys/fs/cgroup")
        for name in fnmatch.filter(names, f"casemate-*-{engine}-*")
    ]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_marked(name: str) -> bool:
    """Whether the host has a living process of this name."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                lines = (folder / "status").read_text(errors="replace").splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if fields.get("Name") == name and not fields.get("State", "Z").startswith("Z"):
                return True
    return False
