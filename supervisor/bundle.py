"""What travels when a run is submitted: a pipeline whole, as one value.

That is the document as the client read it, the files of its folder that its tasks import, and the
run's input. Authority does not travel: the supervisor compiles the document itself, by its own
operator's configuration, and what a client of the control socket says is held to the same bounds as
a file. Only the workspace is the submitter's choice, as it is with `run --workspace`: whoever
reaches the control socket is the operator. Of a pipeline that the supervisor knows by name
(`catalogue.py`) the name is all that travels.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw, Struct

from ..protocol import codec
from ..protocol.errors import RemoteViolation, UsageError
from ..protocol.limits import MIB, SUBMISSION_SIZE
from ..protocol.pipeline import PipelineSpec
from .pipeline import Allow, compile_document
from .reading import Document
from .sources import snapshot

__all__ = ["complete", "pack", "pack_name", "unpack"]

# The bundle of a pipeline by its name, and what whoever asks for it should be told.
Known = Callable[[str], tuple[bytes, str | None]]


class _Bundle(Struct, frozen=True, kw_only=True):
    source: str  # what messages call it
    document: Raw  # as a pipeline file has it
    files: dict[str, bytes]  # by their paths in the pipeline's folder
    workspace: str | None
    input: Raw
    name: str | None = None  # instead of a document: of one that the supervisor knows


_bundles = msgspec.msgpack.Decoder(_Bundle)


def pack(document: Document, spec: PipelineSpec, input: Raw) -> bytes:
    """A bundle's bytes. `spec`: what the document was compiled to here, which says what of its
    folder is needed. Raises UsageError."""
    with tempfile.TemporaryDirectory(prefix="casemate-submit-") as folder:
        snapshot(spec, Path(folder), is_inside_only=True)
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
    bundle = _Bundle(
        source=document.source,
        document=Raw(codec.encode_value(_anchored(document.value, spec), name=document.source)),
        files=files,
        workspace=spec.workspace,
        input=input,
    )
    packed = _encoded(bundle)
    if len(packed) > SUBMISSION_SIZE:
        raise UsageError(
            f"{document.source}: with its sources and input it has {len(packed) // MIB} MiB, of at "
            f"most {SUBMISSION_SIZE // MIB}; give data as workspace"
        )
    return packed


def pack_name(name: str, workspace: Path | None, input: Raw) -> bytes:
    """The bundle of a pipeline that the supervisor knows. Raises UsageError."""
    bundle = _Bundle(
        source=name,
        document=Raw(b"\xc0"),
        files={},
        workspace=None if workspace is None else str(workspace.absolute()),
        input=input,
        name=name,
    )
    return _encoded(bundle)


def _encoded(bundle: _Bundle) -> bytes:
    for name in (bundle.source, bundle.workspace or "", *bundle.files):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{os.fsencode(name)!r} is not UTF-8, as the name of what is submitted must be; "
                "rename it"
            ) from error
    return msgspec.msgpack.encode(bundle)


def complete(packed: bytes, known: Known) -> tuple[bytes, str | None]:
    """With the pipeline, where only a name came, and what to tell whoever sent it. Raises
    UsageError."""
    bundle = _opened(packed)
    if bundle.name is None:
        return packed, None
    kept, note = known(bundle.name)
    whole = _opened(kept)
    workspace = bundle.workspace or whole.workspace
    whole = msgspec.structs.replace(whole, workspace=workspace, input=bundle.input)
    return msgspec.msgpack.encode(whole), note


def _opened(packed: bytes) -> _Bundle:
    try:
        return _bundles.decode(packed)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"what was submitted is no bundle: {error}") from error


def _anchored(document: Any, spec: PipelineSpec) -> Any:  # a document that has been compiled
    """With whole paths where they name what is not sent along but seen as it is on this host."""

    def anchored(keys: Any) -> Any:
        if not isinstance(keys, dict):
            return keys
        whole = dict(keys)
        for key in ("ro", "rw", "python"):
            names = keys.get(key)
            if isinstance(names, str):
                whole[key] = os.path.join(spec.root, names)
            elif names is not None:
                whole[key] = [os.path.join(spec.root, name) for name in names]
        return whole

    tasks = {id: anchored(task) for id, task in document["tasks"].items()}
    whole = {**document, "tasks": tasks}
    return whole | ({"defaults": anchored(document["defaults"])} if "defaults" in document else {})


def unpack(packed: bytes, folder: Path, allow: Allow) -> tuple[PipelineSpec, Raw]:
    """The pipeline, with its files in `folder`, and the run's input. Raises UsageError with
    everything that is wrong."""
    bundle = _opened(packed)
    for name, content in bundle.files.items():
        with _possible(f"{bundle.source}: a file cannot be named {name[:200]!r}"):
            _put(folder, name, content)
    workspace = None if bundle.workspace is None else Path(bundle.workspace)
    with _possible(f"{bundle.source}: what was submitted cannot run in workspace {workspace}"):
        spec = compile_document(
            Document(_document(bundle), bundle.source),
            root=folder,
            allow=allow,
            workspace=workspace,
        )
    return spec, bundle.input


def _put(folder: Path, name: str, content: bytes) -> None:
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise ValueError("a path in the pipeline's folder is expected")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _document(bundle: _Bundle) -> Any:  # whatever a client sent
    try:
        return codec.decode_value(bundle.document)
    except RemoteViolation as error:
        raise UsageError(f"{bundle.source}: {error}") from error


# Of a path that is wrong by itself, and not for something that may pass.
_IMPOSSIBLE = {
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,  # a folder, where a file is
    errno.ELOOP,
}


@contextmanager
def _possible(problem: str) -> Iterator[None]:
    """UsageError of this `problem` for a path that there cannot be."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # Path.resolve: RuntimeError for a loop
        if isinstance(error, OSError) and error.errno not in _IMPOSSIBLE:
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{problem}: {reason}") from error
