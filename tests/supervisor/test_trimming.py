"""What gc takes from a run that is kept, and what it never takes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from casemate.protocol.errors import UsageError
from casemate.protocol.events import TaskEmitted
from casemate.protocol.limits import INLINE_VALUE_SIZE
from casemate.supervisor.gc import collect_garbage
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.recovery import fork
from casemate.supervisor.state import Ownership
from casemate.supervisor.trimming import trim
from casemate.supervisor.values import ValueStore
from handmade import Run
from msgspec import Raw

LARGE = Raw(msgspec.msgpack.encode("large" * INLINE_VALUE_SIZE))


def eventful(place: Path) -> Run:
    """b fails once, is held by c2, is undone and done again; c is undone before any checkpoint."""
    run = Run(place)
    run.task("a", ["write", "from-a", "1"])
    run.checkpoint()
    run.task(
        "b", ["write", "failed", "x" * 10_000], ["mkdir", "d"], ["chmod", "d", 0], ends="retrying"
    )
    run.task("b", ["write", "from-b", "2"])
    run.checkpoint()
    run.task("c", ["write", "undone", "x"])
    run.undo("c1", "b", "c")
    run.task("b", ["write", "from-b", "3"])
    run.task("c", ["write", "from-c", "4"])
    run.tell(TaskEmitted(LARGE), "c")
    run.end()
    return run


def known(run: Run) -> list[dict[str, str]]:
    """All that stays."""
    asked: list[dict[str, Any]] = [{}, *({"checkpoint": f"c{n}"} for n in range(3))]
    asked += [{"attempt": attempt} for attempt in ("a/1", "b/2", "b/3", "c/2")]
    return [run.paths(**each) for each in asked]


def test_gc_drops_the_files_of_attempts_that_nothing_holds(tmp_path: Path) -> None:
    run = eventful(tmp_path)
    before = known(run)
    assert run.paths(attempt="b/1") == {"failed": "file", "d": "folder"}
    dry = json.loads(run("gc", "--dry-run", "--json").stdout)
    assert run.paths(attempt="b/1") == {"failed": "file", "d": "folder"}
    done = json.loads(run("gc", "--json").stdout)
    assert done == {**dry, "dry_run": False}
    [trimmed] = done["trimmed"]
    assert trimmed["attempts"] == ["b/1", "c/1"]
    assert done["bytes"] == trimmed["bytes"] > 10_000
    assert known(run) == before
    for attempt in ("b/1", "c/1"):
        with pytest.raises(UsageError, match=f"attempt {attempt} are gone: `gc` drops"):
            run.paths(attempt=attempt)
    assert list(collect_garbage(run.state)) == []


def test_gc_drops_values_that_no_event_has(tmp_path: Path) -> None:
    run = eventful(tmp_path)
    store = ValueStore(run.owned.directory.values)
    orphan = store.path(store.put(b"x" * 10_000))
    (run.owned.directory.values / "tmp" / "half").write_bytes(b"x")
    trimmed = trim(run.owned.directory)
    assert trimmed is not None and trimmed.values == 2
    assert not orphan.exists()
    with JournalReader(run.owned.directory) as reader:
        whole = {event.kind: event.data for event in reader.events()}
    assert msgspec.msgpack.decode(whole["task.emitted"], type=TaskEmitted).item == LARGE


def test_a_fork_keeps_nothing_of_its_source_that_it_cannot_reach(tmp_path: Path) -> None:
    run = eventful(tmp_path)
    owned, _ = fork(run.state, run.owned.directory, "c2")
    owned.ownership.release()
    trimmed = trim(owned.directory)
    assert trimmed is not None and (trimmed.attempts, trimmed.values) == ((), 1)
    assert trimmed.bytes == 0  # its source has them too
    with JournalReader(run.owned.directory) as reader:
        assert len(reader.events()) == len(run.entries)


def test_gc_lets_runs_be_that_somebody_owns_or_that_are_too_young(tmp_path: Path) -> None:
    run = eventful(tmp_path)
    assert list(collect_garbage(run.state, older=3600)) == []
    ownership = Ownership.take(run.owned.directory)
    assert list(collect_garbage(run.state)) == []
    ownership.release()
    assert run.paths(attempt="b/1") == {"failed": "file", "d": "folder"}
    assert [each.bytes > 0 for each in collect_garbage(run.state)] == [True]


def test_a_trimming_that_fails_anywhere_harms_nothing_and_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in count():
        run = eventful(tmp_path / str(at))
        before = known(run)
        calls = count()

        def failing(
            act: Callable[..., None], calls: count[int] = calls, at: int = at
        ) -> Callable[..., None]:
            def call(*arguments: Any, **options: Any) -> None:
                if next(calls) == at:
                    raise OSError(errno.EIO, "no", arguments[0])
                act(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("unlink", "rmdir", "rename"):
                patch.setattr(os, name, failing(getattr(os, name)))
            trimmed = trim(run.owned.directory)
        assert trimmed is not None
        assert known(run) == before
        if trimmed.problem is None:
            break
        assert trimmed.problem.startswith("no (")
        trim(run.owned.directory)
        assert known(run) == before
        layers = {path.name for path in (run.owned.directory.path / "layers").iterdir()}
        assert layers == {"a.1", "b.2", "b.3", "c.2"}
    assert at > 5
