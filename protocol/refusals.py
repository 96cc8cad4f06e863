"""What a wall refused, as it was seen inside a sandbox.

A guest that ends with an exception, or init when a program ends with a code, says which wall was
met, and on what: facts, not sentences. What they are called for a person, and which setting would
have allowed it, the supervisor says in its own words (`supervisor/core/refusals.py`). `subject` (a
path, an address, a name) is the task's own text, and stays quoted wherever it is shown.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

__all__ = ["Refusal", "Wall"]


class Wall(StrEnum):
    NETWORK = "network"  # no way to an address, or nobody there
    NAME = "name"  # a name was not resolved
    SOCKET = "socket"  # a family of sockets
    PATH = "path"  # a file that is not shown inside
    WRITE = "write"  # a file or folder that cannot be changed
    PRIVILEGE = "privilege"  # what only the privileged may
    CALL = "call"  # a system call that is not there
    SCRATCH = "scratch"  # /tmp and /dev/shm are full
    SIZE = "size"  # of one file
    FILES = "files"  # no further open file


class Refusal(Struct, frozen=True, forbid_unknown_fields=True):
    wall: Wall
    subject: str = ""
