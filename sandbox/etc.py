"""The sandbox's /etc: a handful of made-up files, and copies of what programs cannot do without.

Copied, not bound: a copy shows what is listed here and nothing that lies beside it. Only regular
files that everyone may read, and symbolic links as they are (those of alternatives, of
certificates), and never more than the bounds below.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from .spec import INSIDE_ID

__all__ = ["fill_etc"]

NOBODY = 65534  # the id every unmapped host id looks like

MADE_UP = {
    "passwd": (
        f"sandbox:x:{INSIDE_ID}:{INSIDE_ID}:sandbox:/tmp:/bin/sh\n"
        f"nobody:x:{NOBODY}:{NOBODY}:nobody:/:/usr/sbin/nologin\n"
    ),
    "group": f"sandbox:x:{INSIDE_ID}:\nnogroup:x:{NOBODY}:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "casemate\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    # A place to bind the host's to, where the operator gave the sandbox the host's network.
    "resolv.conf": "",
}

# The dynamic linker's cache, what `cc` and `java` point to, certificates, the Java runtime's
# settings (a JVM does not start without), the time zone, and mimetypes' table.
COPIED = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "ssl/openssl.cnf",
    "ssl/certs",
    "ca-certificates.conf",
    "pki/tls/certs",
    "localtime",
    "timezone",
    "mime.types",
    "os-release",
)
COPIED_PATTERNS = ("java-*-openjdk",)

# Debian's ssl/certs is 300 links and one file of 200 KiB; ld.so.cache is below 100 KiB.
FILE_SIZE = 1 << 20
ENTRIES = 4000
DEPTH = 4


def fill_etc(root: int, host: Path = Path("/etc")) -> None:
    """Write /etc below the folder `root` (a descriptor)."""
    etc = open_folder("etc", root)
    try:
        for name, text in MADE_UP.items():
            write(name, text.encode(), etc)
        patterns = [path.name for pattern in COPIED_PATTERNS for path in host.glob(pattern)]
        left = ENTRIES
        for name in (*COPIED, *sorted(patterns)):
            left = copy(host / name, name, etc, left, DEPTH)
    finally:
        os.close(etc)


def open_folder(name: str, parent: int) -> int:
    return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)


def write(name: str, content: bytes, folder: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def copy(source: Path, name: str, folder: int, left: int, depth: int) -> int:
    """Copy one path; the number of entries that may still be copied. What cannot be read is left
    out: it is a convenience, and no wall depends on it."""
    if left <= 0 or depth <= 0:
        return left
    head, slash, rest = name.partition("/")
    if slash:
        make_folder(head, folder)
        below = open_folder(head, folder)
        try:
            return copy(source, rest, below, left, depth)
        finally:
            os.close(below)
    try:
        status = source.lstat()
        if stat.S_ISLNK(status.st_mode):
            os.symlink(source.readlink(), name, dir_fd=folder)
        elif stat.S_ISREG(status.st_mode):
            if status.st_mode & stat.S_IROTH and status.st_size <= FILE_SIZE:
                write(name, source.read_bytes(), folder)
        elif stat.S_ISDIR(status.st_mode):
            entries = sorted(source.iterdir())
            make_folder(name, folder)
            below = open_folder(name, folder)
            try:
                for entry in entries:
                    left = copy(entry, entry.name, below, left, depth - 1)
            finally:
                os.close(below)
    except (PermissionError, FileNotFoundError):
        pass
    return left - 1


def make_folder(name: str, folder: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=folder)
