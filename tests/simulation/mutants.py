"""What could be wrong in the core unnoticed: `make mutants`.

Seeded faults are put into a copy of `supervisor/core`, one at a time: a comparison is flipped, a
condition turned round, a number is off by one, an edge of a table is dropped, a record or another
call is left out. Then, until one of them objects, a number of simulated seeds is played on the copy
and the core's own tests are run. What nobody objects to is printed: either it changes nothing that
matters, or a test is missing. The tree itself is only read.

    --count 60 --seed 0     which faults
    --seeds 250             how many histories each must survive
    --only scheduler        of one file
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from resource import RLIMIT_CPU, setrlimit
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "supervisor" / "core"
# Tables whose rows and edges are facts to be lost, not numbers to be changed.
TABLES = {"TRANSITIONS", "_AGAIN", "_UNDONE", "_ENDINGS", "_ATTEMPT_ENDS", "_FOLD", "TABLE"}
# Seconds of cpu, ten times what they take: what makes them go round for ever is noticed, too. Of
# cpu, for on a busy machine everything looks as if it hung.
PATIENCE = {"simulation": 30, "tests": 300}

_FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True)
class Fault:
    file: str
    line: int
    what: str
    at: int  # the how-manieth node of its tree
    change: Callable[[ast.AST], None]


def faults(file: str, source: str) -> Iterator[Fault]:
    for at, node in enumerate(ast.walk(ast.parse(source))):
        for what, change in _changes(node):
            yield Fault(file, getattr(node, "lineno", 0), what, at, change)


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in _FLIPPED:
            yield f"flip a comparison: {ast.unparse(node)}", _flip
        case ast.BoolOp():
            yield f"and for or: {ast.unparse(node)}", _swap
        case ast.If() | ast.While():
            yield f"turn round: {type(node).__name__.lower()} {ast.unparse(node.test)}", _negate
        case ast.Expr(value=ast.Call(func=called)):
            verb = "skip a record" if ast.unparse(called).endswith("_record") else "skip a call"
            yield f"{verb}: {ast.unparse(node)}", _skip
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            if name in TABLES and isinstance(node.value, ast.Dict):
                for row, value in enumerate(node.value.values):
                    edges = value.keys if isinstance(value, ast.Dict) else [None]
                    for edge in range(len(edges)):
                        yield f"drop an edge of {name}: {row}, {edge}", _drop(row, edge)
        case ast.AugAssign(op=ast.Add() | ast.Sub()):
            yield f"do not count: {ast.unparse(node)}", _uncount
        case ast.Return(value=ast.Constant(value=bool())):
            yield f"the other answer: {ast.unparse(node)}", _answer


def _as(node: ast.AST, kind: type[Node]) -> Node:
    assert isinstance(node, kind)
    return node


def _flip(node: ast.AST) -> None:
    compare = _as(node, ast.Compare)
    compare.ops = [_FLIPPED[type(compare.ops[0])]()]


def _swap(node: ast.AST) -> None:
    both = _as(node, ast.BoolOp)
    both.op = ast.Or() if isinstance(both.op, ast.And) else ast.And()


def _negate(node: ast.AST) -> None:
    assert isinstance(node, ast.If | ast.While)
    node.test = ast.UnaryOp(op=ast.Not(), operand=node.test)


def _skip(node: ast.AST) -> None:
    _as(node, ast.Expr).value = ast.Constant(value=None)


def _uncount(node: ast.AST) -> None:
    _as(node, ast.AugAssign).value = ast.Constant(value=0)


def _answer(node: ast.AST) -> None:
    constant = _as(_as(node, ast.Return).value or node, ast.Constant)
    constant.value = not constant.value


def _drop(row: int, edge: int) -> Callable[[ast.AST], None]:
    def drop(node: ast.AST) -> None:
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        table = _as(node.value or node, ast.Dict)
        value = table.values[row]
        if isinstance(value, ast.Dict):
            del value.keys[edge], value.values[edge]
        else:
            del table.keys[row], table.values[row]

    return drop


def mutated(source: str, fault: Fault) -> str:
    tree = ast.parse(source)
    fault.change(list(ast.walk(tree))[fault.at])
    return ast.unparse(ast.fix_missing_locations(tree))


def lay_out(folder: Path) -> Path:
    """The tree as it is installed; the folder of its core."""
    package = folder / "casemate"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "supervisor" / "facade", package, ignore=ignore)
    for name in ("protocol", "sandbox", "supervisor"):
        shutil.copytree(ROOT / name, package / name, ignore=ignore)
    return package / "supervisor" / "core"


PLAY = """
import sys
from random import Random
import casemate.supervisor.core.scheduler as core
from simulation.host import play
assert core.__file__.startswith(sys.argv[1]), core.__file__
for seed in range(int(sys.argv[2])):
    play(Random(seed))
"""


def objector(folder: Path, seeds: int) -> str | None:
    """Who notices what is in this copy."""
    path = f"{folder}:{ROOT / 'tests'}"
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    tests = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
    attempts = {
        "simulation": ["-c", PLAY, str(folder), str(seeds)],
        "tests": [*tests, "-m", "not tree", str(ROOT / "tests" / "core")],
    }
    for name, words in attempts.items():
        seconds = PATIENCE[name]
        done = subprocess.run(
            [sys.executable, *words],
            env=env,
            cwd=folder,
            capture_output=True,
            preexec_fn=partial(setrlimit, RLIMIT_CPU, (seconds, seconds)),
            check=False,
        )
        if done.returncode == -signal.SIGKILL:
            return f"{name}, which hangs"
        if done.returncode != 0:
            return name
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=250)
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    sources = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(CORE.glob(f"{chosen.only or '*'}.py"))
    }
    found = [fault for file, source in sources.items() for fault in faults(file, source)]
    picked = Random(chosen.seed).sample(found, min(chosen.count, len(found)))
    noticed: Counter[str] = Counter()
    survivors: list[Fault] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        core = lay_out(folder)
        if (who := objector(folder, chosen.seeds)) is not None:
            print(f"without any fault: {who} objects already")
            return 2
        for fault in sorted(picked, key=lambda fault: (fault.file, fault.line)):
            place, source = core / fault.file, sources[fault.file]
            place.write_text(mutated(source, fault), encoding="utf-8")
            who = objector(folder, chosen.seeds)
            place.write_text(source, encoding="utf-8")
            noticed[who or "nobody"] += 1
            if who is None:
                survivors.append(fault)
            what = " ".join(fault.what.split())
            print(f"{who or 'SURVIVES':12} {fault.file}:{fault.line} {what[:120]}", flush=True)
    told = ", ".join(f"{count} by {who}" for who, count in sorted(noticed.items()))
    print(f"{len(picked)} of {len(found)} faults, noticed: {told}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
