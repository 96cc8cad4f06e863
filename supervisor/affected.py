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
from collections.abc import Iterable, Iterator
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
_HARMLESS = {"asynccontextmanager", "cache", "contextmanager", "dataclass", "lru_cache", "wraps"}


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
        builders = {name for each in tree.body for name in _builders(each)}
        for statement in tree.body:
            names = _defined(statement, builders)
            if names is None:
                if not _is_building(statement, builders):
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


def _defined(statement: ast.stmt, builders: set[str]) -> list[str] | None:
    """The names that a statement gives a meaning and does nothing else; None: it does more."""
    match statement:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                return None
            return [alias.asname or alias.name.partition(".")[0] for alias in names]
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            harmless = all(_is_harmless(each, builders) for each in statement.decorator_list)
            return [statement.name] if harmless else None
        case ast.Assign(targets=targets, value=value):
            bound = [each.id for each in targets if isinstance(each, ast.Name)]
            return bound if len(bound) == len(targets) and _is_value(value) else None
        case ast.AnnAssign(target=ast.Name(id=name), value=assigned):
            return [name] if assigned is None or _is_value(assigned) else None
        case ast.Expr(value=ast.Constant()):
            return []  # a docstring
    return None


def _is_value(node: ast.expr) -> bool:
    """To work it out does nothing."""
    return not any(
        isinstance(each, ast.Call | ast.Await | ast.NamedExpr | ast.Yield | ast.YieldFrom)
        for each in ast.walk(node)
    )


def _is_harmless(decorator: ast.expr, builders: set[str]) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(called, ast.Attribute):
        of = called.value
        return called.attr in _HARMLESS or (isinstance(of, ast.Name) and of.id in builders)
    return isinstance(called, ast.Name) and called.id in _HARMLESS


def _builders(statement: ast.stmt) -> list[str]:
    """Names of pipelines: what is said to one of them is in the spec, and is compared there."""
    match statement:
        case ast.Assign(
            targets=[ast.Name(id=name)],
            value=ast.Call(func=ast.Name(id="Pipeline") | ast.Attribute(attr="Pipeline")),
        ):
            return [name]
    return []


def _is_building(statement: ast.stmt, builders: set[str]) -> bool:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in builders
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in builders
    return False
