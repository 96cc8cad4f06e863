"""The journal: a run's events in order, durable before anybody is told of them.

One run is one SQLite database, `runs/<id>/journal.db` (WAL, synchronous=FULL), one event a row.

    loop thread      append(): gives the events their numbers, puts them into a queue, returns
    writer thread    takes all that has queued since the last commit, for all runs; encodes each
                     event once; stores large values by content; inserts; one COMMIT a run;
                     then calls back with what was committed
    other processes  JournalReader: read-only, in short statements, while the writer lives or after

A journal gets its name when it is whole, with its tables and nothing in them. Who finds a run
without one knows that nothing of it was ever told.

The order within a commit is load-bearing: value files are durable before the row that names them,
the row before the callback, the callback before any observer.

A failed write ends the run's journal: `on_failure` is called once, nothing that was appended later
is ever committed (seq would have a hole), and the writer does not try again: after a failed fsync
the kernel may have dropped the very pages it could not write, and a second fsync reports success.

A value (any Raw of an event's data) above INLINE_VALUE_SIZE is cut out of the row. Column `large`
says where it goes, how long it is and its digest. The reference is never part of `data`: a task
chooses its payload's bytes, so whatever can be written there can be forged there.

Rows go in by statements of many rows (`INSERT ... VALUES (..),(..),...`) rather than by
executemany, which gives up the interpreter lock at every row: beside a busy loop thread each row
then waits out the switch interval, and the writer gets a few hundred rows a second.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
from msgspec import Raw, Struct

from ..protocol.errors import CasemateError, LocalViolation, UsageError
from ..protocol.events import (
    KIND_OF,
    Event,
    EventData,
    TaskArtifact,
    TaskCompleted,
    TaskEmitted,
    TaskLog,
    TaskSkipped,
)
from ..protocol.limits import (
    EVENT_SIZE,
    INLINE_VALUE_SIZE,
    JOURNAL_GROUP_EVENTS,
    JOURNAL_GROUP_SIZE,
    JOURNAL_PAGE_SIZE,
)
from .state import RunDirectory, fsync_directory, fsync_file
from .values import ValueStore

__all__ = [
    "SCHEMA_VERSION",
    "Commit",
    "Entry",
    "Journal",
    "JournalError",
    "JournalReader",
    "NotBegunError",
    "Outline",
    "copy_attempts",
]

SCHEMA_VERSION = 3

# What brings a journal of a version to the next one. 1 → 2: kinds of events that older casemates do
# not know (checkpoints, rollbacks, pauses), and nothing that was written before is read otherwise.
# 2 → 3: the same of artifacts.
_MIGRATIONS: dict[int, str] = {1: "", 2: ""}

# `decisions` leaves out what a task can send in bulk, so that the state of a run with a million
# items is read from a few hundred rows.
# Events that tell what a task gave.
_WITH_OUTPUT = str((KIND_OF[TaskCompleted], KIND_OF[TaskSkipped]))
_BULK = "kind NOT IN ('task.emitted', 'task.log', 'task.progress', 'task.usage')"
_SCHEMA = f"""
CREATE TABLE run (id TEXT NOT NULL);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    task TEXT,
    task_seq INTEGER,
    attempt INTEGER,
    kind TEXT NOT NULL,
    at REAL NOT NULL,
    data BLOB NOT NULL,
    large BLOB
);
CREATE INDEX decisions ON events (seq) WHERE {_BULK};
"""
_COLUMNS = 8
# Most rows of one INSERT; the others are powers of 8 below. 512 rows are one millisecond without
# the interpreter lock, and beyond it nothing is gained (tests/bench/journal.py).
_ROWS = 512

# Rows of one task's items that are read at once: 4 MiB where each is as large as a row can be.
_ITEM_ROWS = 256

# A reader may meet the instant in which the first or last connection has the file for itself.
_BUSY_SECONDS = 10.0

# The WAL is folded back at this many pages (16 MiB): the default of 1000 spends a sixth of the
# time in checkpoints at 100 000 events a second.
_WAL_PAGES = 4096

# task, attempt, wall clock time, what happened
Entry = tuple[str | None, int | None, float, EventData]


class JournalError(CasemateError):
    """A journal that cannot be read: not a database, cut short, locked for good."""


class NotBegunError(UsageError):
    """A run that has its directory and no first event: nothing of it was ever told."""

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run} never began: there is nothing to go on with")


class Outline(NamedTuple):
    """An event small enough for everybody: `event.data` has nil in the places of large values,
    `omitted` names them (`output`, or `outputs/<task>`) with their sizes in bytes."""

    event: Event
    omitted: dict[str, int]


@dataclass(frozen=True, slots=True)
class Commit:
    """Events of one run that are durable, in order. `outlines` has, by seq, those with large
    values."""

    run: str
    events: list[Event]
    outlines: dict[int, Outline]


class _Large(Struct, frozen=True, array_like=True):
    """One value cut out of a row: put its bytes back at `offset` of the whole data."""

    offset: int
    size: int
    digest: bytes
    name: str


_Rows = list[tuple[int, str | None, int | None, str, float, bytes, int | None, bytes | None]]

_EMITTED = KIND_OF[TaskEmitted]
_encoder = msgspec.msgpack.Encoder()
_large_decoder = msgspec.msgpack.Decoder(tuple[_Large, ...])
_NIL = b"\xc0"


def _map_header(length: int) -> bytes:
    if length < 16:
        return bytes([0x80 | length])
    if length < 1 << 16:
        return b"\xde" + length.to_bytes(2)
    return b"\xdf" + length.to_bytes(4)


def _pieces(data: EventData) -> Iterable[tuple[str | None, bytes | Raw]]:
    """The msgpack map of `data` in pieces; those with a name are values of a user."""
    fields = data.__struct_fields__
    yield None, _map_header(len(fields))
    for name in fields:
        yield None, _encoder.encode(name)
        value = getattr(data, name)
        if isinstance(value, Raw):
            yield name, value
        elif isinstance(value, dict) and all(isinstance(item, Raw) for item in value.values()):
            yield None, _map_header(len(value))
            for key, item in value.items():
                yield None, _encoder.encode(key)
                yield f"{name}/{key}", item
        else:
            yield None, _encoder.encode(value)


def _cut(data: EventData, values: ValueStore) -> tuple[bytes, bytes, tuple[_Large, ...]]:
    """The row of an event without its large values, its outline with nil in their places, and
    what was cut out: durable on return."""
    row: list[bytes | Raw] = []
    outline: list[bytes | Raw] = []
    large: list[_Large] = []
    offset = 0
    for name, piece in _pieces(data):
        if name is not None and len(piece) > INLINE_VALUE_SIZE:
            digest = values.put(memoryview(piece))
            large.append(_Large(offset, len(piece), digest, name))
            outline.append(_NIL)
        else:
            row.append(piece)
            outline.append(piece)
        offset += len(piece)
    return b"".join(row), b"".join(outline), tuple(large)


def _fill(row: bytes, large: tuple[_Large, ...], values: Sequence[bytes]) -> bytes:
    """The row's data with `values` where its large ones were cut out."""
    parts: list[bytes] = []
    cut = taken = 0  # positions in the whole data, and in the row
    for place, value in zip(large, values, strict=True):
        kept = place.offset - cut
        parts += (row[taken : taken + kept], value)
        taken += kept
        cut = place.offset + place.size
    parts.append(row[taken:])
    return b"".join(parts)


def _weight(data: EventData) -> int:
    """About what an event holds in memory while it waits, without encoding it on the loop."""
    if isinstance(data, TaskEmitted):
        return 200 + len(data.item)
    if isinstance(data, TaskLog):
        return 200 + len(data.text) + len(data.fields)
    if isinstance(data, TaskCompleted | TaskSkipped):
        return 200 + len(data.output)
    if isinstance(data, TaskArtifact):
        return 200 + len(data.content)
    return 400


# ---------------------------------------------------------------------------------------- writing


@dataclass(slots=True)
class _Book:
    """One run as the loop thread sees it."""

    next_seq: int
    size: int = 0  # bytes appended since it was opened, about


@dataclass(slots=True)
class _Open:
    run: RunDirectory
    last_seq: int


@dataclass(slots=True)
class _Append:
    run: str
    first_seq: int
    entries: Sequence[Entry]
    weight: int


@dataclass(slots=True)
class _Close:
    run: str
    on_closed: Callable[[], None] | None


@dataclass(slots=True)
class _Stop:
    pass


@dataclass(slots=True)
class _Group:
    """What one commit will hold of one run."""

    entries: list[Entry] = field(default_factory=list)
    first_seq: int = 0
    weight: int = 0


class Journal:
    """The one writer for all runs of a supervisor.

    `open`, `append`, `close_run` belong to one thread (the loop's) and never wait. `on_commit` and
    `on_failure` are called in the writer thread.
    """

    def __init__(
        self,
        on_commit: Callable[[Commit], None],
        on_failure: Callable[[str, Exception], None],
    ) -> None:
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._books: dict[str, _Book] = {}
        self._queue: queue.SimpleQueue[_Open | _Append | _Close | _Stop] = queue.SimpleQueue()
        # Each is written by one thread alone, so that their difference needs no lock.
        self._appended = 0
        self._handled = 0
        self._writers: dict[str, _RunWriter] = {}
        self._thread = threading.Thread(target=self._write, name="casemate-journal", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """About how many bytes wait to be committed. What feeds the journal should stop above
        JOURNAL_BACKLOG_SIZE and go on when a commit has brought it below half of that."""
        return self._appended - self._handled

    def open(self, run: RunDirectory, *, last_seq: int = 0) -> None:
        """Begin to write a run that this supervisor owns. `last_seq` is what its journal ends
        with: 0 for a new run. Where the file says otherwise, the run fails."""
        if not self._thread.is_alive():
            raise LocalViolation("the journal's writer is gone")
        if run.id in self._books:
            raise LocalViolation(f"run {run.id}: journal opened twice")
        self._books[run.id] = _Book(last_seq + 1)
        self._queue.put(_Open(run, last_seq))

    def append(self, run: str, entries: Sequence[Entry]) -> range:
        """Number `entries` and let them be written; their seqs. Their order is the journal's.
        Structs are not copied: they are frozen. After `on_failure` the entries go nowhere."""
        book = self._books.get(run)
        if book is None:
            raise LocalViolation(f"run {run}: append to a journal that is not open")
        first = book.next_seq
        book.next_seq = first + len(entries)
        if entries:
            weight = 0
            for entry in entries:
                weight += _weight(entry[3])
            book.size += weight
            self._appended += weight
            self._queue.put(_Append(run, first, entries, weight))
        return range(first, book.next_seq)

    def size(self, run: str) -> int:
        """About how many bytes were appended to a run since it was opened; 0 where it is not."""
        book = self._books.get(run)
        return book.size if book is not None else 0

    def close_run(self, run: str, on_closed: Callable[[], None] | None = None) -> None:
        """Close a run's journal once what was appended is written; then `on_closed`, in the writer
        thread. Nothing holds the run's files from then on: its ownership may be released."""
        if self._books.pop(run, None) is None:
            raise LocalViolation(f"run {run}: close of a journal that is not open")
        self._queue.put(_Close(run, on_closed))

    def close(self) -> None:
        """Write what was appended, close every run, end the thread. Waits: not for the loop."""
        self._books.clear()
        self._queue.put(_Stop())
        self._thread.join()

    # ---- the writer thread

    def _write(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            # A bug. Nobody may wait for commits that never come; the traceback goes to
            # threading.excepthook.
            for run in list(self._writers):
                self._fail(run, LocalViolation(f"the journal's writer died: {error!r}"))
            raise

    def _serve(self) -> None:
        waiting = self._queue
        groups: dict[str, _Group] = {}
        while True:
            item = waiting.get()
            count = size = 0
            while True:
                if isinstance(item, _Append):
                    group = groups.get(item.run)
                    if group is None:
                        group = groups[item.run] = _Group(first_seq=item.first_seq)
                    group.entries.extend(item.entries)
                    group.weight += item.weight
                    count += len(item.entries)
                    size += item.weight
                    if count >= JOURNAL_GROUP_EVENTS or size >= JOURNAL_GROUP_SIZE:
                        break
                else:
                    # Opening and closing keep their place between appends.
                    self._commit(groups)
                    if isinstance(item, _Stop):
                        for run in list(self._writers):
                            self._close_writer(run)
                        return
                    if isinstance(item, _Open):
                        self._open_writer(item)
                    else:
                        self._close_writer(item.run)
                        if item.on_closed is not None:
                            item.on_closed()
                try:
                    item = waiting.get_nowait()
                except queue.Empty:
                    break
            self._commit(groups)

    def _commit(self, groups: dict[str, _Group]) -> None:
        for run, group in groups.items():
            writer = self._writers.get(run)
            commit = failure = None
            try:
                if writer is not None:
                    commit = writer.write(group)
            except (OSError, sqlite3.Error, CasemateError) as error:
                failure = error
            # Before the callback: it may be the last for long, and who waits for the backlog to
            # shrink looks at it there.
            self._handled += group.weight
            if failure is not None:
                self._fail(run, failure)
            elif commit is not None:
                self._on_commit(commit)
        groups.clear()

    def _open_writer(self, item: _Open) -> None:
        try:
            self._writers[item.run.id] = _RunWriter(item.run, item.last_seq)
        except (OSError, sqlite3.Error, CasemateError) as error:
            self._on_failure(item.run.id, error)

    def _close_writer(self, run: str) -> None:
        writer = self._writers.pop(run, None)
        if writer is not None:
            try:
                writer.close()
            except (OSError, sqlite3.Error) as error:
                # All commits stand: only folding the WAL back failed. Readers do that too.
                self._on_failure(run, error)

    def _fail(self, run: str, error: Exception) -> None:
        # Without its writer everything later of this run is dropped in _commit.
        writer = self._writers.pop(run)
        with contextlib.suppress(OSError, sqlite3.Error):
            # The failure to tell is the one that came first.
            writer.close()
        self._on_failure(run, error)


class _RunWriter:
    """The database of one run. Lives in the writer thread."""

    def __init__(self, run: RunDirectory, last_seq: int) -> None:
        self._run = run.id
        self._values = ValueStore(run.values)
        self._values.sweep()
        if last_seq == 0 and not run.journal.exists():
            _make(run)
        self._db = _open(run.journal, "rw")
        try:
            self._prepare(run, last_seq)
        except BaseException:
            self._db.close()
            raise
        most = self._db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // _COLUMNS
        # 999 variables before SQLite 3.32.
        self._steps = [rows for rows in (_ROWS, 64, 8, 1) if rows <= most]
        self._inserts = {
            rows: "INSERT INTO events VALUES "
            + ",".join(["(" + ",".join("?" * _COLUMNS) + ")"] * rows)
            for rows in self._steps
        }

    def _prepare(self, run: RunDirectory, last_seq: int) -> None:
        db = self._db
        _use_wal(db, run.journal)
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        version = _check_version(db, run.journal)
        if version < SCHEMA_VERSION:
            db.execute("BEGIN IMMEDIATE")
            for older in range(version, SCHEMA_VERSION):
                for statement in filter(str.strip, _MIGRATIONS[older].split(";")):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        (found,) = db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
        if found != last_seq:
            raise LocalViolation(
                f"run {run.id}: journal ends with seq {found}, expected {last_seq}"
            )
        self._task_seqs: dict[str, int] = dict(
            db.execute(
                "SELECT task, max(task_seq) FROM events WHERE task IS NOT NULL GROUP BY task"
            )
        )

    def write(self, group: _Group) -> Commit:
        run = self._run
        encode = _encoder.encode
        task_seqs = self._task_seqs
        seq = group.first_seq
        events: list[Event] = []
        outlines: dict[int, Outline] = {}
        parameters: list[Any] = []
        for task, attempt, at, data in group.entries:
            kind = KIND_OF[type(data)]
            if task is None:
                task_seq = None
            else:
                task_seq = task_seqs[task] = task_seqs.get(task, 0) + 1
            whole = row = encode(data)
            large = None
            if len(whole) > INLINE_VALUE_SIZE:
                row, outline, places = _cut(data, self._values)
                if places:
                    large = encode(places)
                    outlines[seq] = Outline(
                        Event(seq, run, task, attempt, kind, at, Raw(outline), task_seq),
                        {place.name: place.size for place in places},
                    )
            events.append(Event(seq, run, task, attempt, kind, at, Raw(whole), task_seq))
            parameters += (seq, task, task_seq, attempt, kind, at, row, large)
            seq += 1
        self._insert(parameters)
        return Commit(run, events, outlines)

    def _insert(self, parameters: list[Any]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            start = 0
            for rows in self._steps:
                width = rows * _COLUMNS
                while len(parameters) - start >= width:
                    db.execute(self._inserts[rows], parameters[start : start + width])
                    start += width
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                # Some errors (full disk, I/O) have rolled back already.
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        try:
            # PASSIVE waits for no reader. Closing folds the WAL back too, but only where no reader
            # has the file open, and then the run could not be copied as a database alone.
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            self._db.close()


def _open(path: Path, mode: str, *, check_same_thread: bool = True) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=check_same_thread,
    )


def _make(run: RunDirectory) -> None:
    """A run's empty database, whole from the first moment that it has its name: nobody else could
    mend one that was left half made, since readers may not write."""
    building = run.journal.with_name("journal.new")
    for suffix in ("", "-journal", "-wal", "-shm"):  # of one who was killed at it
        building.with_name(building.name + suffix).unlink(missing_ok=True)
    with contextlib.closing(_open(building, "rwc")) as db:
        os.chmod(building, 0o600)
        db.execute("PRAGMA synchronous = OFF")  # below, once
        for statement in filter(str.strip, _SCHEMA.split(";")):
            db.execute(statement)
        db.execute("INSERT INTO run VALUES (?)", (run.id,))
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        _use_wal(db, run.journal)
    fsync_file(building)
    os.rename(building, run.journal)
    fsync_directory(run.path)


def copy_attempts(source: Path, target: Path, attempts: Mapping[str, int]) -> None:
    """Add to a journal that nobody writes what another one tells of some attempts, one of each
    task: in its order, at its times, and as attempt 1. Large values are not copied: they are known
    by their digest. Durable."""
    with contextlib.closing(_open(target, "rw")) as db:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("ATTACH ? AS source", (f"file:{quote(str(source))}?mode=ro",))
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TEMP TABLE kept (task TEXT PRIMARY KEY, attempt INTEGER NOT NULL)")
        db.executemany("INSERT INTO kept VALUES (?, ?)", attempts.items())
        db.execute(
            "INSERT INTO events "
            "SELECT (SELECT max(seq) FROM events) + row_number() OVER (ORDER BY seq), task, "
            "row_number() OVER (PARTITION BY task ORDER BY seq), 1, kind, at, data, large "
            "FROM source.events JOIN kept USING (task, attempt)"
        )
        db.execute("COMMIT")


def _use_wal(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        # A file system without shared memory maps. Rollback journals would make readers and the
        # writer wait for each other.
        raise sqlite3.OperationalError(f"{path}: WAL refused, journal mode is {mode}")


def _check_version(db: sqlite3.Connection, path: Path) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        raise JournalError(f"{path}: not a journal")  # its first page is empty, or another's
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{path}: journal version {version}, this casemate reads up to {SCHEMA_VERSION}; "
            "use the casemate that made it, or a newer one"
        )
    return version


# ---------------------------------------------------------------------------------------- reading


class JournalReader:
    """Reads one run's journal, in this process or another, while it is written or long after.

    Every call is one short statement: a snapshot that stays open would keep the writer from
    folding the WAL back. For any thread: closing waits for a read under way, since it frees what
    SQLite is in the middle of.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._directory = run
        self._values = ValueStore(run.values)
        self._db = self._connect(run)
        self._using = threading.Lock()
        self._ready = False
        self.run = run.id  # as the journal says: a directory can be copied under another name

    @staticmethod
    def _connect(run: RunDirectory) -> sqlite3.Connection:
        path = run.journal
        if not path.exists():
            raise NotBegunError(run.id)
        db = _open(path, "ro", check_same_thread=False)
        try:
            db.execute("PRAGMA schema_version").fetchone()
        except sqlite3.OperationalError as error:
            db.close()
            # On a read-only medium SQLite cannot make the shared memory file that WAL wants. With
            # no WAL left behind nothing is missing from the main file, and nobody can be writing.
            wal = path.with_name(path.name + "-wal")
            if (wal.exists() and wal.stat().st_size) or os.access(path.parent, os.W_OK):
                raise JournalError(f"{path}: {error}") from error
            db = _open(path, "ro&immutable=1", check_same_thread=False)
        except sqlite3.DatabaseError as error:
            db.close()
            raise JournalError(f"{path}: {error}") from error
        return db

    def close(self) -> None:
        with self._using:
            self._db.close()

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _select(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        with self._using:
            try:
                if not self._ready:
                    _check_version(self._db, self._directory.journal)
                    (self.run,) = self._db.execute("SELECT id FROM run").fetchone()
                    self._ready = True
                return self._db.execute(sql, parameters).fetchall()
            except sqlite3.DatabaseError as error:
                raise JournalError(f"{self._directory.journal}: {error}") from error

    def last_seq(self) -> int:
        [(last,)] = self._select("SELECT coalesce(max(seq), 0) FROM events", ())
        return int(last)

    def events(
        self, since: int = 0, limit: int = 1000, size: int = JOURNAL_PAGE_SIZE
    ) -> list[Event]:
        """Up to `limit` events after seq `since`, whole. A page ends early where it would exceed
        `size` bytes; an empty one means there is no more (yet)."""
        page: list[Event] = []
        for row, large in self._rows("seq > ?", (since,), limit):
            weight = len(row.data) + sum(place.size for place in large)
            if page and weight > size:
                break
            size -= weight
            since = self._next(since, row)
            if large:
                values = [self._values.get(place.digest, place.size) for place in large]
                page.append(_replace_data(row, _fill(bytes(row.data), large, values)))
            else:
                page.append(row)
        return page

    def outlines(
        self, since: int = 0, limit: int = 1000, size: int = JOURNAL_PAGE_SIZE
    ) -> list[Outline]:
        """The same with nil in the places of large values, which are not read."""
        page: list[Outline] = []
        for row, large in self._rows("seq > ?", (since,), limit):
            weight = len(row.data)
            if page and weight > size:
                break
            size -= weight
            since = self._next(since, row)
            page.append(_outline(row, large))
        return page

    def items(
        self, task: str, attempt: int, *, since: int, until: int, size: int
    ) -> tuple[list[tuple[int, Raw]], bool]:
        """What an attempt emitted after seq `since` and up to `until`, with its seqs, and whether
        that is all of it: it ends where it would exceed `size` bytes, each counted as EVENT_SIZE at
        least."""
        where = f"kind = '{_EMITTED}' AND task = ? AND attempt = ? AND seq > ? AND seq <= ?"
        found: list[tuple[int, Raw]] = []
        while rows := self._rows(where, (task, attempt, since, until), _ITEM_ROWS):
            for row, large in rows:
                weight = len(row.data) + sum(place.size for place in large)
                size -= max(weight, EVENT_SIZE)
                if found and size < 0:
                    return found, False
                values = [self._values.get(place.digest, place.size) for place in large]
                data = _fill(bytes(row.data), large, values)
                found.append((row.seq, msgspec.msgpack.decode(data, type=TaskEmitted).item))
            since = rows[-1][0].seq
        return found, True

    def decisions(self) -> list[Outline]:
        """All events that are not a task's output in bulk: what the state of the run follows
        from, without large values."""
        return [_outline(row, large) for row, large in self._rows(_BULK, (), -1)]

    def completion(self, task: str, attempt: int) -> Event | None:
        """The event that told the output of an attempt, whole."""
        where = f"{_BULK} AND task = ? AND attempt = ? AND kind IN {_WITH_OUTPUT}"
        rows = self._rows(where, (task, attempt), 1)
        return self.events(rows[0][0].seq - 1, 1)[0] if rows else None

    def completions(self) -> list[tuple[str, int]]:
        """(task, attempt) of all that ever completed, undone since or not."""
        rows = self._select(
            f"SELECT task, attempt FROM events WHERE {_BULK} AND kind IN {_WITH_OUTPUT}", ()
        )
        return [(task, attempt) for task, attempt in rows]

    def digests(self) -> set[bytes]:
        """Of every large value that an event has."""
        rows = self._select("SELECT large FROM events WHERE large IS NOT NULL", ())
        return {place.digest for (large,) in rows for place in _large_decoder.decode(large)}

    def of_run(self) -> list[Outline]:
        """The few events that tell how the run itself stands: begun, paused, rolled back, ended."""
        rows = self._rows(f"{_BULK} AND task IS NULL AND kind LIKE 'run.%'", (), -1)
        return [_outline(row, large) for row, large in rows]

    def _rows(
        self, where: str, parameters: tuple[Any, ...], limit: int, order: str = "ASC"
    ) -> list[tuple[Event, tuple[_Large, ...]]]:
        rows = self._select(
            "SELECT seq, task, attempt, kind, at, data, task_seq, large FROM events "
            f"WHERE {where} ORDER BY seq {order} LIMIT ?",
            (*parameters, limit),
        )
        run = self.run
        try:
            # What SQLite finds in a damaged page may be of any type.
            return [
                (
                    Event(seq, run, task, attempt, kind, at, Raw(data), task_seq),
                    _large_decoder.decode(large) if large else (),
                )
                for seq, task, attempt, kind, at, data, task_seq, large in msgspec.convert(
                    rows, type=_Rows
                )
            ]
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._damaged(error) from error

    def _next(self, since: int, event: Event) -> int:
        if event.seq != since + 1:
            raise self._damaged(f"event {event.seq} follows upon {since}")
        return event.seq

    def _damaged(self, what: object) -> JournalError:
        return JournalError(f"{self._directory.journal}: damaged: {what}")


def _replace_data(event: Event, data: bytes) -> Event:
    return Event(
        event.seq,
        event.run,
        event.task,
        event.attempt,
        event.kind,
        event.at,
        Raw(data),
        event.task_seq,
    )


def _outline(row: Event, large: tuple[_Large, ...]) -> Outline:
    if not large:
        return Outline(row, {})
    data = _fill(bytes(row.data), large, [_NIL] * len(large))
    return Outline(_replace_data(row, data), {place.name: place.size for place in large})
