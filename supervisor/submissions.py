"""Where submitted runs wait: uploaded by the front, taken by the supervisor.

    <state>/submissions/
      <id>.upload     as it comes, piece by piece
      <id>.bundle     complete, of the digest that was named: it will be a run whatever happens
      <id>.run        the id of the run that it became

`<id>.run` is written before the run can be seen and the bundle removed after that, so that a
submission which is named again, after whatever crash, is the same run; and one that was complete
when its supervisor died is started by the next.
"""

from __future__ import annotations

import contextlib
import os
import time
from hashlib import sha256
from pathlib import Path

from ..protocol.errors import UsageError
from ..protocol.limits import MIB, SUBMISSION_SIZE, SUBMISSIONS_KEPT, SUBMISSIONS_SIZE
from .journal import JournalReader
from .state import StateDirectory, fsync_directory, fsync_file, is_run_id

__all__ = ["Submissions"]

# An upload of which nothing has come for so long, in seconds, is nobody's.
_ABANDONED = 3600.0


class Submissions:
    """What was submitted to a state directory. All calls are disk work."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._folder = state.path / "submissions"

    def write(self, submission: str, offset: int, data: bytes) -> int:
        """Add a piece of an upload; the bytes that are there then. One that does not follow on what
        is there is not written. Raises UsageError where it would be too much."""
        path = self._path(submission, "upload")
        size = path.stat().st_size if path.exists() else 0
        if offset != size:
            return size
        if offset + len(data) > SUBMISSION_SIZE:
            raise UsageError(f"a submission has at most {SUBMISSION_SIZE // MIB} MiB")
        self._make_room(submission, len(data))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        return size + len(data)

    def run_of(self, submission: str) -> str | None:
        """The run that it has become."""
        try:
            run = self._path(submission, "run").read_text("ascii")
        except FileNotFoundError:
            return None
        if not is_run_id(run):
            return None
        try:
            with JournalReader(self._state.run(run)) as reader:
                return run if reader.last_seq() else None
        except (UsageError, OSError):
            return None  # it never began, or is gone

    def take(self, submission: str, digest: bytes) -> bytes:
        """The bundle that was uploaded, which from now on outlives whoever took it. Raises
        UsageError where it is not what `digest` says: it is to be uploaded again."""
        uploaded = self._path(submission, "upload")
        try:
            content = uploaded.read_bytes()
        except FileNotFoundError:
            return self.read(submission)  # taken before, by one who died
        if sha256(content).digest() != digest:
            uploaded.unlink()
            raise UsageError(f"submission {submission} is not what was announced: upload it again")
        fsync_file(uploaded)
        os.rename(uploaded, self._path(submission, "bundle"))
        fsync_directory(self._folder)
        return content

    def read(self, submission: str) -> bytes:
        try:
            return self._path(submission, "bundle").read_bytes()
        except FileNotFoundError:
            raise UsageError(f"submission {submission} was not uploaded") from None

    def name_run(self, submission: str, run: str) -> None:
        """It is about to become this run."""
        path = self._path(submission, "run")
        building = path.with_name(f".{path.name}")
        building.write_text(run, "ascii")
        fsync_file(building)
        os.rename(building, path)
        fsync_directory(self._folder)

    def drop(self, submission: str) -> None:
        """It has become a run, or never will."""
        for suffix in ("upload", "bundle"):  # both, where it was uploaded again
            self._path(submission, suffix).unlink(missing_ok=True)

    def pending(self) -> list[str]:
        """Those that were taken and are no runs yet, oldest first. What names runs that are gone
        goes too."""
        found = []
        for path in self._files():
            if path.suffix == ".bundle":
                found.append(path)
            elif path.suffix == ".run" and self.run_of(path.stem) is None:
                path.unlink(missing_ok=True)
        return [path.stem for path in sorted(found, key=lambda path: path.stat().st_mtime)]

    def _path(self, submission: str, suffix: str) -> Path:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder / f"{submission}.{suffix}"

    def _files(self) -> list[Path]:
        try:
            return sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []

    def _make_room(self, submission: str, size: int) -> None:
        """Raises UsageError where too much waits; uploads that nobody goes on with do not count."""
        count = 0
        for path in self._files():
            if path.suffix not in (".upload", ".bundle") or path.stem == submission:
                continue
            with contextlib.suppress(FileNotFoundError):
                seen = path.stat()
                if path.suffix == ".upload" and time.time() - seen.st_mtime > _ABANDONED:
                    path.unlink()
                    continue
                count += 1
                size += seen.st_size
        if count >= SUBMISSIONS_KEPT or size > SUBMISSIONS_SIZE:
            raise UsageError(
                f"{count} submissions wait to be started, {size // MIB} MiB of them; submit again "
                "when some are"
            )
