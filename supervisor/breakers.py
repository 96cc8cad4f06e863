"""The breakers of a state directory: rows that all its supervisors share.

    <state>/state.db        one row a key (SQLite, WAL), as `core/breaker.py` has it

`BreakerStore` lets a row take one step in one transaction: of two supervisors that claim a probe
one gets it. `BreakerDesk` does that for an engine, in a thread of its own: words go in by a queue
and are answered in their order; in between it looks whether others have written (`data_version`, a
read of shared memory) and tells which of the rows that are in use have moved.

A row survives every death of a process. It does not wait for the disk: after a power cut the last
failures may not have been counted, and the journals of the runs do not hang on it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import msgspec

from ..protocol.control import BreakerSummary
from ..protocol.errors import CasemateError, UsageError
from ..protocol.pipeline import BREAKER_KEY_PATTERN
from .core.breaker import Forced, Happening, Reset, Row, Standing, remaining, step
from .core.commands import ForgetBreaker, TellBreaker
from .core.events import BreakerMoved

__all__ = ["BreakerDesk", "BreakerStore", "read_breakers", "standing_of", "step_breaker"]

_VERSION = 1

# How often a supervisor looks for what its peers wrote. DESIGN promises 250 ms; a look costs a few
# microseconds, and there is none while no run with a breaker is under way.
LOOK_SECONDS = 0.1

# One writes for microseconds: who waits longer for the lock than this has met a hang.
_BUSY_SECONDS = 10.0

_row = msgspec.msgpack.Decoder(Row)


class BreakerStore:
    """For one thread. What is not there yet is made by the first step, not by looking."""

    def __init__(self, state: Path) -> None:
        self._path = state / "state.db"
        self._db: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def rows(self) -> dict[str, Row]:
        """All, by key."""
        with self._errors():
            if (db := self._reach(may_make=False)) is None:
                return {}
            return {
                key: _row.decode(data)
                for key, data in db.execute("SELECT key, data FROM breakers ORDER BY key")
            }

    def row(self, key: str) -> Row:
        """As it was made where nothing has happened to it."""
        with self._errors():
            db = self._reach(may_make=False)
            return Row() if db is None else _read(db, key)

    def step(self, key: str, now: float, happening: Happening) -> Row:
        """The row after it."""
        with self._errors():
            db = self._reach(may_make=True)
            assert db is not None
            before = _read(db, key)
            if step(before, now, happening) == before:
                return before  # most often, and without the lock
            db.execute("BEGIN IMMEDIATE")
            try:
                row = step(_read(db, key), now, happening)
                data = msgspec.msgpack.encode(row)
                db.execute("INSERT OR REPLACE INTO breakers VALUES (?, ?)", (key, data))
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
            return row

    def version(self) -> int:
        """Another number whenever another process, or thread, has written."""
        with self._errors():
            db = self._reach(may_make=False)
            return -1 if db is None else int(db.execute("PRAGMA data_version").fetchone()[0])

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, msgspec.MsgspecError) as error:
            self.close()  # whatever it was, the next try begins afresh
            raise CasemateError(f"the breakers in {self._path}: {error}") from error

    def _reach(self, *, may_make: bool) -> sqlite3.Connection | None:
        if self._db is None:
            if not self._path.exists():
                if not may_make:
                    return None
                _make(self._path)
            writable = os.access(self._path, os.W_OK)
            self._db = _connect(self._path, "rw" if writable else "ro")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version != _VERSION:
                self.close()
                raise UsageError(f"{self._path}: version {version}, expected {_VERSION}")
            self._db.execute("PRAGMA synchronous = NORMAL")
        return self._db


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
    )


def _make(path: Path) -> None:
    """Whole from the moment that it has its name; where two make it, the first one's counts."""
    building = path.with_name(f".state-{secrets.token_hex(8)}.db")
    os.close(os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(_connect(building, "rw")) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("CREATE TABLE breakers (key TEXT PRIMARY KEY, data BLOB NOT NULL)")
            db.execute(f"PRAGMA user_version = {_VERSION}")
        with contextlib.suppress(FileExistsError):
            os.link(building, path)
    finally:
        building.unlink(missing_ok=True)


def _read(db: sqlite3.Connection, key: str) -> Row:
    found = db.execute("SELECT data FROM breakers WHERE key = ?", (key,)).fetchone()
    return Row() if found is None else _row.decode(found[0])


def standing_of(key: str, row: Row, now: float) -> BreakerSummary:
    """A row for people and programs."""
    is_closed = row.standing is Standing.CLOSED
    probe = row.probe
    return BreakerSummary(
        key=key,
        state=row.standing.value,
        failures=len(row.failures) if is_closed else row.counted,
        open_for=row.open_for,
        opening=row.opening,
        retry_in=None if is_closed else round(remaining(row, now), 3),
        probe=None if probe is None else f"{probe.run}/{probe.task}/{probe.attempt}",
    )


def read_breakers(state: Path) -> list[BreakerSummary]:
    """All of a state directory, as they are now."""
    with closing(BreakerStore(state)) as store:
        rows, now = store.rows(), time.time()
    return [standing_of(key, row, now) for key, row in rows.items()]


def step_breaker(state: Path, key: str, happening: Forced | Reset) -> BreakerSummary:
    """A person's hand on one: every supervisor of the state directory acts on it."""
    if re.search(BREAKER_KEY_PATTERN, key) is None:
        raise UsageError(f"{key!r}: not a breaker's key; `casemate breaker list` has them")
    with closing(BreakerStore(state)) as store:
        now = time.time()
        return standing_of(key, store.step(key, now, happening), now)


class BreakerDesk:
    """`tell` never waits. `on_moved` and `on_failure` are called in the desk's thread."""

    def __init__(
        self,
        state: Path,
        on_moved: Callable[[BreakerMoved], None],
        on_failure: Callable[[CasemateError], None],
    ) -> None:
        self._store = BreakerStore(state)
        self._on_moved = on_moved
        self._on_failure = on_failure
        self._words: queue.SimpleQueue[TellBreaker | ForgetBreaker | None] = queue.SimpleQueue()
        self._known: dict[str, Row] = {}  # in use, as they were told last
        self._number = 0  # of the newest word that was taken
        self._version = 0
        self._thread = threading.Thread(target=self._work, name="casemate-breakers", daemon=True)
        self._thread.start()

    def tell(self, word: TellBreaker | ForgetBreaker) -> None:
        self._words.put(word)

    def close(self) -> None:
        """What was told before is done."""
        self._words.put(None)
        self._thread.join()

    def _work(self) -> None:
        looked = 0.0
        try:
            while True:
                word: TellBreaker | ForgetBreaker | None = None
                try:
                    word = self._words.get(timeout=LOOK_SECONDS if self._known else None)
                    if word is None:
                        return
                except queue.Empty:
                    pass
                try:
                    if word is not None:
                        self._take(word)
                    if self._known and time.monotonic() - looked >= LOOK_SECONDS:
                        self._look()
                        looked = time.monotonic()
                except CasemateError as error:
                    self._on_failure(error)
        finally:
            self._store.close()

    def _take(self, word: TellBreaker | ForgetBreaker) -> None:
        if isinstance(word, ForgetBreaker):
            self._known.pop(word.key, None)
            return
        self._number = word.number
        now = time.time()
        if word.happening is None:
            row = self._store.row(word.key)
        else:
            row = self._store.step(word.key, now, word.happening)
        self._known[word.key] = row
        self._on_moved(BreakerMoved(word.number, word.key, row, now))

    def _look(self) -> None:
        version = self._store.version()
        if version == self._version:
            return
        rows, now = self._store.rows(), time.time()
        for key, before in list(self._known.items()):
            row = rows.get(key, Row())
            if row != before:
                self._known[key] = row
                self._on_moved(BreakerMoved(self._number, key, row, now))
        self._version = version  # at last: where reading failed, it is read again
