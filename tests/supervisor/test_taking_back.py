"""`diff` and `apply` of runs that really ran: what tasks did to their workspace, mounted and
copied, comes out as a patch that git takes, and in the workspace itself."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.state import StateDirectory
from fakes import PATIENCE, wait_until
from overlaid import Operation, as_git_sees, git_apply, look, perform
from runs import Embedded, Place

CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]

# The tasks do and see with the functions that the tests look with.
TASKS = f"""
import hashlib, os, stat, time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
Operation = Sequence[Any]
{inspect.getsource(perform)}
{inspect.getsource(look)}
def act(input, ctx):
    os.umask(0o022)
    for operation in ctx.spec["operations"]:
        perform(operation)
def see(input, ctx):
    return look(Path("."))
def tries(input, ctx):
    with open("tried", "w") as file:
        file.write(f"attempt {{ctx.attempt}}\\n")
    if ctx.attempt < 3:
        os.unlink("top")
        raise ValueError("not yet")
def waits(input, ctx):
    with open("late", "w") as file:
        file.write("written\\n")
    ctx.emit("here")
    time.sleep(3600)
"""

STORY: dict[str, list[Operation]] = {
    "first": [
        ["append", "src/a", "more\n"], ["remove", "gone"], ["chmod", "script", 0o755],
        ["rename", "src/b", "src/moved"], ["write", "picture", "\0\xff\x01" * 500],
        ["mkdir", "new"], ["write", "new/text", "first\nsecond\n"], ["link", "way", "new/text"],
        ["mkdir", "void"], ["sparse", "large", 3 << 20], ["rmtree", "old"],
    ],
    "second": [
        ["append", "new/text", "third\n"], ["append", "picture", "end"],
        ["mkdir", "old"], ["write", "old/anew", "x\n"], ["remove", "top"], ["mkdir", "top"],
        ["write", "top/in", "no newline"], ["chmod", "src", 0o700], ["remove", "pointer"],
        ["link", "pointer", "script"], ["write", "ödd \"name\"\t", "x\n"],
    ],
}  # fmt: skip


class Desk:
    def __init__(self, place: Place, state: Path) -> None:
        self.place = place
        self.state = state
        self.files = place.path / "repo"

    def shown(self) -> dict[str, Any]:
        """What is in the workspace, without the state directory that may be in it too."""
        return look(self.files, without=str(self.state))

    def spec(self, **tasks: dict[str, Any]) -> PipelineSpec:
        return self.place.spec(workspace="repo", tasks=tasks)

    def story(self) -> PipelineSpec:
        tasks: dict[str, dict[str, Any]] = {}
        for task, operations in STORY.items():
            spec = {"operations": operations}
            tasks[task] = {"execute": "tasks.py:act", "spec": spec, "needs": list(tasks)[-1:]}
        return self.spec(**tasks, see={"needs": ["second"]})

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*CASEMATE, *arguments, "--state", str(self.state)],
            capture_output=True,
            timeout=PATIENCE,
        )
        assert b"Traceback" not in done.stderr, done.stderr
        return done

    def ended(self, run: str) -> int:
        """How often."""
        with JournalReader(StateDirectory(self.state).run(run)) as reader:
            return sum(event.kind == "run.completed" for event, _ in reader.of_run())

    def until_free(self, run: str) -> None:
        wait_until(lambda: not StateDirectory(self.state).run(run).is_owned())


@pytest.fixture(params=["mounted", "copied"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Nothing can be mounted over a base that holds what is mounted: then copies are made."""
    return tmp_path / "state" if request.param == "mounted" else tmp_path / "place/repo/state"


@pytest.fixture
def desk(tmp_path: Path, state: Path) -> Desk:
    place = Place(tmp_path / "place")
    place.tasks(TASKS)
    for name in ("src/a", "src/b", "gone", "script", "top", "old/x/y"):
        place.write(f"repo/{name}", f"{name}\n")
    (place.path / "repo/pointer").symlink_to("top")
    return Desk(place, state)


@pytest.fixture
def house(desk: Desk) -> Iterator[Embedded]:
    with Embedded(desk.state) as house:
        yield house


def test_what_the_last_task_saw_comes_out_of_git_apply_and_of_apply(
    house: Embedded, desk: Desk, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(desk.files, copy, symlinks=True, ignore=shutil.ignore_patterns("state"))
    before = desk.shown()
    history = house.run(desk.story())
    assert history.outcome == "run.completed", history.events
    seen = history.output("see")
    assert desk.shown() == before

    patch = desk("diff", history.run)
    assert patch.returncode == 0, patch.stderr
    for told in (b"void (an empty folder)", b"src (a folder's mode"):
        assert told in patch.stderr
    git_apply(copy, patch.stdout)
    assert as_git_sees(look(copy)) == as_git_sees(seen)

    house.call(house.supervisor.rollback(history.run, "c1"))
    wait_until(lambda: desk.ended(history.run) == 2)
    assert desk("diff", history.run, "--checkpoint", "c1").stdout not in (b"", patch.stdout)
    assert desk("diff", history.run).stdout == patch.stdout

    desk.until_free(history.run)
    done = desk("apply", history.run, "--allow", "script")
    assert done.returncode == 0, done.stderr
    assert desk.shown() == seen
    assert (desk.files / "large").stat().st_blocks * 512 < 1 << 20
    again = desk("apply", history.run, "--allow", "script")
    assert (again.returncode, again.stdout.split()[:2]) == (0, [b"0", b"written"])
    assert desk.shown() == seen
    assert desk("diff", history.run).stdout == b""


def test_apply_says_what_stands_in_its_way_and_writes_nothing(house: Embedded, desk: Desk) -> None:
    live = house.start(desk.spec(first={"execute": "tasks.py:act", "spec": {
        "operations": [["append", "src/a", "more\n"], ["write", ".envrc", "x"]]}},
        waits={"needs": ["first"]},
    ))  # fmt: skip
    live.wait("task.emitted", "waits")
    assert b"+more\n" in desk("diff", live.run).stdout
    busy = desk("apply", live.run)
    assert busy.returncode == 2 and b"files are applied when it has ended" in busy.stderr
    busy = desk("diff", live.run, "--attempt", "waits")
    assert busy.returncode == 2 and b"waits/1 is still at work" in busy.stderr
    live.cancel()
    live.finish()
    desk.until_free(live.run)
    (desk.files / "src/a").write_text("by somebody else\n")
    before = desk.shown()
    refused = desk("apply", live.run)
    assert refused.returncode == 2
    assert b"src/a" in refused.stderr and b".envrc" in refused.stderr
    assert json.loads(desk("apply", live.run, "--json").stdout)["refused"] == {
        "changed": ["src/a"], "unexpected": {}, "risky": {".envrc": "direnv runs it"},
    }  # fmt: skip
    assert desk.shown() == before
    assert desk("apply", live.run, "--accept-base", "--allow", ".envrc").returncode == 0
    assert (desk.files / "src/a").read_text() == "src/a\nmore\n"
    late = desk("diff", live.run, "--attempt", "waits/1")
    assert b"+written\n" in late.stdout


def test_what_each_attempt_wrote_can_be_told(house: Embedded, desk: Desk) -> None:
    history = house.run(desk.spec(tries={"retry": {"attempts": 3, "delay": "0s"}}))
    assert history.outcome == "run.completed", history.events
    for attempt in (1, 2, 3):
        patch = desk("diff", history.run, "--attempt", f"tries/{attempt}").stdout
        assert b"+attempt %d\n" % attempt in patch
        assert (b"deleted file" in patch) == (attempt < 3)
    assert desk("diff", history.run).stdout == patch

    desk.until_free(history.run)
    dropped = desk("gc")
    assert b"files of attempts tries/1, tries/2\n" in dropped.stdout, dropped
    gone = desk("diff", history.run, "--attempt", "tries/2")
    assert gone.returncode == 2
    assert b"the files of attempt tries/2 are gone: `gc` drops those" in gone.stderr
    assert desk("diff", history.run, "--attempt", "tries/3").stdout == patch
    assert desk("diff", history.run).stdout == patch
