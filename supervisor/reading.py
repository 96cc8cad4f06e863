"""Reading a pipeline file: YAML, TOML or JSON → plain values, and the line each stands on.

A pipeline file may come from anybody, so reading it is bounded whatever it holds. YAML is built
here from the parser's *events*, with a stack of our own, rather than by PyYAML's composer and
constructor: those recurse, build whatever a tag names, and expand `<<` merges exponentially. Here
tags are refused, depth is capped before the parser looks further (libyaml is quadratic in open
brackets), and an alias costs as many values as it stands for, out of one budget.

Scalars are read by YAML 1.2's core schema: `on`, `no` and `1:30` are texts, not a boolean, a
boolean and ninety. Keys are always text. A key given twice is an error, in every format.

Lines: YAML has them from the parser; JSON is read as YAML a second time for its lines alone; TOML's
are found by looking for `[table]` and `key =`. Where that finds nothing, messages do without.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..protocol.errors import UsageError
from ..protocol.limits import CONTROL_REQUEST_SIZE

__all__ = ["Document", "KeyPath", "PipelineError", "Problem", "parse_text", "read_file", "shown"]

# A pipeline has to fit a control request; 10 000 tasks of one line each are half of this.
FILE_SIZE = CONTROL_REQUEST_SIZE

# What a person writes nests five deep, an AgentSpec's params a few more. Everything downstream
# (pydantic, msgspec) recurses, so this also keeps their stacks short.
DEPTH = 64

# Values in a document, each alias counted as all that it stands for: thirty for each of 10 000
# tasks. A page of nested aliases would otherwise be gigabytes.
VALUES = 300_000

# Problems that are printed; the rest is counted. Nobody mends more than a screenful at once.
PROBLEMS_SHOWN = 20

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend. `path` is where in the document: ("tasks", "analyze", "limits")."""

    message: str
    path: KeyPath = ()
    line: int | None = None

    def text(self, source: str) -> str:
        """`review.yaml:7: tasks.analyze.wall: unknown key`, which terminals make a link of."""
        where = source if self.line is None else f"{source}:{self.line}"
        return ": ".join(part for part in (where, key_path(self.path), self.message) if part)


class PipelineError(UsageError):
    """Everything that is wrong with a pipeline. `problems` has them apart, for programs."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        lines = [problem.text(source) for problem in self.problems[:PROBLEMS_SHOWN]]
        if len(self.problems) > 1:
            lines = [f"{source}: {len(self.problems)} problems", *(f"  {line}" for line in lines)]
        if len(self.problems) > PROBLEMS_SHOWN:
            lines.append(f"  and {len(self.problems) - PROBLEMS_SHOWN} more")
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Document:
    """`value` as written, `source` as messages call it, `lines` by key path where known."""

    value: object
    source: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def problem(self, message: str, path: KeyPath = ()) -> Problem:
        """With the line of the path, or of the nearest thing around it that has one."""
        for length in range(len(path), -1, -1):
            line = self.lines.get(path[:length])
            if line is not None and (length or not path):
                return Problem(message, path, line)
        return Problem(message, path)


def read_file(path: Path) -> Document:
    """Raises PipelineError: not there, not a file, too large, not what its suffix says."""
    source = str(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise PipelineError(
            source, [Problem("a pipeline file ends in .yaml, .yml, .toml, .json or .py")]
        )
    try:
        # O_NONBLOCK: a FIFO must be told apart, not waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PipelineError(source, [Problem(f"cannot be read: {error.strerror}")]) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PipelineError(source, [Problem("is not a regular file")])
        content = file.read(FILE_SIZE + 1)
    if len(content) > FILE_SIZE:
        raise PipelineError(
            source,
            [Problem(f"is larger than {FILE_SIZE >> 20} MiB; give large data as the run's input")],
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PipelineError(source, [Problem("is not UTF-8 text", line=line)]) from error
    return parse_text(text, suffix, source)


def parse_text(text: str, suffix: str, source: str) -> Document:
    value, lines = _READERS[suffix](text, source)
    if value is None:
        raise PipelineError(source, [Problem("is empty; a pipeline has at least name and tasks")])
    return Document(value, source, lines)


def key_path(path: KeyPath) -> str:
    """`tasks.analyze.needs[0]`. Parts come from the file: odd ones are quoted and cut."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_$-]{1,64}", part):
            text += f".{part}"
        else:
            text += f".{shown(part)}"
    return text.removeprefix(".")


def shown(value: object) -> str:
    """A value in a message: quoted, escaped, and short whatever it is."""
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # json: double quotes and \u escapes, as people know them from the files themselves
        return json.dumps(value[:60] + ("…" if len(value) > 60 else ""), ensure_ascii=False)
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a very large number"  # str() of it may be refused
    text = ascii(value)
    return text if len(text) <= 60 else text[:60] + "…"


_Lines = dict[KeyPath, int]


# --- YAML ----------------------------------------------------------------------------------------

# the C parser where PyYAML was built with it: twenty times as fast
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_YAML_CONSTANTS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_YAML_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_YAML_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_YAML_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


class _ReadingError(Exception):
    def __init__(self, message: str, line: int) -> None:
        self.problem = Problem(message, line=line)


@dataclass(slots=True)
class _Open:
    """A map or list whose end has not come yet."""

    value: dict[str, object] | list[object]
    path: KeyPath
    line: int
    anchor: str | None
    key: str | None = None
    is_merge: bool = False
    merged: list[dict[str, object]] = field(default_factory=list)
    values: int = 1


class _YamlBuilder:
    def __init__(self) -> None:
        self.root: object = None
        self.lines: _Lines = {}
        self.documents = 0
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[object, int]] = {}  # value, how many values it stands for
        self._values = 0

    def feed(self, event: Any) -> None:  # PyYAML's event classes are untyped
        line = event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    raise _ReadingError("a second document begins here; a file holds one", line)
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    raise _ReadingError(f"*{event.anchor} stands for nothing said before", line)
                value, values = self._anchors[event.anchor]
                self._add(value, values, line)
            case yaml.ScalarEvent():
                self._scalar(event, line)
            case yaml.MappingStartEvent():
                self._open({}, event, line)
            case yaml.SequenceStartEvent():
                self._open([], event, line)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close()

    def _open(self, value: dict[str, object] | list[object], event: Any, line: int) -> None:
        if event.tag is not None and event.tag not in _YAML_TAGS:
            raise _ReadingError(f"the tag {shown(event.tag)}: a pipeline file is plain data", line)
        if len(self._stack) >= DEPTH:
            raise _ReadingError(f"nested more than {DEPTH} deep", line)
        self._stack.append(_Open(value, self._path(line), line, event.anchor))

    def _path(self, line: int) -> KeyPath:
        """Where the next value goes."""
        if not self._stack:
            return ()
        parent = self._stack[-1]
        if isinstance(parent.value, list):
            return (*parent.path, len(parent.value))
        if parent.key is None and not parent.is_merge:
            raise _ReadingError("a key must be a text", line)
        return (*parent.path, parent.key if parent.key is not None else "<<")

    def _close(self) -> None:
        done = self._stack.pop()
        if isinstance(done.value, dict):
            for other in done.merged:
                for key, value in other.items():
                    done.value.setdefault(key, value)
        if done.anchor is not None:
            self._anchors[done.anchor] = (done.value, done.values)
        self._add(done.value, done.values, done.line, counted=True)

    def _scalar(self, event: Any, line: int) -> None:
        parent = self._stack[-1] if self._stack else None
        if (
            parent is not None
            and isinstance(parent.value, dict)
            and parent.key is None
            and not parent.is_merge
        ):
            self._key(parent, event, line)
            return
        value: object = event.value
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise _ReadingError(f"the tag {shown(event.tag)}: a pipeline file is plain data", line)
        if event.tag is None and event.implicit[0]:  # plain: neither quoted nor a block
            value = _yaml_plain(event.value, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        self._add(value, 1, line)

    def _key(self, parent: _Open, event: Any, line: int) -> None:
        key: str = event.value
        if key == "<<" and event.implicit[0]:
            parent.is_merge = True
            return
        if event.anchor is not None:
            self._anchors[event.anchor] = (key, 1)
        path = (*parent.path, key)
        assert isinstance(parent.value, dict)
        if key in parent.value:
            raise _ReadingError(
                f"{key_path(path)} is given twice, first on line {self.lines[path]}", line
            )
        parent.key = key
        self.lines[path] = line

    def _add(self, value: object, values: int, line: int, *, counted: bool = False) -> None:
        if not counted:
            self._values += values
        else:
            self._values += 1
        if self._values > VALUES:
            raise _ReadingError(f"more than {VALUES} values, aliases counted in full", line)
        if not self._stack:
            self.root = value
            self.lines.setdefault((), line)
            return
        parent = self._stack[-1]
        parent.values += values
        if isinstance(parent.value, list):
            self.lines.setdefault((*parent.path, len(parent.value)), line)
            parent.value.append(value)
        elif parent.is_merge:
            parent.is_merge = False
            maps = value if isinstance(value, list) else [value]
            for each in maps:
                if not isinstance(each, dict):
                    raise _ReadingError("<< takes a map or a list of maps", line)
                parent.merged.append(each)
        elif parent.key is None:
            raise _ReadingError("a key must be a text", line)
        else:
            parent.value[parent.key] = value
            parent.key = None


def _yaml_plain(text: str, line: int) -> object:
    if text in _YAML_CONSTANTS:
        return _YAML_CONSTANTS[text]
    if _YAML_INTEGER.fullmatch(text):
        if len(text) > 100:
            raise _ReadingError("a number of more than 100 digits", line)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _YAML_FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _read_yaml(text: str, source: str) -> tuple[object, _Lines]:
    builder = _YamlBuilder()
    try:
        for event in yaml.parse(text, Loader=_YAML_LOADER):
            builder.feed(event)
    except _ReadingError as error:
        raise PipelineError(source, [error.problem]) from None
    except yaml.YAMLError as error:
        raise PipelineError(source, [_yaml_problem(error)]) from error
    return builder.root, builder.lines


def _yaml_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark is not None else None
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    if "maximum nesting depth" in (parts[1] or ""):  # libyaml ≥ 0.2.6 looks ahead, and has a bound
        return Problem(f"nested more than {DEPTH} deep", line=line)
    reason = ", ".join(part for part in parts if part) or str(getattr(error, "reason", error))
    if "\\t" in reason or "a tab character" in reason:
        reason = "a tab; YAML is indented with spaces"
    return Problem(f"is not YAML: {reason}", line=line)


# --- JSON ----------------------------------------------------------------------------------------


def _read_json(text: str, source: str) -> tuple[object, _Lines]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {shown(twice)} is given twice in one map")
        return value

    def constant(name: str) -> object:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except json.JSONDecodeError as error:
        problem = Problem(f"is not JSON: {error.msg}", line=error.lineno)
        raise PipelineError(source, [problem]) from error
    except RecursionError:
        raise PipelineError(source, [Problem(f"nested more than {DEPTH} deep")]) from None
    except ValueError as error:
        raise PipelineError(source, [Problem(str(error))]) from error
    _check_plain(value, source)
    try:
        _, lines = _read_yaml(text, source)
    except PipelineError:  # JSON that is not YAML, such as one indented with tabs
        lines = {}
    return value, lines


# --- TOML ----------------------------------------------------------------------------------------

_TOML_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_TOML_DOTTED = rf"{_TOML_KEY}(?:[ \t]*\.[ \t]*{_TOML_KEY}){{0,{DEPTH}}}"
_TOML_LINE = re.compile(
    rf"[ \t]*(?:\[(?P<many>\[)?[ \t]*(?P<table>{_TOML_DOTTED})[ \t]*\]"
    rf"|(?P<key>{_TOML_DOTTED})[ \t]*=)"
)


def _read_toml(text: str, source: str) -> tuple[object, _Lines]:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r" \(at line (\d+), column \d+\)", str(error))
        message = str(error).replace(line[0], "") if line else str(error)
        problem = Problem(f"is not TOML: {message}", line=int(line[1]) if line else None)
        raise PipelineError(source, [problem]) from error
    except RecursionError:
        raise PipelineError(source, [Problem(f"nested more than {DEPTH} deep")]) from None
    _check_plain(value, source)
    return value, _toml_lines(text)


def _toml_lines(text: str) -> _Lines:
    lines: _Lines = {}
    table: KeyPath = ()
    counts: dict[KeyPath, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        match = _TOML_LINE.match(line)
        if match is None:
            continue
        dotted = match["table"] or match["key"]
        parts = tuple(key.strip("\"'") for key in re.findall(_TOML_KEY, dotted))
        if match["table"]:
            table = parts
            if match["many"]:
                counts[parts] = counts.get(parts, -1) + 1
                table = (*parts, counts[parts])
            lines.setdefault(table, number)
        else:
            lines.setdefault((*table, *parts), number)
    return lines


def _check_plain(value: object, source: str) -> None:
    """Depth and number of values, for the formats whose readers do not bound them."""
    level: list[object] = [value]
    values = 0
    for _ in range(DEPTH + 1):
        values += len(level)
        if values > VALUES:
            raise PipelineError(source, [Problem(f"more than {VALUES} values")])
        below: list[object] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each.values())
            elif isinstance(each, list):
                below.extend(each)
        if not below:
            return
        level = below
    raise PipelineError(source, [Problem(f"nested more than {DEPTH} deep")])


_READERS = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_json,
    ".toml": _read_toml,
}
