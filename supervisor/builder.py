"""Building a pipeline in Python: `Pipeline`, `Task` and the sparse option classes.

What is built here is checked nowhere here. `Pipeline.document()` gives the same sparse document
that a YAML file holds, and `pipeline.py` judges both: one format, one validation, one kind of
error. Only names that cannot be said in a document (a task added twice, a function that is not in
this pipeline) are refused on the spot.

Every guest may import this module, for a task's file usually holds its pipeline too: the standard
library alone, nothing read from disk, no pydantic, no asyncio.

A function travels by reference wherever the sandbox can find it again: `file.py:name` relative to
the pipeline's folder, or `module:name` when it belongs to an installed package. Only what has no
such name (lambdas, closures, notebook cells) is pickled by value, and unpickled in the sandbox.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from ..protocol.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType

    from .api import RunResult

__all__ = [
    "AgentSpec",
    "Breaker",
    "Bulkhead",
    "Limits",
    "Pipeline",
    "Rate",
    "Retry",
    "Task",
    "Timeouts",
]

# The task's own data (role, instructions, model, params, ...): handed over, never looked into.
AgentSpec = Mapping[str, object]

# `Any`: a task's function takes and gives whatever its author likes; the boundary checks values.
Function = Callable[..., Any]
F = TypeVar("F", bound=Function)


_US = __name__.partition(".")[0]


class _Unset:
    """Not given, which is not the same as None: `wall=None` means no limit."""

    def __repr__(self) -> str:
        return "UNSET"


# `Any`, so that it can be the default of every option whatever its type.
UNSET: Final[Any] = _Unset()


class _Options:
    """A frozen dataclass of which only what was given counts."""

    __slots__ = ()

    def document(self) -> dict[str, object]:
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        }
        return {name: _plain(value) for name, value in values.items() if value is not UNSET}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits(_Options):
    """What one attempt may use, over its whole process tree: `Limits(memory="256MiB")`."""

    memory: int | str = UNSET
    cpu: float | None = UNSET  # cores; None: no ceiling
    pids: int = UNSET
    files: int = UNSET
    tmp: int | str = UNSET
    disk: int | str = UNSET
    output: int | str = UNSET
    event_rate: float | None = UNSET  # a second; None: as the journal takes them


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts(_Options):
    """Seconds or texts such as "1m30s"; None: no limit. `Timeouts(wall="30s", idle="10s")`."""

    start: float | str = UNSET
    wall: float | str | None = UNSET
    idle: float | str | None = UNSET
    cpu: float | str | None = UNSET
    grace: float | str = UNSET


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry(_Options):
    """`attempts` counts the first try: `Retry(attempts=3, delay="1s", on=["error", "timeout"])`."""

    attempts: int = UNSET
    delay: float | str = UNSET
    backoff: float = UNSET
    max_delay: float | str = UNSET
    jitter: float = UNSET
    on: Sequence[str] = UNSET


@dataclass(frozen=True, kw_only=True, slots=True)
class Breaker(_Options):
    """After repeated failures nothing is started for a while, in any run that shares the key:
    `Breaker(failures=5, window="60s", open_for="30s", key="model-api")`; `window=None`: in a row.
    """

    failures: int = UNSET
    window: float | str | None = UNSET
    open_for: float | str = UNSET
    backoff: float = UNSET
    max_open_for: float | str = UNSET
    on_open: str = UNSET  # kill or drain
    key: str = UNSET
    wait: float | str | None = UNSET


@dataclass(frozen=True, slots=True)
class Bulkhead(_Options):
    """At most `max_parallel` attempts at a time, of all tasks in all runs that name the key:
    `Bulkhead("model-api", 4)`."""

    key: str
    max_parallel: int


@dataclass(frozen=True, slots=True)
class Rate(_Options):
    """At most so many starts within the time: `Rate("10/min")` of the task in all runs, and
    `Rate("10/min", key="model-api")` of all tasks that name the key."""

    limit: str
    key: str = UNSET


@dataclass(frozen=True, slots=True)
class Task:
    """One node: `Task("analyze", analyze, limits=Limits(memory="256MiB"))`.

    `execute` is a function, or the text `file.py:name` or `package.module:name`; `command` is a
    program in any language. `needs` names the tasks whose outputs it gets. `env` gives literal
    values; None passes on the host's variable of that name. `ro` and `rw` are paths of the host,
    seen at their own places, `python` is an interpreter or a virtual environment to call its
    functions in, `degrade` names walls to do without where the host cannot give them, and
    `proc="readonly"` shows all of /proc. Of the host a task gets what the operator allows.
    `preload` names modules to import first, ahead of the attempt where that is possible.
    `max_parallel` bounds the attempts of this task in all runs; the highest `priority` goes first.

    `validate(output)` says whether an output is good, `recover(error)` what to do about a failure
    (or rules do: `[{"on": ["timeout"], "do": "fallback", "fallback": "cheap"}]`): each in a fresh
    sandbox that is given nothing else. `fallbacks` are functions or commands that may be called
    in the place of `execute`. `always`: it runs when what it needs has ended, however that was.
    """

    id: str
    execute: Function | str | None = None
    command: Sequence[str] | None = None
    spec: AgentSpec | None = None
    needs: Sequence[str] = ()
    limits: Limits | None = None
    timeouts: Timeouts | None = None
    retry: Retry | None = None
    breaker: Breaker | None = None
    sources: Sequence[str | os.PathLike[str]] = ()
    env: Mapping[str, str | None] | None = None
    network: str | None = None
    ro: Sequence[str | os.PathLike[str]] = ()
    rw: Sequence[str | os.PathLike[str]] = ()
    degrade: Sequence[str] = ()
    proc: str | None = None
    python: str | os.PathLike[str] | None = None
    preload: Sequence[str] = ()
    max_parallel: int | None = None
    bulkhead: Bulkhead | None = None
    rate: Rate | str | None = None
    priority: int = 0
    validate: Function | str | None = None
    output_schema: Mapping[str, object] | bool | None = None
    recover: Function | str | Sequence[Mapping[str, object]] | None = None
    fallbacks: Mapping[str, Function | str | Sequence[str]] | None = None
    always: bool = False

    def document(self, root: Path) -> dict[str, object]:
        """This task as a file would say it."""
        given: dict[str, object] = {}
        if self.execute is not None:
            given["execute"] = _entry(self.id, self.execute, root)
        if self.command is not None:
            given["command"] = _plain(self.command)
        if self.spec is not None:
            given["spec"] = _plain(self.spec)
        for name, items in (
            ("needs", self.needs),
            ("sources", self.sources),
            ("preload", self.preload),
        ):
            listed = _plain(items)
            if listed:
                given[name] = listed
        given |= _host_document(self)
        for name, options in (
            ("limits", self.limits),
            ("timeouts", self.timeouts),
            ("retry", self.retry),
            ("breaker", self.breaker),
        ):
            if options is not None:
                given[name] = options.document()
        if self.max_parallel is not None:
            given["max_parallel"] = self.max_parallel
        if self.bulkhead is not None:
            given["bulkhead"] = self.bulkhead.document()
        if self.rate is not None:
            given["rate"] = self.rate.document() if isinstance(self.rate, Rate) else self.rate
        if self.priority:
            given["priority"] = self.priority
        if self.validate is not None:
            given["validate"] = _entry(self.id, self.validate, root)
        if self.output_schema is not None:
            given["output_schema"] = _plain(self.output_schema)
        if self.recover is not None:
            rules = not callable(self.recover) and not isinstance(self.recover, str)
            given["recover"] = _plain(self.recover) if rules else self._named(self.recover, root)
        if self.fallbacks is not None:
            given["fallbacks"] = {
                name: self._named(entry, root) for name, entry in self.fallbacks.items()
            }
        if self.always:
            given["always"] = True
        return given

    def _named(self, entry: object, root: Path) -> object:
        """A function, by its name; a command as it is."""
        if isinstance(entry, str) or callable(entry):
            return _entry(self.id, entry, root)
        return _plain(entry)


class Pipeline:
    """Tasks and edges under a name.

    `root` is the folder that every path of the pipeline is relative to and stays beneath; by
    default the folder of the file that makes the pipeline (the current folder in a notebook).
    `limits`, `timeouts`, `retry`, `breaker`, `sources`, `env`, `network`, `ro`, `rw`, `degrade`,
    `proc` and `python` are the defaults of its tasks.
    """

    def __init__(
        self,
        name: str,
        *,
        workspace: str | os.PathLike[str] | None = None,
        base: str | None = None,
        conflict: str | None = None,
        checkpoints: str | Mapping[str, object] | None = None,
        root: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        breaker: Breaker | None = None,
        sources: Sequence[str | os.PathLike[str]] = (),
        env: Mapping[str, str | None] | None = None,
        network: str | None = None,
        ro: Sequence[str | os.PathLike[str]] = (),
        rw: Sequence[str | os.PathLike[str]] = (),
        degrade: Sequence[str] = (),
        proc: str | None = None,
        python: str | os.PathLike[str] | None = None,
        fail_fast: bool = False,
        timeout: float | str | None = None,
        max_parallel: int | None = None,
        priority: int = 0,
        stream_backlog: int | str | None = None,
        retry_budget: int | None = None,
        rollback_budget: int | None = None,
    ) -> None:
        self.name = name
        self.workspace = workspace
        self.base = base
        self.conflict = conflict
        self.checkpoints = checkpoints
        self.root = Path(root) if root is not None else _folder_of_caller()
        self.limits = limits
        self.timeouts = timeouts
        self.retry = retry
        self.breaker = breaker
        self.sources = sources
        self.env = env
        self.network = network
        self.ro = ro
        self.rw = rw
        self.degrade = degrade
        self.proc = proc
        self.python = python
        self.fail_fast = fail_fast
        self.timeout = timeout
        self.max_parallel = max_parallel
        self.priority = priority
        self.stream_backlog = stream_backlog
        self.retry_budget = retry_budget
        self.rollback_budget = rollback_budget
        self._tasks: dict[str, Task] = {}
        self._edges: list[tuple[str, str, bool]] = []

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, tasks={list(self._tasks)!r})"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(self._tasks.values())

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        return tuple((source, to) for source, to, _ in self._edges)

    @overload
    def task(
        self,
        function: F,
        /,
        *,
        id: str | None = None,
        spec: AgentSpec | None = None,
        needs: Sequence[str | Task | Function] | str = (),
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        breaker: Breaker | None = None,
        sources: Sequence[str | os.PathLike[str]] = (),
        env: Mapping[str, str | None] | None = None,
        network: str | None = None,
        ro: Sequence[str | os.PathLike[str]] = (),
        rw: Sequence[str | os.PathLike[str]] = (),
        degrade: Sequence[str] = (),
        proc: str | None = None,
        python: str | os.PathLike[str] | None = None,
        preload: Sequence[str] = (),
        max_parallel: int | None = None,
        bulkhead: Bulkhead | None = None,
        rate: Rate | str | None = None,
        priority: int = 0,
        validate: Function | str | None = None,
        output_schema: Mapping[str, object] | bool | None = None,
        recover: Function | str | Sequence[Mapping[str, object]] | None = None,
        fallbacks: Mapping[str, Function | str | Sequence[str]] | None = None,
        always: bool = False,
    ) -> F: ...

    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        id: str | None = None,
        spec: AgentSpec | None = None,
        needs: Sequence[str | Task | Function] | str = (),
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        breaker: Breaker | None = None,
        sources: Sequence[str | os.PathLike[str]] = (),
        env: Mapping[str, str | None] | None = None,
        network: str | None = None,
        ro: Sequence[str | os.PathLike[str]] = (),
        rw: Sequence[str | os.PathLike[str]] = (),
        degrade: Sequence[str] = (),
        proc: str | None = None,
        python: str | os.PathLike[str] | None = None,
        preload: Sequence[str] = (),
        max_parallel: int | None = None,
        bulkhead: Bulkhead | None = None,
        rate: Rate | str | None = None,
        priority: int = 0,
        validate: Function | str | None = None,
        output_schema: Mapping[str, object] | bool | None = None,
        recover: Function | str | Sequence[Mapping[str, object]] | None = None,
        fallbacks: Mapping[str, Function | str | Sequence[str]] | None = None,
        always: bool = False,
    ) -> Callable[[F], F]: ...

    def task(
        self,
        function: Function | None = None,
        /,
        *,
        id: str | None = None,
        spec: AgentSpec | None = None,
        needs: Sequence[str | Task | Function] | str = (),
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        breaker: Breaker | None = None,
        sources: Sequence[str | os.PathLike[str]] = (),
        env: Mapping[str, str | None] | None = None,
        network: str | None = None,
        ro: Sequence[str | os.PathLike[str]] = (),
        rw: Sequence[str | os.PathLike[str]] = (),
        degrade: Sequence[str] = (),
        proc: str | None = None,
        python: str | os.PathLike[str] | None = None,
        preload: Sequence[str] = (),
        max_parallel: int | None = None,
        bulkhead: Bulkhead | None = None,
        rate: Rate | str | None = None,
        priority: int = 0,
        validate: Function | str | None = None,
        output_schema: Mapping[str, object] | bool | None = None,
        recover: Function | str | Sequence[Mapping[str, object]] | None = None,
        fallbacks: Mapping[str, Function | str | Sequence[str]] | None = None,
        always: bool = False,
    ) -> Any:  # the overloads say it better than F | Callable[[F], F] can
        """Decorator: this function is a task, called by its name unless `id` says otherwise.

        The function itself is given back unchanged: the sandbox finds it again by its name.
        """

        def add(function: F) -> F:
            self.add_task(
                Task(
                    id if id is not None else function.__name__,
                    function,
                    spec=spec,
                    needs=[self._id(item) for item in _each(needs)],
                    limits=limits,
                    timeouts=timeouts,
                    retry=retry,
                    breaker=breaker,
                    sources=sources,
                    env=env,
                    network=network,
                    ro=ro,
                    rw=rw,
                    degrade=degrade,
                    proc=proc,
                    python=python,
                    preload=preload,
                    max_parallel=max_parallel,
                    bulkhead=bulkhead,
                    rate=rate,
                    priority=priority,
                    validate=validate,
                    output_schema=output_schema,
                    recover=recover,
                    fallbacks=fallbacks,
                    always=always,
                )
            )
            return function

        return add(function) if function is not None else add

    def add_task(self, task: Task) -> Task:
        """For what is not a function of this file: a command, or a name in another file."""
        if task.id in self._tasks:
            raise UsageError(
                f"pipeline {self.name}: there is a task {task.id!r} already; give one of them "
                "another id"
            )
        self._tasks[task.id] = task
        return task

    def add_edge(
        self, source: str | Task | Function, to: str | Task | Function, *, stream: bool = False
    ) -> None:
        """`to` runs after `source` has completed, and sees its output. With `stream` it runs while
        `source` does, and reads what that emits: `ctx.stream(source)`."""
        self._edges.append((self._id(source), self._id(to), stream))

    def document(self) -> dict[str, object]:
        """The pipeline exactly as a file would say it; pickled functions are bytes."""
        defaults: dict[str, object] = {}
        for name, options in (
            ("limits", self.limits),
            ("timeouts", self.timeouts),
            ("retry", self.retry),
            ("breaker", self.breaker),
        ):
            if options is not None:
                defaults[name] = options.document()
        if sources := _plain(self.sources):
            defaults["sources"] = sources
        defaults |= _host_document(self)

        document: dict[str, object] = {"name": self.name}
        if self.workspace is not None:
            document["workspace"] = os.fspath(self.workspace)
        for name, given in (
            ("base", self.base),
            ("conflict", self.conflict),
            ("checkpoints", self.checkpoints),
        ):
            if given is not None:
                document[name] = _plain(given)
        if defaults:
            document["defaults"] = defaults
        document["tasks"] = {task.id: task.document(self.root) for task in self._tasks.values()}
        if self._edges:
            document["edges"] = [
                {"from": source, "to": to} | ({"stream": True} if stream else {})
                for source, to, stream in self._edges
            ]
        if self.fail_fast:
            document["fail_fast"] = True
        if self.timeout is not None:
            document["timeout"] = self.timeout
        if self.priority:
            document["priority"] = self.priority
        numbers = {
            "max_parallel": self.max_parallel,
            "stream_backlog": self.stream_backlog,
            "retry_budget": self.retry_budget,
            "rollback_budget": self.rollback_budget,
        }
        document |= {name: number for name, number in numbers.items() if number is not None}
        return document

    # `Any`: the options are those of `Supervisor`, and the input is whatever the first tasks take.
    def run(self, input: Any = None, **options: Any) -> RunResult:
        """Run it to its end and wait: the synchronous shortcut for `Supervisor.execute`."""
        if is_guest():
            raise UsageError(
                f"pipeline {self.name}: run() was called inside a sandbox, most likely while the "
                "file of a task was being loaded; put the call under "
                'if __name__ == "__main__":'
            )
        from .api import run_pipeline

        return run_pipeline(self, input=input, **options)

    def _id(self, item: str | Task | Function) -> str:
        if isinstance(item, str):
            return item
        if isinstance(item, Task):
            return item.id
        found = [task.id for task in self._tasks.values() if task.execute is item]
        if len(found) == 1:
            return found[0]
        name = getattr(item, "__name__", repr(item))
        raise UsageError(
            f"pipeline {self.name}: {name} is the function of {len(found)} of its tasks; "
            "name the task by its id"
        )


def is_guest() -> bool:
    """Whether this process is inside a sandbox. The variables are the sandbox's, not a task's:
    no task may set a CASEMATE_ variable."""
    return os.environ.get("CASEMATE_SANDBOX") == "1" or "CASEMATE_RUN" in os.environ


def _folder_of_caller() -> Path:
    # two frames up: this function, Pipeline.__init__, the caller. A frame, because a pipeline
    # belongs to the file that makes it, wherever the program was started.
    file = sys._getframe(2).f_globals.get("__file__")
    return Path(file).resolve().parent if isinstance(file, str) else Path.cwd()


def _each(items: Sequence[Any] | str) -> Sequence[Any]:
    return [items] if isinstance(items, str) else items


def _plain(value: object) -> object:
    """What a file can say: paths as text, sequences as lists. The rest stays what it is, for
    `pipeline.py` to accept or refuse as it would in a file."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes | bytearray):
        return [_plain(item) for item in value]
    return value


def _host_document(asking: Task | Pipeline) -> dict[str, object]:
    """What is wanted of the host, which its operator may refuse."""
    given: dict[str, object] = {}
    if asking.env is not None:
        given["env"] = _plain(asking.env)
    for name, items in (("ro", asking.ro), ("rw", asking.rw), ("degrade", asking.degrade)):
        if listed := _plain(items):
            given[name] = listed
    for name, word in (
        ("network", asking.network),
        ("proc", asking.proc),
        ("python", asking.python),
    ):
        if word is not None:
            given[name] = os.fspath(word)
    return given


def _entry(task: str, execute: Function | str, root: Path) -> object:
    if isinstance(execute, str):
        return execute
    if not callable(execute):
        raise UsageError(
            f"task {task}: execute is {execute!r}; give a function, or a text such as "
            "agents.py:analyze"
        )
    module = sys.modules.get(getattr(execute, "__module__", None) or "")
    name: str | None = getattr(execute, "__qualname__", None)
    if module is None or name is None or not _is_found(module, name, execute):
        return _pickled(task, execute, root)
    file = getattr(module, "__file__", None)
    if file is None or not os.path.isfile(file):
        return _pickled(task, execute, root)  # a prompt or a notebook: no file to send
    path = Path(file).resolve()
    if path.is_relative_to(root.resolve()) and not _is_installed(path):
        return f"{path.relative_to(root.resolve()).as_posix()}:{name}"
    if _is_installed(path):
        return f"{module.__name__}:{name}"
    raise UsageError(
        f"task {task}: {name} is in {path}, outside the pipeline's folder {root}; move it there, "
        "or give Pipeline(root=...) a folder that holds both"
    )


def _is_found(module: ModuleType, name: str, function: Function) -> bool:
    """Whether looking `name` up in the module gives this function (or what wraps it)."""
    found: object = module
    for part in name.split("."):
        found = getattr(found, part, None)  # `<locals>` and `<lambda>` are never found
    if found is function:
        return True
    return callable(found) and inspect.unwrap(found) is inspect.unwrap(function)


def _is_installed(path: Path) -> bool:
    """Whether the sandbox has this file at the same place: it belongs to the interpreter."""
    return any(path.is_relative_to(folder) for folder in _installed_folders())


@functools.cache
def _installed_folders() -> frozenset[Path]:
    import sysconfig

    names = {"stdlib", "platstdlib", "purelib", "platlib"}
    return frozenset(
        Path(folder).resolve() for name, folder in sysconfig.get_paths().items() if name in names
    )


def _pickled(task: str, function: Function, root: Path) -> dict[str, object]:
    import cloudpickle  # type: ignore[import-untyped]

    # By value with all that it uses of the pipeline's own code: by reference those modules would
    # have to be importable in the sandbox, where nobody has named their files.
    known = cloudpickle.list_registry_pickle_by_value()
    own = [module for module in _modules_beneath(root, function) if module.__name__ not in known]
    try:
        for module in own:
            cloudpickle.register_pickle_by_value(module)
        payload = cloudpickle.dumps(function)
    # whatever the objects it drags in raise from their __reduce__
    except Exception as error:
        raise UsageError(
            f"task {task}: its function has no name the sandbox could find and cannot be pickled "
            f"({type(error).__name__}: {error}); define it at the top level of a file"
        ) from error
    finally:
        for module in own:
            if module.__name__ in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.unregister_pickle_by_value(module)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return {"pickle": payload, "name": name}


def _modules_beneath(root: Path, function: Function) -> list[ModuleType]:
    """The loaded modules of the pipeline's folder, and the function's own wherever it lies."""
    folder = f"{root.resolve()}{os.sep}"
    home = getattr(function, "__module__", None)
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        # cloudpickle takes __main__ by value anyway; casemate itself is in every sandbox
        if name == "__main__" or name.startswith(f"{_US}.") or not isinstance(file, str):
            continue
        path = Path(file).resolve() if name == home or file.endswith(".py") else None
        if path is None or _is_installed(path):
            continue
        if name == home or str(path).startswith(folder):
            found.append(module)
    return found
