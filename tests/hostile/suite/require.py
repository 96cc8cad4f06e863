"""What is demanded of an attack's end, by a word of its own: `assert` is gone under `python -O`."""

from __future__ import annotations

__all__ = ["NotContained", "require"]


class NotContained(AssertionError):
    """An attack came to something, or nothing was proved about it; the message says what."""


def require(holds: object, message: object) -> None:
    if not holds:
        raise NotContained(str(message))
