"""Hang up, and stay.

Source: our own.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from ..inside import find_link, wait_for_death

KIND = "timeout.wall"
WALLS = ("link", "kill")
TIMEOUTS = {"wall": "1s"}


def attack(input: Any, ctx: Any) -> object:
    with socket.socket(fileno=os.dup(find_link())) as connection:
        connection.shutdown(socket.SHUT_RDWR)
    wait_for_death()
