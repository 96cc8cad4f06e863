"""Operations in a workspace as a task would do them, in a real overlay mount or in a copy; and what
a workspace shows, as a value that can be compared.

`python overlaid.py <json>` is the child that mounts: its mount namespace (as an ordinary user its
user namespace too) dies with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casemate.sandbox import syscalls

Operation = Sequence[Any]


def perform(operation: Operation) -> None:
    """One operation below the current folder. What is impossible there does nothing, as for a task
    that tries; so both kinds of workspace must agree on what is impossible."""
    verb, path, *rest = operation
    try:
        match verb:
            case "write":
                with Path(path).open("wb") as file:
                    file.write(bytes(rest[0], "latin-1"))
            case "append":
                with Path(path).open("ab") as file:
                    file.write(bytes(rest[0], "latin-1"))
            case "sparse":
                with Path(path).open("wb") as file:
                    file.seek(rest[0])
                    file.write(b"end")
            case "mkdir":
                os.mkdir(path)
            case "remove":
                os.unlink(path)
            case "rmdir":
                os.rmdir(path)
            case "rmtree":
                for folder, folders, files in os.walk(path, topdown=False):
                    for name in files:
                        os.unlink(os.path.join(folder, name))
                    for name in folders:
                        below = os.path.join(folder, name)
                        (os.unlink if os.path.islink(below) else os.rmdir)(below)
                os.rmdir(path)
            case "chmod":
                if not os.path.islink(path):
                    os.chmod(path, rest[0])
            case "link":
                os.symlink(rest[0], path)
            case "hardlink":
                os.link(rest[0], path, follow_symlinks=False)
            case "rename":
                if not os.path.isdir(path) or os.path.islink(path):
                    os.rename(path, rest[0])  # of folders: EXDEV in an overlay alone
            case "attribute":
                os.setxattr(path, "user.note", bytes(rest[0], "latin-1"), follow_symlinks=False)
            case "fifo":
                os.mkfifo(path)
            case _:
                raise AssertionError(verb)
    except OSError:
        pass


def look(root: Path, *, times: bool = False, without: str = "") -> dict[str, Any]:
    """Every path with what can be seen of it, but for what is in the folder `without`."""
    shown: dict[str, Any] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if os.path.join(folder, name) != without]
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            if kind not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
                continue
            entry: list[Any] = [kind]
            if kind == stat.S_IFLNK:
                entry.append(os.readlink(path))
            else:
                entry.append(stat.S_IMODE(status.st_mode))
                entry.append(
                    {
                        name: os.getxattr(path, name).hex()
                        for name in os.listxattr(path)
                        if name.startswith("user.") and not name.startswith("user.overlay.")
                    }
                )
            if kind == stat.S_IFREG:
                entry += [status.st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
            if times and kind != stat.S_IFDIR:
                entry.append(status.st_mtime_ns)
            shown[path.relative_to(root).as_posix()] = entry
    return shown


def as_git_sees(shown: dict[str, Any]) -> dict[str, Any]:
    """Files with whether they may be executed, and links."""
    return {
        path: entry[1:] if len(entry) == 2 else [bool(entry[1] & 0o100), *entry[3:]]
        for path, entry in shown.items() if len(entry) != 3
    }  # fmt: skip


def git_apply(folder: Path, patch: bytes) -> None:
    """In a folder that is no repository: there the attributes and hooks of none have a say."""
    if not patch:
        return  # which git refuses
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
        "LC_ALL": "C",
    }
    done = subprocess.run(
        ["git", "apply"], input=patch, cwd=folder, env=environment, capture_output=True
    )
    assert done.returncode == 0, (done.stderr, patch)


def in_overlay(
    base: Path,
    folder: Path,
    lower: Sequence[str],
    upper: str,
    operations: Sequence[Operation] = (),
    *,
    times: bool = False,
) -> dict[str, Any]:
    """Mount as a sandbox does, perform, and tell what is then to be seen."""
    request = {
        "base": str(base), "folder": str(folder), "lower": list(lower), "upper": upper,
        "operations": list(operations), "times": times,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def in_folder(folder: Path, operations: Sequence[Operation]) -> None:
    """The same in a copy. In this process, which changes its folder for it."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        for operation in operations:
            perform(operation)
    finally:
        os.fchdir(here)
        os.close(here)


def main() -> None:
    request = json.load(sys.stdin)
    uid, gid = os.geteuid(), os.getegid()
    flags = syscalls.CLONE_NEWNS | (syscalls.CLONE_NEWUSER if uid else 0)
    syscalls.unshare(flags)
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    folder = Path(request["folder"])
    seen = folder.parent / "seen"
    seen.mkdir(exist_ok=True)
    base = folder.parent / "b"
    if not base.is_symlink():
        base.symlink_to(request["base"])
    os.chdir(folder)
    lower = ":".join([*(f"{name}/upper" for name in request["lower"]), "../b"])
    upper = request["upper"]
    options = f"lowerdir={lower},upperdir={upper}/upper,workdir={upper}/work,userxattr"
    syscalls.mount(b"overlay", os.fsencode(seen), b"overlay", 0, f"{options},volatile".encode())
    os.chdir(seen)
    os.umask(0o022)
    for operation in request["operations"]:
        perform(operation)
    print(json.dumps(look(seen, times=request["times"])))


if __name__ == "__main__":
    main()
