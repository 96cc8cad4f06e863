"""What a run changed, as a patch that `git apply` takes byte for byte.

Either side of a change is what git would keep of it: the content of a regular file and whether its
owner may execute it, or the target of a symbolic link. Where both sides are the same nothing is
said; where the kind differs, a deletion and a creation, as git does. Text comes as hunks with three
lines of context; what holds a NUL or is large, as a `GIT binary patch` whose literals go both ways.
`index` lines have whole ids: git wants them for binary patches, and checks by them what it patches.

What a patch cannot say is not in it but in the Summary: empty folders, modes beyond "executable",
what lies in a .git (git refuses a whole patch over one such path), what is neither file nor link,
what cannot be read. So is what somebody should look at before applying anything: see risky.py.

Content is read twice, for its id and for the patch, and is never whole in memory unless it is
small enough to be text; if the second reading differs from the first, that is an error.

What one attempt wrote is told against what it was given: the workspace with the layers below its
own, which is `_Given`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from ..protocol.errors import CasemateError
from ..protocol.limits import KIB, MIB, PATHS_NAMED
from .beneath import ABSENT, Beneath, Found, NotRegularError, OwnBeneath, reason
from .layers import Resolved
from .linediff import Effort, changed_blocks
from .risky import is_refused_by_git, risk

__all__ = ["Entry", "Summary", "quoted", "summary_lines", "write_patch"]

# Compared line by line up to here: ten times the longest source file of CPython. Both sides are in
# memory, at some ten times their size when every line is a byte.
TEXT_SIZE = 2 * MIB

# Beyond it nothing is patched: git reads files and patches whole, and refuses a patch of 1 GiB.
PATCHED_SIZE = 512 * MIB

# What git can open at all.
PATH_SIZE = 4095

CONTEXT = 3

_CHUNK = 256 * KIB
_NO_ID = "0" * 40


@dataclass(frozen=True, slots=True)
class Entry:
    """One path that differs. `lines`: added and removed, where both sides are text."""

    path: str
    old: Found
    new: Found
    lines: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """`binary`: why it is no text diff; `left_out`: why it is not in the patch, or not whole;
    `risky`: why it wants a look, whether in the patch or not. Each by path, in order of paths, as
    are `entries`: all that differs, be it in the patch or left out."""

    added: int
    changed: int
    deleted: int
    binary: Mapping[str, str]
    left_out: Mapping[str, str]
    risky: Mapping[str, str]
    entries: tuple[Entry, ...] = field(default=(), compare=False)

    @property
    def files(self) -> int:
        return self.added + self.changed + self.deleted


def summary_lines(summary: Summary) -> list[str]:
    """For people: the counts, then what they should know. Names are quoted as in the patch."""
    counts = [
        f"{count} {word}"
        for count, word in (
            (summary.added, "added"),
            (summary.changed, "changed"),
            (summary.deleted, "deleted"),
        )
        if count
    ]
    files = summary.files
    lines = [f"{files} file{'' if files == 1 else 's'}{': ' if counts else ''}{', '.join(counts)}"]
    for title, which in (
        ("as binary", summary.binary),
        ("not in the patch", summary.left_out),
        ("risky", summary.risky),
    ):
        for path, why in list(which.items())[:PATHS_NAMED]:
            lines.append(f"{title}: {quoted(path)} ({why})")
        if len(which) > PATHS_NAMED:
            lines.append(f"{title}: and {len(which) - PATHS_NAMED} more")
    return lines


def quoted(path: str) -> str:
    """As git quotes names: nothing in it moves a cursor, and it can be told where it ends."""
    return _quoted(os.fsencode(path)).decode("ascii")


def write_patch(
    base: Path,
    layers: Path,
    changes: Iterable[Resolved],
    out: BinaryIO | None,
    below: Iterable[Resolved] = (),
) -> Summary:
    """Write the patch that turns `base`, after `below` has become of it, into what `changes` say;
    without `out` only tell what would be in it. Blocks on the disk."""
    with Beneath(base) as old, OwnBeneath(layers) as new:
        given = {change.path: change for change in below}
        return _Writer(_Given(old, new, given) if given else old, new, out).write(changes)


class _Tree(Protocol):
    """What the old side is asked; Beneath answers it."""

    def look(self, path: str) -> Found: ...
    def file(self, path: str) -> AbstractContextManager[int]: ...
    def names(self, path: str) -> list[str]: ...


class _Given:
    """The base as layers have changed it. Whatever they hide of it is told path by path, so what
    they do not name is the base's."""

    def __init__(self, base: Beneath, layers: Beneath, changes: Mapping[str, Resolved]) -> None:
        self._base = base
        self._layers = layers
        self._changes = changes
        self._made: dict[str, list[str]] = {}
        for path, change in changes.items():
            if change.kind != "absent":
                folder, _, name = path.rpartition("/")
                self._made.setdefault(folder, []).append(name)

    def look(self, path: str) -> Found:
        change = self._changes.get(path)
        if change is None:
            return self._base.look(path)
        if change.kind == "absent":
            return ABSENT
        return replace(self._layers.look(_place(change)), mode=change.mode)

    def file(self, path: str) -> AbstractContextManager[int]:
        change = self._changes.get(path)
        return self._base.file(path) if change is None else self._layers.file(_place(change))

    def names(self, path: str) -> list[str]:
        below = self._base.names(path) if self._base.look(path).kind == "folder" else []
        stay = (name for name in below if f"{path}/{name}" not in self._changes)
        return sorted([*stay, *self._made.get(path, ())])


def _place(change: Resolved) -> str:
    return f"{change.layer}/upper/{change.path}"


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a change as git sees it. `read` opens the content anew each time."""

    mode: str
    size: int
    id: str
    read: Callable[[], AbstractContextManager[Iterator[bytes]]]

    def content(self) -> bytes:
        with self.read() as chunks:
            content = b"".join(chunks)
        self.check(len(content), _blob_hash(len(content), [content]))
        return content

    def check(self, size: int, blob: str) -> None:
        if size != self.size or blob != self.id:
            raise CasemateError("changed while it was read")


class _Unsayable(Exception):
    """A side that git has no words for."""


class _Writer:
    def __init__(self, old: _Tree, new: Beneath, out: BinaryIO | None) -> None:
        self._old = old
        self._new = new
        self._out = out
        self._entries: dict[str, Entry] = {}
        self._effort = Effort()
        self._added = self._changed = self._deleted = 0
        self._binary: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        self._risky: dict[str, str] = {}

    def write(self, changes: Iterable[Resolved]) -> Summary:
        ordered = sorted(changes, key=lambda change: os.fsencode(change.path))
        by_path = {change.path: change for change in ordered}
        # folders that will hold something: the ancestors of what is written
        filled = {
            above
            for change in ordered
            if change.kind in ("file", "link")
            for above in _ancestors(change.path)
        }
        for change in ordered:
            try:
                if change.kind == "folder":
                    self._folder(change, filled)
                else:
                    self._file(change)
            except _Unsayable as error:
                self._left_out[change.path] = str(error)
            except CasemateError as error:
                raise CasemateError(f"{quoted(change.path)}: {error}") from error
        self._emptied(by_path, filled)
        left_out = dict(sorted(self._left_out.items(), key=lambda item: os.fsencode(item[0])))
        entries = sorted(self._entries.values(), key=lambda entry: os.fsencode(entry.path))
        return Summary(
            self._added,
            self._changed,
            self._deleted,
            self._binary,
            left_out,
            self._risky,
            tuple(entries),
        )

    def _differs(self, path: str, old: Found, new: Found) -> None:
        known = self._entries.get(path)  # a file that becomes a folder is told in two steps
        self._entries[path] = Entry(path, old, new, None if known is None else known.lines)

    def _folder(self, change: Resolved, filled: set[str]) -> None:
        """Git knows folders by their files. Told are those that come out empty, and modes."""
        found = self._look(change.path)
        if found.kind in ("file", "link"):
            # the file goes; what comes into the folder is told by its own path
            self._deletion_of(change.path, found)
        elif found.is_odd:
            self._differs(change.path, found, Found("folder", change.mode))
            raise _Unsayable(f"{found.kind} becomes a folder")
        new = Found("folder", change.mode)
        if found.kind != "folder":
            self._differs(change.path, found, new)
            self._note_risk(change.path, found, new)
            if change.path not in filled:
                raise _Unsayable("an empty folder")
            return
        if change.mode & 0o7777 != found.mode:
            self._differs(change.path, found, new)
            self._note_risk(change.path, found, new)
            raise _Unsayable(f"a folder's mode, {found.mode:04o} → {change.mode:04o}")

    def _emptied(self, by_path: Mapping[str, Resolved], filled: set[str]) -> None:
        """Folders that stay without what was in them; git removes those with their last file."""
        folders = {
            change.path.rpartition("/")[0] for change in by_path.values() if change.kind == "absent"
        }
        for folder in sorted(folders - filled - {""}, key=os.fsencode):
            stays = by_path.get(folder)
            if stays is not None and stays.kind != "folder":
                continue
            with contextlib.suppress(OSError):  # gone, or told already to be unreadable
                below = [by_path.get(f"{folder}/{name}") for name in self._old.names(folder)]
                if below and all(each is not None and each.kind == "absent" for each in below):
                    self._left_out.setdefault(folder, "is left empty, and git removes it then")

    def _file(self, change: Resolved) -> None:
        found = self._look(change.path)
        if change.kind == "absent":
            if found.kind == "folder":
                self._differs(change.path, found, ABSENT)
                if not self._names(change.path):
                    raise _Unsayable("an empty folder that is removed")
                return
            if found.is_odd:
                self._differs(change.path, found, ABSENT)
                raise _Unsayable(f"{found.kind} that is removed")
            self._deletion_of(change.path, found)
            return
        size = self._new.look(_place(change)).size
        new = Found(change.kind, change.mode, size, change.target)
        if found.is_odd:
            self._differs(change.path, found, new)
            self._note_risk(change.path, found, new)
            raise _Unsayable(f"replaces {found.kind}")
        self._entry(change.path, found, new, change.layer)

    def _deletion_of(self, path: str, found: Found) -> None:
        if found.kind != "absent":
            self._entry(path, found, ABSENT, None)

    def _entry(self, path: str, found: Found, change: Found, layer: str | None) -> None:
        """Both sides, and what of the difference between them there is to say."""
        if found.kind == change.kind == "link" and found.target == change.target:
            return
        try:
            same = (
                found.kind == change.kind == "file"
                and found.mode == change.mode
                and self._is_same_content(path, layer)
            )
        except _Unsayable:
            self._differs(path, found, change)
            self._note_risk(path, found, change)
            raise
        if same:
            return
        self._differs(path, found, change)
        self._note_risk(path, found, change)
        if is_refused_by_git(path, found.kind) or is_refused_by_git(path, change.kind):
            raise _Unsayable("git apply refuses such a name")
        if len(os.fsencode(path)) > PATH_SIZE:
            raise _Unsayable("its path is too long for git")
        old = self._side("the workspace", self._old, path, found)
        new = self._side("the run", self._new, f"{layer}/upper/{path}", change)
        if found.kind == change.kind == "file" and (found.mode ^ change.mode) & 0o7666:
            # …and the content, if that differs, is said all the same
            self._left_out[path] = f"its mode, {found.mode:04o} → {change.mode:04o}"
        if old is not None and new is not None and old.mode[:3] != new.mode[:3]:
            self._deleted += 1
            self._added += 1
            self._write(path, old, None)
            self._write(path, None, new)
        elif old is not None or new is not None:
            if old is not None and new is not None and (old.id, old.mode) == (new.id, new.mode):
                return
            self._added += old is None
            self._deleted += new is None
            self._changed += old is not None and new is not None
            self._write(path, old, new)

    def _look(self, path: str) -> Found:
        try:
            return self._old.look(path)
        except OSError as error:
            raise _Unsayable(f"cannot be read in the workspace: {reason(error)}") from error

    def _names(self, path: str) -> list[str]:
        try:
            return self._old.names(path)
        except OSError as error:
            raise _Unsayable(f"cannot be read in the workspace: {reason(error)}") from error

    def _note_risk(self, path: str, old: Found, new: Found) -> None:
        why = risk(path, old, new)
        if why is not None:
            self._risky[path] = why

    def _is_same_content(self, path: str, layer: str | None) -> bool:
        """Ends at the first difference: a file of the workspace bounds what is read."""
        try:
            with (
                self._old.file(path) as old,
                self._new.file(f"{layer}/upper/{path}") as new,
            ):
                if os.fstat(old).st_size != os.fstat(new).st_size:
                    return False
                while True:
                    chunk = os.read(old, _CHUNK)
                    if chunk != os.read(new, _CHUNK):
                        return False
                    if not chunk:
                        return True
        except (OSError, NotRegularError) as error:
            raise _Unsayable(reason(error)) from error

    def _side(self, where: str, tree: _Tree, place: str, found: Found) -> _Side | None:
        # a folder is nothing by itself: its files go by their own paths
        if found.kind in ("absent", "folder"):
            return None
        if found.kind == "link":
            assert found.target is not None
            target = os.fsencode(found.target)
            return _Side(
                "120000",
                len(target),
                _blob_hash(len(target), [target]),
                lambda: nullcontext(iter([target])),
            )
        try:
            with tree.file(place) as descriptor:
                size = os.fstat(descriptor).st_size
                if size > PATCHED_SIZE:
                    raise _Unsayable(
                        f"{size} bytes; git takes files up to {PATCHED_SIZE // MIB} MiB"
                    )
                blob = _blob_hash(size, _chunks(descriptor))
        except (OSError, NotRegularError) as error:
            raise _Unsayable(f"in {where}: {reason(error)}") from error
        return _Side(
            "100755" if found.mode & 0o100 else "100644",
            size,
            blob,
            lambda: _Reading(tree.file(place)),
        )

    # --- in git's words ---------------------------------------------------------------------------

    def _write(self, path: str, old: _Side | None, new: _Side | None) -> None:
        name = os.fsencode(path)
        a, b = _named(b"a/" + name), _named(b"b/" + name)
        old_id = old.id if old else _NO_ID
        new_id = new.id if new else _NO_ID
        put = self._put
        put(b"diff --git %b %b\n" % (a, b))
        unchanged_mode = ""
        if old is None:
            assert new is not None
            put(f"new file mode {new.mode}\n".encode())
        elif new is None:
            put(f"deleted file mode {old.mode}\n".encode())
        elif old.mode != new.mode:
            put(f"old mode {old.mode}\nnew mode {new.mode}\n".encode())
        else:
            unchanged_mode = f" {old.mode}"
        if old_id == new_id:
            return
        put(f"index {old_id}..{new_id}{unchanged_mode}\n".encode())
        if max(side.size for side in (old, new) if side) > TEXT_SIZE:
            self._binary[path] = f"larger than {TEXT_SIZE // MIB} MiB"
        else:
            before = old.content() if old else b""
            after = new.content() if new else b""
            if b"\0" not in before and b"\0" not in after:
                self._count(path, 0, 0)
                # nothing to compare where one side is empty and the other is not there
                if before or after:
                    put(
                        b"--- %b\n+++ %b\n"
                        % (a if old else b"/dev/null", b if new else b"/dev/null")
                    )
                    added = removed = 0
                    for piece in _hunks(before, after, self._effort):
                        added += piece.startswith(b"+")
                        removed += piece.startswith(b"-")
                        put(piece)
                    self._count(path, added, removed)
                return
            self._binary[path] = "not text"
        put(b"GIT binary patch\n")
        self._literal(new)
        self._literal(old)

    def _put(self, piece: bytes) -> None:
        if self._out is not None:
            self._out.write(piece)

    def _count(self, path: str, added: int, removed: int) -> None:
        """Lines; of a path that is deleted and created anew, those of both."""
        entry = self._entries[path]
        before = entry.lines or (0, 0)
        self._entries[path] = replace(entry, lines=(before[0] + added, before[1] + removed))

    def _literal(self, side: _Side | None) -> None:
        if self._out is None:
            return
        put = self._out.write
        put(f"literal {side.size if side else 0}\n".encode())
        deflate = zlib.compressobj()
        rest = b""
        size, blob = 0, _begin_blob(side.size if side else 0)
        if side is not None:
            with side.read() as chunks:
                for chunk in chunks:
                    size += len(chunk)
                    blob.update(chunk)
                    rest = _put_base85(put, rest + deflate.compress(chunk))
            side.check(size, blob.hexdigest())
        rest = _put_base85(put, rest + deflate.flush())
        if rest:
            _put_base85_line(put, rest)
        put(b"\n")


class _Reading(AbstractContextManager[Iterator[bytes]]):
    """The chunks of a file that is open while they are read."""

    def __init__(self, file: AbstractContextManager[int]) -> None:
        self._file = file

    def __enter__(self) -> Iterator[bytes]:
        try:
            return _chunks(self._file.__enter__())
        except (OSError, NotRegularError) as error:
            raise CasemateError("changed while it was read") from error

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(None, None, None)


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, _CHUNK):
        yield chunk


def _begin_blob(size: int) -> hashlib._Hash:
    """Git's id of a content. SHA-1 names it, as git does; nothing is trusted for having it."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _blob_hash(size: int, chunks: Iterable[bytes]) -> str:
    blob = _begin_blob(size)
    for chunk in chunks:
        blob.update(chunk)
    return blob.hexdigest()


def _ancestors(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


_ESCAPES = {
    7: b"\\a", 8: b"\\b", 9: b"\\t", 10: b"\\n", 11: b"\\v", 12: b"\\f", 13: b"\\r",
    ord('"'): b'\\"', ord("\\"): b"\\\\",
}  # fmt: skip


def _quoted(name: bytes) -> bytes:
    parts = [
        _ESCAPES.get(byte) or (b"%c" % byte if 0x20 <= byte < 0x7F else b"\\%03o" % byte)
        for byte in name
    ]
    text = b"".join(parts)
    return text if text == name else b'"' + text + b'"'


def _named(name: bytes) -> bytes:
    """In a patch. Names with blanks are quoted too, unlike by git, which then cannot read its own
    `diff --git a/x /y b/x /y` (2.39), nor needs a tab behind them in --- and +++ lines."""
    text = _quoted(name)
    return b'"' + text + b'"' if b" " in text and not text.startswith(b'"') else text


def _hunks(before: bytes, after: bytes, effort: Effort) -> Iterator[bytes]:
    # not splitlines: it ends lines at a carriage return too
    old, new = _lines(before), _lines(after)
    groups: list[list[tuple[int, int, int, int]]] = []
    for block in changed_blocks(old, new, effort):
        if groups and block[0] - groups[-1][-1][1] <= 2 * CONTEXT:
            groups[-1].append(block)
        else:
            groups.append([block])
    for group in groups:
        lead = min(CONTEXT, group[0][0])
        first_old, first_new = group[0][0] - lead, group[0][2] - lead
        tail = min(CONTEXT, len(old) - group[-1][1])
        last_old, last_new = group[-1][1] + tail, group[-1][3] + tail
        yield b"@@ -%b +%b @@\n" % (_span(first_old, last_old), _span(first_new, last_new))
        at = first_old
        for old_from, old_to, new_from, new_to in group:
            yield from _marked(b" ", old[at:old_from])
            yield from _marked(b"-", old[old_from:old_to])
            yield from _marked(b"+", new[new_from:new_to])
            at = old_to
        yield from _marked(b" ", old[at:last_old])


def _lines(content: bytes) -> list[bytes]:
    lines = content.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def _span(start: int, end: int) -> bytes:
    # an empty range names the line before it
    return b"%d,%d" % (start + 1 if end > start else start, end - start)


def _marked(mark: bytes, lines: list[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield mark + line
        if not line.endswith(b"\n"):
            yield b"\n\\ No newline at end of file\n"


def _put_base85(put: Callable[[bytes], object], data: bytes) -> bytes:
    """Whole lines of `data`; what is left for the next."""
    whole = len(data) - len(data) % 52
    for start in range(0, whole, 52):
        _put_base85_line(put, data[start : start + 52])
    return data[whole:]


def _put_base85_line(put: Callable[[bytes], object], data: bytes) -> None:
    # The first letter counts the bytes, since the last group is filled up to four.
    size = len(data)
    letter = ord("A") + size - 1 if size <= 26 else ord("a") + size - 27
    put(b"%c%b\n" % (letter, base64.b85encode(data, pad=True)))
