"""Driving a supervisor from outside: the verbs of `Supervisor`, for another process's runs.

    with Client() as client:                 async with AsyncClient() as client:
        run = client.submit("review.yaml")       run = await client.submit("review.yaml")
        for event in client.events(run): ...     async for event in client.events(run): ...
        client.pause(run)                        await client.pause(run)

Both speak to the control socket of whoever owns the run (`control.py`), and read events as any
observer does (`observing.py`). The second waits in threads, so that its loop is left to others; one
who stops waiting does not take back what he asked for. With `at="HOST:PORT"` they drive the
supervisor at that address and no other (`remote.py`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import Raw

from ..protocol import codec
from ..protocol.control import BreakerSummary, RunSummary, TaskSummary
from ..protocol.errors import UsageError
from ..protocol.events import CheckpointCreated
from ..protocol.units import parse_duration
from . import control
from .apply import Applied
from .breakers import read_breakers, step_breaker
from .builder import Pipeline
from .bundle import pack, pack_name
from .catalogue import is_name
from .changes import Diff, apply_run, diff_run
from .config import Config, load_config
from .core.breaker import Forced, Reset
from .describe import read_document
from .observing import Observation, observe
from .overview import describe, list_checkpoints, list_runs, summarise
from .pipeline import compile_document
from .reading import Document
from .remote import Remote
from .state import StateDirectory

__all__ = ["AsyncClient", "Client"]


class Client:
    """Of the supervisors of a state directory, or (`at`) of one on another host. Use it as a
    context manager; it may be used from several threads. RUN is an id, a unique prefix, or `last`.

    Every verb raises UsageError for what cannot be done as things stand, and CasemateError where
    the supervisor cannot be reached or fails.
    """

    def __init__(
        self,
        *,
        state: str | os.PathLike[str] | None = None,
        config: Config | None = None,
        patience: float = 600.0,
        at: str | None = None,
        keys: str | os.PathLike[str] | None = None,
    ) -> None:
        """`patience`: seconds to wait for an answer; a rollback of a large workspace takes some.
        `at`: HOST:PORT of a supervisor that listens there. `keys`: the folder with `client.key` and
        `server.pub`, else the configuration's."""
        if at is not None and state is not None:
            raise UsageError("Client: a state directory or the address of a supervisor, not both")
        self._config = config or load_config(state=state, keys=keys)
        self._at = at
        if at is None:
            where: StateDirectory | Remote = StateDirectory.open_existing(self._config.state)
        else:
            where = Remote.of(at, self._config.keys)
        self._where = where
        self._control = control.Client(where, patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()

    def submit(
        self,
        pipeline: Pipeline | str | os.PathLike[str],
        input: Any = None,  # the user's value
        *,
        workspace: str | os.PathLike[str] | None = None,
        on_note: Callable[[str], object] | None = None,
    ) -> str:
        """Have the supervisor of `casemate serve` run it: a pipeline, the path of a file (what its
        tasks import travels along), or the name of one that it knows (`serve --pipelines`). The
        run's id. `on_note`: is called with what there is to say of it, as that the file is broken
        by now and this is what it was before."""
        value = Raw(codec.encode_value(input, name="input"))
        chosen = None if workspace is None else Path(workspace)
        if isinstance(pipeline, str) and is_name(pipeline):
            packed = pack_name(pipeline, chosen, value)
        else:
            packed = self._packed(pipeline, chosen, value)
        run, notes = self._control.submit(packed)
        if on_note is not None:
            for note in notes:
                on_note(note)
        return run

    def _packed(
        self, pipeline: Pipeline | str | os.PathLike[str], workspace: Path | None, value: Raw
    ) -> bytes:
        if isinstance(pipeline, Pipeline):
            name = f"pipeline {pipeline.name}"
            document, root = Document(pipeline.document(), name), Path(pipeline.root)
        else:
            file = Path(pipeline)
            document, root = read_document(file, self._config), file.absolute().parent
        spec = compile_document(document, root=root, allow=self._config.allow, workspace=workspace)
        return pack(document, spec, value)

    def runs(self) -> list[RunSummary]:
        """The newest runs of the state directory, whoever owns them."""
        if isinstance(self._where, Remote):
            return self._control.list_remote()
        return list_runs(self._where)

    def summary(self, run: str = "last") -> RunSummary:
        """How a run stands, of whatever length: without its tasks."""
        if isinstance(self._where, Remote):
            return self._control.show_remote(run).run
        return summarise(self._where.find_run(run))

    def show(self, run: str = "last") -> tuple[RunSummary, tuple[TaskSummary, ...]]:
        """How a run stands, and each of its tasks, by its journal."""
        if isinstance(self._where, Remote):
            shown = self._control.show_remote(run)
            return shown.run, shown.tasks
        return describe(self._where.find_run(run))

    def events(
        self,
        run: str = "last",
        since: int | None = 0,
        *,
        whole: bool = True,
        lossy: bool = False,
        patience: float = 10.0,
    ) -> Observation:
        """As `observe`."""
        if isinstance(self._where, Remote):
            state, at, keys = None, self._at, self._config.keys
        else:
            state, at, keys = self._where.path, None, None
        return observe(
            run, since=since, whole=whole, lossy=lossy, patience=patience,
            state=state, at=at, keys=keys,
        )  # fmt: skip

    def cancel(self, run: str, reason: str = "") -> None:
        """Kill what the run has going and end it."""
        self._control.cancel(run, reason)

    def pause(self, run: str, *, drain: bool = False) -> None:
        """Start nothing more of the run; what runs is frozen, or left to end (`drain`)."""
        self._control.pause(run, drain)

    def resume(self, run: str) -> None:
        """Go on with a run that is paused."""
        self._control.resume(run)

    def checkpoint(self, run: str) -> str:
        """Make a checkpoint now, if anything has completed since the latest one; its id."""
        return self._control.checkpoint(run)

    def rollback(
        self,
        run: str,
        checkpoint: str | None = None,
        *,
        before: str | None = None,
        accept_base: bool = False,
    ) -> None:
        """Back to a checkpoint, or to just before a task, and on from there."""
        self._control.rollback(run, checkpoint, before, accept_base)

    def fork(self, run: str, checkpoint: str) -> str:
        """A new run that goes on from a checkpoint of this one; its id."""
        return self._control.fork(run, checkpoint)

    def checkpoints(self, run: str) -> list[CheckpointCreated]:
        """Those that were made, oldest first: where `rollback` and `fork` may go."""
        if not isinstance(self._where, Remote):
            return list_checkpoints(self._where.find_run(run))
        last = self._control.show_remote(run).as_of
        found = []
        for event in self.events(run, whole=False) if last else ():
            if event.kind == "checkpoint.created":
                found.append(msgspec.convert(event.data, CheckpointCreated))
            if event.seq >= last:
                break
        return found

    def diff(self, run: str, *, checkpoint: str | None = None, attempt: str | None = None) -> Diff:
        """What the run changed in its workspace, as a patch: now, at a checkpoint, or by one
        attempt (`"task/2"`)."""
        if isinstance(self._where, Remote):
            raise UsageError(f"diff: a run's files do not leave their host; do it at {self._at}")
        state = self._where
        return diff_run(state, state.find_run(run), checkpoint=checkpoint, attempt=attempt)

    def apply(
        self,
        run: str,
        *,
        checkpoint: str | None = None,
        allow: Iterable[str] = (),
        accept_base: bool = False,
        last: bool = False,
        dry_run: bool = False,
    ) -> Applied:
        """Write what a run that has ended changed into its workspace, or raise ApplyRefused and
        write nothing: where others changed it (`accept_base`), a change is risky (`allow` names
        those that are welcome) or branches clash (`last`). From another host: a UsageError with
        its words."""
        if isinstance(self._where, Remote):
            return self._control.apply_remote(
                run,
                checkpoint=checkpoint,
                allow=allow,
                accept_base=accept_base,
                last=last,
                dry_run=dry_run,
            )
        state = self._where
        return apply_run(
            state,
            state.find_run(run),
            checkpoint=checkpoint,
            allow=allow,
            accept_base=accept_base,
            last=last,
            dry_run=dry_run,
        )[1]

    def shutdown(self, drain: float | str | None = None) -> None:
        """End the supervisor of `casemate serve`. What runs has `drain` to end in (else what that
        was told itself); what has not by then is begun again by the next. Returns when it has begun
        to end."""
        try:
            seconds = None if drain is None else parse_duration(drain)
        except ValueError as error:
            raise UsageError(f"drain: {error}") from error
        self._control.shutdown(seconds)

    def breakers(self) -> list[BreakerSummary]:
        """How the breakers of the state directory stand that have seen a failure."""
        if isinstance(self._where, Remote):
            return self._control.breakers_remote()
        return read_breakers(self._where.path)

    def open_breaker(self, key: str, open_for: float | str = "30s") -> BreakerSummary:
        """Open a breaker by hand, for all runs of the state directory."""
        try:
            happening = Forced(parse_duration(open_for))
        except ValueError as error:
            raise UsageError(f"open_for: {error}") from error
        return self._step_breaker(key, happening)

    def reset_breaker(self, key: str) -> BreakerSummary:
        """Close a breaker and forget its failures."""
        return self._step_breaker(key, Reset())

    def _step_breaker(self, key: str, happening: Forced | Reset) -> BreakerSummary:
        if isinstance(self._where, Remote):
            return self._control.step_breaker_remote(key, happening)
        return step_breaker(self._where.path, key, happening)


class AsyncClient:
    """`Client` for programs with a loop."""

    def __init__(
        self,
        *,
        state: str | os.PathLike[str] | None = None,
        config: Config | None = None,
        patience: float = 600.0,
        at: str | None = None,
        keys: str | os.PathLike[str] | None = None,
    ) -> None:
        self._client = Client(state=state, config=config, patience=patience, at=at, keys=keys)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *reason: object) -> None:
        await asyncio.to_thread(self._client.__exit__, *reason)

    def events(
        self,
        run: str = "last",
        since: int | None = 0,
        *,
        whole: bool = True,
        lossy: bool = False,
        patience: float = 10.0,
    ) -> Observation:
        return self._client.events(run, since, whole=whole, lossy=lossy, patience=patience)

    async def summary(self, run: str = "last") -> RunSummary:
        return await asyncio.to_thread(self._client.summary, run)

    async def show(self, run: str = "last") -> tuple[RunSummary, tuple[TaskSummary, ...]]:
        return await asyncio.to_thread(self._client.show, run)

    async def submit(
        self,
        pipeline: Pipeline | str | os.PathLike[str],
        input: Any = None,  # the user's value
        *,
        workspace: str | os.PathLike[str] | None = None,
        on_note: Callable[[str], object] | None = None,
    ) -> str:
        return await asyncio.to_thread(
            self._client.submit, pipeline, input, workspace=workspace, on_note=on_note
        )

    async def runs(self) -> list[RunSummary]:
        return await asyncio.to_thread(self._client.runs)

    async def cancel(self, run: str, reason: str = "") -> None:
        await asyncio.to_thread(self._client.cancel, run, reason)

    async def pause(self, run: str, *, drain: bool = False) -> None:
        await asyncio.to_thread(self._client.pause, run, drain=drain)

    async def resume(self, run: str) -> None:
        await asyncio.to_thread(self._client.resume, run)

    async def checkpoint(self, run: str) -> str:
        return await asyncio.to_thread(self._client.checkpoint, run)

    async def rollback(
        self,
        run: str,
        checkpoint: str | None = None,
        *,
        before: str | None = None,
        accept_base: bool = False,
    ) -> None:
        await asyncio.to_thread(
            self._client.rollback, run, checkpoint, before=before, accept_base=accept_base
        )

    async def fork(self, run: str, checkpoint: str) -> str:
        return await asyncio.to_thread(self._client.fork, run, checkpoint)

    async def checkpoints(self, run: str) -> list[CheckpointCreated]:
        return await asyncio.to_thread(self._client.checkpoints, run)

    async def diff(
        self, run: str, *, checkpoint: str | None = None, attempt: str | None = None
    ) -> Diff:
        return await asyncio.to_thread(
            self._client.diff, run, checkpoint=checkpoint, attempt=attempt
        )

    async def apply(
        self,
        run: str,
        *,
        checkpoint: str | None = None,
        allow: Iterable[str] = (),
        accept_base: bool = False,
        last: bool = False,
        dry_run: bool = False,
    ) -> Applied:
        return await asyncio.to_thread(
            self._client.apply,
            run,
            checkpoint=checkpoint,
            allow=allow,
            accept_base=accept_base,
            last=last,
            dry_run=dry_run,
        )

    async def shutdown(self, drain: float | str | None = None) -> None:
        await asyncio.to_thread(self._client.shutdown, drain)

    async def breakers(self) -> list[BreakerSummary]:
        return await asyncio.to_thread(self._client.breakers)

    async def open_breaker(self, key: str, open_for: float | str = "30s") -> BreakerSummary:
        return await asyncio.to_thread(self._client.open_breaker, key, open_for)

    async def reset_breaker(self, key: str) -> BreakerSummary:
        return await asyncio.to_thread(self._client.reset_breaker, key)
