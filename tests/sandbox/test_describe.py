"""A `.py` pipeline file as data."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate.protocol.errors import UsageError
from casemate.protocol.pipeline import ModuleEntry
from casemate.sandbox.describe import describe
from fakes import FakeSupervisor, GuestHost

CLASS = """
class Pipeline:
    def __init__(self, name): self.name = name
    def document(self): return {"name": self.name}
"""


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Path]:
    path, modules = list(sys.path), dict(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]


def described(sources: Path, text: str) -> object:
    (sources / "flow.py").write_text(CLASS + text, encoding="utf-8")
    return describe({"file": "flow.py", "sources": str(sources)})


def test_the_one_pipeline_is_found(sources: Path) -> None:
    assert described(sources, "flow = Pipeline('review')\nother = 3\n") == {"name": "review"}


def test_two_names_of_one_pipeline_are_one(sources: Path) -> None:
    assert described(sources, "a = b = Pipeline('review')\n") == {"name": "review"}


def test_a_subclass_is_a_pipeline(sources: Path) -> None:
    assert described(sources, "class Mine(Pipeline): pass\na = Mine('m')\n") == {"name": "m"}


def test_none_is_an_error_with_a_remedy(sources: Path) -> None:
    with pytest.raises(UsageError, match=r"flow\.py: leaves no Pipeline at module level"):
        described(sources, "def make(): return Pipeline('x')\n")


def test_several_are_named(sources: Path) -> None:
    with pytest.raises(UsageError, match=r"leaves 2 Pipelines \(a, b\)"):
        described(sources, "b = Pipeline('x')\na = Pipeline('y')\n")


def test_it_runs_as_a_task_and_refuses_as_one(guest_host: GuestHost, tmp_path: Path) -> None:
    entry = ModuleEntry("casemate.sandbox.describe", "describe")
    with FakeSupervisor(guest_host, tmp_path) as guest:
        guest.source("flow.py", CLASS + "flow = Pipeline('review')\n")
        job = {"file": "flow.py", "sources": str(guest.sources)}
        assert guest.output(entry, job) == {"name": "review"}
    with FakeSupervisor(guest_host, tmp_path) as guest:
        guest.source("flow.py", "")
        failure = guest.failure(entry, job)
        assert (failure.kind, failure.type) == ("error", None)
        assert failure.message.startswith("flow.py: leaves no Pipeline")
        assert failure.traceback is None


def test_the_builders_pipeline_is_recognised(sources: Path) -> None:
    text = "from casemate.supervisor.builder import Pipeline\nflow = Pipeline('review')\n"
    (sources / "flow.py").write_text(text, encoding="utf-8")
    document = describe({"file": "flow.py", "sources": str(sources)})
    assert document["name"] == "review"
