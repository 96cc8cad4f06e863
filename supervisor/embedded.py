"""The engine as a child of the program that embeds it: an `Engine` at the end of `hostpipe`.

Ends when the host hangs up, whether it closed or died: what lives is killed, runs under way stay
interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import resource
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from ..protocol.errors import CasemateError, LocalViolation, SetupRefused, UsageError
from ..sandbox.scope import take_place
from . import hostpipe, logs
from .engine import Engine

__all__ = ["main"]

log = logging.getLogger("casemate.engine")

# How long what was asked may take when the program has hung up; after that it is interrupted, as it
# would be by the engine's death, and what lives is killed.
_LAST_ASKS = 0.5


def main() -> None:
    # Of all it may have: each live attempt takes a handful. In the host's process that would be
    # the host's to decide (select() breaks above 1023); this one is ours.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # While there is no child yet. Where it fails limits are sampled: every `task.started` says so,
    # and `casemate doctor` why.
    with contextlib.suppress(OSError, SetupRefused):
        take_place()
    asyncio.run(_serve(int(sys.argv[1])))


def _crash(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback raised what nobody expected: a bug of ours. An engine that goes on half-decided
    could hang runs or leave a task alive; one that ends takes every sandbox along, and the runs'
    journals are whole."""
    error = context.get("exception")
    if error is None:
        loop.default_exception_handler(context)
        return
    traceback.print_exception(error)
    log.critical("a bug of casemate ends the engine: %r", error, exc_info=error)
    logging.shutdown()  # what waits for its reader
    os._exit(70)  # EX_SOFTWARE


async def _serve(fd: int) -> None:
    host = socket.socket(fileno=fd)
    host.set_inheritable(False)
    asyncio.get_running_loop().set_exception_handler(_crash)
    reader, writer = await asyncio.open_connection(sock=host)
    head = await hostpipe.read(reader)
    if head is None:
        return
    settings = msgspec.msgpack.decode(head, type=hostpipe.Settings)
    logs.set_up(settings.log)
    try:
        program = _Program(writer)
        async with Engine(settings, program if settings.accepts else None) as engine:
            front = engine.front
            ready = hostpipe.Answer(0, events=front.events_endpoint, control=front.control_endpoint)
            hostpipe.write(writer, ready)
            program.is_open.set()
            notes = _Notes(engine, writer)
            try:
                await _answer(engine, reader, writer, program)
            finally:
                notes.close()
    except CasemateError as error:
        hostpipe.write(writer, _refusal(0, error))
    finally:
        writer.close()


class _Notes:
    """Tells the host how far journals are durable. A host that does not read is told only the
    newest of each run when it does: nothing piles up for it here."""

    def __init__(self, engine: Engine, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._newest: dict[str, hostpipe.Committed] = {}
        self._any = asyncio.Event()
        self._engine = engine
        self._telling = asyncio.create_task(self._tell())
        engine.listener = self._note

    def _note(self, run: str, seq: int, ended: bool) -> None:
        self._newest[run] = hostpipe.Committed(run, seq, ended, self._engine.problem(run))
        self._any.set()

    async def _tell(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await self._any.wait()
                self._any.clear()
                newest, self._newest = self._newest, {}
                for note in newest.values():
                    hostpipe.write(self._writer, note)
                await self._writer.drain()

    def close(self) -> None:
        self._engine.listener = None
        self._telling.cancel()


class _Program:
    """The host program, for the engine: to read the pipelines that clients submit is its work, and
    its end is its own."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[tuple[str, tuple[str, ...]]]] = {}
        # Clients find the front before the host has heard that the engine is ready.
        self.is_open = asyncio.Event()

    async def accept(self, submission: str, digest: bytes) -> tuple[str, tuple[str, ...]]:
        """The run that it became, and what whoever submitted it should be told. Raises
        UsageError."""
        return await self._ask(lambda number: hostpipe.Submitted(number, submission, digest))

    async def shut_down(self, drain: float | None) -> None:
        await self._ask(lambda number: hostpipe.ShutDown(number, drain))

    async def _ask(
        self, message: Callable[[int], hostpipe.Submitted | hostpipe.ShutDown]
    ) -> tuple[str, tuple[str, ...]]:
        await self.is_open.wait()
        number = next(self._numbers)
        waiting: asyncio.Future[tuple[str, tuple[str, ...]]]
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        hostpipe.write(self._writer, message(number))
        return await waiting

    def accepted(self, answer: hostpipe.Accepted) -> None:
        waiting = self._waiting.pop(answer.number)
        if waiting.cancelled():
            return  # the engine is closing
        if answer.run is not None:
            waiting.set_result((answer.run, answer.notes))
        else:
            waiting.set_exception(UsageError(answer.refused or "refused"))


async def _answer(
    engine: Engine,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    program: _Program,
) -> None:
    decoder = msgspec.msgpack.Decoder(hostpipe.Ask)
    async with asyncio.TaskGroup() as asks:

        async def grant(ask: hostpipe.Ask) -> None:
            try:
                run = checkpoint = None
                match ask.verb:
                    case hostpipe.Submit(spec=spec, input=value, submission=submission):
                        run = await engine.submit(spec, value, submission)
                    case hostpipe.Accepted() as accepted:
                        program.accepted(accepted)
                    case hostpipe.CancelRun(run=cancelled, reason=reason):
                        engine.cancel(cancelled, reason)
                    case hostpipe.Pause(run=paused, drain=drain):
                        await engine.pause(paused, drain)
                    case hostpipe.Resume(run=resumed):
                        await engine.resume(resumed)
                    case hostpipe.TakeUp(run=left):
                        await engine.take_up(left)
                    case hostpipe.CheckpointRun(run=kept):
                        checkpoint = await engine.checkpoint(kept)
                    case hostpipe.Rollback() as back:
                        await engine.rollback(
                            back.run, back.checkpoint, back.before, back.accept_base
                        )
                    case hostpipe.Fork(run=source, checkpoint=to_copy):
                        run = await engine.fork(source, to_copy)
                    case hostpipe.Revise() as wish:
                        run = await engine.revise(wish.run, wish.spec, wish.digest, wish.same)
                    case hostpipe.Drain():
                        await engine.drain()
                    case hostpipe.Reconfigure(max_parallel=most):
                        engine.set_slots(most)
                    case hostpipe.Ping():
                        pass
                hostpipe.write(writer, hostpipe.Answer(ask.id, run, checkpoint))
            except LocalViolation:
                raise  # a bug of ours, and the engine cannot be trusted any more
            except Exception as error:  # of one ask: it must not end the runs of the others
                hostpipe.write(writer, _refusal(ask.id, error))

        granting: dict[asyncio.Task[None], hostpipe.Verb] = {}
        while (body := await hostpipe.read(reader)) is not None:
            ask = decoder.decode(body)
            task = asks.create_task(grant(ask))
            granting[task] = ask.verb
            task.add_done_callback(granting.pop)
        # Whoever has hung up waits for nothing any more, but what was said last is done.
        brief = [each for each, verb in granting.items() if not isinstance(verb, hostpipe.Drain)]
        if brief:
            await asyncio.wait(brief, timeout=_LAST_ASKS)
        for task in granting:
            task.cancel()


def _refusal(id: int, error: Exception) -> hostpipe.Answer:
    return hostpipe.Answer(id, refused=str(error), is_usage=isinstance(error, UsageError))
