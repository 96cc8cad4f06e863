"""`casemate serve --pipelines DIR`, and what it reads again while it serves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from casemate import Client, UsageError
from casemate.supervisor.catalogue import Catalogue
from casemate.supervisor.cli.reloading import Reloading
from casemate.supervisor.config import Config, load_config
from fakes import PATIENCE, wait_until
from runs import Place

CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]
REVIEW = """
name: review
defaults: {limits: {memory: 128MiB, pids: 32}}
tasks:
  one: {execute: "code.py:one"}
"""
CODE = """
def one(input):
    return [input, "old"]
"""
BUILT = """
from casemate import Pipeline
pipeline = Pipeline("built")
@pipeline.task()
def one(input):
    return "built"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    folder = Place(tmp_path / "pipelines")
    folder.write("review.yaml", REVIEW)
    folder.write("code.py", CODE)
    return folder


def news(catalogue: Catalogue, tmp_path: Path) -> list[str]:
    """What is reported when the folder is read again."""
    return sorted(catalogue.take(catalogue.load(load_config(state=tmp_path / "state"))))


def test_a_folder_is_read_by_name_and_what_is_broken_stays_as_it_was(
    tmp_path: Path, folder: Place
) -> None:
    catalogue = Catalogue(folder.path)
    assert news(catalogue, tmp_path) == ["pipeline review: read"]
    assert news(catalogue, tmp_path) == []
    whole, note = catalogue.bundle("review")
    assert note is None
    folder.write("review.yaml", REVIEW.replace("tasks", "tusks"))
    [said] = news(catalogue, tmp_path)
    assert "tusks" in said
    assert said.endswith("what it was before stays in force")
    kept, note = catalogue.bundle("review")
    assert kept == whole
    assert note is not None
    assert "tusks" in note
    folder.write("review.yaml", REVIEW)
    assert news(catalogue, tmp_path) == ["pipeline review: is whole again"]
    assert catalogue.bundle("review") == (whole, None)
    # Sources are a part of it.
    folder.write("code.py", CODE.replace("old", "new"))
    assert news(catalogue, tmp_path) == ["pipeline review: read"]
    (folder.path / "review.yaml").unlink()
    assert news(catalogue, tmp_path) == ["pipeline review: gone"]
    with pytest.raises(UsageError, match=r"no pipeline 'review'.*there are: none"):
        catalogue.bundle("review")


def test_pipelines_have_folders_of_their_own_and_no_two_have_one_name(
    tmp_path: Path, folder: Place
) -> None:
    folder.write("built/pipeline.py", BUILT)
    folder.write("review/pipeline.toml", "")
    folder.write("never/pipeline.yaml", "tasks: {}")
    folder.write("never/other.yaml", REVIEW)
    folder.write("not a name.yaml", REVIEW)
    catalogue = Catalogue(folder.path)
    built, never, review = news(catalogue, tmp_path)
    assert built == "pipeline built: read"
    assert never.startswith("pipeline never: ")
    assert "stays in force" not in never
    assert "are both review" in review
    for name in ("never", "review"):
        with pytest.raises(UsageError):
            catalogue.bundle(name)


def test_a_pipeline_too_many_puts_out_no_other(
    tmp_path: Path, folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(folder.path)
    news(catalogue, tmp_path)
    whole, _ = catalogue.bundle("review")
    monkeypatch.setattr("casemate.supervisor.catalogue.CATALOGUE_SIZE", len(whole) * 5 // 2)
    folder.write("big.yaml", REVIEW)
    folder.write("more.yaml", REVIEW)
    folder.write("code.py", CODE.replace("old", "new"))
    big, more, review = news(catalogue, tmp_path)
    assert (big, review) == ("pipeline big: read", "pipeline review: read")
    assert more.startswith("pipeline more: ") and "MiB of pipelines" in more
    folder.write("code.py", CODE + "#" * len(whole))
    big, review = news(catalogue, tmp_path)
    assert big.endswith("stays in force") and review.endswith("stays in force")


def test_a_name_that_is_not_utf_8_is_told_of(tmp_path: Path, folder: Place) -> None:
    (folder.path / "data").mkdir()
    (folder.path / os.fsdecode(b"data/caf\xe9.txt")).write_text("")
    folder.write("review.yaml", REVIEW.replace('code.py:one"', 'code.py:one", sources: [data]'))
    [said] = news(Catalogue(folder.path), tmp_path)
    assert r"caf\xe9.txt' is not UTF-8" in said


def test_what_was_read_last_is_in_force(
    tmp_path: Path, folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        reloading = Reloading(folder.path)
        catalogue = reloading.catalogue
        assert catalogue is not None
        await reloading.begin(load_config(state=tmp_path / "state"))
        gates = [asyncio.Event(), asyncio.Event()]
        waiting = iter(gates)

        async def slowly(load: Callable[[Config], Any], config: Config) -> Any:
            found = load(config)
            await next(waiting).wait()
            return found

        monkeypatch.setattr(asyncio, "to_thread", slowly)
        readings = [asyncio.create_task(reloading._read(catalogue))]
        await asyncio.sleep(0)
        folder.write("second.yaml", REVIEW)
        readings.append(asyncio.create_task(reloading._read(catalogue)))
        for gate in reversed(gates):
            await asyncio.sleep(0)
            gate.set()
            await asyncio.sleep(0)
        await asyncio.gather(*readings)
        catalogue.bundle("second")

    asyncio.run(main())


def test_another_state_directory_in_the_file_leaves_the_present_one_unseen_by_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "casemate.toml"
    file.write_text(f'state = "{tmp_path}/one"\n')
    monkeypatch.setenv("CASEMATE_CONFIG", str(file))

    async def main() -> Config:
        told: asyncio.Queue[Config] = asyncio.Queue()
        supervisor = Mock(reconfigure=told.put)
        reloading = Reloading(None)
        await reloading.begin(load_config())
        keeping = asyncio.create_task(reloading.keep(supervisor, load_config))
        file.write_text(f'state = "{tmp_path}/other"\nallow = ["network"]\n')
        new = await asyncio.wait_for(told.get(), PATIENCE)
        keeping.cancel()
        await asyncio.wait([keeping])
        return new

    new = asyncio.run(main())
    assert new.allow.network and new.allow.state == tmp_path / "one"


@contextmanager
def serving(tmp_path: Path, *arguments: str) -> Iterator[Path]:
    """Where all is that it says: it has something to say on stderr too."""
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*CASEMATE, "serve", "--state", str(tmp_path / "state"), *arguments],
            stdout=out,
            stderr=out,
        )
    try:
        wait_said(log, "serving ")
        yield log
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_said(log: Path, text: str, times: int = 1) -> None:
    wait_until(lambda: log.read_text().count(text) >= times)


def submit(state: Path, name: str, input: Any = None) -> tuple[Any, list[str]]:
    """What it gave, and what was said of it."""
    notes: list[str] = []
    with Client(state=state) as client:
        run = client.submit(name, input, on_note=notes.append)
        for event in client.events(run):
            if event.kind == "run.completed":
                return event.data["outputs"]["one"], notes
    raise AssertionError("it never completed")


def test_pipelines_are_submitted_by_name_as_they_are_when_that_happens(
    tmp_path: Path, folder: Place
) -> None:
    state = tmp_path / "state"
    with serving(tmp_path, "--pipelines", str(folder.path)) as log:
        assert submit(state, "review", 1) == ([1, "old"], [])
        folder.write("code.py", CODE.replace("old", "new"))
        wait_said(log, "pipeline review: read", times=2)
        assert submit(state, "review") == ([None, "new"], [])
        folder.write("review.yaml", REVIEW.replace("tasks", "tusks"))
        wait_said(log, "tusks")
        output, [note] = submit(state, "review", 2)
        assert output == [2, "new"]
        assert "tusks" in note
        folder.write("second.yaml", REVIEW.replace("review", "second"))
        wait_said(log, "pipeline second: read")
        (folder.path / "review.yaml").unlink()
        wait_said(log, "pipeline review: gone")
        done = subprocess.run(
            [*CASEMATE, "submit", "review", "--state", str(state)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "there are: second" in done.stderr


def test_who_knows_no_names_says_so(tmp_path: Path) -> None:
    with serving(tmp_path), pytest.raises(UsageError, match="serve --pipelines"):
        submit(tmp_path / "state", "review")


def test_the_configuration_is_read_again_and_a_broken_one_is_not(
    tmp_path: Path, folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, file = tmp_path / "state", tmp_path / "casemate.toml"
    file.write_text("max_parallel = 1\n")
    folder.write("wants.yaml", REVIEW.replace('code.py:one"', 'code.py:one", ro: [/usr/share]'))
    monkeypatch.setenv("CASEMATE_CONFIG", str(file))
    with serving(tmp_path, "--pipelines", str(folder.path)) as log:
        monkeypatch.delenv("CASEMATE_CONFIG")  # what a client may do is not asked here
        wait_said(log, "pipeline wants: ")
        with pytest.raises(UsageError, match="/usr/share"):
            submit(state, "wants")
        file.write_text('max_parallel = 3\nmemory = "3GiB"\nallow = ["path:/usr/share"]\n')
        wait_said(log, "read again; memory: from the next start on")
        wait_said(log, "pipeline wants: is whole again")
        assert submit(state, "wants", 1) == ([1, "old"], [])
        file.write_text("max_parallel = none\n")
        wait_said(log, "the configuration is what it was before")
        output, [note] = submit(state, "wants", 2)
        assert output == [2, "old"]
        assert str(file) in note
        file.write_text('keys = "~nosuchuser/keys"\n')
        wait_said(log, "no such user")
        file.write_text('max_parallel = 2\nallow = ["path:/usr/share"]\n')
        wait_said(log, "read again\n")  # all that it says counts, or did when serve began
        file.write_text('log = "json"\nallow = ["path:/usr/share"]\n')
        wait_said(log, "read again; log: from the next start on")
        assert submit(state, "wants", 3) == ([3, "old"], [])
