"""A store that somebody or something has damaged: a clear error, or a story that can be true.

SQLite sums the frames of its WAL and nothing else, so what a flipped bit does to a row cannot
always be told. What is held here: whoever reads gets events in order and without a hole, or a
`CasemateError`; no other exception, and no crash of the process that reads. Large values have
digests, and a damaged one is never handed on.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate.protocol.control import RunState as Shown
from casemate.protocol.errors import CasemateError
from casemate.supervisor import offline
from casemate.supervisor.core.events import Submit
from casemate.supervisor.cursor import public
from casemate.supervisor.files import Files, begin_files
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.overview import describe, read_story, summarise
from casemate.supervisor.recovery import read_run
from casemate.supervisor.state import RunDirectory, StateDirectory
from casemate.supervisor.values import DamagedValueError
from core.simulated import NIL, raw
from every_write import SPEC, AlwaysOverlays, Supervisor, outcome, take_up
from msgspec import structs
from verifier import verify

CASES = 100


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """State directories with a run that has completed: its journal closed; and as it was when its
    last commit had just been made, all of it in the WAL."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "base").mkdir()
    closed, living = StateDirectory.open(folder / "closed"), folder / "living"
    spec = structs.replace(SPEC, workspace=str(folder / "base"))
    owned = closed.create_run(lambda run: begin_files(run, spec, closed.path))
    files = Files.of_run(owned.directory, spec, AlwaysOverlays(), closed.path)
    assert files is not None

    def copy(_: int) -> None:
        shutil.rmtree(living, ignore_errors=True)
        shutil.copytree(closed.path, living)

    Supervisor(owned, files, copy).go(Submit(owned.directory.id, spec, NIL, raw(spec), 7))
    owned.ownership.release()
    assert (living / "runs" / owned.directory.id / "journal.db-wal").stat().st_size > 50_000
    return closed.path, living


def copies(of: Path, tmp_path: Path, count: int) -> Iterator[tuple[StateDirectory, RunDirectory]]:
    for number in range(count):
        state = StateDirectory(shutil.copytree(of, tmp_path / str(number)))
        yield state, state.find_run("last")
        shutil.rmtree(state.path)


def read_all(state: StateDirectory, run: RunDirectory) -> int:
    """As every reader does; how many events there were. 0: it is told that it is damaged."""
    seqs: list[int] = []
    problems = 0
    for read in (
        lambda: describe(run),
        lambda: read_story(run),
        lambda: read_run(run),
        lambda: offline.pause_run(state, run.id, drain=True),
        lambda: seqs.extend(_events(run)),
    ):
        try:
            read()
        except CasemateError:
            problems += 1
    summarise(run)
    assert seqs == list(range(1, len(seqs) + 1))
    return 0 if problems else len(seqs)


def _events(run: RunDirectory) -> list[int]:
    with JournalReader(run) as reader:
        return [public(event).seq for event in reader.events(size=1 << 30)]


@pytest.mark.parametrize("which", [0, 1])
def test_flipped_bytes_are_a_clear_error_or_do_not_matter(
    whole: tuple[Path, Path], tmp_path: Path, which: int
) -> None:
    chance = random.Random(which)
    damaged = 0
    for state, run in copies(whole[which], tmp_path, CASES):
        file = chance.choice(sorted(run.path.glob("journal.db*")))
        content = bytearray(file.read_bytes())
        for _ in range(chance.choice([1, 1, 8])):
            if content:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
        damaged += not read_all(state, run)
    assert damaged > CASES // 20


def test_a_wal_cut_anywhere_is_a_run_cut_at_a_commit(
    whole: tuple[Path, Path], tmp_path: Path
) -> None:
    chance = random.Random(3)
    expected = outcome(StateDirectory(whole[0]), StateDirectory(whole[0]).run_ids()[0])
    lengths = set()
    for state, run in copies(whole[1], tmp_path, CASES):
        wal = run.journal.with_name("journal.db-wal")
        wal.write_bytes(wal.read_bytes()[: chance.randrange(wal.stat().st_size)])
        # What remembers the WAL is in shared memory, and gone with the power.
        run.journal.with_name("journal.db-shm").unlink()
        if take_up(state, run.id):
            assert verify(state.path, run.id, has_ended=True) == []
            assert outcome(state, run.id) == expected
        with JournalReader(run) as reader:
            lengths.add(reader.last_seq())
    assert len(lengths) > 3


def test_a_journal_cut_anywhere_is_a_clear_error(whole: tuple[Path, Path], tmp_path: Path) -> None:
    chance = random.Random(4)
    for state, run in copies(whole[0], tmp_path, CASES // 2):
        content = run.journal.read_bytes()
        run.journal.write_bytes(content[: chance.randrange(len(content))])
        assert read_all(state, run) == 0
        assert summarise(run).state is Shown.DAMAGED


def test_a_damaged_value_is_never_handed_on(whole: tuple[Path, Path], tmp_path: Path) -> None:
    chance = random.Random(5)
    for _, run in copies(whole[0], tmp_path, 30):
        file = chance.choice([path for path in run.values.glob("??/*") if path.is_file()])
        content = bytearray(file.read_bytes())
        if chance.random() < 0.5:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        else:
            del content[chance.randrange(len(content)) :]
        file.chmod(0o600)
        file.write_bytes(content)
        with pytest.raises(DamagedValueError):
            _events(run)
        # How it stands does not hang on what its tasks said.
        assert summarise(run).state is Shown.COMPLETED
        assert all(task.state == "completed" for task in describe(run)[1])
