"""What a changed pipeline leaves as it was: the tasks whose spec, code and inputs are the same.

Two versions are held against each other, each with the snapshot of its sources. A task is the same
where its own keys are, its in-edges are, what it depends on is, and so is its code:

- the files that it names itself (`execute` and the like, `sources`), a package as a whole;
- what these import of the snapshot, however far, files and packages as a whole;
- of a Python file that its function lies in, only what that function can come to: itself, the
  definitions it names, those that these name, and all statements that do something when the file is
  loaded. Comments and the places of lines do not count.

The last is what lets one file hold many tasks. It is read from the syntax, nothing is run, so what
hides from it (`eval`, `globals()`, `import *`) makes the whole file count. What a program opens
without a word about it in `sources` is not seen.

A file is parsed in the process that asks, which is the command's own and never the engine: it is
the pipeline's author who wrote it.
"""

from __future__ import annotations

import ast
import builtins
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from ..protocol.limits import MIB
from ..protocol.pipeline import FileEntry, PipelineSpec, TaskSpec
from .core.graph import build
from .sources import places_of

__all__ = ["unaffected"]

# Of a file that is looked into; a larger one counts as a whole. Parsed in 0.2 s.
MOST = MIB

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# What may reach a name without saying it.
_HIDING = {"eval", "exec", "globals", "locals", "vars", "__import__", "import_module", "modules"}
# Decorators that do nothing but to what they decorate. Any other may note it down somewhere.
_DECORATORS = {
    *("abstractmethod", "asynccontextmanager", "cache", "cached_property", "classmethod"),
    *("contextmanager", "dataclass", "field_validator", "final", "lru_cache", "model_validator"),
    *("overload", "override", "property", "setter", "staticmethod", "total_ordering", "wraps"),
}
# Classes that do nothing to what is made of them, beside those of the language. Any other may note
# it down somewhere (`__init_subclass__`, a metaclass).
_BASES = {
    *("ABC", "BaseModel", "Enum", "Flag", "Generic", "IntEnum", "IntFlag", "NamedTuple"),
    *("Protocol", "StrEnum", "Struct", "TypedDict"),
}
# Calls that say of a class's field what it is.
_CALLS = {"Field", "auto", "field"}


def unaffected(old: PipelineSpec, code: Path, new: PipelineSpec, new_code: Path) -> frozenset[str]:
    """The tasks of both that give what they gave. `code`, `new_code`: the snapshots."""
    if _given(old) != _given(new):
        return frozenset()
    before, after = _Fingerprints(old, code), _Fingerprints(new, new_code)
    was = {task.id: before.of(task) for task in old.tasks}
    same: set[str] = set()
    graph, specs = build(new), {task.id: task for task in new.tasks}
    for name in graph.order:
        if same.issuperset(graph.upstream[name]) and after.of(specs[name]) == was.get(name):
            same.add(name)
    return frozenset(same)


def _given(spec: PipelineSpec) -> tuple[object, ...]:
    """What all tasks of a pipeline are given alike."""
    return spec.workspace, spec.base, spec.conflict


class _Fingerprints:
    """Of one version."""

    def __init__(self, spec: PipelineSpec, code: Path) -> None:
        self._spec = spec
        self._code = code
        self._files: dict[Path, _File] = {}

    def of(self, task: TaskSpec) -> bytes:
        digest = sha256(msgspec.msgpack.encode(task))
        edges = sorted(edge for edge in self._spec.edges if edge.to == task.id)
        digest.update(msgspec.msgpack.encode(edges))
        for place, part in sorted(self._parts(task)):
            digest.update(f"{place}\0{len(part)}\0{part}".encode())
        return digest.digest()

    def _parts(self, task: TaskSpec) -> Iterator[tuple[str, str]]:
        """All code that it can come to, by place; of a place several."""
        entries = (task.execute, task.validate, task.recover, *task.fallbacks.values())
        functions = [entry for entry in entries if isinstance(entry, FileEntry)]
        whole: set[str] = set()
        waiting: list[str] = []
        for function in functions:
            if self._is_single(function.file):
                file = self._file(self._code / function.file)
                part, imported = file.reach(function.name)
                yield f"{function.file}:{function.name}", part
                waiting += self._found(imported, self._code / function.file)
        of_functions = {each.file for each in functions if self._is_single(each.file)}
        waiting += [
            Path(place).name if place.startswith("/") else place
            for place in places_of(task, self._code)
            if place not in of_functions or place in task.sources
        ]
        while waiting:
            place = waiting.pop()
            if place in whole:
                continue
            whole.add(place)
            for path in self._below(self._code / place):
                file = self._file(path)
                yield str(path.relative_to(self._code)), file.digest
                waiting += self._found(file.imports, path)

    def _is_single(self, file: str) -> bool:
        """Of no package: nobody imports it but by its own name."""
        return not (self._code / file).with_name("__init__.py").exists()

    def _file(self, path: Path) -> _File:
        if path not in self._files:
            self._files[path] = _File(path)
        return self._files[path]

    def _below(self, path: Path) -> Iterable[Path]:
        if not path.is_dir():
            return [path] if path.is_file() else []
        return sorted(each for each in path.rglob("*") if each.is_file())

    def _found(self, modules: Iterable[str], importer: Path) -> Iterator[str]:
        """Where in the snapshot they lie, if they do: its root is searched, and the folder of who
        imports."""
        for module in modules:
            top = module.partition(".")[0]
            for folder in {self._code, importer.parent}:
                for found in (folder / top, folder / f"{top}.py"):
                    if found.exists():
                        yield str(found.relative_to(self._code))


class _File:
    """One file of a snapshot."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes() if path.is_file() else b""
        self.digest = sha256(content).hexdigest()
        self._tree: ast.Module | None = None
        if path.suffix == ".py" and len(content) <= MOST:
            try:
                self._tree = ast.parse(content)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                self._tree = None  # whoever runs it will say so
        self.imports = _imported([self._tree]) if self._tree is not None else set()
        self._statements = _Statements(self._tree) if self._tree is not None else None

    def reach(self, name: str) -> tuple[str, set[str]]:
        """What a function can come to of its file, as text that is the same where that is; and the
        modules that this imports."""
        nodes = None if self._statements is None else self._statements.reach(name)
        if nodes is None:
            return self.digest, self.imports
        try:
            return "\n".join(map(ast.dump, nodes)), _imported(nodes)
        except RecursionError:
            return self.digest, self.imports


class _Statements:
    """The top of a Python file: what defines a name, and what does something."""

    def __init__(self, tree: ast.Module) -> None:
        self._named: dict[str, list[ast.stmt]] = {}
        self._doing: list[ast.stmt] = []
        self._order = {statement: number for number, statement in enumerate(tree.body)}
        known = _Known.of(tree.body)
        for statement in tree.body:
            names = _defined(statement, known)
            if names is None:
                if not _is_building(statement, known.builders):
                    self._doing.append(statement)
                continue
            for name in names:
                self._named.setdefault(name, []).append(statement)
        used = {name for each in tree.body for name in _names(each)}
        for name, statements in self._named.items():
            if name not in used:  # an import for what it does
                self._doing += [each for each in statements if _is_import(each)]
        self._is_hiding = bool(used & _HIDING) or "*" in self._named

    def reach(self, name: str) -> list[ast.stmt] | None:
        """In the file's order; None: what that is cannot be said."""
        top = name.partition(".")[0]
        if self._is_hiding or top not in self._named:
            return None
        found: set[ast.stmt] = set()
        waiting = [*self._doing, *self._named[top]]
        while waiting:
            statement = waiting.pop()
            if statement in found:
                continue
            found.add(statement)
            for each in _names(statement):
                waiting += self._named.get(each, ())
        return sorted(found, key=self._order.__getitem__)


def _names(node: ast.AST) -> set[str]:
    """Every name in it, and every attribute's: `modules` hides behind one."""
    return {
        each.id if isinstance(each, ast.Name) else each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Name | ast.Attribute)
    }


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    modules: set[str] = set()
    for node in nodes:
        for each in ast.walk(node):
            if isinstance(each, ast.Import):
                modules.update(alias.name for alias in each.names)
            elif isinstance(each, ast.ImportFrom):
                names = [each.module] if each.module else [alias.name for alias in each.names]
                modules.update(names)
    return modules


def _is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom)


@dataclass(frozen=True, slots=True)
class _Known:
    """Names of which is known what it does to call them, or to make a class of them."""

    builders: frozenset[str]  # pipelines
    harmless: frozenset[str]

    @classmethod
    def of(cls, body: list[ast.stmt]) -> _Known:
        own = {each.name for each in body if isinstance(each, _DEFINITIONS)}
        names = _DECORATORS | _BASES | _CALLS | _language()
        return cls(frozenset(_builders(body)), frozenset(names - own))

    def has(self, node: ast.expr, of: set[str]) -> bool:
        """Is it one of these, by itself or of a module, and no definition of the file's own?"""
        name = node.attr if isinstance(node, ast.Attribute) else None
        name = node.id if isinstance(node, ast.Name) else name
        return name in of and name in self.harmless


def _language() -> set[str]:
    """The classes that Python has without an import."""
    return {name for name, value in vars(builtins).items() if isinstance(value, type)}


def _defined(statement: ast.stmt, known: _Known) -> list[str] | None:
    """The names that a statement gives a meaning and does nothing else; None: it does more."""
    match statement:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                return None
            return [alias.asname or alias.name.partition(".")[0] for alias in names]
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return [statement.name] if _is_plain_function(statement, known) else None
        case ast.ClassDef():
            return [statement.name] if _is_plain_class(statement, known) else None
        case ast.Assign(targets=targets, value=value):
            bound = [each.id for each in targets if isinstance(each, ast.Name)]
            return bound if len(bound) == len(targets) and _is_value(value, known) else None
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=assigned):
            return [name] if _are_values([annotation, assigned], known) else None
        case ast.Expr(value=ast.Constant()) | ast.Pass():
            return []  # a docstring
    return None


def _is_plain_function(node: ast.FunctionDef | ast.AsyncFunctionDef, known: _Known) -> bool:
    """To define it does nothing: what its head says is worked out then."""
    said = node.args
    every = [*said.posonlyargs, *said.args, *said.kwonlyargs, said.vararg, said.kwarg]
    head = [each.annotation for each in every if each is not None]
    return _are_values([node.returns, *head, *said.defaults, *said.kw_defaults], known) and all(
        _is_harmless(each, known) for each in node.decorator_list
    )


def _is_plain_class(node: ast.ClassDef, known: _Known) -> bool:
    """To define it does nothing: its body is run then."""
    bases = [each.value if isinstance(each, ast.Subscript) else each for each in node.bases]
    return (
        all(known.has(each, _BASES | _language()) for each in bases)
        and _are_values(node.bases, known)
        and all(each.arg not in (None, "metaclass") for each in node.keywords)
        and _are_values([each.value for each in node.keywords], known)
        and all(_is_harmless(each, known) for each in node.decorator_list)
        and all(_defined(each, known) is not None for each in node.body)
    )


def _are_values(nodes: Iterable[ast.expr | None], known: _Known) -> bool:
    return all(each is None or _is_value(each, known) for each in nodes)


def _is_value(node: ast.expr, known: _Known) -> bool:
    """To work it out does nothing."""
    return not any(
        isinstance(each, ast.Await | ast.NamedExpr | ast.Yield | ast.YieldFrom)
        or (isinstance(each, ast.Call) and not known.has(each.func, _CALLS))
        for each in ast.walk(node)
    )


def _is_harmless(decorator: ast.expr, known: _Known) -> bool:
    called, given = decorator, list[ast.expr]()
    if isinstance(decorator, ast.Call):
        called = decorator.func
        given = [*decorator.args, *(each.value for each in decorator.keywords)]
    match called:
        case ast.Attribute(value=ast.Name(id=name)) if name in known.builders:
            return True
    return known.has(called, _DECORATORS) and _are_values(given, known)


def _builders(body: list[ast.stmt]) -> set[str]:
    """Names of pipelines: what is said to one of them is in the spec, and is compared there. Only
    what casemate's own `Pipeline` gave is one; others have classes of that name."""
    bound = Counter(name for statement in body for name in _bound(statement))
    makers, modules, found = set[str](), set[str](), set[str]()
    for statement in body:
        match statement:
            case ast.ImportFrom(module="casemate", level=0, names=names):
                makers |= {each.asname or each.name for each in names if each.name == "Pipeline"}
            case ast.Import(names=names):
                modules |= {each.asname or each.name for each in names if each.name == "casemate"}
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=func)):
                maker = _maker(func, makers, modules)
                if maker is not None and bound[name] == bound[maker] == 1:
                    found.add(name)
    return found


def _maker(called: ast.expr, makers: set[str], modules: set[str]) -> str | None:
    """The name by which casemate's `Pipeline` is called, if it is."""
    match called:
        case ast.Name(id=name) if name in makers:
            return name
        case ast.Attribute(value=ast.Name(id=name), attr="Pipeline") if name in modules:
            return name
    return None


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Every name that it gives a meaning in the file."""
    if isinstance(statement, _DEFINITIONS):
        yield statement.name
        return
    for each in ast.walk(statement):
        if isinstance(each, ast.Import | ast.ImportFrom):
            for alias in each.names:
                yield alias.asname or alias.name.partition(".")[0]
        elif isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Load):
            yield each.id


def _is_building(statement: ast.stmt, builders: frozenset[str]) -> bool:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in builders
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in builders
    return False
