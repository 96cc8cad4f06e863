"""Return a dict that lies about itself.

Source: pickle: what is loaded decides what runs.
"""

from __future__ import annotations

from typing import Any

KIND = "invalid_output"
WALLS = ("values",)
SAMPLED = "invalid_output"


def attack(input: Any, ctx: Any) -> object:
    class Liar(dict[str, object]):
        def items(self) -> Any:
            while True:
                yield "key", self

    return Liar(key=1)
