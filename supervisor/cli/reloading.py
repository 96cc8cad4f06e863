"""What `casemate serve` reads again while it serves: `casemate.toml`, and a folder of pipelines.

What is new and whole counts from then on; what is broken is reported, here and to whoever submits,
and what was before stays in force. (Keys of clients are the gate's own, `offhost.py`.)
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...protocol.errors import CasemateError, UsageError
from ..api import Supervisor
from ..catalogue import Catalogue
from ..config import Config, config_path
from ..reload import Watch

__all__ = ["Reloading"]

# What of a configuration counts at once, and not from the next start on.
_AT_ONCE = {"allow", "max_parallel"}


class Reloading:
    """Make it before the configuration is read: no change since is missed."""

    def __init__(self, pipelines: Path | None) -> None:
        self._configuration = Watch(config_path())
        self._reading = asyncio.Lock()  # else what was read first could be taken last
        self.catalogue: Catalogue | None = None
        if pipelines is not None:
            if not pipelines.is_dir():
                raise UsageError(f"--pipelines: {pipelines} is no folder")
            self.catalogue = Catalogue(pipelines)
            self._folder = Watch(self.catalogue.folder)

    async def begin(self, config: Config) -> None:
        """Read the pipelines for the first time. `config`: what the process starts with."""
        self._start = self._config = config
        if self.catalogue is not None:
            await self._read(self.catalogue)

    async def keep(self, supervisor: Supervisor, load: Callable[[], Config]) -> None:
        """For ever. Raises CasemateError where the engine is gone."""
        keeping = [self._keep_configuration(supervisor, load)]
        if self.catalogue is not None:
            keeping.append(self._keep_catalogue(self.catalogue))
        await asyncio.gather(*keeping)

    async def _keep_configuration(self, supervisor: Supervisor, load: Callable[[], Config]) -> None:
        while True:
            await self._configuration.wait_changed()
            try:
                new = await asyncio.to_thread(load)
            except (CasemateError, OSError) as error:
                warning = f"{error}; the configuration is what it was before"
                _say(warning)
                supervisor.warn_submitters(warning)
                continue
            supervisor.warn_submitters(None)
            later = [key for key in self._start.differing(new) if key not in _AT_ONCE]
            if not new.allow.env <= self._start.allow.env:
                later.append("env words of allow")  # the engine has no others of our environment
            _say("the configuration was read again" + _from_next_start(later))
            # Until then the state directory is where it was, and no task may be shown it.
            new = replace(new, allow=replace(new.allow, state=self._start.allow.state))
            await supervisor.reconfigure(new)
            self._config = new
            if self.catalogue is not None:  # by what is allowed now
                await self._read(self.catalogue)

    async def _keep_catalogue(self, catalogue: Catalogue) -> None:
        while True:
            await self._folder.wait_changed()
            await self._read(catalogue)

    async def _read(self, catalogue: Catalogue) -> None:
        async with self._reading:
            try:
                found = await asyncio.to_thread(catalogue.load, self._config)
            except OSError as error:  # the folder is gone
                problem = f"{catalogue.folder}: {error.strerror}"
                _say(f"{problem}; its pipelines are what they were before")
                return
            for news in catalogue.take(found):
                _say(news)


def _from_next_start(later: list[str]) -> str:
    return f"; {', '.join(later)}: from the next start on" if later else ""


def _say(line: str) -> None:
    print(f"casemate: {line}", file=sys.stderr, flush=True)
