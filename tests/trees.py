"""File trees as values: built on disk, read back, and the difference of two as a run's changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casemate.supervisor.layers import Resolved

__all__ = ["File", "Folder", "Link", "Node", "Tree", "build", "changes_between", "read_tree"]


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Folder:
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Link:
    target: str


Node = File | Folder | Link
Tree = dict[str, Node]


def ancestors(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def whole(tree: Tree) -> Tree:
    """With the folders that its paths imply, parents first."""
    nodes: Tree = {above: Folder() for path in tree for above in ancestors(path)}
    nodes.update(tree)
    return dict(sorted(nodes.items(), key=lambda item: os.fsencode(item[0])))


def build(root: Path, tree: Tree) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for path, node in whole(tree).items():
        here = root / path
        match node:
            case Folder():
                here.mkdir()
            case File(content, mode):
                here.write_bytes(content)
                here.chmod(mode)
            case Link(target):
                here.symlink_to(target)
    for path, node in reversed(whole(tree).items()):
        if isinstance(node, Folder):
            (root / path).chmod(node.mode)


def read_tree(root: Path) -> Tree:
    tree: Tree = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            here = Path(folder, name)
            path = str(here.relative_to(root))
            seen = here.lstat()
            mode = stat.S_IMODE(seen.st_mode)
            if stat.S_ISLNK(seen.st_mode):
                tree[path] = Link(str(here.readlink()))
            elif stat.S_ISDIR(seen.st_mode):
                tree[path] = Folder(mode)
            else:
                assert stat.S_ISREG(seen.st_mode), path
                tree[path] = File(here.read_bytes(), mode)
    return tree


def changes_between(before: Tree, after: Tree, layers: Path, name: str = "t.1") -> list[Resolved]:
    """What a run that made `after` of `before` leaves: a layer below `layers`, and its list. As in
    an overlay, folders around a change are in the layer too, but not in the list."""
    old, new = whole(before), whole(after)
    changed = {path for path in old | new if old.get(path) != new.get(path)}
    around = {above for path in changed for above in ancestors(path) if above in new}
    build(layers / name / "upper", {path: new[path] for path in changed | around if path in new})
    changes = []
    for path in sorted(changed):
        match new.get(path):
            case None:
                changes.append(Resolved(path, "absent", 0, None, None))
            case Folder(mode):
                changes.append(Resolved(path, "folder", mode, name, None))
            case File(_, mode):
                changes.append(Resolved(path, "file", mode, name, None))
            case Link(target):
                changes.append(Resolved(path, "link", 0o777, name, target))
    return changes
