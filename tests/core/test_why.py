"""Why a task is as it is: what is answered, at every turn of a story.

A transcript in `why/` tells a story in the language of `simulated.py`; between its lines somebody
asks `why a`, or `why a interrupted` where no supervisor has the run any more. Lines that begin with
`>` are the answer: when, which event, and the words. `pytest tests/core --regenerate` writes them
anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from casemate.protocol.events import ErrorKind, EventData
from casemate.supervisor.core import why
from casemate.supervisor.core.look import words
from casemate.supervisor.core.task import TRANSITIONS, Standing

from .simulated import Simulated

STORIES = sorted((Path(__file__).parent / "why").glob("*.txt"))


def ask(simulated: Simulated, run: str, task: str, *, is_owned: bool) -> list[str]:
    facts, journal = why.Facts(task), simulated.journals[run]
    for line, record in zip(journal.lines, journal.records, strict=True):
        facts.see(line.seq, line.at - simulated.wall, record)
    look = simulated.scheduler.look(run, task) if is_owned else None
    live = () if look is None else words(look)
    state = simulated.fold(run)
    return [
        f"{'' if reason.at is None else f'{reason.at:g}':>5}"
        f" {'' if reason.seq is None else f'#{reason.seq}':>4} {reason.text}"
        for reason in why.explain(state, facts, is_owned=is_owned, live=live)
    ]


def play(story: str) -> str:
    lines: list[str] = []
    simulated = Simulated()
    for line in story.splitlines():
        if line.startswith(">"):
            continue
        lines.append(line)
        if not line or line.startswith("#"):
            continue
        if line.startswith("why "):
            _, subject, *rest = line.split()
            run, _, task = subject.rpartition("/")
            answers = ask(simulated, run or "r", task, is_owned=rest != ["interrupted"])
            lines += [f"> {answer}" for answer in answers]
        elif line[0].isdigit():
            now, _, said = line.partition(" ")
            simulated.at(float(now), said)
        else:
            simulated.declare(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", STORIES, ids=lambda path: str(path.stem))
def test_it_is_answered_as_written(path: Path, request: pytest.FixtureRequest) -> None:
    story = path.read_text(encoding="utf-8")
    answered = play(story)
    if request.config.getoption("--regenerate", default=False):
        path.write_text(answered, encoding="utf-8")
    else:
        assert answered == story


def test_there_are_words_for_everything_that_can_be() -> None:
    assert why._KINDS.keys() == set(ErrorKind)
    assert why._STANDINGS.keys() == set(Standing)
    back = {Standing.WAITING, Standing.BACKOFF, Standing.COMPLETED, Standing.FAILED,
            Standing.CANCELLED}  # fmt: skip
    ways: set[type[EventData]] = {
        happening
        for standing, edges in TRANSITIONS.items()
        for happening, next_standing in edges.items()
        if next_standing in back
    }
    assert why._ENDINGS.keys() == ways
