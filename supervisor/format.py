"""The format of a pipeline file, as pydantic models: its keys, its defaults, its JSON Schema.

Files and the builder's documents are held against the same models. A field's default is the
documented default, with its reason beside it; `model_fields_set` tells what was given, so that a
task's word goes before the pipeline's, and the pipeline's before ours. Nothing here touches the
host: paths and the graph are judged in `pipeline.py`.

The last part turns pydantic's errors into sentences that say what was expected and what to write.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from msgspec import Raw
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
)

from ..protocol import codec
from ..protocol.answers import Action
from ..protocol.events import ErrorKind
from ..protocol.limits import (
    KIB,
    MIB,
    RETRY_AFTER,
    RETRY_BUDGET,
    ROLLBACK_BUDGET,
    STREAM_BACKLOG,
    STREAM_CREDIT_SIZE,
)
from ..protocol.pipeline import (
    BREAKER_KEY_PATTERN,
    TASK_ID_PATTERN,
    Checkpoints,
    CommandEntry,
    FileEntry,
    ModuleEntry,
    PickleEntry,
    Rule,
)
from ..protocol.units import format_size, parse_duration, parse_rate, parse_size
from .core import retry
from .reading import KeyPath, shown

__all__ = [
    "ENV_NAME",
    "Breaker",
    "Bulkhead",
    "Defaults",
    "Limits",
    "Model",
    "Pipeline",
    "Rate",
    "Retry",
    "Task",
    "Timeouts",
    "did_you_mean",
    "explain",
    "json_schema",
    "unknown_key",
]

GIB = 1024 * MIB

# What a task may name to be imported: all that a large program imports by hand, and any name that
# a package has. They travel in RUN.
PRELOADED = 64
MODULE_LENGTH = 200
MODULE_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"

# Both travel to the guest in RUN, which is one message of MESSAGE_SIZE with other fields beside.
PICKLE_SIZE = 512 * KIB
SPEC_SIZE = 256 * KIB
# Three words to each kind of error. Their outputs together are bound as a spec is: what a journal
# begins with holds both.
RULES = 64
COMMAND_SIZE = 128 * KIB  # beside a spec; the kernel takes no longer word either

# As many start times as a rate remembers, 8 bytes each; who asks for more means no limit.
RATE_LIMIT = 100_000

# Enough to tell urgent from idle with room between; a number beyond is a slip.
PRIORITY = 100

# The times of so many are kept for each breaker.
BREAKER_FAILURES = 1000

# Nobody waits for a hundredth try; a retry storm of one task stays below this.
ATTEMPTS = 100


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
_Backlog = Annotated[
    _Size, _at_least(STREAM_CREDIT_SIZE, "so much is on its way to a task that runs")
]
_Output = Annotated[_Size, _at_least(KIB, "an error message has to fit")]


class Model(BaseModel):
    # strict: "3" is not 3 and 1 is not true. What was not given keeps its default, which is the
    # documented one; `model_fields_set` tells it from what was.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=False)


class Limits(Model):
    """What one attempt may use, over its whole process tree."""

    # Room for numpy and a language model's client; DESIGN's own example.
    memory: _Memory = Field(default=512 * MIB, description="bytes, or a text such as 256MiB")
    # No ceiling: it would idle cores that nobody else wants.
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
    # A build tree or a data set; twenty such layers fit an ordinary disk. With an inode for every
    # 4 KiB a quarter of a million files: twice what the largest node_modules hold.
    disk: _Disk = Field(
        default=GIB,
        description="the largest file, and all files of the attempt's layer; one file or folder "
        "for every 4 KiB of it",
    )
    # A task that says more than this says nothing; a runaway print loop stops within a second.
    output: _Output = Field(default=16 * MIB, description="stdout, stderr, log and items together")
    # None is not without bounds: `output` has room for 262 144 events, and whoever speaks faster
    # than the journal is written waits. Where many share a host it leaves room for the others.
    event_rate: float | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        allow_inf_nan=False,
        description="events a second, beyond which the task waits; null: as the journal takes them",
    )


class Timeouts(Model):
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
# where it is named. `setup` and `lost` are never the task's fault and retried whatever this says;
# who was kept back by a breaker for as long as it lets itself be has waited enough.
_RETRIED = (
    "error", "invalid_output", "timeout", "memory", "pids", "disk", "output_limit", "crash",
    "protocol",
)  # fmt: skip


def _named(kinds: Iterable[ErrorKind]) -> list[str]:
    """Each kind, and each family."""
    return sorted({name for kind in kinds for name in (kind.value, kind.value.partition(".")[0])})


_RETRYABLE = _named(set(ErrorKind) - retry.FINAL - retry.BLAMELESS - {ErrorKind.BREAKER_OPEN})
# Also `setup` and `lost`, when their own tries are used up.
_RECOVERABLE = _named(set(ErrorKind) - retry.FINAL)


def _kinds(value: Any) -> tuple[str, ...]:
    return _kinds_of(value, _RETRYABLE, "retried")


def _kinds_of(value: Any, known: Sequence[str], what: str) -> tuple[str, ...]:
    kinds = _one_or_list(value)
    if not isinstance(kinds, list) or not kinds:
        raise ValueError(f"expected a list of error kinds, got {shown(value)}")
    for kind in kinds:
        if kind not in known:
            raise ValueError(
                f"{shown(kind)} is not an error kind that can be {what}{did_you_mean(kind, known)}"
            )
    return tuple(dict.fromkeys(kinds))


class Retry(Model):
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
        WithJsonSchema(
            {
                "anyOf": [{"enum": _RETRYABLE}, {"type": "array", "items": {"enum": _RETRYABLE}}],
                "default": list(_RETRIED),
            }
        ),
    ] = Field(
        default_factory=lambda: _RETRIED,  # as a default, pydantic's schema would warn of it
        description="error kinds; timeout stands for every timeout.*",
    )


_Key = Annotated[str, Field(pattern=BREAKER_KEY_PATTERN)]
_PARALLEL = "attempts of this task at a time, in all runs"


class Bulkhead(Model):
    """At most so many attempts at a time, of all tasks in all runs that name the key."""

    key: _Key = Field(description="what they share, such as model-api")
    max_parallel: int = Field(ge=1, description="attempts at a time")


_RATE_SCHEMA = {"type": "string", "examples": ["10/min", "2/s", "100/h", "5/30s"]}


def _limit(value: Any) -> tuple[int, float]:
    limit, period = parse_rate(value)
    if limit > RATE_LIMIT:
        raise ValueError(f"{limit} is too much; at most {RATE_LIMIT}")
    return limit, period


class Rate(Model):
    """At most so many attempts start within the time: of the task, or of all that name the key, in
    all runs. A plain text stands for its limit."""

    limit: Annotated[tuple[int, float], PlainValidator(_limit), WithJsonSchema(_RATE_SCHEMA)] = (
        Field(description="how many within which time")
    )
    key: _Key | None = Field(default=None, description="what tasks share, such as model-api")


def _rate(value: Any) -> Any:
    return value if value is None or isinstance(value, dict) else {"limit": value}


_RateText = Annotated[str, WithJsonSchema(_RATE_SCHEMA)]
_Rate = Annotated[Rate, BeforeValidator(_rate, json_schema_input_type=_RateText | Rate)]
_Priority = Annotated[int, Field(ge=-PRIORITY, le=PRIORITY)]


class Breaker(Model):
    """After so many failures no attempt is started for a while, in any run of the state directory;
    then a single one is, as a probe. `{}` takes all the defaults."""

    failures: int = Field(default=5, ge=1, le=BREAKER_FAILURES, description="that open it")
    window: _Limit = Field(
        default=60.0, description="within which they count; none: in a row, however far apart"
    )
    open_for: Annotated[_Duration, AfterValidator(_more_than_no_time)] = Field(
        default=30.0, description="until a probe; doubled (backoff) for each probe that fails"
    )
    backoff: float = Field(default=2.0, ge=1, le=100, allow_inf_nan=False)
    # Long enough to leave a service alone, short enough that its return is noticed over a coffee.
    max_open_for: Annotated[_Duration, AfterValidator(_more_than_no_time)] = Field(
        default=600.0, description="the longest wait for a probe, where open_for is not longer"
    )
    on_open: Literal["kill", "drain"] = Field(
        default="kill", description="what becomes of attempts that run; drain: left to end"
    )
    key: str | None = Field(
        default=None,
        pattern=BREAKER_KEY_PATTERN,
        description="tasks with the same share one; else it is PIPELINE/TASK",
    )
    wait: _Limit = Field(
        default=300.0, description="how long a task is kept back before it fails; none: for ever"
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
    try:
        size = sum(len(word.encode()) for word in value)
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    if size > COMMAND_SIZE:
        raise ValueError(
            f"is {size // KIB} KiB, at most {COMMAND_SIZE // KIB}: hand large data over as input "
            "or as a file among the sources"
        )
    return CommandEntry(tuple(value))


def _agent_spec(value: Any) -> Raw:
    if not isinstance(value, dict):
        raise ValueError(f"expected a map such as {{role: reviewer}}, got {shown(value)}")
    try:
        encoded = codec.encode_value(value, name="spec")
    except codec.ValueRefused as refusal:
        raise ValueError(str(refusal)) from refusal
    if len(encoded) > SPEC_SIZE:
        raise ValueError(
            f"is {len(encoded) // KIB} KiB, at most {SPEC_SIZE // KIB}: hand large data over as "
            "input or as a file among the sources"
        )
    return Raw(encoded)


# What each answer of a rule needs beside `on` and `do`, and what it may have.
_RULE_KEYS: dict[Action, tuple[str | None, str | None]] = {
    Action.RETRY: (None, "after"),
    Action.SKIP: (None, "output"),
    Action.FALLBACK: ("fallback", None),
    Action.ROLLBACK: ("to", None),
    Action.FAIL: (None, None),
}
_RULE_HELP = "{on: [error], do: retry, skip, fallback, rollback or fail}"


def _recover(value: Any) -> FileEntry | ModuleEntry | PickleEntry | tuple[Rule, ...]:
    if isinstance(value, list):
        return _rules(value)
    try:
        return _execute(value)
    except ValueError as error:
        raise ValueError(f"{error}; or write a list of rules such as {_RULE_HELP}") from None


def _rules(value: list[Any]) -> tuple[Rule, ...]:
    if len(value) > RULES:
        raise ValueError(
            f"{len(value)} rules, at most {RULES}: the first that covers a kind counts"
        )
    rules = tuple(_rule(rule, number) for number, rule in enumerate(value, 1))
    size = sum(len(bytes(rule.output)) for rule in rules)
    if size > SPEC_SIZE:
        raise ValueError(
            f"the outputs of its rules are {size // KIB} KiB together, at most {SPEC_SIZE // KIB}: "
            "have a recover function give what is so large"
        )
    return rules


def _rule(value: Any, number: int) -> Rule:
    where = f"rule {number}"
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a map such as {_RULE_HELP}, got {shown(value)}")
    do = value.get("do")
    if not isinstance(do, str) or do not in _RULE_KEYS:
        raise ValueError(
            f"{where}: do is {shown(do)}; expected {', '.join(_RULE_KEYS)}"
            f"{did_you_mean(do, _RULE_KEYS)}"
        )
    action = Action(do)
    needed, optional = _RULE_KEYS[action]
    known = [key for key in ("on", "do", needed, optional) if key is not None]
    for key in value:
        if key not in known:
            raise ValueError(f"{where}: {shown(key)}: {unknown_key(key, known)}")
    if needed is not None and not isinstance(value.get(needed), str):
        raise ValueError(f"{where}: {action} needs {needed}: {_MEANT[action]}")
    if "on" not in value:
        raise ValueError(f"{where}: on is missing; name error kinds, such as [error, timeout]")
    try:
        on = _kinds_of(value["on"], _RECOVERABLE, "recovered from")
        after = None if value.get("after") is None else parse_duration(value["after"])
        output = codec.encode_value(
            codec.from_jsonable(value.get("output"), "output"), name="output"
        )
    except (ValueError, codec.ValueRefused) as error:
        raise ValueError(f"{where}: {error}") from None
    if after is not None and after > RETRY_AFTER:
        raise ValueError(f"{where}: after is {shown(value['after'])}, more than a day")
    to = None if needed is None else value[needed]
    return Rule(on=on, do=action, after=after, output=Raw(output), to=to)


_MEANT = {
    Action.FALLBACK: "the name of one of the task's fallbacks",
    Action.ROLLBACK: "the task to just before which the run goes back",
}


def _fallbacks(value: Any) -> dict[str, FileEntry | ModuleEntry | PickleEntry | CommandEntry]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a map such as {{cheap: agents.py:cheap}}, got {shown(value)}")
    found: dict[str, FileEntry | ModuleEntry | PickleEntry | CommandEntry] = {}
    for name, entry in value.items():
        if not isinstance(name, str) or not re.fullmatch(TASK_ID_PATTERN, name):
            raise ValueError(f"{shown(name)}: a fallback's name is 1 to 64 letters, digits, _ or -")
        try:
            found[name] = _command(entry) if isinstance(entry, list) else _execute(entry)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def _output_schema(value: Any) -> Raw:
    if not isinstance(value, dict | bool):
        raise ValueError(f"expected a JSON Schema such as {{type: object}}, got {shown(value)}")
    try:
        encoded = codec.encode_value(value, name="output_schema")
    except codec.ValueRefused as refusal:
        raise ValueError(str(refusal)) from refusal
    if len(encoded) > SPEC_SIZE:
        raise ValueError(f"is {len(encoded) // KIB} KiB, at most {SPEC_SIZE // KIB}")
    return Raw(encoded)


ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)


def _env(value: Any) -> dict[str, str | None]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a map such as {{MODE: fast}}, got {shown(value)}")
    env: dict[str, str | None] = {}
    for name, text in value.items():
        if not isinstance(name, str) or not ENV_NAME.fullmatch(name):
            raise ValueError(f"{shown(name)} is not a variable's name (letters, digits, _)")
        if name.startswith("CASEMATE_"):
            raise ValueError(f"{name}: the names that begin with CASEMATE_ are the sandbox's own")
        if isinstance(text, int) and not isinstance(text, bool):
            text = str(text)
        if text is not None and (not isinstance(text, str) or "\0" in text):
            raise ValueError(f"{name}: expected a text, got {shown(text)}; quote it")
        env[name] = text
    return env


def _modules(value: Any) -> tuple[str, ...]:
    modules = _one_or_list(value)
    if not isinstance(modules, list):
        raise ValueError(f"expected a list of modules, such as [numpy], got {shown(value)}")
    for module in modules:
        is_name = isinstance(module, str) and re.fullmatch(MODULE_PATTERN, module)
        if not is_name or len(module) > MODULE_LENGTH:
            raise ValueError(f"{shown(module)} is no module's name, such as numpy.linalg")
    if len(modules) > PRELOADED:
        raise ValueError(f"{len(modules)} modules are too many; at most {PRELOADED}")
    return tuple(dict.fromkeys(modules))


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
_MODULE_SCHEMA = {"type": "string", "pattern": MODULE_PATTERN}
_Modules = Annotated[
    tuple[str, ...],
    PlainValidator(_modules),
    WithJsonSchema(
        {
            "anyOf": [
                _MODULE_SCHEMA,
                {"type": "array", "items": _MODULE_SCHEMA, "maxItems": PRELOADED},
            ],
            "examples": [["numpy", "pandas"]],
        }
    ),
]
_Network = Literal["none", "host"]
_NETWORK_HELP = "host: the host's network, where the operator allows it"
_Wall = Literal["user", "net", "ipc", "uts", "cgroup", "seccomp", "landlock"]
_Walls = Annotated[
    list[_Wall], BeforeValidator(_one_or_list, json_schema_input_type=_Wall | list[_Wall])
]


_RECOVER_SCHEMA = {
    "anyOf": [
        {"type": "string", "examples": ["agents.py:recover"]},
        {
            "type": "array",
            "maxItems": RULES,
            "items": {
                "type": "object",
                "properties": {
                    "on": {
                        "anyOf": [
                            {"enum": _RECOVERABLE},
                            {"type": "array", "items": {"enum": _RECOVERABLE}, "minItems": 1},
                        ]
                    },
                    "do": {"enum": [action.value for action in Action]},
                    "after": _DURATION_SCHEMA,
                    "output": {},
                    "fallback": {"type": "string"},
                    "to": {"type": "string"},
                },
                "required": ["on", "do"],
                "additionalProperties": False,
            },
        },
    ]
}


class Defaults(Model):
    """For every task that does not say otherwise, key by key."""

    limits: Limits = Field(default_factory=Limits)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    retry: Retry = Field(default_factory=Retry)
    breaker: Breaker | None = Field(
        default=None, description="opens after repeated failures; null: none"
    )
    sources: _Names = Field(
        default=[], description="files and folders that tasks import, read-only"
    )
    env: _Env = {}
    network: _Network = Field(default="none", description=_NETWORK_HELP)
    ro: _Names = Field(
        default=[], description="host paths seen at their own places, where the operator allows it"
    )
    rw: _Names = Field(
        default=[], description="the same, and written to: no layer keeps what was there"
    )
    degrade: _Walls = Field(
        default=[],
        description="walls to do without on a host that cannot give them, where the operator "
        "allows it",
    )
    # subset=pid: what the host is and does is none of a task's business.
    proc: Literal["pids", "readonly"] = Field(
        default="pids",
        description="readonly: all of /proc (the cpu count of Node, psutil), where the operator "
        "allows it",
    )
    python: str | None = Field(
        default=None,
        description="an interpreter or the folder of a virtual environment, where the operator "
        "allows it; null: the one that casemate runs under",
    )


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
    preload: _Modules = Field(
        default=(),
        description="modules to import before `execute` is, ahead of the attempt where possible",
    )
    max_parallel: int | None = Field(default=None, ge=1, description=_PARALLEL)
    bulkhead: Bulkhead | None = Field(
        default=None, description="{key: model-api, max_parallel: 4}: shared with who names the key"
    )
    rate: _Rate | None = Field(
        default=None, description="10/min, or {limit: 10/min, key: model-api}: shared likewise"
    )
    priority: _Priority = Field(
        default=0, description="among the ready tasks of a run: the highest first"
    )
    validate_: Annotated[
        FileEntry | ModuleEntry | PickleEntry | None,
        PlainValidator(_execute),
        WithJsonSchema({"type": "string", "examples": ["agents.py:check"]}),
    ] = Field(
        default=None,
        alias="validate",
        description="given the output alone, in a sandbox of its own; says whether it is good",
    )
    output_schema: Annotated[
        Raw, PlainValidator(_output_schema), WithJsonSchema({"type": ["object", "boolean"]})
    ] = Field(
        default_factory=lambda: Raw(b"\xc0"),
        description="JSON Schema of the output; held against it in a sandbox",
    )
    recover: Annotated[
        FileEntry | ModuleEntry | PickleEntry | tuple[Rule, ...],
        PlainValidator(_recover),
        WithJsonSchema(_RECOVER_SCHEMA),
    ] = Field(default=(), description="what to do about a failed attempt, before it is retried")
    fallbacks: Annotated[
        dict[str, FileEntry | ModuleEntry | PickleEntry | CommandEntry],
        PlainValidator(_fallbacks),
        WithJsonSchema(
            {
                "type": "object",
                "additionalProperties": {
                    "anyOf": [
                        {"type": "string"},
                        {"type": "array", "items": {"type": "string"}, "minItems": 1},
                    ]
                },
            }
        ),
    ] = Field(default={}, description="what recover may go on with in the place of execute")
    always: bool = Field(
        default=False, description="runs when what it needs has ended, also by failure or cancel"
    )
    # `Any`: needs and edges are judged by `_edges`, which can say where in a list the fault is.
    needs: Annotated[Any, WithJsonSchema(_NAMES_SCHEMA)] = Field(
        default=(), description="tasks whose outputs this one gets"
    )


def _checkpoints(value: Any) -> Checkpoints:
    match value:
        case "every-task":
            return Checkpoints()
        case "none":
            return Checkpoints(every_task=False)
        case {"after": _} | {"every": _} if set(value) <= {"after", "every"}:
            after = _one_or_list(value.get("after", []))
            if not isinstance(after, list) or not all(isinstance(each, str) for each in after):
                raise ValueError(f"after: expected a list of tasks, got {shown(after)}")
            every = _duration_or_none(value.get("every"))
            return Checkpoints(every_task=False, after=tuple(dict.fromkeys(after)), every=every)
    raise ValueError(
        f"expected every-task, none, {{after: [tasks]}} or {{every: 30s}}, got {shown(value)}"
    )


_CHECKPOINTS_SCHEMA = {
    "anyOf": [
        {"enum": ["every-task", "none"]},
        {
            "type": "object",
            "properties": {"after": _NAMES_SCHEMA, "every": _DURATION_SCHEMA},
            "minProperties": 1,
            "additionalProperties": False,
        },
    ],
    "default": "every-task",
}

_TaskId = Annotated[str, Field(pattern=TASK_ID_PATTERN)]

_EDGES_SCHEMA = {
    "anyOf": [
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {
                            "from": {"type": "string"},
                            "to": {"type": "string"},
                            "stream": {"type": "boolean", "default": False},
                        },
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


class Pipeline(Model):
    """A pipeline file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}$")
    tasks: dict[_TaskId, Task] = Field(
        min_length=1, json_schema_extra={"additionalProperties": False}
    )
    edges: Annotated[Any, WithJsonSchema(_EDGES_SCHEMA)] = Field(
        default=(),
        description="[{from: a, to: b}], [[a, b]] or {a: [b, c]}; stream: true gives items while "
        "from runs",
    )
    stream_backlog: _Backlog = Field(
        default=STREAM_BACKLOG,
        description="bytes of items that may wait for a task that has not started; each attempt's "
        "limits.output counts them too",
    )
    workspace: str | None = Field(
        default=None, description="a folder; never written to: tasks work on layers over it"
    )
    base: Literal["live", "snapshot"] = Field(
        default="live", description="snapshot: on a copy of the workspace, made at the start"
    )
    # Two that changed the same file did not know of each other: a person should.
    conflict: Literal["fail", "last"] = Field(
        default="fail", description="where branches changed the same path and meet; last: one wins"
    )
    # What is finished can be returned to, unless somebody said that it need not be.
    checkpoints: Annotated[
        Checkpoints, PlainValidator(_checkpoints), WithJsonSchema(_CHECKPOINTS_SCHEMA)
    ] = Field(
        default_factory=Checkpoints,
        description="every-task, none, {after: [tasks]} or {every: 30s}",
    )
    defaults: Defaults = Field(default_factory=Defaults)
    fail_fast: bool = Field(default=False, description="a failed task ends the run at once")
    timeout: _Limit = Field(default=None, description="for the whole run")
    max_parallel: int | None = Field(
        default=None, ge=1, description="attempts of this run at a time"
    )
    priority: _Priority = Field(
        default=0, description="among runs: the highest first, and nobody waits for ever"
    )
    retry_budget: int = Field(
        default=RETRY_BUDGET, ge=0, description="retries and fallbacks of the whole run"
    )
    rollback_budget: int = Field(
        default=ROLLBACK_BUDGET, ge=0, description="rollbacks that recover may ask for"
    )
    # For editors; says nothing to us.
    json_schema_location: str | None = Field(default=None, alias="$schema")


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a pipeline file, for editors and other programs."""
    schema = Pipeline.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:casemate:pipeline",
        **schema,
    }


# --- pydantic's errors in our words --------------------------------------------------------------

_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
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
    "key": "is missing; name what the tasks share, such as model-api",
    "max_parallel": "is missing; write how many attempts at a time",
    "limit": "is missing; write how many within which time, such as 10/min",
}


def _model_at(path: KeyPath) -> type[Model]:
    """The model whose keys the last part of `path` had to be one of."""
    around = path[:-1]
    if not around:
        return Pipeline
    nested: dict[str | int, type[Model]] = {
        "limits": Limits,
        "timeouts": Timeouts,
        "retry": Retry,
        "bulkhead": Bulkhead,
        "rate": Rate,
        "breaker": Breaker,
    }
    if around[0] == "defaults":
        return nested[around[1]] if len(around) > 1 else Defaults
    return nested[around[2]] if len(around) > 2 else Task


def explain(path: KeyPath, error: Any, model: type[BaseModel] | None = None) -> str:
    """`error` is pydantic's ErrorDetails, a TypedDict whose `ctx` is not described. `model`: whose
    keys the last part of `path` had to be one of, where that is not a pipeline's."""
    kind: str = error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    value = error["input"]
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return unknown_key(path[-1], _keys(model or _model_at(path)))
    if kind == "missing":
        return _MISSING.get(str(path[-1]), "is missing")
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {shown(value)}"
    if kind == "literal_error":
        return f"expected {context['expected'].replace(chr(39), '')}, got {shown(value)}"
    if kind == "string_pattern_mismatch":
        if path == ("name",):
            return f"{shown(value)}: a name is up to 100 letters, digits, spaces, . _ or -"
        if path[-1] == "key":
            return f"{shown(value)}: a key is up to 200 letters, digits, spaces, . _ - / or :"
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


def _keys(model: type[BaseModel]) -> Sequence[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def unknown_key(key: Any, known: Sequence[str]) -> str:
    meant = did_you_mean(key, known)
    listed = ", ".join(sorted(name for name in known if not name.startswith("$")))
    return f"unknown key{meant or f'; the keys here are {listed}'}"


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    # short words and few of them: difflib is quadratic, and a file may be wrong ten thousand times
    if not isinstance(word, str) or len(word) > 64:
        return ""
    candidates = [
        each for _, each in zip(range(1000), known, strict=False) if isinstance(each, str)
    ]
    near = difflib.get_close_matches(word, candidates, n=1)
    return f"; did you mean {near[0]}?" if near else ""
