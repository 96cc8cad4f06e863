"""Real sandboxes for tests: a zygote, cgroups where there are any, and what ran inside.

Started as root a `House` can be had in both fashions: with reserved host uids, and as an ordinary
user would have it, behind a user namespace of the zygote's own. Every wait has a deadline that
only turns a hang into a failure.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from casemate.protocol import codec
from casemate.protocol.limits import LINK_READ_SIZE, LINK_VERSION, MIB
from casemate.protocol.link import Conversation, Role
from casemate.protocol.messages import Accept, Fail, Hello, Message, Result, Run
from casemate.protocol.pipeline import Entry, Limits
from casemate.protocol.zmtp import Endpoint
from casemate.sandbox.cgroup import Cgroup, CgroupFacts, CgroupManager
from casemate.sandbox.plan import look_at, make_plan
from casemate.sandbox.probe import Probe, probe
from casemate.sandbox.process import Ending, Sandbox, Stdio, Zygote
from casemate.sandbox.spec import Exited, Mode, Plan, SandboxSpec, SetupFailed
from msgspec import Raw

__all__ = [
    "FASHIONS",
    "LIMITS",
    "PATIENCE",
    "House",
    "Outcome",
    "SealedGuest",
    "listening",
    "python",
    "this_host",
]

PATIENCE = 60.0

LIMITS = Limits(
    memory=256 * MIB, cpu=None, pids=64, files=256, tmp=16 * MIB, disk=64 * MIB, output=MIB
)

_probe: Probe | None = None


def this_host() -> Probe:
    global _probe
    if _probe is None:
        _probe = probe()
    return _probe


FASHIONS = ["reserved uids", "own user namespace"] if os.geteuid() == 0 else ["own user namespace"]


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs this code with the interpreter of the tests."""
    return (sys.executable, "-I", "-S", "-c", code, *arguments)


@dataclass(frozen=True, slots=True)
class Outcome:
    failed: SetupFailed | None
    exited: Exited | None
    stdout: str
    stderr: str

    @property
    def ending(self) -> Ending:
        assert self.exited is not None, self
        return Ending.of(self.exited.status)

    @property
    def code(self) -> int | None:
        return self.ending.code

    def json(self) -> Any:  # what a test's own code printed
        assert self.code == 0, self
        return json.loads(self.stdout)


class House:
    """A zygote and what it makes; everything is killed at the end."""

    def __init__(self, fashion: str = FASHIONS[0], cgroup: CgroupFacts | None = None) -> None:
        host = this_host()
        privileged = fashion == "reserved uids"
        self.probe = msgspec.structs.replace(host, privileged=privileged)
        self.zygote = Zygote.start(self.probe)
        self.zygote.wait_ready(PATIENCE)
        self.cgroups = CgroupManager(cgroup or host.cgroup)
        self._slots = itertools.count()
        self._living: list[tuple[Sandbox, Cgroup]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sandbox, _cgroup in list(self._living):
            self.bury(sandbox)
        self.zygote.close()
        assert self.cgroups.close() == ()

    def plan(self, spec: SandboxSpec) -> Plan:
        return make_plan(spec, self.probe, look_at(spec), self.cgroups.backing(spec.limits))

    def spec(self, mode: Mode = Mode.EXEC, **fields: Any) -> SandboxSpec:
        fields.setdefault("limits", LIMITS)
        return SandboxSpec(mode=mode, slot=next(self._slots), **fields)

    def spawn(
        self,
        *argv: str,
        stdio: Stdio | None = None,
        link: int | None = None,
        fail_step: str | None = None,
        plan: Plan | None = None,
        wait: bool = True,
        **fields: Any,
    ) -> Sandbox:
        """Not waited for beyond the zygote's answer; the house kills it at the end."""
        mode = Mode.EXEC if link is None else Mode.GUEST
        plan = plan or self.plan(self.spec(mode, argv=argv, **fields))
        cgroup = self.cgroups.create(f"t{next(self._slots)}", fields.get("limits", LIMITS))
        spawn = self.zygote.spawn if wait else self.zygote.spawn_nowait
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            sandbox = spawn(
                plan,
                stdio or Stdio(null, null, null),
                link=link,
                cgroup=cgroup,
                fail_step=fail_step,
            )
        except BaseException:
            self.cgroups.discard(cgroup)
            raise
        finally:
            os.close(null)
        self._living.append((sandbox, cgroup))
        return sandbox

    def bury(self, sandbox: Sandbox) -> None:
        """Kill, prove dead, forget."""
        sandbox.kill()
        while sandbox.is_asked:
            self.zygote.receive_nowait()
        assert sandbox.wait_dead(PATIENCE)
        sandbox.close()
        (cgroup,) = (held for living, held in self._living if living is sandbox)
        self._living.remove((sandbox, cgroup))
        self.cgroups.discard(cgroup)

    def run(self, *argv: str, stdin: bytes = b"", **fields: Any) -> Outcome:
        """One command to its end. What goes in and out must fit a pipe."""
        given, give = os.pipe()
        out, told = os.pipe()
        err, complained = os.pipe()
        os.write(give, stdin)
        os.close(give)
        try:
            sandbox = self.spawn(*argv, stdio=Stdio(given, told, complained), **fields)
        finally:
            for fd in (given, told, complained):
                os.close(fd)
        while sandbox.exited is None and sandbox.failed is None and not sandbox.status_ended:
            sandbox.wait_record(PATIENCE)
        self.bury(sandbox)
        return Outcome(sandbox.failed, sandbox.exited, read_all(out), read_all(err))

    def python(self, code: str, *arguments: str, **fields: Any) -> Outcome:
        return self.run(*python(code, *arguments), **fields)

    def shell(self, text: str, **fields: Any) -> Outcome:
        return self.run("/bin/sh", "-c", text, **fields)


class SealedGuest:
    """One real guest behind its walls, and the supervisor's end of its link."""

    def __init__(self, house: House, **fields: Any) -> None:
        self.said: list[Message] = []
        self._house = house
        self._endpoint = Endpoint()
        self._conversation = Conversation(Role.SUPERVISOR)
        self._frames: deque[bytes] = deque()
        with listening() as (listener, ours):
            self._link = ours.dup()
            self._link.settimeout(PATIENCE)
            self.sandbox = house.spawn(link=listener.fileno(), **fields)
        self._link.sendall(self._endpoint.greeting())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._link.close()
        self._house.bury(self.sandbox)

    def next(self) -> Message:
        while not self._frames:
            data = self._link.recv(LINK_READ_SIZE)
            if not data:
                raise EOFError(f"the guest is gone: {self.sandbox.read_status_nowait()}")
            self._frames.extend(self._endpoint.receive(data))
        message = codec.decode_from_guest(self._frames.popleft())
        self._conversation.received(codec.kind_of(message))
        return message

    def send(self, message: Message) -> None:
        self._conversation.sent(codec.kind_of(message))
        self._link.sendall(self._endpoint.send(codec.encode(message)))

    def start(self, entry: Entry, workspace: str | None = None) -> None:
        assert isinstance(self.next(), Hello)
        self.send(Accept(version=LINK_VERSION))
        nothing = Raw(codec.encode_value(None))
        run = Run(
            run="r1",
            task="t1",
            attempt=1,
            entry=entry,
            input=nothing,
            input_file=None,
            spec=nothing,
            idempotency_key="r1/t1",
            deadline=None,
            workspace=workspace,
        )
        self.send(run)

    def output(self, entry: Entry) -> Any:  # the task's data
        self.start(entry)
        while not isinstance(message := self.next(), Result | Fail):
            self.said.append(message)
        assert isinstance(message, Result), message
        return codec.decode_value(message.output)


def read_all(fd: int) -> str:
    with os.fdopen(fd, "rb") as pipe:
        return pipe.read().decode(errors="backslashreplace")


@contextmanager
def listening() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(listener for the guest, our connected end)."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "link"))
        listener, ours = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        with listener, ours:
            listener.bind(path)
            listener.listen(1)
            ours.settimeout(PATIENCE)
            ours.connect(path)
            os.unlink(path)
            yield listener, ours
