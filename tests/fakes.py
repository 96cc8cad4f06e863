"""A supervisor's end of a link, without sandbox, engine or event loop.

`GuestHost` is the least of a zygote: one process that has imported the guest and forks it on
request, so that a test's guest costs milliseconds and begins as the real one does. `FakeSupervisor`
holds one such guest and talks to it through the real endpoint, table and codec; every read has a
deadline, so that a guest that says nothing fails its test instead of hanging the suite.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from casemate.protocol import codec
from casemate.protocol.limits import LINK_READ_SIZE, LINK_VERSION
from casemate.protocol.link import Conversation, Role
from casemate.protocol.messages import Accept, Cancel, Fail, Hello, Item, Message, Result, Run
from casemate.protocol.pipeline import Entry
from casemate.protocol.zmtp import Endpoint
from casemate.sandbox.guest import NUDGE
from casemate.sandbox.init import FIRST_NUDGE
from msgspec import Raw, msgpack

__all__ = ["FakeSupervisor", "GuestHost", "wait_until"]

# Far above what anything here takes on a loaded machine: it only turns a hang into a failure.
PATIENCE = 60.0


def wait_until(holds: Callable[[], object]) -> None:
    """Wait for a condition that nothing announces."""
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.002)


_HOST = """
import os, signal, socket, sys
from casemate.sandbox import guest
from msgspec import msgpack
control = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    data, fds, _, _ = socket.recv_fds(control, 65536, 4)
    if not data:
        break
    request = msgpack.decode(data)
    pid = os.fork()
    if pid == 0:
        control.close()
        for number, fd in enumerate(fds[1:]):
            os.dup2(fd, number)
            os.close(fd)
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        guest.main(fds[0], guest.Places(request["sources"], request["outbox"]))
    for fd in fds:
        os.close(fd)
    control.send(msgpack.encode(pid))
"""


class GuestHost:
    """Forks guests; each lives until its `FakeSupervisor` is left."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(PATIENCE)
        command = [sys.executable, "-c", _HOST, str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()

    def fork(self, request: dict[str, Any], fds: list[int]) -> int:
        socket.send_fds(self._control, [msgpack.encode(request)], fds)
        return int(msgpack.decode(self._control.recv(64)))

    def close(self) -> None:
        self._control.close()
        self._process.wait(PATIENCE)


class FakeSupervisor:
    """One guest from greeting to verdict."""

    def __init__(self, host: GuestHost, folder: Path, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.sources = folder / "sources"
        self.outbox = folder / "outbox"
        self.tmp = folder / "tmp"
        for each in (self.sources, self.outbox, self.tmp):
            each.mkdir(exist_ok=True)
        self._endpoint = Endpoint()
        self._conversation = Conversation(Role.SUPERVISOR)
        self._frames: deque[bytes] = deque()
        self._is_left = threading.Event()
        self._nudging: threading.Thread | None = None
        self._link = socket.socket(socket.AF_UNIX)
        self._link.settimeout(PATIENCE)
        listener = socket.socket(socket.AF_UNIX)
        # Relative to its folder: pytest's paths are longer than a socket's may be.
        here = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        path = f"/proc/self/fd/{here}/link"
        listener.bind(path)
        listener.listen(1)
        self._link.connect(path)
        os.unlink(path)
        os.close(here)
        request = {
            "env": {"TMPDIR": str(self.tmp), "CASEMATE_SANDBOX": "1", **(env or {})},
            "cwd": str(self.tmp),
            "sources": str(self.sources),
            "outbox": str(self.outbox),
        }
        with (
            Path(os.devnull).open("rb") as nothing,
            (folder / "stdout").open("wb") as out,
            (folder / "stderr").open("wb") as err,
        ):
            fds = [listener.fileno(), nothing.fileno(), out.fileno(), err.fileno()]
            self.pid = host.fork(request, fds)
        listener.close()
        self._link.sendall(self._endpoint.greeting())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_left.set()
        if self._nudging is not None:
            self._nudging.join()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._link.close()

    def source(self, file: str, text: str) -> None:
        path = self.sources / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def send(self, message: Message) -> None:
        self._conversation.sent(codec.kind_of(message))
        self._link.sendall(self._endpoint.send(codec.encode(message)))

    def send_frame(self, frame: bytes) -> None:
        """Any bytes as one frame, allowed or not."""
        self._link.sendall(self._endpoint.send(frame))

    def next(self) -> Message:
        """The guest's next message; EOFError when it is gone."""
        while not self._frames:
            data = self._link.recv(LINK_READ_SIZE)
            if not data:
                raise EOFError(f"the guest closed the link; stderr: {self.stderr()}")
            self._frames.extend(self._endpoint.receive(data))
        message = codec.decode_from_guest(self._frames.popleft())
        self._conversation.received(codec.kind_of(message))
        return message

    def start(
        self,
        entry: Entry,
        input: object = None,
        *,
        spec: object = None,
        deadline: float | None = None,
        workspace: str | None = None,
        input_file: str | None = None,
        saved: object = None,
        streams: tuple[str, ...] = (),
    ) -> None:
        """Greet, and give the one job."""
        hello = self.next()
        assert isinstance(hello, Hello)
        self.hello = hello
        self.send(Accept(version=LINK_VERSION))
        self.send(
            Run(
                run="r1",
                task="t1",
                attempt=2,
                entry=entry,
                input=Raw(codec.encode_value(None if input_file else input)),
                input_file=input_file,
                spec=Raw(codec.encode_value(spec)),
                idempotency_key="r1/t1",
                deadline=deadline,
                workspace=workspace,
                saved=Raw(codec.encode_value(saved)),
                streams=streams,
            )
        )

    def give(self, upstream: str, *items: object) -> None:
        """Items of a stream, in one message."""
        raw = tuple(Raw(codec.encode_value(item)) for item in items)
        self.send(Item(upstream=upstream, items=raw))

    def cancel(self, grace: float = 10.0) -> None:
        self.send(Cancel(grace=grace))

    def terminate(self) -> None:
        """As a sandbox's init does it."""
        os.kill(self.pid, signal.SIGTERM)
        if self._nudging is None:
            self._nudging = threading.Thread(target=self._nudge)
            self._nudging.start()

    def _nudge(self) -> None:
        while not self._is_left.wait(FIRST_NUDGE):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, NUDGE)

    def finish(self) -> tuple[list[Message], Result | Fail]:
        """All that is said until the verdict, and the verdict."""
        said: list[Message] = []
        while not isinstance(message := self.next(), Result | Fail):
            said.append(message)
        return said, message

    def run(self, entry: Entry, input: object = None, **more: Any) -> Result | Fail:
        self.start(entry, input, **more)
        return self.finish()[1]

    def output(self, entry: Entry, input: object = None, **more: Any) -> Any:
        """The decoded output of a task that must succeed and fits a message."""
        outcome = self.run(entry, input, **more)
        assert isinstance(outcome, Result), f"{outcome}\n{self.stderr()}"
        return codec.decode_value(outcome.output)

    def failure(self, entry: Entry, input: object = None, **more: Any) -> Fail:
        outcome = self.run(entry, input, **more)
        assert isinstance(outcome, Fail), outcome
        return outcome

    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(encoding="utf-8", errors="backslashreplace")

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="backslashreplace")
