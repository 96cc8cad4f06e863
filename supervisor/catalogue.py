"""Pipelines that a supervisor knows by name: `serve --pipelines DIR`, `submit NAME`.

    DIR/NAME.yaml (.yml, .toml, .json)          NAME, beside what its tasks import
    DIR/NAME/pipeline.yaml (.toml, ..., .py)    NAME, in a folder of its own

Each is kept as the bundle that a client would have sent (`bundle.py`): the document and the sources
as they were when it was last read whole. So a submission by name is one like all others, and what
becomes of the files later changes no run.

A new file is a new name, a changed one counts from the next submission on, a removed one is not
known any more. One that is broken is a problem that whoever submits it is told of; what it was
before stays in force, if it was ever whole since the supervisor began. Other `.py` files of DIR are
code: what they are could only be told by running them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec import Raw

from ..protocol.errors import CasemateError, UsageError
from ..protocol.limits import CATALOGUE_SIZE, MIB
from .bundle import pack
from .config import Config
from .describe import read_document
from .pipeline import compile_document

__all__ = ["Catalogue", "is_name"]

_SUFFIXES = (".yaml", ".yml", ".toml", ".json")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_NIL = Raw(b"\xc0")


def is_name(text: str) -> bool:
    """Whether it can be the name of a pipeline, and not the path of a file."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class _Kept:
    bundle: bytes | None  # None: it never was whole
    problem: str | None = None


class Catalogue:
    """Of one folder. `load` blocks; the others are for the loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._kept: dict[str, _Kept] = {}

    def load(self, config: Config) -> dict[str, _Kept]:
        """All that is in the folder now, by what `config` allows; `take` puts it in force."""
        found: dict[str, _Kept] = {}
        named = _named(self.folder)
        # What is in force has its place: another that is new or has grown does not put it out.
        size = sum(len(self._old(name) or b"") for name in named)
        for name, files in sorted(named.items()):
            old = self._old(name)
            try:
                if len(files) > 1:
                    several = " and ".join(str(file.relative_to(self.folder)) for file in files)
                    raise UsageError(f"{several} are both {name}: rename one of them")
                new = _packed(files[0], config)
                grown = size + len(new) - len(old or b"")
                if grown > CATALOGUE_SIZE:
                    most = CATALOGUE_SIZE // MIB
                    raise UsageError(f"{self.folder} has more than {most} MiB of pipelines")
            except (CasemateError, OSError) as error:
                found[name] = _Kept(old, str(error))
            else:
                found[name], size = _Kept(new), grown
        return found

    def take(self, found: dict[str, _Kept]) -> list[str]:
        """From now on these; what is to be reported of them that was not so before."""
        news = [
            f"pipeline {name}: {kept.problem}"
            + ("; what it was before stays in force" if kept.bundle is not None else "")
            for name, kept in found.items()
            if kept.problem is not None and kept.problem != self._problem(name)
        ]
        news += [
            f"pipeline {name}: {'is whole again' if self._problem(name) else 'read'}"
            for name, kept in found.items()
            if kept.problem is None and kept != self._kept.get(name)
        ]
        news += [f"pipeline {name}: gone" for name in self._kept.keys() - found.keys()]
        self._kept = found
        return news

    def bundle(self, name: str) -> tuple[bytes, str | None]:
        """What to run, and what whoever asks for it should be told. Raises UsageError."""
        kept = self._kept.get(name)
        if kept is None:
            known = ", ".join(self._kept) or "none"
            raise UsageError(f"no pipeline {name!r} in {self.folder}; there are: {known}")
        if kept.bundle is None:
            raise UsageError(f"pipeline {name}: {kept.problem}")
        if kept.problem is not None:
            return kept.bundle, f"{kept.problem}; this is what it was before"
        return kept.bundle, None

    def _old(self, name: str) -> bytes | None:
        kept = self._kept.get(name)
        return None if kept is None else kept.bundle

    def _problem(self, name: str) -> str | None:
        kept = self._kept.get(name)
        return None if kept is None else kept.problem


def _named(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, file in _files(folder):
        if is_name(name):
            found.setdefault(name, []).append(file)
    return found


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            yield path.stem, path
        elif path.is_dir():
            for suffix in (*_SUFFIXES, ".py"):
                if (file := path / f"pipeline{suffix}").is_file():
                    yield path.name, file


def _packed(file: Path, config: Config) -> bytes:
    document = read_document(file, config)
    spec = compile_document(document, root=file.parent, allow=config.allow)
    return pack(document, spec, _NIL)
