"""The engine as a child of the program that embeds it: an `Engine` at the end of `hostpipe`.

Ends when the host hangs up, whether it closed or died: what lives is killed, runs under way stay
interrupted.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys

import msgspec

from ..protocol.errors import CasemateError, LocalViolation, UsageError
from . import hostpipe
from .engine import Engine

__all__ = ["main"]


def main() -> None:
    # Of all it may have: each live attempt takes a handful. In the host's process that would be
    # the host's to decide (select() breaks above 1023); this one is ours.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve(int(sys.argv[1])))


async def _serve(fd: int) -> None:
    host = socket.socket(fileno=fd)
    host.set_inheritable(False)
    reader, writer = await asyncio.open_connection(sock=host)
    head = await hostpipe.read(reader)
    if head is None:
        return
    settings = msgspec.msgpack.decode(head, type=hostpipe.Settings)
    try:
        async with Engine(settings) as engine:
            hostpipe.write(writer, hostpipe.Answer(0, events=engine.front.events_endpoint))
            engine.listener = lambda run, seq, ended: hostpipe.write(
                writer, hostpipe.Committed(run, seq, ended, engine.problem(run))
            )
            await _answer(engine, reader, writer)
    except CasemateError as error:
        hostpipe.write(writer, _refusal(0, error))
    finally:
        writer.close()


async def _answer(
    engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    decoder = msgspec.msgpack.Decoder(hostpipe.Ask)
    async with asyncio.TaskGroup() as asks:

        async def grant(ask: hostpipe.Ask) -> None:
            try:
                run = None
                match ask.verb:
                    case hostpipe.Submit(spec=spec, input=value):
                        run = await engine.submit(spec, value)
                    case hostpipe.CancelRun(run=cancelled, reason=reason):
                        engine.cancel(cancelled, reason)
                hostpipe.write(writer, hostpipe.Answer(ask.id, run))
            except LocalViolation:
                raise  # a bug of ours, and the engine cannot be trusted any more
            except Exception as error:  # of one ask: it must not end the runs of the others
                hostpipe.write(writer, _refusal(ask.id, error))

        while (body := await hostpipe.read(reader)) is not None:
            asks.create_task(grant(decoder.decode(body)))


def _refusal(id: int, error: Exception) -> hostpipe.Answer:
    return hostpipe.Answer(id, refused=str(error), is_usage=isinstance(error, UsageError))
