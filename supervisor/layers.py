"""One run's layers on disk."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Resolved"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What became of one path of the base below a stack of layers."""

    path: str  # relative to the workspace, surrogateescape
    kind: str  # "file" | "folder" | "link" | "absent"
    mode: int  # permission bits (files, folders); 0 of what is absent or a link
    layer: str | None  # folder name below the layers' root that holds it; None when absent
    target: str | None  # of a link
