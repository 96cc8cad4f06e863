"""From an entry to something to call: the place where a task's own code is first run.

A file is loaded as the module its stem names and stands in `sys.modules` under that name, so that
dataclasses, pickle and `typing.get_type_hints` find it; never as `__main__`, so that what hides
behind `if __name__ == "__main__"` stays asleep. A file inside a package is imported by its dotted
name, so that its relative imports work. Every error of the person who wrote the task is a
`UsageError` that names the file or module and the remedy; what the code itself raises passes.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

from ..protocol.errors import UsageError
from ..protocol.pipeline import CommandEntry, Entry, FileEntry, ModuleEntry, PickleEntry

__all__ = ["explain_missing_module", "load", "load_file", "preload"]


def load(entry: Entry, sources: str) -> Callable[..., Any]:  # Any: a task returns what it likes
    """The function that `entry` names. `sources` is the folder of the snapshotted sources."""
    _search_first(sources)
    match entry:
        case FileEntry(file=file, name=name):
            return _callable(load_file(sources, file), name, file)
        case ModuleEntry(module=module, name=name):
            return _callable(importlib.import_module(module), name, module)
        case PickleEntry(payload=payload, name=name):
            # Only here, behind every wall, is a pickle ever opened.
            import cloudpickle  # type: ignore[import-untyped]

            function = cloudpickle.loads(payload)
            if not callable(function):
                raise UsageError(f"{name}: expected a function, got {type(function).__name__}")
            return function  # type: ignore[no-any-return]
        case CommandEntry():
            raise UsageError("a command has no function to load")


def preload(modules: Sequence[str], sources: str) -> None:
    """Import `modules`, those of the sources among them, as the task's own code would."""
    if not modules:
        return
    _search_first(sources)
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # of what it imports in turn
            raise UsageError(f"preload: {explain_missing_module(error)}") from None


def load_file(sources: str, file: str) -> ModuleType:
    """Run `file` (relative to `sources`) as a module, unless it was imported, and return it."""
    path = os.path.join(sources, file)
    if not os.path.isfile(path):
        raise UsageError(
            f"{file}: not in the sandbox; it sees only the task's own file and its `sources`"
        )
    folder = os.path.dirname(path)
    stem = os.path.splitext(os.path.basename(path))[0]
    if folder != sources and os.path.isfile(os.path.join(folder, "__init__.py")):
        parts = [] if stem == "__init__" else [stem]
        while folder != sources and os.path.isfile(os.path.join(folder, "__init__.py")):
            folder, package = os.path.split(folder)
            parts.insert(0, package)
        _search_first(folder)
        return importlib.import_module(".".join(parts))
    # As for a script, the file's own folder is where its imports look first.
    _search_first(folder)
    # Of the same name there may be anything: it is this file's module only where it is of its path.
    there = sys.modules.get(stem)
    if there is not None and getattr(there, "__file__", None) == path:
        return there  # as `preload` has imported it
    name = stem
    while name in sys.modules or name in sys.stdlib_module_names or name == "__main__":
        # Taking the name of a module that we or the task use would break its other users.
        name += "_"
    # The loader is named, not guessed from the suffix: a task's file may be called anything.
    loader = SourceFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def explain_missing_module(error: ModuleNotFoundError) -> str:
    """The error's own words and, since most such modules exist outside, what to do."""
    return (
        f"{error}; the sandbox sees the standard library, the packages beside casemate, the task's "
        f"own file and its `sources`: if {error.name!r} is yours, name its file or folder there"
    )


def _search_first(folder: str) -> None:
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    # Our ancestor, the zygote, may have looked for this folder where there was none yet.
    sys.path_importer_cache.pop(folder, None)


def _callable(module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UsageError(f"{where} has no {name!r}{_nearest(found, part)}") from None
    if not callable(found):
        # An object in the manner of DESIGN §5's Task: its `execute` is the function.
        execute = getattr(found, "execute", None)
        if not callable(execute):
            raise UsageError(
                f"{where}: {name!r} is of type {type(found).__name__}; expected a function"
            )
        found = execute
    return found  # type: ignore[no-any-return]


def _nearest(owner: object, name: str) -> str:
    import difflib  # only when something is wrong already

    near = difflib.get_close_matches(name, [n for n in dir(owner) if not n.startswith("__")], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
