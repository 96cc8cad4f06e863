"""The Python API: `Supervisor` for programs that embed casemate, and the synchronous shortcuts.

The engine behind a `Supervisor` is a child process reached over a socketpair (`hostpipe.py`): a
host that blocks its own loop delays no kill. Events do not come through that pipe. `execute()` is a
cursor over the run's journal, woken by the engine's notes of how far it is committed: a slow reader
costs nothing, and misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec
from msgspec import Raw

from ..protocol import codec
from ..protocol.control import BreakerSummary
from ..protocol.errors import CasemateError, SetupRefused, UsageError
from ..protocol.events import CheckpointCreated
from ..protocol.limits import VALUE_SIZE
from ..protocol.pipeline import PipelineSpec
from ..protocol.units import parse_duration
from . import hostpipe, logs
from .affected import unaffected
from .apply import Applied
from .breakers import read_breakers, step_breaker
from .builder import Pipeline
from .changes import Diff, apply_run, diff_run
from .config import Config, load_config
from .core.breaker import Forced, Reset
from .cursor import PipelineEvent, RunResult, collect, follow
from .overview import list_checkpoints
from .pipeline import compile_document
from .recovery import read_spec
from .sources import snapshot
from .state import StateDirectory
from .submissions import Submissions

if TYPE_CHECKING:
    from .catalogue import Catalogue
    from .offhost import Gate

# A pipeline built here, one that was compiled before, or the path of a pipeline file.
Runnable = Pipeline | PipelineSpec | str | os.PathLike[str]

__all__ = ["PipelineEvent", "RunResult", "Supervisor", "run_pipeline"]


T = TypeVar("T")

logs.keep_quiet()


class Supervisor:
    """Runs pipelines. Use it as an async context manager; leaving it ends its engine.

    Settings that are not given come from `casemate.toml` and the environment (see README).
    `on_submitted`: runs are also taken from clients (`casemate submit`); called with the id of
    each. Their pipelines may do what this configuration allows. `on_shutdown`: such clients may
    also end it (`casemate shutdown`); called with the seconds that what runs has to end in,
    or None where they left that to this program.
    `listen`: HOST:PORT at which clients of other hosts may reach it, those whose keys are in the
    `keys` of the configuration.
    `catalogue`: pipelines that clients may submit by name.
    """

    def __init__(
        self,
        *,
        state: str | os.PathLike[str] | None = None,
        max_parallel: int | None = None,
        config: Config | None = None,
        on_submitted: Callable[[str], None] | None = None,
        on_shutdown: Callable[[float | None], None] | None = None,
        listen: str | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        self._config = config or load_config(state=state, max_parallel=max_parallel)
        self._catalogue = catalogue
        self._warning: str | None = None
        self._gate = None if listen is None else _gate(listen, self._config)
        self._state = StateDirectory(self._config.state)
        self._on_submitted = on_submitted
        self._on_shutdown = on_shutdown
        self._submissions = Submissions(self._state)
        self._accepting: set[asyncio.Task[None]] = set()
        # By submission.
        self._starting: dict[str, asyncio.Task[tuple[str, str | None]]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[hostpipe.Answer]] = {}
        self._known: set[str] = set()
        self._progress: dict[str, hostpipe.Committed] = {}
        self._news = asyncio.Condition()
        self._gone: str | None = None

    async def __aenter__(self) -> Self:
        if self._gate is not None:
            await self._gate.prepare()
        ours, theirs = socket.socketpair()
        try:
            control = await self._start_engine(ours, theirs)
            if self._gate is not None:
                await self._gate.start(control, self.events_endpoint)
        except BaseException:  # a cancel above all: who did not enter does not leave
            if self._writer is None:
                ours.close()
            await self.__aexit__()
            raise
        return self

    async def _start_engine(self, ours: socket.socket, theirs: socket.socket) -> str:
        """Wait until it is ready; the address of its control socket."""
        code = (
            f"import sys; sys.path[:] = {[os.path.abspath(path) for path in sys.path]!r};"
            "from casemate.supervisor.embedded import main; main()"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", code, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                # A few names, and no secret among them but those the operator lets tasks have.
                env={k: v for k, v in os.environ.items() if k in self._passed()},
                start_new_session=True,  # ^C in the host's terminal is the host's to handle
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        settings = self._config.settings()
        accepts = self._on_submitted is not None
        hostpipe.write(self._writer, msgspec.structs.replace(settings, accepts=accepts))
        head = await hostpipe.read(reader)
        ready = msgspec.msgpack.decode(head, type=hostpipe.Answer) if head else None
        if ready is None:
            raise SetupRefused("the engine ended before it was ready; see what it said on stderr")
        if ready.refused is not None:
            raise _refused(ready, SetupRefused)
        self.events_endpoint = ready.events or ""
        self._listening = asyncio.create_task(self._listen(reader))
        return ready.control or ""

    async def __aexit__(self, *_: object) -> None:
        for accepting in self._accepting:
            accepting.cancel()
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        if self._listening is not None:
            await self._listening
        if self._gate is not None:  # after the engine, for what that says last
            await self._gate.close()

    def _passed(self) -> frozenset[str]:
        return _ENGINE_ENVIRONMENT | self._config.allow.env

    # --- verbs -----------------------------------------------------------------------------

    async def submit(self, pipeline: Runnable, input: Any = None) -> str:
        """Start a run; its id. `pipeline` may be the path of a file. Raises UsageError for a
        pipeline or an input that cannot run."""
        value = Raw(codec.encode_value(input, name="input"))
        if len(value) > VALUE_SIZE:
            raise UsageError(f"input: {len(value)} bytes, of at most {VALUE_SIZE}")
        spec = await asyncio.to_thread(self._spec, pipeline)
        answer = await self._ask(hostpipe.Submit(spec, value))
        assert answer.run is not None
        self._known.add(answer.run)
        return answer.run

    async def start_submitted(self) -> None:
        """Start what was submitted to a supervisor that died before it had begun. Raises UsageError
        with what could not be, after the rest."""
        problems = []
        for submission in await asyncio.to_thread(self._submissions.pending):
            try:
                await self._start(submission, None)
            except _REFUSALS as error:
                problems.append(f"submission {submission}: {error}")
        if problems:
            raise UsageError("\n".join(problems))

    async def execute(self, pipeline: Runnable, input: Any = None) -> AsyncIterator[PipelineEvent]:
        """Start a run and yield its events, lossless and in order. Dropping the iterator does not
        stop the run."""
        run = await self.submit(pipeline, input)
        async for event in self.events(run):
            yield event

    async def events(
        self, run: str, since: int = 0, *, whole: bool = True
    ) -> AsyncIterator[PipelineEvent]:
        """The events of a run of this supervisor, those after `since`. Not `whole`: without large
        values, whose sizes are in `omitted`."""
        if run not in self._known:
            raise UsageError(f"run {run}: not one of this supervisor's")
        async for event in follow(self._state, self, run, since, whole=whole):
            yield event

    async def cancel(self, run: str, reason: str = "cancelled by the embedding program") -> None:
        """Kill what the run has going and end it."""
        await self._ask(hostpipe.CancelRun(run, reason))

    async def pause(self, run: str, *, drain: bool = False) -> None:
        """Start nothing more of the run. What runs is frozen, clocks and all, or (`drain`) left to
        end. Pausing twice is pausing once."""
        await self._ask(hostpipe.Pause(run, drain))

    async def resume(self, run: str) -> None:
        """Go on with a run that is paused, or one of this state directory whose supervisor is
        gone: what had completed is not done again."""
        await self._ask(hostpipe.Resume(run))
        self._known.add(run)

    async def take_up(self, run: str) -> None:
        """The same for a run whose supervisor is gone, as it was left: one that was paused stays
        paused."""
        await self._ask(hostpipe.TakeUp(run))
        self._known.add(run)

    async def checkpoint(self, run: str) -> str:
        """Make a checkpoint now, if anything has completed since the latest one; its id."""
        answer = await self._ask(hostpipe.CheckpointRun(run))
        return answer.checkpoint or ""

    async def rollback(
        self,
        run: str,
        checkpoint: str | None = None,
        *,
        before: str | None = None,
        accept_base: bool = False,
    ) -> None:
        """Back to a checkpoint, or to just before a task (which undoes it and what depends on it),
        and on from there. Also for a run that has ended. UsageError where others have changed the
        workspace since the run began, unless `accept_base`: with it as it is now."""
        known = self._progress.get(run)
        if known is not None and known.ended:  # which is not the last word where it goes on
            del self._progress[run]
        try:
            await self._ask(hostpipe.Rollback(run, checkpoint, before, accept_base))
        except CasemateError:
            if known is not None and known.ended:  # nothing more will be told of it
                async with self._news:
                    self._progress.setdefault(run, known)
                    self._news.notify_all()
            raise
        self._known.add(run)

    async def fork(self, run: str, checkpoint: str) -> str:
        """A new run that goes on from a checkpoint of this one, which is left alone; its id."""
        answer = await self._ask(hostpipe.Fork(run, checkpoint))
        assert answer.run is not None
        self._known.add(answer.run)
        return answer.run

    async def checkpoints(self, run: str) -> list[CheckpointCreated]:
        """Those that were made, oldest first: where `rollback` and `fork` may go."""
        return await asyncio.to_thread(list_checkpoints, self._state.find_run(run))

    async def diff(
        self, run: str, *, checkpoint: str | None = None, attempt: str | None = None
    ) -> Diff:
        """What a run changed in its workspace, as a patch: now, at a checkpoint, or by one attempt
        (`"task/2"`)."""
        found = self._state.find_run(run)
        return await asyncio.to_thread(
            diff_run, self._state, found, checkpoint=checkpoint, attempt=attempt
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
        """Write what a run that has ended changed into its workspace, or raise ApplyRefused and
        write nothing: where others changed it (`accept_base`), a change is risky (`allow` names
        those that are welcome) or branches clash (`last`)."""
        _, applied = await asyncio.to_thread(
            apply_run,
            self._state,
            self._state.find_run(run),
            checkpoint=checkpoint,
            allow=allow,
            accept_base=accept_base,
            last=last,
            dry_run=dry_run,
        )
        return applied

    async def revise(self, run: str, pipeline: Runnable) -> str | None:
        """Go on with a changed pipeline: a new run, which begins with all that this one has
        completed and the change does not touch; its id. This one is cancelled, if it is under way.
        None: nothing that is run was changed, and nothing happens."""
        spec = await asyncio.to_thread(self._spec, pipeline)
        wish = await asyncio.to_thread(self._revision, run, spec)
        if wish is None:
            return None
        answer = await self._ask(wish)
        assert answer.run is not None
        self._known.add(answer.run)
        return answer.run

    async def drain(self) -> None:
        """Start nothing new, in any run, and wait until what runs has ended. Runs that are not over
        stay as they are, for whoever takes them up. There is no way back but a new Supervisor."""
        await self._ask(hostpipe.Drain())

    async def reconfigure(self, config: Config) -> None:
        """From now on what is submitted may do what this configuration allows, and as many attempts
        may live at once as it says. All else that it says counts for the next Supervisor."""
        self._config = replace(self._config, allow=config.allow, max_parallel=config.max_parallel)
        await self._ask(hostpipe.Reconfigure(config.max_parallel))

    def warn_submitters(self, warning: str | None) -> None:
        """What whoever submits something is told from now on."""
        self._warning = warning

    async def ping(self) -> None:
        """Returns when the engine has answered: it lives, and is not stuck."""
        await self._ask(hostpipe.Ping())

    async def breakers(self) -> list[BreakerSummary]:
        """How the breakers of the state directory stand that have seen a failure."""
        return await asyncio.to_thread(read_breakers, self._state.path)

    async def open_breaker(self, key: str, open_for: float | str = "30s") -> BreakerSummary:
        """Open a breaker by hand, for all runs of the state directory, until a probe after
        `open_for`. What runs of it is killed or drained, as its tasks say."""
        try:
            happening = Forced(parse_duration(open_for))
        except ValueError as error:
            raise UsageError(f"open_for: {error}") from error
        return await asyncio.to_thread(step_breaker, self._state.path, key, happening)

    async def reset_breaker(self, key: str) -> BreakerSummary:
        """Close a breaker and forget its failures."""
        return await asyncio.to_thread(step_breaker, self._state.path, key, Reset())

    async def wait_closed(self) -> None:
        """Until the engine is gone: it has died, or the `async with` has ended."""
        if self._listening is not None:
            await asyncio.shield(self._listening)

    # --- what clients ask of the program ---------------------------------------------------

    def _for_client(self, answering: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(answering)
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    async def _accept(self, submitted: hostpipe.Submitted) -> None:
        try:
            run, note = await self._start(submitted.submission, submitted.digest)
            notes = tuple(each for each in (note, self._warning) if each is not None)
            answer = hostpipe.Accepted(submitted.number, run=run, notes=notes)
        except _REFUSALS as error:
            answer = hostpipe.Accepted(submitted.number, refused=str(error))
        await self._ask(answer)

    async def _shut_down(self, asked: hostpipe.ShutDown) -> None:
        if self._on_shutdown is None:
            answer = hostpipe.Accepted(
                asked.number, refused="this supervisor is its program's to end"
            )
        else:
            answer = hostpipe.Accepted(asked.number, run="")
            self._tell(self._on_shutdown, asked.drain)
        await self._ask(answer)

    def _tell(self, callback: Callable[[T], None], what: T) -> None:
        """What the program does of it is its own affair: its clients have their answer."""
        try:
            callback(what)
        except Exception as error:
            context = {"message": f"{callback} raised", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _start(self, submission: str, digest: bytes | None) -> tuple[str, str | None]:
        """The run of a submission, whoever began it, and what there is to say of its pipeline.
        `digest`: of what was uploaded just now."""
        starting = self._starting.get(submission)
        if starting is None:  # else it is named again, by a client whose patience was short
            starting = asyncio.create_task(self._begin(submission, digest))
            self._starting[submission] = starting
            starting.add_done_callback(lambda _: self._starting.pop(submission))
        return await asyncio.shield(starting)

    async def _begin(self, submission: str, digest: bytes | None) -> tuple[str, str | None]:
        store, note = self._submissions, None
        run = await asyncio.to_thread(store.run_of, submission)
        if run is None:
            try:
                if digest is None:
                    packed = await asyncio.to_thread(store.read, submission)
                else:
                    packed = await asyncio.to_thread(store.take, submission, digest)
                run, note = await self._submit_bundle(packed, submission)
            except _REFUSALS as error:
                # It never will be a run, or a client is told so. Where the engine is gone nobody
                # is; and what the next `start_submitted` may begin is kept for it.
                is_over = isinstance(error, UsageError) or digest is not None
                if is_over and self._gone is None:
                    await asyncio.to_thread(store.drop, submission)
                raise
        await asyncio.to_thread(store.drop, submission)
        return run, note

    async def _submit_bundle(self, packed: bytes, submission: str) -> tuple[str, str | None]:
        # Only here: most supervisors take none.
        from .bundle import complete, unpack

        packed, note = await asyncio.to_thread(complete, packed, self._known_by_name)
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="casemate-submitted-"))
        try:
            spec, value = await asyncio.to_thread(unpack, packed, folder, self._config.allow)
            answer = await self._ask(hostpipe.Submit(spec, value, submission))
        finally:
            await asyncio.to_thread(shutil.rmtree, folder)
        assert answer.run is not None
        self._known.add(answer.run)
        if self._on_submitted is not None:
            self._tell(self._on_submitted, answer.run)
        return answer.run, note

    def _known_by_name(self, name: str) -> tuple[bytes, str | None]:
        if self._catalogue is None:
            raise UsageError(
                f"pipeline {name}: this supervisor knows none by name; one of "
                "`casemate serve --pipelines DIR` does"
            )
        return self._catalogue.bundle(name)

    # --- the engine's side -----------------------------------------------------------------

    def _spec(self, pipeline: Runnable) -> PipelineSpec:
        if isinstance(pipeline, PipelineSpec):
            return pipeline
        if isinstance(pipeline, (str, os.PathLike)):
            # Only here: reading a `.py` file takes a Supervisor.
            from .describe import read_pipeline

            return read_pipeline(Path(pipeline), self._config)
        return compile_document(pipeline.document(), root=pipeline.root, allow=self._config.allow)

    def _revision(self, run: str, spec: PipelineSpec) -> hostpipe.Revise | None:
        directory = self._state.run(run)
        old = read_spec(directory)
        with tempfile.TemporaryDirectory(prefix="casemate-changed-") as folder:
            made = snapshot(spec, Path(folder))
            same = unaffected(old, directory.sources, spec, Path(folder))
            is_same_data = msgspec.msgpack.encode(spec) == msgspec.msgpack.encode(old)
            if is_same_data and len(same) == len(spec.tasks):
                return None
            return hostpipe.Revise(run, spec, made.digest, tuple(sorted(same)))

    async def wait_committed(self, run: str, beyond: int) -> tuple[int, bool]:
        async with self._news:
            while True:
                known = self._progress.get(run)
                if known is not None and known.problem is not None:
                    raise CasemateError(known.problem)
                if known is not None and (known.ended or known.seq > beyond):
                    return known.seq, known.ended
                if self._gone is not None:
                    raise CasemateError(self._gone)
                await self._news.wait()

    async def _ask(self, verb: hostpipe.Verb) -> hostpipe.Answer:
        if self._writer is None or self._gone is not None:
            raise CasemateError(self._gone or "use the Supervisor inside `async with`")
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        hostpipe.write(self._writer, hostpipe.Ask(number, verb))
        with contextlib.suppress(ConnectionError):  # the engine is gone: `_listen` answers
            await self._writer.drain()
        reply: hostpipe.Answer = await answer
        if reply.refused is not None:
            raise _refused(reply, CasemateError)
        return reply

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        decoder = msgspec.msgpack.Decoder(hostpipe.Message)
        while (body := await hostpipe.read(reader)) is not None:
            match decoder.decode(body):
                case hostpipe.Answer() as answer:
                    waiting = self._answers.pop(answer.id)
                    if not waiting.done():  # cancelled by whoever asked
                        waiting.set_result(answer)
                case hostpipe.Submitted() as submitted:
                    self._for_client(self._accept(submitted))
                case hostpipe.ShutDown() as asked:
                    self._for_client(self._shut_down(asked))
                case hostpipe.Committed() as committed:
                    async with self._news:
                        self._progress[committed.run] = committed
                        self._news.notify_all()
        async with self._news:
            self._gone = "the engine is gone: its runs are interrupted, their journals are kept"
            self._news.notify_all()
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(CasemateError(self._gone))


def _gate(listen: str, config: Config) -> Gate:
    # Only here: most supervisors have none.
    from .offhost import Gate
    from .remote import Address

    return Gate(Address.parse(listen, "listen"), config.keys)


def _refused(answer: hostpipe.Answer, otherwise: type[CasemateError]) -> CasemateError:
    return (UsageError if answer.is_usage else otherwise)(answer.refused)


# Why a submission does not become a run: what is wrong with it or with this host.
_REFUSALS = (CasemateError, OSError, ValueError)

_ENGINE_ENVIRONMENT = frozenset({"HOME", "PATH", "LANG", "LC_ALL", "TMPDIR", "XDG_RUNTIME_DIR"})


def run_pipeline(pipeline: Pipeline, input: Any = None, **settings: Any) -> RunResult:
    """`Pipeline.run`: the whole run in one call, from any thread, with or without a running loop.

    It has a thread and a loop of its own, so that it also works where a loop is already running
    (a notebook).
    """
    box: list[RunResult | BaseException] = []
    interrupted = threading.Event()
    ended = threading.Event()  # not Thread.join: interrupted once, it never waits again

    async def until_interrupted() -> RunResult:
        loop, whole = asyncio.get_running_loop(), asyncio.current_task()
        assert whole is not None
        stops.append(lambda: loop.call_soon_threadsafe(whole.cancel))
        if interrupted.is_set():  # before there was a loop to tell
            raise asyncio.CancelledError
        return await _run_to_end(pipeline, input, settings)

    stops: list[Callable[[], object]] = []

    def whole() -> None:
        try:
            box.append(asyncio.run(until_interrupted()))
        except BaseException as error:
            box.append(error)
        finally:
            ended.set()

    threading.Thread(target=whole, name="casemate-run").start()
    try:
        ended.wait()
    except BaseException:  # ^C, in a notebook above all, where nothing else would end the run
        interrupted.set()
        for stop in stops:
            with contextlib.suppress(RuntimeError):  # its loop has just ended by itself
                stop()
        ended.wait()
        raise
    [result] = box
    if isinstance(result, BaseException):
        raise result
    return result


async def _run_to_end(pipeline: Pipeline, input: Any, settings: dict[str, Any]) -> RunResult:
    async with Supervisor(**settings) as supervisor:
        return await collect(supervisor.execute(pipeline, input))
