"""`python: PATH`: what must be seen of an interpreter or a virtual environment, found by looking.

Nothing is run for it: a virtual environment in a pipeline's folder is as untrusted as the rest of
that folder. An interpreter finds its library from where it lies (`<prefix>/bin/python3.x` beside
`<prefix>/lib/python3.x`), so its prefix is what it needs; a virtual environment needs that of the
interpreter it was made from too, which its `bin/python` is a link to and its `pyvenv.cfg` names.
Each link on the way must be there under its own name. Whatever else it loads (a library elsewhere
than in its prefix or /usr) is for `ro` to show.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..protocol.errors import UsageError
from ..protocol.limits import KIB

__all__ = ["Interpreter", "find_interpreter"]

# A handful of short lines; the file is whoever's the folder is.
_CONFIG_SIZE = 64 * KIB

# Links from one name to the next, as many as the kernel follows.
_LINKS = 40


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`executable`: as it is started, links and all. `home`: the folder that was meant (of a
    virtual environment, of an installation), or the program where that lies in /usr. `folders`:
    what has to be seen, by the names that lead there; without what lies in /usr."""

    executable: Path
    home: Path
    folders: tuple[Path, ...]
    is_venv: bool


def find_interpreter(path: Path) -> Interpreter:
    """`path`: the program, or the folder of a virtual environment or an installation. Raises
    UsageError, which says what was expected."""
    executable = Path(os.path.abspath(path))
    if executable.is_dir():
        names = [executable / "bin" / name for name in ("python", "python3")]
        found = [name for name in names if name.exists()]
        if not found:
            raise UsageError(f"{path} has no bin/python; name an interpreter or its folder")
        executable = found[0]
    prefix = _prefix(executable)
    config = prefix / "pyvenv.cfg"
    is_venv = config.is_file()
    needed = [prefix]
    if is_venv:
        needed.append(_prefix(_base(config) / "python"))
    program = executable
    for _ in range(_LINKS):
        if not program.is_symlink():
            break
        program = Path(os.path.normpath(program.parent / program.readlink()))
        needed.append(_prefix(program))
    _check_program(program)
    folders = tuple(dict.fromkeys(each for each in needed if not _is_system(each)))
    return Interpreter(executable, prefix if folders else program, folders, is_venv)


def _prefix(program: Path) -> Path:
    return program.parent.parent if program.parent.name in ("bin", "sbin") else program.parent


def _is_system(folder: Path) -> bool:
    """Every sandbox sees /usr, and /bin and /lib are parts of it."""
    return folder == Path("/") or folder.is_relative_to("/usr")


def _base(config: Path) -> Path:
    """The folder of the interpreter that a virtual environment was made from."""
    with config.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_CONFIG_SIZE)
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "home" and Path(value.strip()).is_absolute():
            return Path(value.strip())
    raise UsageError(f"{config} names no `home`: this virtual environment is broken; make it anew")


def _check_program(program: Path) -> None:
    if not program.is_file():  # a FIFO would be waited for
        raise UsageError(f"{program} is not there, or not a file")
    try:
        with program.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UsageError(f"{program}: {os.strerror(error.errno or 0)}") from None
    if start.startswith(b"#!"):
        raise UsageError(
            f"{program} is a script that starts an interpreter; name that one (it prints "
            "`import sys; print(sys.executable)`)"
        )
    if start != b"\x7fELF":
        raise UsageError(f"{program} is not a program")
