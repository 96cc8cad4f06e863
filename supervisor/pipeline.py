"""From what a person wrote to what the engine runs: files and builder documents → `PipelineSpec`.

Three steps. *Reading* (`reading.py`) turns YAML, TOML or JSON into plain values and remembers the
line of each. *Judging* holds the document against the models of `format.py`, its graph against
`core/graph.py` and its paths against the folder it lives in. *Lowering* fills in the defaults.
Everything that is wrong is said at once, each with file, line, key and what to write instead: one
`PipelineError`.

Pipeline data has no authority over the host. A path must resolve, symlinks included, beneath the
pipeline's folder; what lies outside, a variable of the host's environment, the host's network, a
path shown as it is (`ro`, `rw`), a wall given up and more of /proc take the operator's word
(`Allow`). `/`, the home directory and the state directory are refused
whoever asks: they hold what the sandbox is there to keep from a task.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Raw
from pydantic import ValidationError

from ..protocol import codec, pipeline
from ..protocol.answers import Action
from ..protocol.errors import UsageError
from ..protocol.pipeline import (
    Base,
    Bind,
    CommandEntry,
    Conflict,
    Edge,
    Entry,
    FileEntry,
    Network,
    OnOpen,
    PickleEntry,
    PipelineSpec,
    ProcView,
    TaskSpec,
)
from ..protocol.units import format_rate
from ..sandbox.plan import reserved_place
from ..sandbox.spec import DEGRADABLE
from .core import graph
from .core.graph import downstream
from .format import (
    ENV_NAME,
    Breaker,
    Defaults,
    Model,
    Pipeline,
    Task,
    did_you_mean,
    explain,
    json_schema,
    unknown_key,
)
from .interpreter import find_interpreter
from .reading import Document, KeyPath, PipelineError, Problem, read_file, shown

__all__ = [
    "Allow",
    "PipelineError",
    "Problem",
    "compile_document",
    "describing",
    "forbidden",
    "json_schema",
    "load_pipeline",
    "place_inside",
]


@dataclass(frozen=True, slots=True)
class Allow:
    """What a pipeline may ask of this host: nothing, unless the operator named it.

    As words (in `casemate.toml`, the environment, flags): `network`, `proc`, `env:NAME`,
    `path:DIR` (to show it), `rw:DIR` (to let it be written to), `degrade:WALL`. `state` is the
    state directory, which no pipeline may show to a task.
    """

    network: bool = False
    env: frozenset[str] = frozenset()
    paths: tuple[Path, ...] = ()
    state: Path | None = None
    writable: tuple[Path, ...] = ()
    degrade: frozenset[str] = frozenset()
    proc: bool = False

    @classmethod
    def parse(
        cls, words: Iterable[str], state: Path | None = None, degrade: Iterable[str] = ()
    ) -> Allow:
        """`degrade`: what the operator does without anyway, for every sandbox."""
        env: set[str] = set()
        paths: list[Path] = []
        writable: list[Path] = []
        walls, plain = set(degrade), set[str]()
        for word in words:
            kind, _, value = word.partition(":")
            if word in ("network", "network:host", "proc", "proc:readonly"):
                plain.add(kind)
            elif kind == "env" and ENV_NAME.fullmatch(value):
                env.add(value)
            elif kind in ("path", "rw") and Path(value).is_absolute():
                (paths if kind == "path" else writable).append(Path(value).resolve())
            elif kind == "degrade" and value in DEGRADABLE:
                walls.add(value)
            else:
                raise UsageError(
                    f"allow: {shown(word)} means nothing; expected network, proc, env:NAME, "
                    f"path:/ABSOLUTE/FOLDER, rw:/ABSOLUTE/FOLDER or degrade: and one of "
                    f"{', '.join(sorted(DEGRADABLE))}"
                )
        return cls(
            network="network" in plain,
            env=frozenset(env),
            paths=(*paths, *writable),  # what may be written to may be read
            state=state,
            writable=tuple(writable),
            degrade=frozenset(walls),
            proc="proc" in plain,
        )


def load_pipeline(
    path: Path, allow: Allow | None = None, *, workspace: Path | None = None
) -> PipelineSpec:
    """A YAML, TOML or JSON file. `workspace`: the operator's own choice, in place of the file's."""
    if path.suffix == ".py":
        raise PipelineError(
            str(path), [Problem("is a program: it is loaded inside a sandbox, never read here")]
        )
    # The folder the file was named in, not the one a symlink leads to: its paths mean that one.
    return compile_document(
        read_file(path), root=path.absolute().parent, allow=allow, workspace=workspace
    )


def compile_document(
    document: Document | dict[str, object],
    *,
    root: Path,
    allow: Allow | None = None,
    workspace: Path | None = None,
    source: str | None = None,
) -> PipelineSpec:
    """A document as a file or `builder.Pipeline.document()` gives it. `source`: what messages call
    it. Raises PipelineError with everything that is wrong."""
    if not isinstance(document, Document):
        document = Document(document, source or f"pipeline {document.get('name', '')}".strip())
    return _Compiler(document, root.resolve(), allow or Allow(), workspace).compile()


def describing(file: Path) -> tuple[PipelineSpec, Raw]:
    """The one-task pipeline, and its input, whose output is the document of a `.py` file: that
    file is as untrusted as the tasks in it. Give the output to `compile_document`."""
    root = file.absolute().parent
    if not file.is_file():
        raise PipelineError(str(file), [Problem("cannot be read: there is no such file")])
    neighbours = sorted(
        path.name
        for path in root.iterdir()
        if (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()
    )
    document: dict[str, object] = {
        "name": "describe",
        "tasks": {
            "describe": {
                "execute": "casemate.sandbox.describe:describe",
                # what a pipeline file may import while it is loaded; what its tasks get is theirs
                "sources": sorted({file.name, *neighbours}),
                "timeouts": {"wall": 60},
            }
        },
    }
    value = Raw(codec.encode_value({"file": file.name}))
    return compile_document(document, root=root, source=str(file)), value


class _Compiler:
    def __init__(
        self, document: Document, root: Path, allow: Allow, workspace: Path | None
    ) -> None:
        self._document = document
        self._root = root
        self._allow = allow
        self._workspace = workspace
        self._name = ""  # of the pipeline
        self._problems: list[Problem] = []
        self._bad: set[KeyPath] = set()  # keys that do not hold what they should
        self._keys: dict[tuple[str, str], str] = {}  # what was said of each
        self._sound_files: set[str] = set()  # most tasks of a large pipeline share one

    def compile(self) -> PipelineSpec:
        raw = self._document.value
        if not isinstance(raw, dict):
            self._wrong(f"expected a map with name and tasks, got {shown(raw)}", ())
            raise self._error()
        model = self._validate(raw)
        self._name = model.name
        edges = self._edges(raw)
        self._check_answers(model, edges)
        tasks = [self._task(id, task, model.defaults) for id, task in model.tasks.items()]
        workspace = self._workspace_folder(model)
        for name in model.checkpoints.after:
            if name not in model.tasks:
                meant = did_you_mean(name, model.tasks)
                self._wrong(f"there is no task {shown(name)}{meant}", ("checkpoints", "after"))
        if self._problems:
            raise self._error()
        return PipelineSpec(
            name=model.name,
            tasks=tuple(tasks),
            edges=edges,
            root=str(self._root),
            workspace=workspace,
            checkpoints=model.checkpoints,
            base=Base(model.base),
            conflict=Conflict(model.conflict),
            fail_fast=model.fail_fast,
            timeout=model.timeout,
            max_parallel=model.max_parallel,
            priority=model.priority,
            stream_backlog=model.stream_backlog,
            retry_budget=model.retry_budget,
            rollback_budget=model.rollback_budget,
        )

    def _wrong(self, message: str, path: KeyPath) -> None:
        self._problems.append(self._document.problem(message, path))

    def _error(self) -> PipelineError:
        return PipelineError(self._document.source, self._problems)

    # --- the keys

    def _validate(self, raw: dict[str, Any]) -> Pipeline:
        """The model; where keys are wrong, of the others, so that paths and edges are judged in
        the same go."""
        try:
            return Pipeline.model_validate(raw)
        except ValidationError as error:
            found = error.errors(include_url=False)
        for each in found:
            path = tuple(part for part in each["loc"] if part != "[key]")
            self._bad.add(path[:3] if path[0] == "tasks" else path[:1])
            self._wrong(explain(path, each), path)
        head = {key: value for key, value in raw.items() if self._is_sound((key,))}
        tasks = raw["tasks"] if "tasks" in head and isinstance(raw["tasks"], dict) else {}
        checked = {
            id: Task.model_validate(
                {key: value for key, value in task.items() if self._is_sound(("tasks", id, key))}
            )
            for id, task in tasks.items()
            if self._is_sound(("tasks", id)) and isinstance(task, dict)
        }
        model = Pipeline.model_validate({**head, "name": "x", "tasks": {"x": {}}})
        return model.model_copy(update={"tasks": checked})

    def _is_sound(self, path: tuple[Any, ...]) -> bool:
        return path not in self._bad and isinstance(path[-1], str)

    # --- the graph

    def _edges(self, raw: dict[str, Any]) -> tuple[Edge, ...]:
        """From `needs` and `edges`, as they are written: what is wrong elsewhere in the file does
        not hide a cycle."""
        written = raw.get("tasks")
        tasks: dict[Any, Any] = written if isinstance(written, dict) else {}
        found: dict[tuple[str, str], tuple[Edge, KeyPath]] = {}

        def add(
            source: Any,
            to: Any,
            path: KeyPath,
            ends: tuple[KeyPath, KeyPath],
            stream: bool = False,
        ) -> None:
            known = True
            for end, where in ((source, ends[0]), (to, ends[1])):
                if not isinstance(end, str):
                    self._wrong(f"expected a task's id, got {shown(end)}", where)
                    known = False
                elif end not in tasks:
                    self._wrong(f"there is no task {shown(end)}{did_you_mean(end, tasks)}", where)
                    known = False
            if known:
                edge, _ = found.setdefault((source, to), (Edge(source, to, stream), path))
                if edge.stream is not stream:
                    self._wrong(
                        f"the edge from {source} to {to} is given both with and without stream: "
                        "true; take one out",
                        path,
                    )

        for id, task in tasks.items():
            needs = task.get("needs", ()) if isinstance(task, dict) else ()
            path: KeyPath = ("tasks", id, "needs")
            if not isinstance(needs, str | list | tuple):
                self._wrong(f"expected a list of task ids, got {shown(needs)}", path)
                continue
            for index, source in enumerate([needs] if isinstance(needs, str) else needs):
                add(source, id, path, ((*path, index), (*path, index)))

        edges = raw.get("edges", ())
        if isinstance(edges, dict):
            for source, targets in edges.items():
                path = ("edges", source)
                if not isinstance(targets, str | list):
                    self._wrong(f"expected task ids, got {shown(targets)}", path)
                    continue
                for to in [targets] if isinstance(targets, str) else targets:
                    add(source, to, path, (path, path))
        elif isinstance(edges, list | tuple):
            for index, edge in enumerate(edges):
                path = ("edges", index)
                match edge:
                    case [source, to]:
                        add(source, to, path, (path, path))
                    case {"from": source, "to": to}:
                        for key in edge.keys() - {"from", "to", "stream"}:
                            self._wrong(unknown_key(key, ("from", "to", "stream")), (*path, key))
                        stream = edge.get("stream", False)
                        if not isinstance(stream, bool):
                            self._wrong(
                                f"expected true or false, got {shown(stream)}", (*path, "stream")
                            )
                            stream = True
                        add(source, to, path, ((*path, "from"), (*path, "to")), stream)
                    case _:
                        self._wrong(
                            f"expected {{from: a, to: b}} or [a, b], got {_edge_shown(edge)}", path
                        )
        else:
            self._wrong(f"expected a list or a map of edges, got {shown(edges)}", ("edges",))

        edges_found = [edge for edge, _ in found.values()]
        for cycle in graph.cycles((id for id in tasks if isinstance(id, str)), edges_found):
            first = found[cycle[0], cycle[1 % len(cycle)]][1]
            round_trip = " → ".join((*cycle, cycle[0]))
            if len(cycle) == 1:
                self._wrong(f"task {cycle[0]} waits for itself", first)
            else:
                self._wrong(f"a cycle: {round_trip}; take one of these edges out", first)
        return tuple(sorted(edges_found))

    # --- what is done about failures

    def _check_answers(self, model: Pipeline, edges: tuple[Edge, ...]) -> None:
        """What rules name, and what `always` needs."""
        sources: dict[str, list[str]] = {id: [] for id in model.tasks}
        for edge in edges:
            sources.get(edge.to, []).append(edge.source)
        for id, task in model.tasks.items():
            path: KeyPath = ("tasks", id)
            rules = task.recover if isinstance(task.recover, tuple) else ()
            where = (*path, "recover")
            for number, rule in enumerate(rules, 1):
                if rule.do is Action.FALLBACK and rule.to not in task.fallbacks:
                    meant = did_you_mean(rule.to, task.fallbacks)
                    self._wrong(
                        f"rule {number}: {shown(rule.to)} is none of the task's fallbacks{meant}",
                        where,
                    )
                elif rule.do is Action.ROLLBACK and rule.to not in downstream(sources, [id]):
                    self._wrong(
                        f"rule {number}: {shown(rule.to)} is neither this task nor upstream of it; "
                        "a rollback from here goes to one of those",
                        where,
                    )
                elif rule.do is Action.ROLLBACK and task.always:
                    self._wrong(f"rule {number}: an `always` task cannot roll back", where)
            if not task.always:
                continue
            if not sources[id]:
                self._wrong("needs nothing; name in `needs` what it cleans up after", path)
            if any(edge.to == id and edge.stream for edge in edges):
                self._wrong("reads a stream, and an `always` task cannot; use plain edges", path)
            if _merged(model.defaults.timeouts, task.timeouts)["wall"] is None:
                self._wrong(
                    "has no wall limit; an `always` task is not under the run's deadline and needs "
                    "its own",
                    (*path, "timeouts"),
                )

    # --- one task

    def _task(self, id: str, task: Task, defaults: Defaults) -> TaskSpec:
        path: KeyPath = ("tasks", id)
        entry = self._entry(task, path)
        env = self._env_of(defaults.env, ("defaults", "env")) | self._env_of(
            task.env, (*path, "env")
        )
        sources = [
            *(
                self._source(name, ("defaults", "sources", n))
                for n, name in enumerate(defaults.sources)
            ),
            *(self._source(name, (*path, "sources", n)) for n, name in enumerate(task.sources)),
        ]
        network = task.network if "network" in task.model_fields_set else defaults.network
        if network == "host" and not self._allow.network:
            where = path if "network" in task.model_fields_set else ("defaults",)
            self._wrong(f"the host's network {_takes_word('network')}", (*where, "network"))
        proc = task.proc if "proc" in task.model_fields_set else defaults.proc
        if proc == "readonly" and not self._allow.proc:
            where = path if "proc" in task.model_fields_set else ("defaults",)
            self._wrong(
                f"readonly shows files of the whole host (its processors, interrupts, settings) "
                f"and {_takes_word('proc')}",
                (*where, "proc"),
            )
        return TaskSpec(
            id=id,
            execute=entry,
            spec=task.spec,
            sources=tuple(dict.fromkeys(name for name in sources if name is not None)),
            env={name: text for name, text in env.items() if text is not None},
            host_env=tuple(sorted(name for name, text in env.items() if text is None)),
            limits=pipeline.Limits(**_merged(defaults.limits, task.limits)),
            timeouts=pipeline.Timeouts(**_merged(defaults.timeouts, task.timeouts)),
            retry=pipeline.Retry(**_merged(defaults.retry, task.retry)),
            max_parallel=task.max_parallel,
            bulkhead=self._bulkhead(task, path),
            rate=self._rate(task, path),
            priority=task.priority,
            breaker=_breaker(f"{self._name}/{id}", task, defaults),
            network=Network(network),
            binds=self._binds(task, defaults, path),
            degrade=self._degrade(task, defaults, path),
            proc=ProcView(proc),
            python=self._python(task, defaults, path),
            preload=self._preload(task, defaults, path),
            validate=self._checked(task.validate_, (*path, "validate")),
            output_schema=task.output_schema,
            recover=(
                None
                if isinstance(task.recover, tuple)
                else self._checked(task.recover, (*path, "recover"))
            ),
            rules=task.recover if isinstance(task.recover, tuple) else (),
            fallbacks={
                name: self._file_of(entry, (*path, "fallbacks", name))
                for name, entry in task.fallbacks.items()
            },
            always=task.always,
        )

    def _bulkhead(self, task: Task, path: KeyPath) -> pipeline.Bulkhead | None:
        if (given := task.bulkhead) is None:
            return None
        said = f"max_parallel: {given.max_parallel}"
        self._agree("bulkhead", given.key, said, (*path, "bulkhead", "max_parallel"))
        return pipeline.Bulkhead(key=given.key, max_parallel=given.max_parallel)

    def _rate(self, task: Task, path: KeyPath) -> pipeline.Rate | None:
        if (given := task.rate) is None:
            return None
        limit, period = given.limit
        if given.key is not None:
            self._agree("rate", given.key, format_rate(limit, period), (*path, "rate", "limit"))
        return pipeline.Rate(limit=limit, period=period, key=given.key)

    def _agree(self, kind: str, key: str, said: str, path: KeyPath) -> None:
        """Two limits for one key in one file are a slip of one of them."""
        before = self._keys.setdefault((kind, key), said)
        if before != said:
            self._wrong(f"{said} for the key {key}, which has {before} further up", path)

    def _checked(self, entry: Entry | None, path: KeyPath) -> Entry | None:
        return None if entry is None else self._file_of(entry, path)

    def _file_of(self, entry: Entry, path: KeyPath) -> Entry:
        if isinstance(entry, FileEntry):
            self._file(entry.file, path)
        return entry

    def _entry(self, task: Task, path: KeyPath) -> Entry:
        if task.execute is not None and task.command is not None:
            self._wrong("has both execute and command; take one out", path)
        if task.command is not None:
            return task.command
        if task.execute is None:
            if not self._bad & {(*path, "execute"), (*path, "command")}:
                self._wrong(
                    "has neither execute nor command; add one, such as execute: agents.py:analyze",
                    path,
                )
            return CommandEntry(())
        return self._file_of(task.execute, (*path, "execute"))

    def _env_of(self, env: dict[str, str | None], path: KeyPath) -> dict[str, str | None]:
        for name, text in env.items():
            if text is None and name not in self._allow.env:
                self._wrong(
                    f"the host's own {name} {_takes_word(f'env:{name}')}; or write its value here",
                    (*path, name),
                )
        return env

    def _degrade(self, task: Task, defaults: Defaults, path: KeyPath) -> tuple[str, ...]:
        for where, walls in ((("defaults",), defaults.degrade), (path, task.degrade)):
            for number, wall in enumerate(walls):
                if wall not in self._allow.degrade:
                    self._wrong(
                        f"to go without the {wall} wall {_takes_word(f'degrade:{wall}')}",
                        (*where, "degrade", number),
                    )
        return tuple(sorted({*defaults.degrade, *task.degrade}))

    def _preload(self, task: Task, defaults: Defaults, path: KeyPath) -> tuple[str, ...]:
        where = (*path, "preload")
        if task.preload and task.command is not None:
            self._wrong("a command imports by itself; preload is for functions", where)
        has_python = task.python if "python" in task.model_fields_set else defaults.python
        if task.preload and has_python is not None:
            self._wrong(
                "is imported by casemate's own interpreter, and this task has one of its own "
                "(python); take one of the two out",
                where,
            )
        return task.preload

    def _python(self, task: Task, defaults: Defaults, path: KeyPath) -> pipeline.Python | None:
        is_own = "python" in task.model_fields_set
        name = task.python if is_own else defaults.python
        if name is None:
            return None
        where = (*(path if is_own else ("defaults",)), "python")
        try:
            found = find_interpreter(self._root / name)
            folders = {folder: folder.resolve(strict=True) for folder in found.folders}
            home = found.home.resolve(strict=True)
        except (UsageError, OSError, RuntimeError, ValueError) as error:
            self._wrong(f"{shown(name)}: {error}", where)
            return None
        for folder in dict.fromkeys((home, *folders.values())):
            if not self._may_show(str(folder), folder, where):
                return None
            if not any(folder.is_relative_to(allowed) for allowed in self._allow.paths):
                self._wrong(
                    f"{shown(name)} is an interpreter in {folder}, and to run it "
                    f"{_takes_word(f'path:{folder}')}",
                    where,
                )
                return None
        named = {
            "execute": task.execute,
            "validate": task.validate_,
            "recover": task.recover,
            **task.fallbacks,
        }
        for key, entry in named.items():
            if isinstance(entry, PickleEntry):
                self._wrong(
                    f"{key} is pickled by value, which another interpreter cannot open; define "
                    f"{entry.name} at the top level of a file",
                    where,
                )
        # By the names that lead there and by the real ones: a link within leads to those.
        places = {str(name): str(real) for name, real in folders.items()}
        places |= {real: real for real in places.values()}
        if held := next(filter(None, map(reserved_place, places)), None):
            self._wrong(f"{shown(name)}: {held} belongs to the sandbox itself", where)
            return None
        return pipeline.Python(
            executable=str(found.executable),
            binds=tuple(Bind(real, place) for place, real in sorted(places.items())),
            venv=str(found.home) if found.is_venv else None,
        )

    def _binds(self, task: Task, defaults: Defaults, path: KeyPath) -> tuple[Bind, ...]:
        """`ro` and `rw`, seen at their own places. Unlike sources and a workspace they are not
        copied but shown as they are, so they take the operator's word wherever they lie."""
        made: dict[str, Bind] = {}
        for model, where in ((defaults, ("defaults",)), (task, path)):
            for key, names in (("ro", model.ro), ("rw", model.rw)):
                for number, name in enumerate(names):
                    bind = self._bind(name, key == "rw", (*where, key, number))
                    if bind is None:
                        continue
                    if made.setdefault(bind.inside, bind) != bind:
                        self._wrong(
                            f"{bind.inside} is to be both read-only and writable; take one out",
                            (*where, key, number),
                        )
        return tuple(made.values())

    def _bind(self, name: str, writable: bool, path: KeyPath) -> Bind | None:
        found = self._resolved(name, path)
        if found is None or not self._may_show(name, found, path):
            return None
        inside = place_inside(self._root / name, found)
        if own := reserved_place(inside):
            self._wrong(f"{inside}: {own} belongs to the sandbox itself", path)
            return None
        allowed = self._allow.writable if writable else self._allow.paths
        if any(found.is_relative_to(folder) for folder in allowed):
            return Bind(str(found), inside, writable)
        what, word = ("write to", "rw") if writable else ("see", "path")
        self._wrong(f"to {what} {found} itself {_takes_word(f'{word}:{found}')}", path)
        return None

    # --- paths

    def _file(self, file: str, path: KeyPath) -> None:
        """Beneath the root without exception: a task's file needs a place in the snapshot."""
        if file in self._sound_files:
            return
        found = self._resolved(file, path)
        if found is None:
            return
        if not found.is_relative_to(self._root):
            self._wrong(
                f"{shown(file)} leads to {found}, outside the pipeline's folder; move it there",
                path,
            )
        elif not found.is_file():
            self._wrong(f"{shown(file)} is not a file", path)
        else:
            self._sound_files.add(file)

    def _source(self, name: str, path: KeyPath) -> str | None:
        """As `TaskSpec.sources` has it: relative to the root, or absolute where it lies outside."""
        found = self._resolved(name, path)
        if found is None or not self._is_permitted(name, found, path):
            return None
        if not (found.is_dir() or found.is_file()):
            self._wrong(f"{shown(name)} is neither a file nor a folder", path)
            return None
        # normpath, not the resolved path: a symlink's own name is what the task will import
        inside = Path(os.path.normpath(self._root / name))
        if inside.is_relative_to(self._root) and found.is_relative_to(self._root):
            return inside.relative_to(self._root).as_posix()
        return str(found)

    def _workspace_folder(self, model: Pipeline) -> str | None:
        if self._workspace is not None:  # the operator's word: anywhere but the forbidden places
            folder = self._workspace.resolve()
            if reason := forbidden(folder, self._allow.state):
                self._problems.append(Problem(f"the workspace {self._workspace} {reason}"))
            elif not folder.is_dir():
                self._problems.append(Problem(f"the workspace {self._workspace} is not a folder"))
            return str(folder)
        if model.workspace is None:
            return None
        found = self._resolved(model.workspace, ("workspace",))
        if found is None or not self._is_permitted(model.workspace, found, ("workspace",)):
            return None
        if not found.is_dir():
            self._wrong(f"{shown(model.workspace)} is not a folder", ("workspace",))
        return str(found)

    def _resolved(self, name: str, path: KeyPath) -> Path | None:
        try:
            return (self._root / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._wrong(f"{shown(name)} in {self._root}: {reason}", path)
            return None

    def _may_show(self, name: str, found: Path, path: KeyPath) -> bool:
        if reason := forbidden(found, self._allow.state):
            self._wrong(f"{shown(name)} {reason}; name a folder below it", path)
            return False
        return True

    def _is_permitted(self, name: str, found: Path, path: KeyPath) -> bool:
        if not self._may_show(name, found, path):
            return False
        allowed = (self._root, *self._allow.paths)
        if any(found.is_relative_to(folder) for folder in allowed):
            return True
        self._wrong(
            f"{shown(name)} leads to {found}, which is outside the pipeline's folder and "
            f"{_takes_word(f'path:{found}')}",
            path,
        )
        return False


def place_inside(path: str | os.PathLike[str], found: Path) -> str:
    """Where a sandbox sees what `path` leads to: at the path's own place."""
    inside = os.path.abspath(path)
    # /bin, /lib and their like are links inside as well: what lies below them is seen at their
    # ends, and a mount point can only be made there.
    if Path("/", *Path(inside).parts[1:2]).is_symlink():
        return str(found)
    return inside


def forbidden(folder: Path, state: Path | None) -> str | None:
    """Why no task may be shown this folder, whoever asks; None: nothing against it. Resolved
    paths. `state`: the state directory."""
    if folder == Path("/"):
        return "is the whole file system"
    for home in _homes():
        if home.is_relative_to(folder):
            return "is the home directory" if home == folder else "holds the home directory"
    state = state.resolve() if state is not None else None
    if state is not None and folder.is_relative_to(state):
        return "is in casemate's state directory, which holds every other run"
    if state is not None and state.is_relative_to(folder):
        return f"holds casemate's state directory {state}, and so every other run"
    return None


def _homes() -> set[Path]:
    """$HOME and what the user database says: neither alone is always set and true."""
    homes = {os.environ.get("HOME")}
    with contextlib.suppress(KeyError):
        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    return {Path(home).resolve() for home in homes if home}


def _takes_word(word: str) -> str:
    return f"takes the operator's word: allow {word} in casemate.toml, CASEMATE_ALLOW or --allow"


def _merged(default: Model, own: Model) -> dict[str, Any]:
    """The task's word first, then the pipeline's, then ours."""
    values = default.__dict__
    if own.model_fields_set:
        values = values | {name: getattr(own, name) for name in own.model_fields_set}
    return values


def _breaker(key: str, task: Task, defaults: Defaults) -> pipeline.Breaker | None:
    """`key`: of a task that names none."""
    own = task.breaker
    if own is None and ("breaker" in task.model_fields_set or defaults.breaker is None):
        return None
    values = _merged(defaults.breaker or Breaker(), own or Breaker())
    values["on_open"] = OnOpen(values["on_open"])
    values["key"] = values["key"] or key
    values["max_open_for"] = max(values["open_for"], values["max_open_for"])
    return pipeline.Breaker(**values)


def _edge_shown(edge: Any) -> str:
    if isinstance(edge, Mapping):
        return f"a map with {', '.join(shown(key) for key in list(edge)[:3]) or 'nothing in it'}"
    if isinstance(edge, list | tuple):
        return f"a list of {len(edge)}"
    return shown(edge)
