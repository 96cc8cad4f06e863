"""Which tasks a changed pipeline leaves as they were (`supervisor/affected.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.affected import unaffected
from casemate.supervisor.sources import snapshot
from runs import Place

# Three tasks in one file, and what each of them uses.
CODE = '''
"""Agents."""
import json
import helper
from functools import lru_cache
from package import thing

PROMPT = "be kind"
OTHER = "be brief"
TABLE = {}

def shared(value):
    return value

@lru_cache
def by_first(value):
    return shared(PROMPT)

def first(input):
    return by_first(1)

class Second:
    def answer(self):
        return OTHER, json.dumps(1)

def second(input):
    return Second().answer()

def third(input):
    return helper.help() + thing.VALUE
'''
FILES = {
    "tasks.py": CODE,
    "helper.py": "import deeper\ndef help():\n    return deeper.ONE\n",
    "deeper.py": "ONE = 1\n",
    "package/__init__.py": "",
    "package/thing.py": "VALUE = 2\n",
    "data.txt": "data",
    "job.sh": "echo hello",
}
ALL_SOURCES = ["helper.py", "deeper.py", "package"]
TASKS: dict[str, Any] = {
    "first": {"sources": []},
    "second": {},
    "third": {"sources": ALL_SOURCES},
    "shell": {"command": ["sh", "/sources/job.sh"], "sources": ["job.sh", "data.txt"]},
    "last": {"execute": "tasks.py:second", "needs": ["first"]},
}


class Version:
    """A pipeline, and the snapshot of its sources."""

    def __init__(self, folder: Path, files: dict[str, str], **document: Any) -> None:
        place = Place(folder / "place")
        for name, text in files.items():
            file = place.path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        self.spec: PipelineSpec = place.spec(**{"tasks": TASKS, **document})
        self.code = folder / "code"
        snapshot(self.spec, self.code)


def affected(tmp_path: Path, changed: dict[str, str], **document: Any) -> set[str]:
    old = Version(tmp_path / "old", FILES)
    new = Version(tmp_path / "new", FILES | changed, **document)
    same = unaffected(old.spec, old.code, new.spec, new.code)
    return {task.id for task in new.spec.tasks} - same


def edited(text: str, becomes: str) -> dict[str, str]:
    assert CODE.count(text) == 1
    return {"tasks.py": CODE.replace(text, becomes)}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, set()),
        (edited("be kind", "be kinder"), {"first", "last"}),
        (edited("be brief", "be long"), {"second", "last"}),
        (edited("return value", "return [value]"), {"first", "last"}),
        (edited("return by_first(1)", "return by_first(2)"), {"first", "last"}),
        (edited("OTHER, json", "json"), {"second", "last"}),
        # Where nothing is done otherwise, nothing is done again.
        (edited("PROMPT =", "\n# a remark\nPROMPT   ="), set()),
        (edited('"""Agents."""', '"""All of the agents."""'), set()),
        ({"tasks.py": CODE + "\ndef unused(input):\n    return 1\n"}, set()),
        # What is done when the file is loaded is done for all that lies in it.
        ({"tasks.py": CODE + "\nTABLE.update(a=1)\n"}, {"first", "second", "third", "last"}),
        (edited("@lru_cache", "@register"), {"first", "second", "third", "last"}),
        # Who may reach any name is held against the whole file.
        (
            {"tasks.py": CODE + "\ndef unused(input):\n    return globals()\n"},
            {"first", "second", "third", "last"},
        ),
        # However far it is imported.
        ({"deeper.py": "ONE = 2\n"}, {"third"}),
        ({"package/thing.py": "VALUE = 3\n"}, {"third"}),
        # What is named, whatever it is.
        ({"data.txt": "other"}, {"shell"}),
        ({"job.sh": "echo goodbye"}, {"shell"}),
    ],
)
def test_what_a_change_of_code_affects(
    tmp_path: Path, changed: dict[str, str], expected: set[str]
) -> None:
    assert affected(tmp_path, changed) == expected


ALL_OF_FILE = {"first", "second", "third", "last"}
NOTED = "\nNOTED = []\ndef note(value):\n    NOTED.append(value)\n    return value\n"


@pytest.mark.parametrize(
    "doing",
    [
        "class Other(Second):\n    at = {}",
        "class Other(metaclass=Second):\n    at = {}",
        "class Other(Generic[note({})]):\n    pass",
        "class Other:\n    NOTED.append({})",
        "class Other:\n    at = note({})",
        "class Other:\n    NOTED[0] = {}",
        "class Other:\n    def other(self, at=note({})): pass",
        "class Other:\n    @note\n    def other(self): return {}",
        "class Other:\n    class Inner:\n        at = note({})",
        "def other(at=note({})): pass",
        "def other(*, at=note({})): pass",
        "def other(at: note({})): pass",
        "at: note({}) = 1",
        "@lru_cache(maxsize=note({}))\ndef other(): pass",
        "def cache(value): NOTED.append({})\n@cache\ndef other(): pass",
        # What looks as if it were said to a pipeline.
        "from sklearn.pipeline import Pipeline\nat = Pipeline([{}])",
        "from sklearn.pipeline import Pipeline\nat = Pipeline()\nat.set_params({})",
        "from .casemate import Pipeline\nat = Pipeline()\nat.set_params({})",
        "from casemate import Pipeline\nfrom other import Pipeline\nat = Pipeline({})",
        "from casemate import Pipeline\nat = Pipeline('a')\nat = note({})",
        "import sklearn\nat = sklearn.Pipeline({})",
    ],
)
def test_what_does_something_when_it_is_loaded_is_done_for_all_of_the_file(
    tmp_path: Path, doing: str
) -> None:
    old, new = (
        Version(tmp_path / text, FILES | {"tasks.py": CODE + NOTED + doing.format(text) + "\n"})
        for text in ("11", "22")
    )
    same = unaffected(old.spec, old.code, new.spec, new.code)
    assert same == set(TASKS) - ALL_OF_FILE


@pytest.mark.parametrize(
    "harmless",
    [
        "class Other:\n    at = {0}\n    def other(self, more=1): return note({0})",
        "class Other(ValueError):\n    pass\n    at = {}",
        "class Other(BaseModel):\n    at: list[int] = Field(default={})",
        "class Other(Struct, frozen=True):\n    at: int = {}",
        "@dataclass(slots=True)\nclass Other(Generic[T]):\n    at: int = field(default={})",
        "class Other(Enum):\n    ONE = auto()\n    TWO = {}",
        "class Other:\n    @property\n    def other(self) -> list[int]: return [{}]",
        "class Other:\n    @staticmethod\n    async def other(*a: int, **b: int): return {}",
        "@lru_cache(maxsize={})\ndef other(): return note(1)",
        "from casemate import Pipeline\nat = Pipeline('a')\nat.connect({}, 1)",
        "from casemate import Pipeline as P, Retry\nat = P('a')\n"
        "@at.task(retry=Retry({}))\ndef other(): pass",
        "import casemate\nat = casemate.Pipeline('a', timeout={})",
    ],
)
def test_what_does_nothing_when_it_is_loaded_counts_for_who_names_it(
    tmp_path: Path, harmless: str
) -> None:
    old, new = (
        Version(tmp_path / text, FILES | {"tasks.py": CODE + NOTED + harmless.format(text) + "\n"})
        for text in ("11", "22")
    )
    assert unaffected(old.spec, old.code, new.spec, new.code) == set(TASKS)


def test_what_a_change_of_the_pipeline_affects(tmp_path: Path) -> None:
    def tasks(**changed: Any) -> dict[str, Any]:
        return {name: TASKS[name] | changed.get(name, {}) for name in TASKS}

    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"tasks": tasks(first={"spec": {"role": "judge"}})}, {"first", "last"}),
        ({"tasks": tasks(last={"needs": ["second"]})}, {"last"}),
        ({"tasks": {**TASKS, "more": {"execute": "tasks.py:first"}}}, {"more"}),
        ({"tasks": {n: t for n, t in TASKS.items() if n != "shell"}}, set()),
        ({"max_parallel": 1, "name": "otherwise"}, set()),
        ({"workspace": "package"}, set(TASKS)),
    ]
    for number, (document, expected) in enumerate(cases):
        assert affected(tmp_path / str(number), {}, **document) == expected


def test_a_file_that_cannot_be_read_as_code_counts_as_a_whole(tmp_path: Path) -> None:
    old = Version(tmp_path / "old", FILES | {"tasks.py": "def first(:\n"})
    new = Version(tmp_path / "new", FILES | {"tasks.py": "def first(: \n"})
    assert unaffected(old.spec, old.code, new.spec, new.code) == {"shell"}
    assert unaffected(old.spec, old.code, old.spec, old.code) == set(TASKS)
