"""Read the host's password hashes."""

from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with open("/etc/shadow", "rb") as file:
        return len(file.read())
