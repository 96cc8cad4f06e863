"""One live attempt as the engine holds it: a sandbox, its link, its output pipes.

The supervisor makes every endpoint. For the link it listens on a unix socket in its own private
folder, connects to that socket once, and removes the path: nobody else can ever connect. The guest
inherits the listening end. What comes out of the link is parsed by `protocol/zmtp.py` and decoded
by `protocol/codec.py`; here it becomes events for the journal and news for the core.

The end has one order: the tree is killed; its death is proved (pidfd, cgroup); what is still in the
link and the pipes is read; then the attempt is judged, once. A process that nobody killed and that
merely exits takes the same road.
"""

from __future__ import annotations

import asyncio
import codecs
import functools
import itertools
import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from msgspec import Raw

from ..protocol import codec
from ..protocol.errors import LocalViolation, RemoteViolation
from ..protocol.events import (
    ErrorKind,
    EventData,
    TaskArtifact,
    TaskEmitted,
    TaskError,
    TaskLog,
    TaskProgress,
)
from ..protocol.limits import (
    ARTIFACTS,
    ARTIFACTS_SIZE,
    EVENT_SIZE,
    LINK_READ_SIZE,
    LINK_VERSION,
    LOG_LINE_SIZE,
)
from ..protocol.link import Conversation, Role
from ..protocol.messages import (
    Accept,
    Artifact,
    Cancel,
    Credit,
    Deadline,
    Emit,
    End,
    Fail,
    Hello,
    Item,
    Kind,
    Log,
    Message,
    Part,
    Progress,
    Result,
    Run,
    Save,
    Saved,
)
from ..protocol.pipeline import TaskSpec
from ..protocol.refusals import Refusal
from ..protocol.zmtp import Endpoint, WireViolation
from ..sandbox.process import Stdio
from ..sandbox.spec import OWN_NETWORK
from .outbox import take_artifact, take_output
from .sandboxes import Lease

__all__ = ["Attempt", "Key", "Lines", "Link", "Owner"]


# Progress is for people: one a second, the newest.
PROGRESS_INTERVAL = 1.0

# How far ahead of `limits.event_rate` one may be: honest tasks speak in bursts.
RATE_BURST = 1.0

# One read of a link with such a limit: a hundred of the smallest events.
PACED_READ_SIZE = 2048


@dataclass(frozen=True, slots=True, order=True)
class Key:
    run: str
    task: str
    attempt: int

    def __str__(self) -> str:
        return f"task {self.task} (attempt {self.attempt})"


# What a check has no business to say: it has no output but its answer.
_OF_TASKS = (Emit, Progress, Save, Artifact, Credit)


class Owner(Protocol):
    """Who is told. Called on the loop; none of these may block."""

    def attempt_greeted(self, attempt: Attempt) -> None: ...
    def attempt_begun(self, attempt: Attempt) -> None: ...
    def attempt_said(self, attempt: Attempt, said: list[EventData]) -> None: ...
    def attempt_credited(self, attempt: Attempt, upstream: str, items: int) -> None: ...
    def attempt_saved(self, attempt: Attempt, state: Raw) -> None: ...
    def attempt_told(self, attempt: Attempt) -> None: ...
    def attempt_dead(self, attempt: Attempt) -> None: ...


# Between two looks whether a killed sandbox's cgroup is empty.
DEATH_INTERVAL = 0.005

_numbers = itertools.count()


def open_link(directory: Path) -> tuple[socket.socket, socket.socket]:
    """(the listening end for the guest, our connected end). The path is gone on return."""
    path = str(directory / f"link-{next(_numbers)}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        try:
            # backlog 0: the kernel then holds one waiting connection, which is ours.
            listener.listen(0)
            ours.setblocking(False)
            ours.connect(path)
        finally:
            os.unlink(path)
    except BaseException:
        listener.close()
        ours.close()
        raise
    return listener, ours


class Link:
    """Our end of the conversation: bytes to messages and back, never blocking."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._endpoint = Endpoint()
        self._conversation = Conversation(Role.SUPERVISOR)
        self._unsent = bytearray(self._endpoint.greeting())

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self, size: int) -> tuple[list[Message], RemoteViolation | None] | None:
        """What one read of at most so many bytes gives: whole messages, maybe none, and the
        violation that came after them; None at the end of the stream. Raises BlockingIOError where
        there is nothing.

        The good messages before a fault count, however the bytes happened to be split.
        """
        try:
            data = self._socket.recv(size)
        except ConnectionResetError:
            return None
        if not data:
            return None
        violation: RemoteViolation | None = None
        try:
            frames = self._endpoint.receive(data)
        except WireViolation as broken:
            frames, violation = broken.frames, broken
        messages: list[Message] = []
        try:
            for frame in frames:
                message = codec.decode_from_guest(frame)
                self._conversation.received(codec.kind_of(message))
                messages.append(message)
        except RemoteViolation as broken:
            violation = broken
        return messages, violation

    def send(self, message: Message) -> None:
        self._conversation.sent(codec.kind_of(message))
        self._unsent += self._endpoint.send(codec.encode(message))

    def may_send(self, kind: Kind) -> bool:
        return self._conversation.may_send(kind)

    def flush(self) -> bool:
        """Write what can be written; False while something remains."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return False
            except (BrokenPipeError, ConnectionResetError):
                self._unsent.clear()  # nobody is there to read it; the pidfd tells the rest
                break
            del self._unsent[:sent]
        return True


class Output:
    """stdout or stderr of a sandbox, as lines of text."""

    def __init__(self, fd: int, stream: str) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._partial = ""

    def read(self) -> bytes | None:
        """b"" when nothing waits, None at the end."""
        try:
            return os.read(self.fd, LINK_READ_SIZE) or None
        except (BlockingIOError, InterruptedError):
            return b""

    def texts(self, data: bytes, final: bool = False) -> Iterator[str]:
        """Whole lines, several to a text where they came together: one event a read, not one a
        line, is what lets a chatty task run at full speed."""
        text = self._partial + self._decode(data, final)
        cut = len(text) if final else text.rfind("\n") + 1
        if not cut and len(text) >= LOG_LINE_SIZE:
            cut = len(text)
        self._partial = text[cut:]
        for start in range(0, cut, LOG_LINE_SIZE):
            yield text[start : min(start + LOG_LINE_SIZE, cut)]


class Pace:
    """When one who may say `rate` events a second may be listened to again: a leaky bucket, in its
    form as a virtual schedule (ITU-T I.371, GCRA). `now`: seconds of any one clock."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._paid = -math.inf  # when all that was said will have been allowed

    def spend(self, now: float, events: int) -> None:
        self._paid = max(self._paid, now - RATE_BURST) + events / self._rate

    def ahead(self, now: float) -> float:
        """Seconds until it may say more."""
        return max(self._paid - now, 0.0)


class Lines:
    """Both ends of what connects the engine with one sandbox: link, stdout, stderr."""

    def __init__(self, runtime: Path) -> None:
        self.listener, self.connection = open_link(runtime)
        self._theirs: list[int] = []
        self.stdout = self.stderr = -1
        try:
            self.stdout, out = os.pipe()
            self._theirs.append(out)
            self.stderr, err = os.pipe()
            self._theirs.append(err)
        except OSError:
            self.close()
            raise

    def stdio(self, stdin: int) -> Stdio:
        out, err = self._theirs
        return Stdio(stdin, out, err)

    def close_theirs(self) -> None:
        """The sandbox has its own copies now: ours would keep the pipes from ending."""
        self.listener.close()
        for fd in self._theirs:
            os.close(fd)
        self._theirs.clear()

    def close(self) -> None:
        self.close_theirs()
        self.connection.close()
        for fd in (self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)


class Attempt:
    """Everything the engine holds for one attempt, from the request to the proof of death."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: Owner,
        key: Key,
        task: TaskSpec,
        lease: Lease,
        lines: Lines,
        job: Run | None,
    ) -> None:
        """`job` is None of one that is made ahead (`warm.py`): it may say HELLO, and is otherwise
        not listened to before `take_up`."""
        self.key = key
        self.task = task
        self.lease = lease
        self.began = loop.time()
        self.greeted = False
        self.is_dead = False
        self.disk: int | None = None  # bytes of its layer, when last looked at
        self.weigh_due = 0.0
        self.result: Result | None = None
        self.failure: Fail | None = None
        self.artifacts: list[Artifact] = []
        self.cause: TaskError | None = None  # what the engine noticed first
        self._sandbox = lease.sandbox
        self._loop = loop
        self._owner = owner
        self._link = Link(lines.connection)
        self._outputs = [Output(lines.stdout, "stdout"), Output(lines.stderr, "stderr")]
        self.part = Part.EXECUTE if job is None else job.part
        self._job = job
        self._is_ahead = job is None
        self._is_run_allowed = False
        self._is_begun = False
        self._deadline: float | None = None  # of its wall limit, on the loop's clock
        self._frozen_at: float | None = None
        self._is_killed = False
        self._is_paused = False
        self._is_held = False
        rate = task.limits.event_rate
        self._pace = None if rate is None else Pace(rate)
        self._pacing: asyncio.TimerHandle | None = None
        self._is_cancelled = False
        self._is_link_over = False
        self._output_left = task.limits.output
        self._progress: TaskProgress | None = None  # the newest, where it is not told yet
        self._progress_due = 0.0
        self._dropped = {"stdout": 0, "stderr": 0, "log": 0}
        self._watched: dict[int, Callable[[], None]] = {}

    @property
    def pid(self) -> int:
        """Of the sandbox's init, as the host sees it; 0 when it is gone already."""
        return self._sandbox.host_pid or 0

    @property
    def walls(self) -> dict[str, Any]:
        """What is in force: the plan's words, and what the kernel said when it was read back."""
        return {**self._sandbox.plan.walls, "posture": self._sandbox.posture()}

    @property
    def sealed(self) -> bool:
        """Its walls stood, as the kernel said, before anything of the task's ran."""
        return self._sandbox.ready is not None

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Which walls the task met, by its own account."""
        return () if self.failure is None else self.failure.refused

    @property
    def is_cut_off(self) -> bool:
        """Its network leads nowhere."""
        return self.walls.get("net") == OWN_NETWORK

    @property
    def unowned_memory(self) -> bool:
        """It was given memory that no process maps."""
        return self._sandbox.plan.unowned_memory

    @property
    def status(self) -> int | None:
        """The guest's wait status, where it ended by itself."""
        return self._sandbox.exited.status if self._sandbox.exited is not None else None

    # --- the start ---------------------------------------------------------------------------

    def watch(self) -> None:
        """Begin to listen; the sandbox is on its way."""
        self._watch(self._link.fileno(), self._on_link)
        for output in self._outputs:
            self._watch(output.fd, functools.partial(self._on_output, output))
        self._listen()
        self._watch(self._sandbox.status_fileno(), self._on_status)
        self._flush()

    def answered(self) -> None:
        """The zygote made the process, and from now on its death is watched; or it could not."""
        sandbox = self._sandbox
        if sandbox.pidfd is not None:
            self._watch(sandbox.pidfd, self._on_death)
            if self.lease.oom_fd is not None:
                self._watch(self.lease.oom_fd, self._on_out_of_memory)
            if self.greeted:
                self._begin()
        else:
            assert sandbox.failed is not None
            kind = ErrorKind.LOST if sandbox.failed.step == "zygote" else ErrorKind.SETUP
            self.blame(kind, sandbox.failed.message)
            self._finish()

    def take_up(self, owner: Owner, job: Run) -> None:
        """From now on it is what it was made ahead for."""
        self._owner, self._job, self.began = owner, job, self._loop.time()
        self._is_ahead = False
        self.thaw()
        self._listen()
        if self._is_begun:
            owner.attempt_greeted(self)
        self._send_job()

    def allow_run(self) -> None:
        """What this attempt builds on is durable: it may be told its job."""
        self._is_run_allowed = True
        self._send_job()

    def _send_job(self) -> None:
        if not self._is_run_allowed or not self._is_begun or self._is_killed or self.is_dead:
            return
        if self._job is not None:
            if self._job.deadline is not None:
                self._deadline = self._loop.time() + self._job.deadline
            self._link.send(self._job)
            self._job = None  # its input may be large
            self._flush()
            self._owner.attempt_begun(self)

    # --- while it runs -----------------------------------------------------------------------

    def saved(self) -> None:
        """What it last saved is durable."""
        if not self.is_dead and self._link.may_send(Kind.SAVED):
            self._link.send(Saved())
            self._flush()

    def give(self, upstream: str, items: tuple[Raw, ...]) -> None:
        """The next items of a stream."""
        if not self.is_dead and self._link.may_send(Kind.ITEM):
            self._link.send(Item(upstream=upstream, items=items))
            self._flush()

    def give_end(self, upstream: str) -> None:
        """A stream has no more."""
        if not self.is_dead and self._link.may_send(Kind.END):
            self._link.send(End(upstream=upstream))
            self._flush()

    def freeze(self) -> None:
        if not self.is_dead and self._frozen_at is None:
            self._frozen_at = self._loop.time()
            self._sandbox.freeze()

    def freeze_again(self) -> None:
        """What slipped past, where it is done by signals."""
        if not self.is_dead and self._frozen_at is not None:
            self._sandbox.freeze()

    def thaw(self) -> None:
        if self.is_dead or self._frozen_at is None:
            return
        gap, self._frozen_at = self._loop.time() - self._frozen_at, None
        if self._deadline is not None:
            self._deadline += gap
            if self._link.may_send(Kind.DEADLINE):
                self._link.send(Deadline(deadline=self._deadline))
                self._flush()
        self._sandbox.thaw()

    # --- the end -----------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask it to end by itself: a message, and SIGTERM to the guest."""
        if self._link.may_send(Kind.CANCEL):
            self._link.send(Cancel(grace=self.task.timeouts.grace))
            self._flush()
        # Whoever reads its stream is slow or gone, and it has to end: to say what it has to say.
        self._is_cancelled = True
        self.hold(False)
        self._sandbox.terminate()

    def kill(self) -> None:
        """SIGKILL to the whole tree; idempotent."""
        if not self._is_killed:
            self._is_killed = True
            self._sandbox.kill()

    def blame(self, kind: ErrorKind, message: str) -> None:
        """Note why it fails. The first cause is kept."""
        if self.cause is None:
            self.cause = TaskError(kind=kind, message=message)

    def take_output(self) -> Raw:
        """The output from the outbox. Blocks on the disk."""
        assert self.result is not None
        return take_output(self._sandbox.outbox, self.result)

    def take_artifact(self, number: int) -> TaskArtifact:
        """The one that it told of as its `number`-th. Blocks on the disk."""
        return take_artifact(self._sandbox.outbox, number, self.artifacts[number - 1])

    def _on_out_of_memory(self) -> None:
        """cgroup v1 kills one process of the group, or none yet: the group is ours to kill."""
        assert self.lease.oom_fd is not None
        self._unwatch(self.lease.oom_fd)
        if self.lease.cgroup.oom_killed():
            self.blame(ErrorKind.MEMORY, "the memory limit was reached")
            self.kill()

    def _on_death(self) -> None:
        """The pidfd says that init's pid namespace is empty; the cgroup must say so too."""
        if not self.is_dead:
            if self._sandbox.is_dead():
                self._finish()
            else:
                # A v1 cgroup may lag a moment. The pidfd stays readable: do not spin on it.
                self._unwatch(self._sandbox.pidfd or -1)
                self._sandbox.kill()
                self._loop.call_later(DEATH_INTERVAL, self._on_death)

    def _finish(self) -> None:
        self.is_dead = True
        for fd in list(self._watched):
            self._unwatch(fd)
        self._drain()
        self._link.close()
        for output in self._outputs:
            os.close(output.fd)
        self._owner.attempt_dead(self)

    def _drain(self) -> None:
        """Bounded by what the kernel's socket and pipe buffers hold: nobody writes any more."""
        self._read_status()
        while self._read_link():
            pass
        said: list[EventData] = [] if self._progress is None else [self._progress]
        for output in self._outputs:
            while data := output.read():
                said += self._log(output, data)
            said += self._log(output, b"", final=True)
        said += [
            TaskLog(stream=stream, text="", dropped=count)
            for stream, count in self._dropped.items()
            if count
        ]
        if said:
            self._owner.attempt_said(self, said)

    # --- what it says ------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop reading: the kernel's buffers fill, and the task waits. Its death is still seen."""
        self._is_paused = True
        self._listen()

    def resume(self) -> None:
        self._is_paused = False
        self._listen()

    def hold(self, is_held: bool) -> None:
        """Stop reading what it says over its link: who reads its stream is behind. Or go on."""
        self._is_held = is_held and not self._is_cancelled
        self._listen()

    def _spend(self, events: int) -> None:
        """It has said so many. Not listened to before `limits.event_rate` allows more."""
        if self._pace is not None:
            self._pace.spend(self._loop.time(), events)
            if self._pacing is None:
                self._keep_pace(self._pace)

    def _keep_pace(self, pace: Pace) -> None:
        was_pacing, self._pacing = self._pacing is not None, None
        if self.is_dead:
            return
        if was_pacing:
            # Whoever is not listened to is not silent.
            self._owner.attempt_said(self, [])
        if ahead := pace.ahead(self._loop.time()):
            idle = self.task.timeouts.idle
            wait = ahead if idle is None else min(ahead, idle / 2)
            self._pacing = self._loop.call_later(wait, self._keep_pace, pace)
        self._listen()

    def _listen(self) -> None:
        """Read what the task says by itself, as far as it is to be heard."""
        link = self._link.fileno()
        for fd in (link, *(output.fd for output in self._outputs)):
            if fd not in self._watched:
                continue
            is_shut = self._is_held if fd == link else self._is_ahead
            if self._is_paused or self._pacing is not None or is_shut:
                self._loop.remove_reader(fd)
            else:
                self._loop.add_reader(fd, self._watched[fd])

    def _on_status(self) -> None:
        self._read_status()
        if self._sandbox.status_ended:
            self._unwatch(self._sandbox.status_fileno())

    def _read_status(self) -> None:
        try:
            self._sandbox.read_status_nowait()
        except RemoteViolation as violation:
            self._broken(violation)
        if (failed := self._sandbox.failed) is not None and self.cause is None:
            step = "" if failed.step == "zygote" else f"step {failed.step}: "
            self.blame(ErrorKind.SETUP, f"the sandbox could not be built: {step}{failed.message}")
            self.kill()

    def is_silent(self) -> bool:
        """Of one made ahead: it lives, and has said nothing since it greeted."""
        return self._read_link() and not self._is_killed and not self.is_dead

    def _on_link(self) -> None:
        if not self._read_link():
            self._unwatch(self._link.fileno())

    def _read_link(self) -> bool:
        """Read once and act on it. False: nothing will come any more, or may."""
        if self._is_link_over:
            return False
        try:
            read = self._link.read(LINK_READ_SIZE if self._pace is None else PACED_READ_SIZE)
        except BlockingIOError:
            return not self.is_dead
        self._is_link_over = read is None or read[1] is not None
        if read is not None:
            messages, violation = read
            self._handle(messages)
            if violation is not None:
                self._broken(violation)
        return not self._is_link_over

    def _broken(self, violation: RemoteViolation) -> None:
        self.blame(ErrorKind.PROTOCOL, str(violation))
        self.kill()

    def _handle(self, messages: list[Message]) -> None:
        said: list[EventData] = []
        saves = 0
        told = is_active = False
        for message in messages:
            if self.part is not Part.EXECUTE and isinstance(message, _OF_TASKS):
                self._broken(RemoteViolation(f"{type(message).__name__} of a {self.part}"))
                break
            match message:
                case Emit(item=item):
                    self._output_left -= max(memoryview(item).nbytes, EVENT_SIZE)
                    if self._output_left < 0:
                        self.blame(
                            ErrorKind.OUTPUT_LIMIT,
                            f"items and logs beyond limits.output, {self.task.limits.output} bytes",
                        )
                        self.kill()
                        break
                    said.append(TaskEmitted(item))
                case Log(text=text, fields=fields):
                    size = max(len(text) + memoryview(fields).nbytes, EVENT_SIZE)
                    if self._output_left < size:
                        self._dropped["log"] += size
                    else:
                        self._output_left -= size
                        said.append(TaskLog(stream="log", text=text, fields=fields))
                case Progress(done=done, total=total):
                    is_active = True
                    self._progress = TaskProgress(done, total)
                    if (progress := self.take_progress()) is not None:
                        said.append(progress)
                case Save(state=state):
                    self._output_left -= max(memoryview(state).nbytes, EVENT_SIZE)
                    if self._output_left < 0:
                        self.blame(
                            ErrorKind.OUTPUT_LIMIT,
                            f"what it saved goes beyond limits.output, {self.task.limits.output} "
                            "bytes with items and logs",
                        )
                        self.kill()
                        break
                    self._owner.attempt_saved(self, state)
                    saves += 1
                case Artifact():
                    is_active = True
                    try:
                        self._note(message)
                    except RemoteViolation as violation:
                        self._broken(violation)
                        break
                case Credit(upstream=upstream, items=count):
                    is_active = True
                    try:
                        self._owner.attempt_credited(self, upstream, count)
                    except RemoteViolation as violation:
                        self._broken(violation)
                        break
                case Hello():
                    self._greet()
                case Result():
                    self.result, told = message, True
                case Fail():
                    self.failure, told = message, True
                case _:
                    raise LocalViolation(f"{self.key}: the codec let {message!r} through")
        if said or is_active:
            self._owner.attempt_said(self, said)
        self._spend(len(said) + saves)
        if told:
            self._owner.attempt_told(self)

    def _note(self, artifact: Artifact) -> None:
        """Hand over what it may; the files are taken when nobody can change them any more."""
        size = sum(each.size for each in self.artifacts) + artifact.size
        if len(self.artifacts) >= ARTIFACTS or size > ARTIFACTS_SIZE:
            raise RemoteViolation(
                f"artifacts beyond what one attempt may hand over: {ARTIFACTS}, of {ARTIFACTS_SIZE}"
                " bytes together"
            )
        if any(each.name == artifact.name for each in self.artifacts):
            raise RemoteViolation(f"a second artifact {artifact.name!a}")
        self.artifacts.append(artifact)

    def take_progress(self) -> TaskProgress | None:
        """The newest, where it was not told yet and the last one that was is a second old."""
        now = self._loop.time()
        if self._progress is None or now < self._progress_due:
            return None
        newest, self._progress, self._progress_due = self._progress, None, now + PROGRESS_INTERVAL
        return newest

    def _greet(self) -> None:
        self._read_status()  # `ready` was sent before
        if not self.sealed:
            self.blame(ErrorKind.SETUP, "it greeted before its walls were read back")
            self.kill()
            return
        self.greeted = True
        self._link.send(Accept(version=LINK_VERSION))
        self._flush()
        # The guest may be faster than the zygote's word of it: without a pidfd nobody can say which
        # process has started, nor measure it.
        if self._sandbox.pidfd is not None:
            self._begin()

    def _begin(self) -> None:
        self._is_begun = True
        self._owner.attempt_greeted(self)
        self._send_job()

    def _on_output(self, output: Output) -> None:
        data = output.read()
        if data is None:
            self._unwatch(output.fd)
        elif data and (said := self._log(output, data)):
            self._owner.attempt_said(self, said)
            self._spend(len(said))

    def _log(self, output: Output, data: bytes, final: bool = False) -> list[EventData]:
        kept = data[: max(self._output_left, 0)]
        self._output_left -= len(kept)
        self._dropped[output.stream] += len(data) - len(kept)
        texts = list(output.texts(kept, final))
        self._output_left -= sum(max(EVENT_SIZE - len(text), 0) for text in texts)
        return [TaskLog(stream=output.stream, text=text) for text in texts]

    # --- the loop ----------------------------------------------------------------------------

    def _flush(self) -> None:
        if self.is_dead:
            return
        if self._link.flush():
            self._loop.remove_writer(self._link.fileno())
        else:
            self._loop.add_writer(self._link.fileno(), self._flush)

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._watched[fd] = callback
        self._loop.add_reader(fd, callback)

    def _unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
