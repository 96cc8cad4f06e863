"""Where a story takes place: a folder of its own, the `casemate` command in it, and what the host
shows of its processes.

`lying` runs the command where the kernel seems to lack something: a filter of ours, put on before
casemate starts, answers chosen system calls with an errno (0: as if they had been done).
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
from casemate.sandbox import syscalls

from .require import require

__all__ = ["PATIENCE", "Stage", "main", "processes_of"]

# Only turns a hang into a failure.
PATIENCE = 60.0

_CLI = "import sys; sys.path[:] = {path!r}; from casemate.supervisor.cli import main; main()"
_LIAR = (
    "import sys; sys.path[:] = {path!r}; "
    "from importlib import import_module; import_module({module!r}).main()"
)


class Stage:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.workspace = folder / "repo"
        self.workspace.mkdir(parents=True)
        self._cli = [sys.executable, "-c", _CLI.format(path=sys.path)]

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def pipeline(self, **scripts: str) -> Path:
        """Shell scripts as tasks over `workspace`, one after the other."""
        tasks = {name: {"command": ["sh", "-c", script]} for name, script in scripts.items()}
        document = {
            "name": "story",
            "workspace": "./repo",
            "defaults": {"limits": {"memory": "128MiB", "pids": 32}, "timeouts": {"wall": "60s"}},
            "tasks": tasks,
            "edges": [list(edge) for edge in zip(tasks, list(tasks)[1:], strict=False)],
        }
        return self.write("story.json", json.dumps(document))

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`casemate ARGUMENTS`, to its end."""
        return self._finished([*self._cli, *map(str, arguments), "--state", str(self.state)])

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """`casemate ARGUMENTS`, silent, in a process group of its own."""
        return subprocess.Popen(
            [*self._cli, *map(str, arguments), "--state", str(self.state)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def lying(self, answers: Mapping[str, int], *command: str) -> subprocess.CompletedProcess[str]:
        """`casemate exec -- COMMAND` where the system calls named answer so."""
        liar = [sys.executable, "-c", _LIAR.format(path=sys.path, module=__name__)]
        asked = json.dumps(dict(answers))
        cli = [*self._cli, "exec", "--state", str(self.state), "--", *command]
        return self._finished([*liar, asked, *cli])

    def _finished(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def succeed(self, *arguments: str | Path) -> str:
        """What a command says that must work, or nothing is proved."""
        done = self.run(*arguments)
        require(done.returncode == 0, f"{arguments[0]}: {done.returncode}: {done.stderr}")
        return done.stdout


def processes_of(*command: str) -> list[psutil.Process]:
    """The host's living processes of this command line."""
    found = []
    for process in psutil.process_iter():
        try:
            # That of a zombie is empty.
            if process.cmdline() == list(command):
                found.append(process)
        except psutil.Error:
            continue  # it ended, or is not ours to look at
    return found


# ------------------------------------------------------------------------------- in the liar itself

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def main() -> None:
    """argv: the answers as JSON, then the command."""
    answers: dict[str, int] = json.loads(sys.argv[1])
    lines = [struct.pack("HBBI", _LOAD, 0, 0, 0)]
    for name, errno in answers.items():
        number = syscalls.ARCH.numbers[name]
        lines.append(struct.pack("HBBI", _EQUAL, 0, 1, number))
        lines.append(struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | errno))
    lines.append(struct.pack("HBBI", _RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(lines))
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "a filter of ours")
    os.execv(sys.argv[2], sys.argv[2:])
