"""Everything an attack could want to reach, each of it really there."""

from __future__ import annotations

import contextlib
import ctypes
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

__all__ = ["Target", "files_in"]

SECRET_NAME = "CASEMATE_TEST_SECRET"

_IPC_CREAT, _IPC_RMID = 0o1000, 0


def files_in(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and text of each file."""
    files = (each for each in folder.rglob("*") if each.is_file())
    return {str(f.relative_to(folder)): (f.stat().st_mode, f.read_text()) for f in files}


class Target:
    def __init__(self, folder: Path) -> None:
        self._open = contextlib.ExitStack()
        home = folder / "home"
        self.workspace = home / "workspace"
        self.workspace.mkdir(parents=True)
        (self.workspace / "victim").write_text("here")
        (self.workspace / "kept").write_text("here")
        self.files = files_in(self.workspace)
        (self.workspace / "servers").mkdir()
        secret = home / "secret"
        secret.write_text("the supervisor's")
        neighbour = home / ".env"
        neighbour.write_text("the project's")
        planted = folder / "planted"
        planted.mkdir()
        (planted / "casemate_test_planted.py").write_text("")
        path = folder / "socket"
        abstract = f"casemate-test-{secrets.token_hex(8)}"
        self._libc = ctypes.CDLL(None, use_errno=True)
        key = secrets.randbits(30) | 1
        self._segment = self._libc.shmget(key, 4096, _IPC_CREAT | 0o666)
        if self._segment < 0:
            raise OSError(ctypes.get_errno(), "shmget")
        self._queue = self._libc.msgget(key, _IPC_CREAT | 0o666)
        if self._queue < 0:
            raise OSError(ctypes.get_errno(), "msgget")
        # What the supervisor's own environment holds.
        self.environment = {
            SECRET_NAME: "the supervisor's",
            "PYTHONPATH": str(planted),
            "LD_LIBRARY_PATH": str(planted),
        }
        self.input: dict[str, Any] = {
            "secret": str(secret),
            "workspace": str(self.workspace),
            "neighbour": str(neighbour),
            "socket": self._listen(socket.AF_UNIX, str(path)),
            "inner": self._listen(socket.AF_UNIX, str(self.workspace / "servers" / "socket")),
            "abstract": self._listen(socket.AF_UNIX, "\0" + abstract)[1:],
            "port": self._listen(socket.AF_INET, ("127.0.0.1", 0))[1],
            "port6": self._listen_on_ipv6(),
            "udp": self._answer(),
            "segment": key,
            "queue": key,
            "variable": SECRET_NAME,
            "planted": "casemate_test_planted",
        }

    def _listen(self, family: socket.AddressFamily, address: object) -> Any:  # an address
        listener = self._open.enter_context(socket.socket(family))
        listener.bind(address)  # type: ignore[arg-type]  # as the family has it
        listener.listen()
        name = listener.getsockname()
        return "\0" + name[1:].decode() if isinstance(name, bytes) else name

    def _listen_on_ipv6(self) -> int:
        """A port; the discard service's where this host has no IPv6 to listen on."""
        try:
            return int(self._listen(socket.AF_INET6, ("::1", 0))[1])
        except OSError:
            return 9

    def _answer(self) -> int:
        """A UDP server; its thread ends with its socket."""
        server = self._open.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))
        port = int(server.getsockname()[1])

        def serve() -> None:
            while True:
                data, peer = server.recvfrom(100)
                if data == b"end":
                    return
                server.sendto(b"reached", peer)

        thread = threading.Thread(target=serve)
        thread.start()

        def end() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
                ours.sendto(b"end", ("127.0.0.1", port))
            thread.join()

        self._open.callback(end)
        return port

    def close(self) -> None:
        self._open.close()
        self._libc.shmctl(self._segment, _IPC_RMID, None)
        self._libc.msgctl(self._queue, _IPC_RMID, None)
