"""What the operator grants to one command, as a `SandboxSpec`: for `casemate exec` and
`run_sandboxed`, whose arguments are the operator's word and need nobody's leave. Even so the whole
file system, the home directory and the state directory are refused: showing those to untrusted
code is a slip, not a wish. Limits are judged by the same model as a pipeline's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from ..protocol.errors import UsageError
from ..protocol.pipeline import Bind, Limits, Network, ProcView, Timeouts
from ..sandbox.spec import WORKSPACE, Mode, SandboxSpec
from . import format
from .pipeline import forbidden, place_inside

__all__ = ["command_spec", "granted_limits", "granted_timeouts"]

M = TypeVar("M", bound=BaseModel)


def granted_limits(given: Mapping[str, object]) -> Limits:
    """What was given over the defaults. Raises UsageError."""
    return Limits(**_checked("limits", format.Limits, given).__dict__)


def granted_timeouts(given: Mapping[str, object]) -> Timeouts:
    return Timeouts(**_checked("timeouts", format.Timeouts, given).__dict__)


def _checked(name: str, model: type[M], given: Mapping[str, object]) -> M:
    try:
        return model(**given)
    except ValidationError as error:
        problems = (
            f"{each['loc'][0]}: {format.explain((name, str(each['loc'][0])), each, model)}"
            for each in error.errors(include_url=False)
        )
        raise UsageError("; ".join(problems)) from None


def command_spec(
    argv: Sequence[str],
    *,
    limits: Limits,
    state: Path,
    env: Mapping[str, str] | None = None,
    network: str = "none",
    proc: str = "pids",
    ro: Iterable[str | os.PathLike[str]] = (),
    rw: Iterable[str | os.PathLike[str]] = (),
    workspace: str | os.PathLike[str] | None = None,
    cwd: str | None = None,
    degrade: tuple[str, ...] = (),
    strict: tuple[str, ...] = (),
) -> SandboxSpec:
    """`ro` and `rw` are seen at their own paths, `workspace` read-only at /workspace. Without
    `cwd` the command starts in our own folder where that is among them, else in the workspace,
    else in /tmp. Raises UsageError."""
    if network not in set(Network):
        raise UsageError(f"network: {network!r} is neither none nor host")
    if proc not in set(ProcView):
        raise UsageError(f"proc: {proc!r} is neither pids nor readonly")
    env = dict(env or {})
    _check_text(argv, env)
    binds = [_bind(path, state, writable=False) for path in ro]
    binds += [_bind(path, state, writable=True) for path in rw]
    places = [bind.inside for bind in binds]
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        raise UsageError(f"{twice[0]} is named twice")
    folder = None
    if workspace is not None:
        folder = str(_found(workspace, state))
        if not Path(folder).is_dir():
            raise UsageError(f"the workspace {folder} is not a folder")
    spec = SandboxSpec(
        mode=Mode.EXEC,
        limits=limits,
        argv=tuple(argv),
        env=env,
        network=Network(network),
        proc=ProcView(proc),
        workspace=folder,
        binds=tuple(binds),
        degrade=degrade,
        strict=strict,
    )
    return msgspec.structs.replace(spec, cwd=cwd or _own_folder(spec))


def _check_text(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """What crosses to the sandbox is UTF-8: bytes that are not came as lone surrogates."""
    for text in (*argv, *env, *env.values()):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{text!r} is not UTF-8 text") from None


def _bind(path: str | os.PathLike[str], state: Path, *, writable: bool) -> Bind:
    found = _found(path, state)
    return Bind(str(found), place_inside(path, found), writable)


def _found(path: str | os.PathLike[str], state: Path) -> Path:
    """What the path leads to, if it may be shown."""
    try:
        found = Path(path).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UsageError(f"{os.fspath(path)}: cannot be shown to the sandbox: {why}") from None
    if reason := forbidden(found, state):
        raise UsageError(
            f"{os.fspath(path)} {reason}: it is not shown to a sandbox; name a folder below it"
        )
    return found


def _own_folder(spec: SandboxSpec) -> str | None:
    """Our current folder as it is seen inside; None: it is not."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # removed under us
        return None
    if spec.workspace is not None and here.is_relative_to(spec.workspace):
        return str(Path(WORKSPACE, here.relative_to(spec.workspace)))
    for bind in spec.binds:
        if here.is_relative_to(bind.host) and Path(bind.host).is_dir():
            return str(Path(bind.inside, here.relative_to(bind.host)))
    return None
