"""What is written about events is what events are."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from casemate.protocol import reference
from casemate.protocol.events import DATA
from runs import Embedded, Place

TASKS = """
def talk(input, ctx):
    ctx.emit({"bytes": b"x"})
    ctx.log("a word", level=1)
    ctx.progress(1, 2)
    ctx.save({"n": ctx.attempt})
    if ctx.attempt == 1:
        raise ValueError("once")
    (ctx.workspace / "file").write_text("x")
    return float("inf")
def fail(input):
    raise ValueError("for good")
"""


@pytest.mark.tree
def test_the_page_is_of_these_events() -> None:
    kept = Path(__file__).parents[2] / "protocol/EVENTS.md"
    assert kept.read_text(encoding="utf-8") == reference.page(), (
        "python -m casemate.protocol.reference > protocol/EVENTS.md"
    )


def test_the_schema_holds_for_what_a_run_tells_and_for_nothing_else(
    house: Embedded, place: Place
) -> None:
    schema = jsonschema.Draft202012Validator(reference.json_schema())
    schema.check_schema(schema.schema)
    place.tasks(TASKS)
    (place.path / "work").mkdir()
    tasks = {"talk": {"retry": {"attempts": 2}}, "fail": {}}
    history = house.run(place.spec(workspace="work", tasks=tasks))
    told = {event.kind for event in history.events}
    assert {"task.retrying", "task.completed", "task.saved", "run.failed"} <= told <= DATA.keys()
    for event in history.events:
        schema.validate(event.as_json())
    wrong = history.one("task.completed").as_json()
    del wrong["data"]["seconds"]
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(wrong)
