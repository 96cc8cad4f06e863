"""An attack, and what its file says of it."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType

__all__ = ["Attack", "Kind", "attacks_in", "every_attack", "find"]


class Kind(StrEnum):
    """The folder that it lies in."""

    REACH = "attacks"
    MISBEHAVE = "verdicts"
    STORY = "stories"


@dataclass(frozen=True, slots=True)
class Attack:
    kind: Kind
    name: str
    module: ModuleType

    @property
    def tries(self) -> str:
        """What it does, in a line."""
        return " ".join(self._paragraphs[0].split()).removesuffix(".")

    @property
    def source(self) -> str:
        """Where the idea comes from; the paragraph of its file that begins so."""
        found = [text for text in self._paragraphs if text.startswith("Source:")]
        return " ".join(" ".join(found).removeprefix("Source:").split()).removesuffix(".")

    @property
    def walls(self) -> tuple[str, ...]:
        """What may have stopped it, the nearest first."""
        walls: tuple[str, ...] = self.module.WALLS
        return walls

    @property
    def root(self) -> Path:
        """The folder that a pipeline must lie in to have it as a task."""
        return self._file.parent.parent.parent

    @property
    def entry(self) -> str:
        return f"{self._file.relative_to(self.root)}:attack"

    @property
    def good(self) -> str:
        """The well-behaved task of its suite."""
        return f"{self._file.parent.parent.name}/good.py:work"

    @property
    def _file(self) -> Path:
        # An editable install has links here, and sources lie where they are.
        return Path(str(self.module.__file__)).resolve()

    @property
    def _paragraphs(self) -> list[str]:
        return (self.module.__doc__ or "").strip().split("\n\n")


def attacks_in(kind: Kind) -> list[Attack]:
    """By name."""
    package = importlib.import_module(f"{__package__}.{kind}")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [find(kind, name) for name in names]


def find(kind: Kind, name: str) -> Attack:
    return Attack(kind, name, importlib.import_module(f"{__package__}.{kind}.{name}"))


def every_attack() -> list[Attack]:
    return [attack for kind in Kind for attack in attacks_in(kind)]
