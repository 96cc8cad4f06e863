"""Five small agents. Each runs in a process of its own and sees only what its in-edges give it."""

from __future__ import annotations

import ast
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BRANCHES = (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.BoolOp, ast.IfExp, ast.comprehension)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def inventory(input: Any, ctx: Any) -> dict[str, list[str]]:
    """{package: paths of its modules}, streaming one item per package."""
    found = {}
    for package in ctx.spec["packages"]:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0])
        found[package] = sorted(str(path) for path in folder.glob("*.py"))
        ctx.emit({"package": package, "modules": len(found[package])})
    return found


def parsed(input: Any) -> Iterator[tuple[str, ast.Module]]:
    for package, paths in input["inventory"].items():
        for path in paths:
            yield f"{package}/{Path(path).name}", ast.parse(Path(path).read_text("utf-8"))


def lint(input: Any, ctx: Any) -> dict[str, int]:
    """Bare `except:` and mutable default arguments, each streamed as it is found."""
    counts = {"bare except": 0, "mutable default": 0}
    for name, tree in parsed(input):
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found = "bare except"
            elif isinstance(node, FUNCTIONS) and any(
                isinstance(default, (ast.List, ast.Dict, ast.Set)) for default in node.args.defaults
            ):
                found = "mutable default"
            else:
                continue
            counts[found] += 1
            ctx.emit({"file": name, "line": node.lineno, "found": found})
    return counts


def complexity(input: Any, ctx: Any) -> list[dict[str, Any]]:
    """The functions with the most branches."""
    scores = []
    for name, tree in parsed(input):
        functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
        for function in functions:
            branches = sum(isinstance(node, BRANCHES) for node in ast.walk(function))
            scores.append({"function": f"{name}:{function.name}", "branches": branches})
        ctx.emit({"file": name, "functions": len(functions)})
    scores.sort(key=lambda score: (-score["branches"], score["function"]))
    return scores[: ctx.spec["worst"]]


def docs(input: Any, ctx: Any) -> Iterator[dict[str, Any]]:
    """How many public functions have a docstring. A generator: each `yield` streams an item."""
    if ctx.attempt == ctx.spec["hang_on_attempt"]:
        ctx.log("hanging on purpose: the supervisor will have to kill me")
        while True:
            time.sleep(60)
    total = documented = 0
    for name, tree in parsed(input):
        public = [
            node
            for node in ast.walk(tree)
            if isinstance(node, FUNCTIONS) and not node.name.startswith("_")
        ]
        with_docs = sum(ast.get_docstring(node) is not None for node in public)
        total, documented = total + len(public), documented + with_docs
        yield {"file": name, "public": len(public), "documented": with_docs}
    return {"public": total, "documented": documented}


def report(input: Any, ctx: Any) -> dict[str, Any]:
    docs, worst = input["docs"], input["complexity"][0]
    return {
        "lint": input["lint"],
        "most complex": f"{worst['function']} ({worst['branches']} branches)",
        "documented": f"{docs['documented']} of {docs['public']} public functions",
        "tests": "passed",
    }
