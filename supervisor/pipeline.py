"""From what a person wrote to what the engine runs: files and builder documents → `PipelineSpec`.

Three steps. *Reading* (`reading.py`) turns YAML, TOML or JSON into plain values and remembers the
line of each. *Judging* holds the document against the models below (pydantic, so that the JSON
Schema is the same text), its graph against `core/graph.py` and its paths against the folder it
lives in. *Lowering* fills in the defaults, which are the models' own. Everything that is wrong is
said at once, each with file, line, key and what to write instead: one `PipelineError`.

Pipeline data has no authority over the host. A path must resolve, symlinks included, beneath the
pipeline's folder; what lies outside, a variable of the host's environment and the host's network
take the operator's word (`Allow`). `/`, the home directory and the state directory are refused
whoever asks: they hold what the sandbox is there to keep from a task.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Raw
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

from ..protocol import codec, pipeline
from ..protocol.errors import UsageError
from ..protocol.events import ErrorKind
from ..protocol.limits import KIB, MIB
from ..protocol.pipeline import (
    TASK_ID_PATTERN,
    CommandEntry,
    Edge,
    Entry,
    FileEntry,
    ModuleEntry,
    Network,
    PickleEntry,
    PipelineSpec,
    TaskSpec,
)
from ..protocol.units import format_size, parse_duration, parse_size
from .core import graph, retry
from .reading import Document, KeyPath, PipelineError, Problem, read_file, shown

__all__ = [
    "Allow",
    "PipelineError",
    "Problem",
    "compile_document",
    "describing",
    "json_schema",
    "load_pipeline",
]

GIB = 1024 * MIB

# Both travel to the guest in RUN, which is one message of MESSAGE_SIZE with other fields beside.
PICKLE_SIZE = 512 * KIB
SPEC_SIZE = 256 * KIB

# Nobody waits for a hundredth try; a retry storm of one task stays below this.
ATTEMPTS = 100


# --- the operator's word -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allow:
    """What a pipeline may ask of this host: nothing, unless the operator named it.

    As words (in `casemate.toml`, the environment, flags): `network`, `env:NAME`, `path:DIR`.
    `state` is the state directory, which no pipeline may show to a task.
    """

    network: bool = False
    env: frozenset[str] = frozenset()
    paths: tuple[Path, ...] = ()
    state: Path | None = None

    @classmethod
    def parse(cls, words: Iterable[str], state: Path | None = None) -> Allow:
        network, env, paths = False, set(), []
        for word in words:
            kind, _, value = word.partition(":")
            if word in ("network", "network:host"):
                network = True
            elif kind == "env" and _ENV_NAME.fullmatch(value):
                env.add(value)
            elif kind == "path" and Path(value).is_absolute():
                paths.append(Path(value).resolve())
            else:
                raise UsageError(
                    f"allow: {shown(word)} means nothing; expected network, env:NAME or "
                    "path:/ABSOLUTE/FOLDER"
                )
        return cls(network, frozenset(env), tuple(paths), state)


# --- the format ----------------------------------------------------------------------------------


def _at_least(least: int, why: str) -> AfterValidator:
    def check(value: int) -> int:
        if value < least:
            raise ValueError(
                f"{format_size(value)} is too little; at least {format_size(least)}: {why}"
            )
        return value

    return AfterValidator(check)


def _duration_or_none(value: Any) -> float | None:
    if value is None or value == "none":
        return None
    if (seconds := parse_duration(value)) == 0:
        raise ValueError("0 leaves no time at all; write none for no limit")
    return seconds


def _more_than_no_time(value: float) -> float:
    if value == 0:
        raise ValueError("0 leaves no time at all")
    return value


def _one_or_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_SIZE_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT]?([iI]?[bB])?)\s*$"},
    ]
}
_DURATION_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "examples": ["500ms", "30s", "1m30s", "2h"]},
    ]
}
_NAMES_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}

_Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_SIZE_SCHEMA)]
_Duration = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)]
_Limit = Annotated[
    float | None,
    PlainValidator(_duration_or_none),
    WithJsonSchema({"anyOf": [*_DURATION_SCHEMA["anyOf"], {"type": "null"}]}),
]
_Memory = Annotated[_Size, _at_least(8 * MIB, "the sandbox's own Python needs that")]
_Tmpfs = Annotated[_Size, _at_least(MIB, "large outputs leave through it")]
_Disk = Annotated[_Size, _at_least(KIB, "programs write small files to work at all")]
_Output = Annotated[_Size, _at_least(KIB, "an error message has to fit")]


class _Model(BaseModel):
    # strict: "3" is not 3 and 1 is not true. What was not given keeps its default, which is the
    # documented one; `model_fields_set` tells it from what was.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=False)


class Limits(_Model):
    """What one attempt may use, over its whole process tree."""

    # Room for numpy and a language model's client; DESIGN's own example.
    memory: _Memory = Field(default=512 * MIB, description="bytes, or a text such as 256MiB")
    cpu: float | None = Field(
        default=None,
        ge=0.01,
        le=4096,
        allow_inf_nan=False,
        description="cores, such as 0.5; null: no ceiling",
    )
    # Processes and threads. A JVM on 64 cores starts about 80 threads, Node a dozen, OpenBLAS one
    # a core, so 128 breaks two of them side by side; 256 of a fork bomb die within 40 ms.
    # At least 8: init, guest and libzmq's threads are four.
    pids: int = Field(default=256, ge=8, le=65536, description="processes and threads")
    # The usual soft limit: beyond it select() breaks in programs that still use it.
    # At least 32: Python, the link and libzmq hold about a dozen.
    files: int = Field(default=1024, ge=32, le=1048576, description="open files of one process")
    # Half of the memory it is charged to.
    tmp: _Tmpfs = Field(
        default=256 * MIB, description="/tmp and /dev/shm together; counts as memory"
    )
    disk: _Disk = Field(default=GIB, description="the largest file")
    # A task that says more than this says nothing; a runaway print loop stops within a second.
    output: _Output = Field(default=16 * MIB, description="stdout, stderr, log and items together")


class Timeouts(_Model):
    """Numbers are seconds; texts such as 500ms, 30s, 1m30s; null or none: no limit."""

    # A warm spawn is a few milliseconds: this is a thousandfold, for a machine in trouble.
    start: Annotated[_Duration, AfterValidator(_more_than_no_time)] = Field(
        default=10.0, description="until the sandbox is ready"
    )
    # A task that waits for a language model takes minutes; one that hangs unseen should not cost
    # the night. DESIGN promises that a hang ends, so the default is not "none".
    wall: _Limit = Field(default=600.0, description="from the start of the task's code to its end")
    idle: _Limit = Field(default=None, description="without an event")
    cpu: _Limit = Field(default=None, description="cpu time of the whole process tree")
    grace: _Duration = Field(default=0.0, description="between asking to end and the kill")


# What a task's own failure can be. A wall that was hit is no accident: `violation` is retried only
# where it is named. `setup` and `lost` are never the task's fault and retried whatever this says.
_RETRIED = (
    "error", "invalid_output", "timeout", "memory", "pids", "disk", "output_limit", "crash",
    "protocol",
)  # fmt: skip
_RETRYABLE = sorted(
    {
        name
        for kind in set(ErrorKind) - retry.FINAL - retry.BLAMELESS
        for name in (kind.value, kind.value.partition(".")[0])
    }
)


def _kinds(value: Any) -> tuple[str, ...]:
    kinds = _one_or_list(value)
    if not isinstance(kinds, list):
        raise ValueError(f"expected a list of error kinds, got {shown(value)}")
    for kind in kinds:
        if kind not in _RETRYABLE:
            raise ValueError(
                f"{shown(kind)} is not an error kind that can be retried"
                f"{_did_you_mean(kind, _RETRYABLE)}"
            )
    return tuple(dict.fromkeys(kinds))


class Retry(_Model):
    """The n-th retry waits delay * backoff^(n-1), at most max_delay, give or take the jitter."""

    # One: code with side effects is not run twice unless somebody said that it may.
    attempts: int = Field(default=1, ge=1, le=ATTEMPTS, description="the first try included")
    delay: _Duration = Field(default=1.0, description="before the second attempt")
    backoff: float = Field(default=2.0, ge=1, le=100, allow_inf_nan=False)
    max_delay: _Duration = Field(default=60.0, description="the longest wait")
    jitter: float = Field(
        default=0.1, ge=0, le=1, allow_inf_nan=False, description="0.1: give or take 10 %"
    )
    on: Annotated[
        tuple[str, ...],
        PlainValidator(_kinds),
        WithJsonSchema({"type": "array", "items": {"enum": _RETRYABLE}, "default": list(_RETRIED)}),
    ] = Field(
        default_factory=lambda: _RETRIED,  # as a default, pydantic's schema would warn of it
        description="error kinds; timeout stands for every timeout.*",
    )


_FILE_ENTRY = re.compile(r"(?P<file>[^:\0]{1,1000}\.py):(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")
_MODULE_ENTRY = re.compile(
    r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)"
)
_EXECUTE_HELP = "write FILE.py:FUNCTION (beside the pipeline's file) or PACKAGE.MODULE:FUNCTION"


def _execute(value: Any) -> FileEntry | ModuleEntry | PickleEntry:
    if isinstance(value, str):
        if match := _FILE_ENTRY.fullmatch(value):
            return FileEntry(match["file"], match["name"])
        if match := _MODULE_ENTRY.fullmatch(value):
            return ModuleEntry(match["module"], match["name"])
        raise ValueError(f"{shown(value)} names no function; {_EXECUTE_HELP}")
    match value:
        case {"pickle": bytes(payload), "name": str(name), **rest} if not rest:
            if len(payload) > PICKLE_SIZE:
                raise ValueError(
                    f"the pickled function {shown(name)} is {len(payload) // KIB} KiB, at most "
                    f"{PICKLE_SIZE // KIB}: it carries data along; hand that over as input, or "
                    "define the function at the top level of a file"
                )
            return PickleEntry(payload, name)
    raise ValueError(f"expected a text, got {shown(value)}; {_EXECUTE_HELP}")


def _command(value: Any) -> CommandEntry:
    if isinstance(value, str):
        raise ValueError(
            f"expected a list of words, got {shown(value)}; for a shell write "
            f"[bash, -c, {shown(value)}]"
        )
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of words such as [node, agent.js], got {shown(value)}")
    for word in value:
        if not isinstance(word, str) or "\0" in word:
            raise ValueError(f"every word must be a text, got {shown(word)}; quote it")
    if not value[0]:
        raise ValueError("the first word, the program, is empty")
    return CommandEntry(tuple(value))


def _agent_spec(value: Any) -> Raw:
    if not isinstance(value, dict):
        raise ValueError(f"expected a map such as {{role: reviewer}}, got {shown(value)}")
    encoded = codec.encode_value(value, name="spec")
    if len(encoded) > SPEC_SIZE:
        raise ValueError(
            f"is {len(encoded) // KIB} KiB, at most {SPEC_SIZE // KIB}: hand large data over as "
            "input or as a file among the sources"
        )
    return Raw(encoded)


_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)


def _env(value: Any) -> dict[str, str | None]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a map such as {{MODE: fast}}, got {shown(value)}")
    env: dict[str, str | None] = {}
    for name, text in value.items():
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{shown(name)} is not a variable's name (letters, digits, _)")
        if name.startswith("CASEMATE_"):
            raise ValueError(f"{name}: the names that begin with CASEMATE_ are the sandbox's own")
        if isinstance(text, int) and not isinstance(text, bool):
            text = str(text)
        if text is not None and (not isinstance(text, str) or "\0" in text):
            raise ValueError(f"{name}: expected a text, got {shown(text)}; quote it")
        env[name] = text
    return env


_Names = Annotated[list[str], BeforeValidator(_one_or_list), WithJsonSchema(_NAMES_SCHEMA)]
_Env = Annotated[
    dict[str, str | None],
    PlainValidator(_env),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"type": ["string", "integer", "null"]},
            "description": "literal values; null passes on the host's, if the operator allows it",
        }
    ),
]
_Network = Literal["none", "host"]
_NETWORK_HELP = "host: the host's network, where the operator allows it"


class Defaults(_Model):
    """For every task that does not say otherwise, key by key."""

    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    sources: _Names = Field(
        default=[], description="files and folders that tasks import, read-only"
    )
    env: _Env = {}
    network: _Network = Field(default="none", description=_NETWORK_HELP)


class Task(Defaults):
    """One node of the graph: a function or a command, and what it may use."""

    execute: Annotated[
        FileEntry | ModuleEntry | PickleEntry | None,
        PlainValidator(_execute),
        WithJsonSchema({"type": "string", "examples": ["agents.py:analyze", "package.module:run"]}),
    ] = None
    command: Annotated[
        CommandEntry | None,
        PlainValidator(_command),
        WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
    ] = None
    spec: Annotated[Raw, PlainValidator(_agent_spec), WithJsonSchema({"type": "object"})] = Field(
        default_factory=lambda: Raw(b"\x80"),
        description="the agent's own data: role, model, anything",
    )
    # `Any`: needs and edges are judged by `_edges`, which can say where in a list the fault is.
    needs: Annotated[Any, WithJsonSchema(_NAMES_SCHEMA)] = Field(
        default=(), description="tasks whose outputs this one gets"
    )


_TaskId = Annotated[str, Field(pattern=TASK_ID_PATTERN)]

_EDGES_SCHEMA = {
    "anyOf": [
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"from": {"type": "string"}, "to": {"type": "string"}},
                        "required": ["from", "to"],
                        "additionalProperties": False,
                    },
                    {
                        "type": "array",
                        "prefixItems": [{"type": "string"}, {"type": "string"}],
                        "minItems": 2,
                        "maxItems": 2,
                    },
                ]
            },
        },
        {"type": "object", "additionalProperties": _NAMES_SCHEMA},
    ]
}


class Pipeline(_Model):
    """A pipeline file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}$")
    tasks: dict[_TaskId, Task] = Field(min_length=1)
    edges: Annotated[Any, WithJsonSchema(_EDGES_SCHEMA)] = Field(
        default=(), description="[{from: a, to: b}], [[a, b]] or {a: [b, c]}"
    )
    workspace: str | None = Field(default=None, description="a folder; tasks see it read-only")
    defaults: Defaults = Defaults()
    fail_fast: bool = Field(default=False, description="a failed task ends the run at once")
    timeout: _Limit = Field(default=None, description="for the whole run")
    max_parallel: int | None = Field(
        default=None, ge=1, description="attempts of this run at a time"
    )
    # For editors; says nothing to us.
    json_schema_location: str | None = Field(default=None, alias="$schema")


# What DESIGN names and later versions bring. Better a refusal than a breaker that never opens.
_LATER = {
    "base", "breaker", "checkpoints", "conflict", "degrade", "fallbacks", "output_schema", "proc",
    "python", "recover", "ro", "rw", "stream", "stream_backlog", "validate",
}  # fmt: skip


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a pipeline file, for editors and other programs."""
    schema = Pipeline.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://casemate.dev/pipeline.schema.json",
        **schema,
    }


# --- compiling -----------------------------------------------------------------------------------


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
    document = {
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


M = TypeVar("M", bound=_Model)


class _Compiler:
    def __init__(
        self, document: Document, root: Path, allow: Allow, workspace: Path | None
    ) -> None:
        self._document = document
        self._root = root
        self._allow = allow
        self._workspace = workspace
        self._problems: list[Problem] = []
        self._bad: set[KeyPath] = set()  # keys that do not hold what they should

    def compile(self) -> PipelineSpec:
        raw = self._document.value
        if not isinstance(raw, dict):
            self._wrong(f"expected a map with name and tasks, got {shown(raw)}", ())
            raise self._error()
        model = self._validate(raw)
        edges = self._edges(raw)
        tasks = [self._task(id, task, model.defaults) for id, task in model.tasks.items()]
        workspace = self._workspace_folder(model)
        if self._problems:
            raise self._error()
        return PipelineSpec(
            name=model.name,
            tasks=tuple(tasks),
            edges=edges,
            root=str(self._root),
            workspace=workspace,
            fail_fast=model.fail_fast,
            timeout=model.timeout,
            max_parallel=model.max_parallel,
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
            self._wrong(_message(path, each), path)
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
        found: dict[Edge, KeyPath] = {}

        def add(source: Any, to: Any, path: KeyPath, ends: tuple[KeyPath, KeyPath]) -> None:
            known = True
            for end, where in ((source, ends[0]), (to, ends[1])):
                if not isinstance(end, str):
                    self._wrong(f"expected a task's id, got {shown(end)}", where)
                    known = False
                elif end not in tasks:
                    self._wrong(f"there is no task {shown(end)}{_did_you_mean(end, tasks)}", where)
                    known = False
            if known:
                found.setdefault(Edge(source, to), path)

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
                        for key in edge.keys() - {"from", "to"}:
                            self._wrong(_unknown_key(key, ("from", "to")), (*path, key))
                        add(source, to, path, ((*path, "from"), (*path, "to")))
                    case _:
                        self._wrong(
                            f"expected {{from: a, to: b}} or [a, b], got {_edge_shown(edge)}", path
                        )
        else:
            self._wrong(f"expected a list or a map of edges, got {shown(edges)}", ("edges",))

        for cycle in graph.cycles((id for id in tasks if isinstance(id, str)), found):
            first = Edge(cycle[0], cycle[1 % len(cycle)])
            round_trip = " → ".join((*cycle, cycle[0]))
            if len(cycle) == 1:
                self._wrong(f"task {cycle[0]} waits for itself", found[first])
            else:
                self._wrong(f"a cycle: {round_trip}; take one of these edges out", found[first])
        return tuple(sorted(found))

    # --- one task

    def _task(self, id: str, task: Task, defaults: Defaults) -> TaskSpec:
        path: KeyPath = ("tasks", id)
        entry = self._entry(task, path)
        limits = _merged(defaults.limits, task.limits)
        timeouts = _merged(defaults.timeouts, task.timeouts)
        policy = _merged(defaults.retry, task.retry)
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
        return TaskSpec(
            id=id,
            execute=entry,
            spec=task.spec,
            sources=tuple(dict.fromkeys(name for name in sources if name is not None)),
            env={name: text for name, text in env.items() if text is not None},
            host_env=tuple(sorted(name for name, text in env.items() if text is None)),
            limits=pipeline.Limits(**dict(limits)),
            timeouts=pipeline.Timeouts(**dict(timeouts)),
            retry=pipeline.Retry(**dict(policy)),
            network=Network(network),
        )

    def _entry(self, task: Task, path: KeyPath) -> Entry:
        if task.execute is not None and task.command is not None:
            self._wrong("has both execute and command; take one out", path)
        if task.command is not None:
            return task.command
        match task.execute:
            case None:
                if not self._bad & {(*path, "execute"), (*path, "command")}:
                    self._wrong(
                        "has neither execute nor command; add one, such as "
                        "execute: agents.py:analyze",
                        path,
                    )
                return CommandEntry(())
            case FileEntry(file=file):
                self._file(file, (*path, "execute"))
            case ModuleEntry() | PickleEntry():
                pass
        return task.execute

    def _env_of(self, env: dict[str, str | None], path: KeyPath) -> dict[str, str | None]:
        for name, text in env.items():
            if text is None and name not in self._allow.env:
                self._wrong(
                    f"the host's own {name} {_takes_word(f'env:{name}')}; or write its value here",
                    (*path, name),
                )
        return env

    # --- paths

    def _file(self, file: str, path: KeyPath) -> None:
        """Beneath the root without exception: a task's file needs a place in the snapshot."""
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
            folder, path = self._workspace.resolve(), ()
            if reason := self._forbidden(folder):
                self._wrong(f"workspace {shown(str(self._workspace))}: {reason}", path)
            elif not folder.is_dir():
                self._wrong(f"workspace {shown(str(self._workspace))} is not a folder", path)
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

    def _is_permitted(self, name: str, found: Path, path: KeyPath) -> bool:
        if reason := self._forbidden(found):
            self._wrong(f"{shown(name)} {reason}; name a folder below it", path)
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

    def _forbidden(self, folder: Path) -> str | None:
        if folder == Path("/"):
            return "is the whole file system"
        for home in _homes():
            if home.is_relative_to(folder):
                return "is the home directory" if home == folder else "holds the home directory"
        state = self._allow.state.resolve() if self._allow.state is not None else None
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
    return f"takes the operator's word: allow {word} in casemate.toml or CASEMATE_ALLOW"


def _merged(default: M, own: M) -> M:
    """The task's word first, then the pipeline's, then ours."""
    return default.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


def _edge_shown(edge: Any) -> str:
    if isinstance(edge, Mapping):
        return f"a map with {', '.join(sorted(map(str, edge)))[:60] or 'nothing in it'}"
    if isinstance(edge, list | tuple):
        return f"a list of {len(edge)}"
    return shown(edge)


# --- pydantic's errors in our words --------------------------------------------------------------

_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
}
_MISSING = {
    "name": "is missing; every pipeline has a name",
    "tasks": "is missing; write tasks: and below it one key for each task",
}


def _model_at(path: KeyPath) -> type[_Model]:
    """The model whose keys the last part of `path` had to be one of."""
    around = path[:-1]
    if not around:
        return Pipeline
    nested: dict[str | int, type[_Model]] = {"limits": Limits, "timeouts": Timeouts, "retry": Retry}
    if around[0] == "defaults":
        return nested[around[1]] if len(around) > 1 else Defaults
    return nested[around[2]] if len(around) > 2 else Task


def _message(path: KeyPath, error: Any) -> str:
    """`error` is pydantic's ErrorDetails, a TypedDict whose `ctx` is not described."""
    kind: str = error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    value = error["input"]
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return _unknown_key(path[-1], _keys(_model_at(path)))
    if kind == "missing":
        return _MISSING.get(str(path[-1]), "is missing")
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {shown(value)}"
    if kind == "literal_error":
        return f"expected {context['expected'].replace(chr(39), '')}, got {shown(value)}"
    if kind == "string_pattern_mismatch":
        if path == ("name",):
            return f"{shown(value)}: a name is up to 100 letters, digits, spaces, . _ or -"
        return f"{shown(value)}: a task's id is 1 to 64 letters, digits, _ or -"
    if kind == "greater_than_equal":
        return f"{shown(value)} is too little; at least {context['ge']:g}"
    if kind == "less_than_equal":
        return f"{shown(value)} is too much; at most {context['le']:g}"
    if kind == "too_short":
        return "is empty; a pipeline has at least one task"
    if kind == "invalid_key":
        return f"{shown(path[-1])}: a key must be a text"
    return str(error["msg"])


def _keys(model: type[_Model]) -> Sequence[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _unknown_key(key: Any, known: Sequence[str]) -> str:
    if key in _LATER:
        return "is not supported by this version of casemate yet; leave it out"
    meant = _did_you_mean(key, known)
    listed = ", ".join(sorted(name for name in known if not name.startswith("$")))
    return f"unknown key{meant or f'; the keys here are {listed}'}"


def _did_you_mean(word: Any, known: Iterable[str]) -> str:
    # short words and few of them: difflib is quadratic, and a file may be wrong ten thousand times
    if not isinstance(word, str) or len(word) > 64:
        return ""
    candidates = [
        each for _, each in zip(range(1000), known, strict=False) if isinstance(each, str)
    ]
    near = difflib.get_close_matches(word, candidates, n=1)
    return f"; did you mean {near[0]}?" if near else ""
