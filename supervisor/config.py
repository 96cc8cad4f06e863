"""How this host's operator wants casemate to run: `casemate.toml`, environment, flags.

They count in that rising order: a flag beats `CASEMATE_…`, which beats the file. All three say the
same things in the same words:

    state = "/var/lib/casemate"      CASEMATE_STATE=…          --state …
    max_parallel = 8                 CASEMATE_MAX_PARALLEL=8
    memory = "8GiB"                  CASEMATE_MEMORY=8GiB
    cpu = 4                          CASEMATE_CPU=4
    allow = ["env:API_KEY"]          CASEMATE_ALLOW=env:API_KEY,path:/srv/data     --allow …
    degrade = ["landlock"]           CASEMATE_DEGRADE=landlock
    strict = ["cgroup"]              CASEMATE_STRICT=cgroup
    listen = "10.0.0.5:7601"         CASEMATE_LISTEN=…         serve --listen …
    keys = "/etc/casemate/keys"      CASEMATE_KEYS=…           --keys …
    log = "json"                     CASEMATE_LOG=json         --log json

The file is the one that `$CASEMATE_CONFIG` names, else `casemate/casemate.toml` below
`$XDG_CONFIG_HOME` (`~/.config`). Never one in the current folder: `allow` and `degrade` hand out
authority over the host, and a cloned repository must not be able to grant it to itself. Where such
a file lies about, `Config.notes` says that it was not read.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ..protocol.errors import UsageError
from ..protocol.units import parse_size
from .format import explain
from .hostpipe import Settings
from .pipeline import Allow
from .reading import shown
from .usage import cpu_budget, memory_budget

__all__ = ["Config", "config_path", "default_keys", "default_state", "load_config"]

# Agents mostly wait for somebody else, so more of them than processors is right; their memory is
# what is bounded. Below four a single slow task would make a wide graph look serial.
LEAST_PARALLEL = 4

_FILE_NAME = "casemate.toml"


def _words(value: Any) -> Any:
    """A list in the file, words with commas between them in the environment."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return tuple(value) if isinstance(value, list) else value


_Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]


class _Operator(BaseSettings):
    """What was said; None where nothing was."""

    model_config = SettingsConfigDict(
        env_prefix="CASEMATE_",
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        validate_default=False,
    )

    state: Path | None = None
    max_parallel: int | None = Field(default=None, ge=1)
    memory: Annotated[int | None, NoDecode, BeforeValidator(parse_size)] = None
    cpu: float | None = Field(default=None, ge=0.01, allow_inf_nan=False)
    allow: _Words = ()
    degrade: _Words = ()
    strict: _Words = ()
    listen: str | None = None
    keys: Path | None = None
    log: Literal["off", "warnings", "text", "json"] | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """What holds after all of it: every value decided. `listen`: where `serve` can be reached from
    other hosts. `log`: None where nobody said. `notes`: what a person should be told. `said`: the
    words that it was decided from."""

    state: Path
    max_parallel: int
    memory_budget: int
    cpu_budget: float
    allow: Allow
    keys: Path
    degrade: tuple[str, ...] = ()
    strict: tuple[str, ...] = ()
    listen: str | None = None
    log: str | None = None
    notes: tuple[str, ...] = ()
    said: _Operator = field(default_factory=_Operator.model_construct, compare=False, repr=False)

    def differing(self, other: Config) -> list[str]:
        """The keys of which both were not told the same. What is decided where nobody said differs
        from one moment to the next: free memory."""
        return [
            key
            for key in _Operator.model_fields
            if getattr(self.said, key) != getattr(other.said, key)
        ]

    def settings(self) -> Settings:
        """As an engine gets it."""
        return Settings(
            state=str(self.state),
            max_parallel=self.max_parallel,
            memory_budget=self.memory_budget,
            cpu_budget=self.cpu_budget,
            degrade=self.degrade,
            strict=self.strict,
            log=self.log or "off",
        )


def load_config(
    *,
    config: str | os.PathLike[str] | None = None,
    state: str | os.PathLike[str] | None = None,
    max_parallel: int | None = None,
    memory: int | str | None = None,
    cpu: float | None = None,
    allow: Sequence[str] | None = None,
    degrade: Sequence[str] | None = None,
    strict: Sequence[str] | None = None,
    listen: str | None = None,
    keys: str | os.PathLike[str] | None = None,
    log: str | None = None,
) -> Config:
    """The arguments are the flags: None where one was not given. Raises UsageError."""
    flags = {
        "state": None if state is None else os.fspath(state),
        "max_parallel": max_parallel,
        "memory": memory,
        "cpu": cpu,
        "allow": allow,
        "degrade": degrade,
        "strict": strict,
        "listen": listen,
        "keys": None if keys is None else os.fspath(keys),
        "log": log,
    }
    flags = {name: value for name, value in flags.items() if value is not None}
    path, notes = _find_file(config)
    written = _read_file(path) if path is not None else {}
    said = _merged(flags, written, path)
    decided = _absolute(said.state) if said.state is not None else default_state()
    cores = cpu_budget()
    return Config(
        state=decided,
        max_parallel=said.max_parallel or max(LEAST_PARALLEL, math.ceil(cores)),
        memory_budget=said.memory or memory_budget(),
        cpu_budget=said.cpu or cores,
        allow=Allow.parse(said.allow, state=decided, degrade=said.degrade),
        degrade=said.degrade,
        strict=said.strict,
        listen=said.listen,
        keys=_absolute(said.keys) if said.keys is not None else default_keys(),
        log=said.log,
        notes=notes,
        said=said,
    )


def default_state() -> Path:
    """`$XDG_STATE_HOME/casemate`, else `~/.local/state/casemate`."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "casemate"


def default_keys() -> Path:
    """Beside the usual casemate.toml."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "casemate" / "keys"


def _merged(flags: Mapping[str, Any], written: Mapping[str, Any], path: Path | None) -> _Operator:
    class Sourced(_Operator):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            # no .env file of the current folder, for the same reason as no casemate.toml
            return init_settings, env_settings, InitSettingsSource(settings_cls, dict(written))

    try:
        return Sourced(**flags)
    except ValidationError as error:
        problems = []
        for each in error.errors(include_url=False):
            key = str(each["loc"][0])
            if key in flags:
                origin = f"--{key.replace('_', '-')}"
            elif os.environ.get(f"CASEMATE_{key.upper()}"):
                origin = f"CASEMATE_{key.upper()}"
            else:
                origin = f"{path}: {key}"
            problems.append(f"{origin}: {explain(('config', key), each, _Operator)}")
        raise UsageError("\n".join(problems)) from error


def config_path() -> Path:
    """The file that is read, or would be if it were there."""
    chosen = os.environ.get("CASEMATE_CONFIG")
    return _absolute(Path(chosen)) if chosen else _own_file()


def _own_file() -> Path:
    return _xdg("XDG_CONFIG_HOME", ".config") / "casemate" / _FILE_NAME


def _find_file(named: str | os.PathLike[str] | None) -> tuple[Path | None, tuple[str, ...]]:
    chosen = named or os.environ.get("CASEMATE_CONFIG")
    if chosen:
        return _absolute(Path(chosen)), ()
    own = _own_file()
    here = Path(_FILE_NAME).absolute()
    notes: tuple[str, ...] = ()
    if os.path.isfile(here) and here != own:
        notes = (
            f"{here} was not read: whoever wrote this folder would decide what it may do to this "
            f"host. If that is you, set CASEMATE_CONFIG={_FILE_NAME}, or move it to {own}",
        )
    try:
        return (own if own.is_file() else None), notes
    except PermissionError as error:  # `su` that left HOME as it was: whose settings were meant?
        raise UsageError(
            f"{own}: cannot be read: {error.strerror}; set HOME or XDG_CONFIG_HOME to a folder of "
            "this user's"
        ) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not TOML
        raise UsageError(f"{path}: is not TOML: {error}") from error
    for key in ("state", "keys"):
        folder = written.get(key)
        if isinstance(folder, str) and not _expanded(Path(folder)).is_absolute():
            raise UsageError(
                f"{path}: {key}: {shown(folder)} would be another folder wherever casemate is "
                "started; write a path that begins with / or ~"
            )
    return written


def _absolute(path: Path) -> Path:
    return _expanded(path).absolute()


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{shown(str(path))}: there is no such user, or no home of theirs"
        ) from error


def _xdg(variable: str, default: str) -> Path:
    # The specification: what is not absolute is to be ignored.
    named = Path(os.environ.get(variable, ""))
    return named if named.is_absolute() else Path.home() / default
