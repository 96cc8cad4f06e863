"""Runs attacks: outside as plain subprocesses, inside as tasks of one real pipeline.

A test module makes one `Arena` and one run in it, with every attack as a task and a well-behaved
task behind each (`<attack>-then`), so that what an attack leaves broken shows. What is seen of an
attempt is gathered while the run's events come, and looked at by one test an attack afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import importlib
import json
import os
import pkgutil
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self, TypeVar

import psutil
from casemate import Limits, Pipeline, Supervisor, Task, Timeouts
from casemate.supervisor.api import PipelineEvent, RunResult
from casemate.supervisor.config import load_config
from casemate.supervisor.cursor import collect
from fakes import wait_until

from hostile.inside import mark_of

__all__ = [
    "AFTER",
    "PATIENCE",
    "TESTS",
    "Arena",
    "Seen",
    "Target",
    "attacks_in",
    "files_in",
    "run_outside",
]

TESTS = Path(__file__).resolve().parent.parent

# Only turns a hang into a failure.
PATIENCE = 60.0

AFTER = "-then"
SECRET_NAME = "CASEMATE_TEST_SECRET"

T = TypeVar("T")


def attacks_in(folder: str) -> dict[str, ModuleType]:
    """The attacks of a folder by name."""
    package = importlib.import_module(f"hostile.{folder}")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name: importlib.import_module(f"hostile.{folder}.{name}") for name in names}


def run_outside(folder: str, name: str, target: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """The attack with nothing around it, as the user who runs the tests."""
    code = (
        "import importlib, json, sys\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        f"attack = importlib.import_module('hostile.{folder}.{name}').attack\n"
        "print(attack(json.load(sys.stdin)))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(target),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def files_in(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and text of each file."""
    return {each.name: (each.stat().st_mode, each.read_text()) for each in folder.iterdir()}


class Target:
    """Everything an attack could want to reach, each of it really there."""

    def __init__(self, folder: Path) -> None:
        self._open = contextlib.ExitStack()
        home = folder / "home"
        self.workspace = home / "workspace"
        self.workspace.mkdir(parents=True)
        (self.workspace / "victim").write_text("here")
        (self.workspace / "kept").write_text("here")
        self.files = files_in(self.workspace)
        secret = home / "secret"
        secret.write_text("the supervisor's")
        planted = folder / "planted"
        planted.mkdir()
        (planted / "casemate_test_planted.py").write_text("")
        path = folder / "socket"
        abstract = f"casemate-test-{secrets.token_hex(8)}"
        self._libc = ctypes.CDLL(None, use_errno=True)
        key = secrets.randbits(30) | 1
        self._segment = self._libc.shmget(key, 4096, 0o1000 | 0o666)  # IPC_CREAT
        assert self._segment >= 0
        self.environment = {SECRET_NAME: "the supervisor's", "PYTHONPATH": str(planted)}
        self.input: dict[str, Any] = {
            "secret": str(secret),
            "workspace": str(self.workspace),
            "socket": self._listen(socket.AF_UNIX, str(path)),
            "abstract": self._listen(socket.AF_UNIX, "\0" + abstract)[1:],
            "port": self._listen(socket.AF_INET, ("127.0.0.1", 0))[1],
            "port6": self._listen(socket.AF_INET6, ("::1", 0))[1],
            "udp": self._answer(),
            "segment": key,
            "variable": SECRET_NAME,
            "planted": "casemate_test_planted",
        }

    def _listen(self, family: socket.AddressFamily, address: object) -> Any:  # an address
        listener = self._open.enter_context(socket.socket(family))
        listener.bind(address)  # type: ignore[arg-type]  # as the family has it
        listener.listen()
        name = listener.getsockname()
        return "\0" + name[1:].decode() if isinstance(name, bytes) else name

    def _answer(self) -> int:
        """A UDP server; its thread ends with its socket."""
        server = self._open.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))
        port = int(server.getsockname()[1])

        def serve() -> None:
            while True:
                data, peer = server.recvfrom(100)
                if data == b"end":
                    return
                server.sendto(b"reached", peer)

        thread = threading.Thread(target=serve)
        thread.start()

        def end() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
                ours.sendto(b"end", ("127.0.0.1", port))
            thread.join()

        self._open.callback(end)
        return port

    def close(self) -> None:
        self._open.close()
        self._libc.shmctl(self._segment, 0, None)  # IPC_RMID


@dataclass(slots=True)
class Seen:
    """What the host saw of one task."""

    task: str
    events: list[PipelineEvent] = field(default_factory=list)
    was_alive: bool = False  # its init, when it started
    is_alive: bool = False  # its init, at its verdict
    was_marked: bool = False  # a process with its mark, while it ran
    is_marked: bool = False  # and at its verdict

    @property
    def kind(self) -> str:
        """Its verdict."""
        last = self.events[-1] if self.events else None
        if last is None or last.kind not in ("task.completed", "task.failed"):
            return f"no verdict ({last})"
        return "completed" if last.kind == "task.completed" else str(self.error["kind"])

    @property
    def error(self) -> dict[str, Any]:
        error = self.events[-1].data.get("error")
        assert isinstance(error, dict), self.events[-1]
        return error

    @property
    def output(self) -> Any:  # the task's own
        assert self.events[-1].kind == "task.completed", self.events[-1]
        return self.events[-1].data["output"]

    @property
    def items(self) -> list[Any]:
        return [data["item"] for data in self.data("task.emitted")]

    @property
    def is_sampled(self) -> bool:
        """No cgroup held its limits."""
        [started] = self.data("task.started")
        return "sampled" in started["walls"]["limits"].values()

    def data(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.kind == kind]

    def logged(self, stream: str) -> str:
        return "".join(d["text"] for d in self.data("task.log") if d["stream"] == stream)

    def dropped(self, stream: str) -> int:
        return sum(d["dropped"] for d in self.data("task.log") if d["stream"] == stream)

    def check_ended(self) -> None:
        """Its attempt ended once, and with it everything that it had started."""
        endings = ("task.completed", "task.failed", "task.retrying", "task.cancelled")
        assert [event.kind for event in self.events if event.kind in endings] == [
            self.events[-1].kind
        ]
        assert self.was_alive, "the host never saw its init: nothing is proved"
        assert not self.is_alive, "its init outlived the verdict"


class Arena:
    """A supervisor with a state directory of its own, in a loop and thread of its own, so that
    one engine serves all of a module's tests."""

    def __init__(self, folder: Path, target: Target) -> None:
        self.target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="arena")
        self._state = folder / "state"
        config = load_config(state=self._state, max_parallel=4, allow=[f"path:{target.workspace}"])
        self._supervisor = Supervisor(config=config)
        self.target.input["state"] = str(self._state)

    def __enter__(self) -> Self:
        self._thread.start()
        before = {child.pid for child in psutil.Process().children()}
        self._do(self._supervisor.__aenter__())
        [self.engine] = [c for c in psutil.Process().children() if c.pid not in before]
        self.target.input["pid"] = self.engine.pid
        self.target.input["group"] = os.getpgid(self.engine.pid)
        # A run keeps none once it has ended; its attempts hold about a dozen each.
        self.descriptors = self.engine.num_fds()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._supervisor.__aexit__())
        assert cgroups_of(self.engine.pid) == []
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def pipeline(self, name: str) -> Pipeline:
        return Pipeline(name, root=TESTS, workspace=self.target.workspace)

    def add(self, pipeline: Pipeline, folder: str, name: str, attack: ModuleType) -> None:
        """The attack as a task, and a well-behaved one to come after it."""
        limits = {"memory": "128MiB", "pids": 64, **getattr(attack, "LIMITS", {})}
        timeouts = {"wall": "20s", **getattr(attack, "TIMEOUTS", {})}
        entry = f"hostile/{folder}/{name}.py:attack"
        pipeline.add_task(Task(name, entry, limits=Limits(**limits), timeouts=Timeouts(**timeouts)))
        pipeline.add_task(
            Task(name + AFTER, "hostile/good.py:work", limits=Limits(memory="64MiB", pids=16))
        )

    def run(self, pipeline: Pipeline) -> dict[str, Seen]:
        """Everything seen, by task."""
        return self._do(self._run(pipeline))

    def result(self, pipeline: Pipeline) -> RunResult:
        return self._do(collect(self._supervisor.execute(pipeline, self.target.input)))

    async def _run(self, pipeline: Pipeline) -> dict[str, Seen]:
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
                    (self._state / "runs" / event.run / "sources" / f"{event.task}.go").touch()
                case "task.completed" | "task.failed":
                    one.is_alive = is_alive(pids[event.task]) if event.task in pids else False
                    one.is_marked = is_marked(mark)
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


def cgroups_of(engine: int) -> list[Path]:
    """The folders that an engine has, or left behind; its name holds its pid."""
    hierarchies = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]
    return [f for top in hierarchies for f in top.glob(f"**/casemate-*-{engine}-*") if f.is_dir()]


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
