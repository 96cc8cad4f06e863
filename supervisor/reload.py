"""Files that count anew when they change: the new is taken where it is whole, else the old stays.

Whether something changed is told by a look: size, inode and times of every file at the paths that
are watched. The kernel's word (watchfiles) only says when to look, and a look each now and then is
there for what it does not tell: a folder that did not exist yet, a mount that knows no inotify, a
change between the reading of a file and the watching of it. So nothing is lost, and a word too much
costs a look.

Folders are watched, not files: an editor that saves by renaming puts another file in the place.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import watchfiles

from ..protocol.errors import CasemateError
from .sources import FILES, LEFT_OUT

__all__ = ["Watch", "keep_loaded"]

# Seconds between two looks that nobody asked for; longer where a look itself takes long.
LOOK_INTERVAL = 1.0
LOOK_REST = 20

# Who saves a file truncates it first, and who saves ten takes a moment: a change counts when
# nothing has moved for so long. A person does not notice it.
SETTLED = 0.03

# As many names are looked at; as `sources.py` takes. What is larger is no folder of sources.
MOST = FILES

Loaded = TypeVar("Loaded")

# What tells one state of a file from another; nothing of what is not there.
_Seen = tuple[int, ...]
_FOLDER: _Seen = (0,)
# By path that is watched: all that lies there.
_Look = dict[Path, frozenset[tuple[str, _Seen]]]


class Watch:
    """Of files, and of folders with all that lies below them. What is there when it is made is
    what the first change is one of, so make it before the files are read.

    `look_at` may say other paths at any time; they count from the next wait on.
    """

    def __init__(self, *paths: Path) -> None:
        self._seen: _Look = {}
        self.look_at(*paths)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self._seen)

    def look_at(self, *paths: Path) -> None:
        """These from now on. Of what was watched before, no change is lost."""
        new = [path for path in paths if path not in self._seen]
        known = self._seen | _look(new)
        self._seen = {path: known[path] for path in paths}

    async def wait_changed(self) -> None:
        """Until something is another than it was, and has come to rest. May be cancelled."""
        loop = asyncio.get_running_loop()
        rested = 0.0
        async with aclosing(self._words()) as words:
            async for is_told in words:
                if not is_told and loop.time() < rested:
                    continue
                began = loop.time()
                now = await asyncio.to_thread(_look, self.paths)
                rested = loop.time() + LOOK_REST * (loop.time() - began)
                if now != self._seen:
                    now = await self._settled(now)
                if now != self._seen:
                    self._seen = now
                    return

    async def _settled(self, now: _Look) -> _Look:
        while True:
            await asyncio.sleep(SETTLED)
            before, now = now, await asyncio.to_thread(_look, self.paths)
            if before == now:
                return now

    async def _words(self) -> AsyncGenerator[bool, None]:
        """When to look: at once, whenever the kernel tells of a change (True), now and then."""
        yield True
        while True:
            folders = await asyncio.to_thread(_folders, self.paths)
            try:
                changes = watchfiles.awatch(
                    *folders,
                    watch_filter=None,
                    recursive=False,
                    step=20,  # milliseconds of rest after which a change is told
                    rust_timeout=int(LOOK_INTERVAL * 1000),
                    yield_on_timeout=True,
                )
                async with aclosing(changes):
                    async for told in changes:
                        yield bool(told)
            except (OSError, RuntimeError):  # gone, or no more of the kernel's watches to be had
                await asyncio.sleep(LOOK_INTERVAL)
                yield False


async def keep_loaded(
    watch: Watch,
    load: Callable[[], Loaded],
    take: Callable[[Loaded], None],
    report: Callable[[str], None],
) -> None:
    """For ever: whenever something changes, `load` it (in a thread) and `take` what it gives. Where
    it cannot be loaded, `report` why: what was taken before stays in force."""
    while True:
        await watch.wait_changed()
        try:
            loaded = await asyncio.to_thread(load)
        except (CasemateError, OSError) as error:
            report(str(error))
        else:
            take(loaded)


def _folders(paths: Iterable[Path]) -> set[str]:
    """Where a change can be told of: what is not there yet is looked for where it would be."""
    parents = {os.path.dirname(os.path.abspath(path)) for path in paths}
    below = {path for each in _look(paths).values() for path, seen in each if seen == _FOLDER}
    return below | {parent for parent in parents if os.path.isdir(parent)}


def _look(paths: Iterable[Path]) -> _Look:
    return {path: _below(path) for path in paths}


def _below(path: Path) -> frozenset[tuple[str, _Seen]]:
    found: set[tuple[str, _Seen]] = set()
    waiting = [os.path.abspath(path)]
    while waiting and len(found) < MOST:
        each = waiting.pop()
        try:
            seen = os.stat(each)
            if stat.S_ISDIR(seen.st_mode):
                found.add((each, _FOLDER))
                with os.scandir(each) as entries:
                    # no link to a folder: it may lead round in a circle
                    waiting += [
                        entry.path
                        for entry in entries
                        if entry.name not in LEFT_OUT
                        and not (entry.is_symlink() and entry.is_dir())
                    ]
                continue
        except OSError:
            found.add((each, ()))
        else:
            found.add((each, (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino)))
    return frozenset(found)
