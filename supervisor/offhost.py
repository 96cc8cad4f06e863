"""A supervisor that can be reached from other hosts: the handle on its gate.

The gate (`gate.py`) is a child of the program that serves, not of the engine: what the network does
to it is none of the engine's business. It is started when the front is there, started again when it
dies, with growing pauses, and replaced when the keys or the list of clients change. A list that is
not sound is reported, and the old one stays in force.

Nothing listens unless an address was named, and not without keys: that is refused. What
the gate says goes to the log `casemate.gate`: refusals as warnings, what clients did as info.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..protocol.errors import UsageError
from .exposed import clean_environment, command_of
from .gate import Orders, Said
from .keys import CLIENTS_FILE, Allowed, KeyPair, read_clients, read_pair
from .reload import Watch, keep_loaded
from .remote import Address

__all__ = ["Gate"]

log = logging.getLogger("casemate.gate")

# Importing zmq and binding takes 0.3 s on an idle 2-core VM (Python 3.11).
_START_SECONDS = 30.0

# The first restart is at once. One that dies young waits twice as long as the one before, but is
# back within a second whoever topples it: starting takes 0.3 s, so that one who ends every gate
# there is has cost less than half a processor.
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 0.5
_OLD_AGE = 10.0

# How long it may take to give observers the tail, and to end.
_CLOSE_SECONDS = 3.0

# Of what a gate says; and of its last words, a traceback.
_WORDS = 2000

_said = msgspec.json.Decoder(Said)


@dataclass(frozen=True, slots=True)
class _Keys:
    own: KeyPair
    clients: tuple[Allowed, ...]


class Gate:
    def __init__(self, address: Address, keys: Path) -> None:
        self.address = address
        self._folder = keys
        self._watch: Watch | None = None
        self._keys: _Keys | None = None
        self._front = ("", "")
        self._process: asyncio.subprocess.Process | None = None
        self._pidfd = -1
        self._is_listening = asyncio.Event()
        self._is_closing = False
        self._is_renewed = False
        self._last_words = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """For messages; None between two gates."""
        return None if self._process is None else self._process.pid

    async def prepare(self) -> None:
        """Read the keys. Raises UsageError where they are missing or not sound."""
        self._watch = Watch(self._folder / "server.key", self._folder / CLIENTS_FILE)
        self._keys = await asyncio.to_thread(self._load)

    async def start(self, front_control: str, front_events: str) -> None:
        """Until it listens. Raises UsageError where the address is not to be had."""
        assert self._watch is not None
        self._front = (front_control, front_events)
        keeping = asyncio.create_task(self._keep())
        self._tasks.append(keeping)
        listening = asyncio.create_task(self._is_listening.wait())
        await asyncio.wait(
            (keeping, listening), timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        is_there = listening.done()
        listening.cancel()
        if not is_there:
            await self.close()
            raise UsageError(self._last_words or f"{self.address}: the gate does not start")
        self._tasks.append(
            asyncio.create_task(keep_loaded(self._watch, self._load, self._renew, _report))
        )

    async def close(self) -> None:
        """Give observers the tail and end it; nothing of it is left."""
        if not self._tasks:
            return  # never started, or closed before
        self._is_closing = True
        keeping, *others = self._tasks
        for each in others:
            each.cancel()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        _, late = await asyncio.wait((keeping,), timeout=_CLOSE_SECONDS)
        for each in late:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _load(self) -> _Keys:
        return _Keys(read_pair(self._folder, "server"), read_clients(self._folder))

    def _renew(self, keys: _Keys) -> None:
        if keys == self._keys:
            return
        self._keys = keys
        log.info("%s: %d clients from now on", self._folder / CLIENTS_FILE, len(keys.clients))
        self._is_renewed = True
        self._kill()

    def _kill(self) -> None:
        # Not by asyncio's handle: on its way it may reap what a thread of asyncio's waits for.
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    # ---- one life after the other

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        delay, has_listened = _FIRST_DELAY, False
        while True:
            began, self._is_renewed = loop.time(), False
            try:
                await self._live()
            except OSError as error:
                self._last_words = f"the gate cannot be started: {error}"
            has_listened |= self._is_listening.is_set()
            self._is_listening.clear()
            if self._is_closing or not has_listened:
                return
            if self._is_renewed:
                continue
            self.restarts += 1
            log.warning("the gate died and is started again: %s", self._last_words or "killed")
            delay = _FIRST_DELAY if loop.time() - began > _OLD_AGE else delay * 2
            await asyncio.sleep(min(delay, _LONGEST_DELAY))

    async def _live(self) -> None:
        self._last_words = ""
        process = await asyncio.create_subprocess_exec(
            *command_of("casemate.supervisor.gate"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=clean_environment(),
            start_new_session=True,  # ^C at the terminal is for whoever serves
        )
        self._process, self._pidfd = process, os.pidfd_open(process.pid)
        assert process.stdin is not None and process.stdout is not None
        try:
            if self._is_closing:
                return
            process.stdin.write(self._orders())
            async for line in process.stdout:
                self._hear(line)
        except ValueError:
            self._last_words = "it said what is no line"
        finally:
            self._kill()
            await process.wait()
            os.close(self._pidfd)
            self._process, self._pidfd = None, -1

    def _orders(self) -> bytes:
        assert self._keys is not None
        control, events = self._front
        orders = Orders(
            own=self._keys.own,
            clients=self._keys.clients,
            control=self.address.control,
            events=self.address.events,
            front_control=control,
            front_events=events,
        )
        body = msgspec.msgpack.encode(orders)
        return len(body).to_bytes(4, "little") + body

    def _hear(self, line: bytes) -> None:
        try:
            said = _said.decode(line)
        except (ValueError, RecursionError):
            # libzmq's last words, or a traceback.
            self._last_words = (self._last_words + line.decode("utf-8", "replace"))[-_WORDS:]
            return
        match said.kind:
            case "listening":
                self._is_listening.set()
            case "failed":
                self._last_words = said.text
            case "refused":
                log.warning("%s", said.text[:_WORDS])
            case "asked":
                log.info("%s", said.text[:_WORDS])


def _report(problem: str) -> None:
    log.warning("%s; the old keys stay in force", problem)
