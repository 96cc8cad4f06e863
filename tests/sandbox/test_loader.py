"""From entries to functions, and the errors of those who wrote them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped]
import pytest
from casemate.protocol.errors import UsageError
from casemate.protocol.pipeline import CommandEntry, FileEntry, ModuleEntry, PickleEntry
from casemate.sandbox.loader import explain_missing_module, load, load_file, preload


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Path]:
    """An empty sources root; what loading does to the interpreter is undone."""
    path, modules = list(sys.path), dict(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_function_of_a_file(sources: Path) -> None:
    write(sources / "agents.py", "def analyze(input): return input + 1\n")
    assert load(FileEntry("agents.py", "analyze"), str(sources))(1) == 2


def test_a_qualified_name(sources: Path) -> None:
    write(sources / "agents.py", "class Team:\n    @staticmethod\n    def lint(): return 'ok'\n")
    assert load(FileEntry("agents.py", "Team.lint"), str(sources))() == "ok"


def test_an_object_with_execute_stands_for_it(sources: Path) -> None:
    write(
        sources / "agents.py",
        "class Lint:\n    def execute(self, input): return ['linted', input]\nlint = Lint()\n",
    )
    assert load(FileEntry("agents.py", "lint"), str(sources))("a") == ["linted", "a"]


def test_a_file_is_a_module_of_its_stem_and_never_main(sources: Path) -> None:
    write(
        sources / "agents.py",
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Finding:\n    line: int\n"
        "if __name__ == '__main__':\n    raise SystemExit('ran as a script')\n",
    )
    module = load_file(str(sources), "agents.py")
    assert module.__name__ == "agents"
    assert pickle.loads(pickle.dumps(module.Finding(3))) == module.Finding(3)


@pytest.mark.parametrize("stem", ["json", "msgspec", "antigravity", "__main__"])
def test_a_stem_that_is_taken_takes_nothing_away(sources: Path, stem: str) -> None:
    before = sys.modules.get(stem)
    write(sources / f"{stem}.py", "class Here: pass\ndef who(): return __name__\n")
    module = load_file(str(sources), f"{stem}.py")
    assert module.who() == f"{stem}_"
    assert sys.modules.get(stem) is before
    assert isinstance(pickle.loads(pickle.dumps(module.Here())), module.Here)


def test_a_file_that_was_preloaded_is_not_run_again(sources: Path) -> None:
    write(sources / "mine.py", "def f(): return __name__\n")
    preload(["mine"], str(sources))
    before = sys.modules["mine"]
    assert load_file(str(sources), "mine.py") is before
    assert load(FileEntry("mine.py", "f"), str(sources))() == "mine"


def test_a_module_of_another_place_is_not_taken_for_a_file_of_its_name(sources: Path) -> None:
    write(sources / "lib/mine.py", "def f(): return 'lib'\n")
    write(sources / "mine.py", "def f(): return 'mine'\n")
    preload(["mine"], str(sources / "lib"))
    assert load(FileEntry("mine.py", "f"), str(sources))() == "mine"


def test_a_file_imports_its_neighbours_and_the_root(sources: Path) -> None:
    write(sources / "shared_helpers.py", "A = 1\n")
    write(sources / "team/near.py", "B = 2\n")
    write(
        sources / "team/agents.py",
        "import near, shared_helpers\ndef f(): return near.B + shared_helpers.A\n",
    )
    assert load(FileEntry("team/agents.py", "f"), str(sources))() == 3


def test_a_file_of_a_package_imports_relatively(sources: Path) -> None:
    write(sources / "crew/__init__.py", "")
    write(sources / "crew/deep/__init__.py", "def top(): return __name__\n")
    write(sources / "crew/base.py", "A = 1\n")
    write(sources / "crew/deep/agents.py", "from ..base import A\ndef f(): return A, __name__\n")
    function = load(FileEntry("crew/deep/agents.py", "f"), str(sources))
    assert function() == (1, "crew.deep.agents")
    assert load(FileEntry("crew/deep/__init__.py", "top"), str(sources))() == "crew.deep"


def test_a_package_marker_at_the_root_makes_no_package(sources: Path) -> None:
    write(sources / "__init__.py", "")
    write(sources / "agents.py", "def f(): return __name__\n")
    assert load(FileEntry("agents.py", "f"), str(sources))() == "agents"


def test_a_file_of_any_suffix_is_python(sources: Path) -> None:
    write(sources / "agents.task", "def f(): return 1\n")
    assert load(FileEntry("agents.task", "f"), str(sources))() == 1


def test_a_module_of_the_sources_comes_first(sources: Path) -> None:
    write(sources / "crew/__init__.py", "")
    write(sources / "crew/agents.py", "def f(): return 'mine'\n")
    assert load(ModuleEntry("crew.agents", "f"), str(sources))() == "mine"
    assert sys.path[0] == str(sources)


def test_sources_that_came_late_are_found(tmp_path: Path, sources: Path) -> None:
    late = tmp_path / "late"
    sys.path.insert(0, str(late))
    with pytest.raises(ModuleNotFoundError):
        __import__("surely_not_there")
    write(late / "surely_there.py", "def f(): return 1\n")
    assert load(ModuleEntry("surely_there", "f"), str(late))() == 1


def test_a_module_of_the_standard_library(sources: Path) -> None:
    assert load(ModuleEntry("posixpath", "basename"), str(sources))("/a/b") == "b"


def test_a_closure_by_pickle(sources: Path) -> None:
    def make(n: int) -> object:
        return lambda input: input * n

    entry = PickleEntry(cloudpickle.dumps(make(3)), "<lambda>")
    assert load(entry, str(sources))(2) == 6


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (FileEntry("nowhere.py", "f"), r"nowhere\.py: not in the sandbox.*`sources`"),
        (FileEntry("agents.py", "analyse"), r"agents\.py has no 'analyse'; did you mean 'analyze'"),
        (FileEntry("agents.py", "Team.nothing"), r"agents\.py has no 'Team.nothing'$"),
        (FileEntry("agents.py", "LIMIT"), r"agents\.py: 'LIMIT' is of type int; expected a func"),
        (ModuleEntry("json", "dump_s"), r"json has no 'dump_s'; did you mean 'dumps'"),
        (PickleEntry(pickle.dumps(3), "three"), r"three: expected a function, got int"),
        (CommandEntry(("true",)), r"a command has no function"),
    ],
)
def test_mistakes_are_named(sources: Path, entry: object, message: str) -> None:
    write(sources / "agents.py", "LIMIT = 3\ndef analyze(): ...\nclass Team: ...\n")
    with pytest.raises(UsageError, match=message):
        load(entry, str(sources))  # type: ignore[arg-type]


def test_what_a_file_raises_passes_and_leaves_no_half_module(sources: Path) -> None:
    write(sources / "agents.py", "import json\nraise LookupError('at import')\n")
    with pytest.raises(LookupError, match="at import"):
        load_file(str(sources), "agents.py")
    assert "agents" not in sys.modules


def test_a_missing_module_points_to_sources() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        __import__("helpers_nobody_named")
    text = explain_missing_module(caught.value)
    assert "No module named 'helpers_nobody_named'" in text
    assert "`sources`" in text
