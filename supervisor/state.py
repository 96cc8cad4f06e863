"""The state directory: where runs live, who owns each, and where living supervisors are found.

    <state>/                      made 0700; ours and writable by nobody else, or refused
      runs/<run id>/              one run whole: it can be copied elsewhere and opened
        owner.lock                locked by the one supervisor that may write here
        journal.db  values/  sources/
      supervisors/<pid>.json      where a living supervisor listens
      submissions/                what was submitted and is no run yet

A run's directory is built under a name that nobody looks for, locked, and then renamed: from the
first moment it can be seen it has an owner.

The lock is an open-file-description lock (fcntl F_OFD_SETLK): like flock it belongs to the open
file and so dies with the last process that holds it, but it can be *asked about* (F_OFD_GETLK).
Asking with flock means taking the lock for a moment, and an owner that starts in that moment is
refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from ..protocol.errors import LocalViolation, UsageError

__all__ = [
    "BUILDING",
    "RUNTIME_FILES",
    "OwnedRun",
    "Ownership",
    "RunDirectory",
    "StateDirectory",
    "SupervisorRecord",
    "fsync_directory",
    "fsync_file",
    "is_run_id",
    "make_runtime_directory",
    "new_run_id",
    "process_start_time",
    "read_boot_id",
]

# Before the id of a run that is being made.
BUILDING = ".new-"

# What the front makes in its runtime directory.
RUNTIME_FILES = ("events.sock", "control.sock", "front.log")

# Crockford's base32 in lower case: no i, l, o, u, so that an id survives being read aloud.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RUN_ID = re.compile(r"[0-9a-hjkmnp-tv-z]{12}")
_last_id = 0
_last_id_lock = threading.Lock()


def new_run_id() -> str:
    """Twelve characters: 45 bits of milliseconds since 1970 (they last until the year 3084), then
    15 random bits. Ids sort by creation, strictly so within one process; the exclusive rename of
    the run's directory makes them unique within a state directory."""
    global _last_id
    with _last_id_lock:
        drawn = (time.time_ns() // 1_000_000) << 15 | secrets.randbits(15)
        _last_id = max(drawn, _last_id + 1)
        number = _last_id
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(55, -1, -5))


def is_run_id(text: str) -> bool:
    """Whether `text` may be joined to a path as a run's name."""
    return _RUN_ID.fullmatch(text) is not None


def fsync_directory(path: Path) -> None:
    """Make names that were created in or renamed into `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make what is in a file survive a power loss, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Names inside one run's directory. Nothing is opened or made by it."""

    id: str
    path: Path

    @property
    def journal(self) -> Path:
        return self.path / "journal.db"

    @property
    def values(self) -> Path:
        return self.path / "values"

    @property
    def sources(self) -> Path:
        return self.path / "sources"

    @property
    def lock(self) -> Path:
        return self.path / "owner.lock"

    def owner(self) -> int | None:
        """The pid that the last owner wrote, alive or not."""
        try:
            return int(self.lock.read_bytes()[:32])
        except (OSError, ValueError):
            return None

    def is_owned(self) -> bool:
        """Whether a living supervisor holds this run."""
        try:
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock_request(fcntl.F_WRLCK))
        finally:
            os.close(descriptor)
        kind: int = struct.unpack(_FLOCK, answer)[0]
        return kind != fcntl.F_UNLCK


# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (0 for OFD locks).
_FLOCK = "hhqqi4x"


def _lock_request(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


class Ownership:
    """The lock on one run, held until `release` or the end of this process.

    The descriptor is close-on-exec, and nothing here forks without exec: no child can keep the
    lock alive after its supervisor.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, run: RunDirectory) -> Ownership:
        """Own `run`, or UsageError if a living supervisor does."""
        descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock_request(fcntl.F_WRLCK))
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise UsageError(
                    f"run {run.id}: owned by a living supervisor (pid {owner or 'unknown'})"
                ) from None
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True)
class OwnedRun:
    directory: RunDirectory
    ownership: Ownership


class SupervisorRecord(Struct, frozen=True):
    """What `supervisors/<pid>.json` says. `boot`, `start_time` and `pid_namespace` tell a living
    supervisor from another process that was given its pid later."""

    version: int
    pid: int
    start_time: int  # clock ticks after boot, field 22 of /proc/<pid>/stat
    boot: str
    pid_namespace: int
    events: str
    control: str
    epoch: int
    accepts: bool = False  # what is submitted from elsewhere

    def is_alive(self) -> bool | None:
        """None: it runs (or ran) in another pid namespace, from here nobody can tell."""
        if self.boot != read_boot_id():
            return False
        if self.pid_namespace != os.stat("/proc/self/ns/pid").st_ino:
            return None
        return process_start_time(self.pid) == self.start_time


class StateDirectory:
    """The tree of one state directory. `open` checks and makes it; all calls here are disk work
    and belong off the loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self.supervisors = path / "supervisors"

    @staticmethod
    def default_path() -> Path:
        """$CASEMATE_STATE, else casemate below $XDG_STATE_HOME, else ~/.local/state/casemate."""
        if chosen := os.environ.get("CASEMATE_STATE"):
            return Path(chosen).absolute()
        base = os.environ.get("XDG_STATE_HOME", "")
        # The XDG specification: a relative path in its variables is to be ignored.
        home = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
        return home / "casemate"

    @classmethod
    def open(cls, path: Path | None = None) -> StateDirectory:
        """Make what is missing; refuse what other users could tamper with."""
        state = cls((path or cls.default_path()).absolute())
        try:
            state.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            state._check_owner()
            for below in (state.runs, state.supervisors):
                below.mkdir(mode=0o700, exist_ok=True)
                # Ours alone, whatever the umask or an older life made of it. NOFOLLOW: a link
                # here would send the runs of this state directory somewhere unchecked.
                descriptor = os.open(
                    below, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                )
                try:
                    if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o700:
                        os.fchmod(descriptor, 0o700)
                finally:
                    os.close(descriptor)
            if not os.access(state.runs, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(state.runs))
            if os.statvfs(state.runs).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(state.runs))
        except OSError as error:
            raise _unusable(state.path, error) from error
        return state

    @classmethod
    def open_existing(cls, path: Path | None = None) -> StateDirectory:
        """For reading: makes nothing, and works on a read-only medium."""
        state = cls((path or cls.default_path()).absolute())
        if state.path.exists():
            state._check_owner()
        return state

    def _check_owner(self) -> None:
        # The state path itself may be a link (people move ~/.local/state); where it leads counts.
        seen = os.stat(self.path)
        if not stat.S_ISDIR(seen.st_mode):
            raise UsageError(f"state directory {self.path}: not a directory")
        if seen.st_uid != os.geteuid():
            raise UsageError(
                f"state directory {self.path}: belongs to uid {seen.st_uid}, not to uid "
                f"{os.geteuid()} who runs casemate; choose another with --state or $CASEMATE_STATE"
            )
        if seen.st_mode & 0o022:
            raise UsageError(
                f"state directory {self.path}: others may write to it (mode "
                f"{stat.S_IMODE(seen.st_mode):04o}); chmod go-w it, or choose another with --state"
            )

    def run(self, run_id: str) -> RunDirectory:
        """The directory of a run that need not exist."""
        if not is_run_id(run_id):
            raise UsageError(f"{run_id!r}: not a run id")
        return RunDirectory(run_id, self.runs / run_id)

    def run_ids(self) -> list[str]:
        """All runs, oldest first."""
        try:
            with os.scandir(self.runs) as entries:
                return sorted(entry.name for entry in entries if is_run_id(entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unusable(self.path, error) from error

    def find_run(self, text: str) -> RunDirectory:
        """`last`, or a prefix that only one run has."""
        known = self.run_ids()
        if text == "last":
            found = known[-1:]
        else:
            found = [run_id for run_id in known if run_id.startswith(text)] if text else []
        if len(found) == 1:
            return RunDirectory(found[0], self.runs / found[0])
        if not found:
            if not known:
                raise UsageError(f"no run {text!r} in {self.path}: there are none yet")
            raise UsageError(f"no run {text!r} in {self.path}; `casemate ps` lists them")
        raise UsageError(
            f"run {text!r} is ambiguous: {', '.join(found[:5])}"
            + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        )

    def create_run(self, fill: Callable[[RunDirectory], None] | None = None) -> OwnedRun:
        """A new run's directory, on disk and owned by us. `fill` puts something into it, durably,
        before anybody can see it; where that fails, there is no run."""
        try:
            building, ownership = self._build_run()
            try:
                if fill is not None:
                    fill(building)
                fsync_directory(building.path)
                final = RunDirectory(building.id, self.runs / building.id)
                # Refused where the name is taken: a run's directory is never empty.
                os.rename(building.path, final.path)
                fsync_directory(self.runs)
            except BaseException:
                shutil.rmtree(building.path, ignore_errors=True)  # what that leaves, gc takes
                ownership.release()
                raise
        except OSError as error:
            raise _unusable(self.path, error) from error
        return OwnedRun(final, ownership)

    def _build_run(self) -> tuple[RunDirectory, Ownership]:
        while True:
            run_id = new_run_id()
            building = RunDirectory(run_id, self.runs / f"{BUILDING}{run_id}")
            building.path.mkdir(mode=0o700)
            # Until its lock is held it looks like what a dead maker left: a gc may take it away.
            with contextlib.suppress(UsageError, FileNotFoundError):
                ownership = Ownership.take(building)
                try:
                    building.values.mkdir(mode=0o700)
                    building.sources.mkdir(mode=0o700)
                except BaseException:
                    ownership.release()
                    raise
                return building, ownership

    def own_run(self, run_id: str) -> OwnedRun:
        """Take over an existing run whose owner is gone."""
        directory = self.run(run_id)
        if not directory.path.is_dir():
            raise UsageError(f"no run {run_id!r} in {self.path}")
        return OwnedRun(directory, Ownership.take(directory))

    def announce(
        self,
        events: str,
        control: str,
        epoch: int,
        replaces: Path | None = None,
        *,
        accepts: bool = False,
    ) -> Path:
        """Tell clients where this process's front listens; `replaces` is what an earlier call
        answered. Written whole or not at all."""
        record = SupervisorRecord(
            version=1,
            pid=os.getpid(),
            start_time=process_start_time(os.getpid()) or 0,
            boot=read_boot_id(),
            pid_namespace=os.stat("/proc/self/ns/pid").st_ino,
            events=events,
            control=control,
            epoch=epoch,
            accepts=accepts,
        )
        building = self.supervisors / f".{record.pid}-{secrets.token_hex(4)}"
        building.write_bytes(msgspec.json.encode(record))
        if replaces is not None:
            os.rename(building, replaces)
            return replaces
        try:
            # Nearly always <pid>.json; a second supervisor in one process takes the next name.
            for number in range(1000):
                path = self.supervisors / f"{record.pid}{f'-{number}' if number else ''}.json"
                with contextlib.suppress(FileExistsError):
                    os.link(building, path)
                    return path
                if not _is_current(path):
                    os.rename(building, path)
                    return path
        finally:
            building.unlink(missing_ok=True)
        raise LocalViolation("a thousand supervisors in one process")

    def living_supervisors(self) -> Iterator[SupervisorRecord]:
        """Those that can be reached from here; what the dead left behind is removed."""
        try:
            names = sorted(os.listdir(self.supervisors))
        except FileNotFoundError:
            return
        for name in names:
            if not name.endswith(".json"):
                continue
            path = self.supervisors / name
            try:
                record = msgspec.json.decode(path.read_bytes(), type=SupervisorRecord)
            except (FileNotFoundError, msgspec.DecodeError):
                continue
            alive = record.is_alive()
            if alive:
                yield record
            elif alive is False:
                # A read-only state directory can keep its litter.
                with contextlib.suppress(OSError):
                    path.unlink()
                    _sweep_runtime(record)


def _is_current(path: Path) -> bool:
    """Whether a record tells of a supervisor that may be alive."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=SupervisorRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return False
    return record.is_alive() is not False


def make_runtime_directory() -> Path:
    """A new directory for sockets, ours alone: below $XDG_RUNTIME_DIR, else below /tmp.

    mkdtemp makes it 0700 under a name that nobody could prepare. A socket path has 107 bytes: a
    runtime directory too deep for that is passed over, and so is one that others may write to.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and len(os.fsencode(base)) <= 107 - 40:
        with contextlib.suppress(OSError):
            seen = os.stat(base)
            if seen.st_uid == os.geteuid() and not seen.st_mode & 0o022:
                return Path(tempfile.mkdtemp(prefix="casemate-", dir=base))
    return Path(tempfile.mkdtemp(prefix="casemate-", dir="/tmp"))


def _sweep_runtime(record: SupervisorRecord) -> None:
    """Remove what a front leaves that was killed together with its engine: known names only, and
    the directory only if nothing else is in it."""
    runtime = Path(record.events.removeprefix("ipc://")).parent
    if runtime.name.startswith("casemate-") and not runtime.is_symlink():
        for name in RUNTIME_FILES:
            (runtime / name).unlink(missing_ok=True)
        runtime.rmdir()


def _unusable(path: Path, error: OSError) -> UsageError:
    what = error.strerror or str(error)
    return UsageError(
        f"state directory {path}: {what}"
        + (f" ({error.filename})" if error.filename and error.filename != str(path) else "")
        + "; choose another with --state or $CASEMATE_STATE"
    )


def process_start_time(pid: int) -> int | None:
    """Clock ticks after boot; None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command in parentheses may hold spaces and parentheses of its own.
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def read_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
