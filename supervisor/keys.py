"""Keys, for supervisors and clients that are not on one host: made here, kept in files, read back.

They are CurveZMQ's: Curve25519, written in Z85, forty characters each. A folder of keys holds

    server.key     0600, the supervisor's pair; who has it is the supervisor
    server.pub     its public half, which clients need
    clients.toml   whom the supervisor lets in, by name
    client.key     0600, a client's pair
    client.pub     its public half, to be put into the supervisor's clients.toml

A supervisor reads the first and the third, a client `client.key` and `server.pub`; one folder may
serve both. A private file that others could read, or a list that others could write, is refused:
it proves nothing of who comes with it. Nothing is ever written over: a new pair locks out everybody
who knows the old one, so the old one is removed by a person.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from ..protocol.errors import UsageError
from ..protocol.limits import CLIENT_KEYS, KEY_FILE_SIZE

__all__ = [
    "CLIENTS_FILE",
    "Allowed",
    "KeyPair",
    "Rights",
    "Role",
    "make_keys",
    "read_clients",
    "read_pair",
    "read_public_key",
]

Role = Literal["server", "client"]
Rights = Literal["steer", "watch"]

CLIENTS_FILE = "clients.toml"

_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")

_CLIENTS_BEGIN = """\
# Who may reach this supervisor from elsewhere: a name, and the key that `casemate keys client`
# printed there. It is read again when it changes.
#
# ada = "..."                                  watches, submits and steers
# dashboard = { key = "...", may = "watch" }   only watches
"""


@dataclass(frozen=True, slots=True)
class KeyPair:
    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"  # no log shows the other


@dataclass(frozen=True, slots=True)
class Allowed:
    """One line of clients.toml."""

    name: str
    key: str
    may: Rights


def make_keys(folder: Path, role: Role) -> tuple[Path, str]:
    """A new pair in `folder`: the private file, and the public key. Raises UsageError where there
    is one already."""
    import zmq

    if not zmq.has("curve"):
        raise UsageError("this pyzmq was built without CURVE: install the wheel of pyzmq")
    public, secret = (half.decode() for half in zmq.curve_keypair())
    private_file, public_file = folder / f"{role}.key", folder / f"{role}.pub"
    for each in (private_file, public_file):
        if os.path.lexists(each):
            raise UsageError(
                f"{each}: exists already; a new pair would lock out whoever knows this one: remove "
                "it first, or choose another folder with --keys"
            )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = f'# A private key of casemate\'s. Never copy it.\npublic = "{public}"\n'
        _write_new(private_file, text + f'secret = "{secret}"\n', 0o600)
        _write_new(public_file, public + "\n", 0o644)
        if role == "server":
            with contextlib.suppress(FileExistsError):
                _write_new(folder / CLIENTS_FILE, _CLIENTS_BEGIN, 0o644)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from error
    return private_file, public


def read_pair(folder: Path, role: Role) -> KeyPair:
    """Raises UsageError, with the remedy."""
    import zmq

    path = folder / f"{role}.key"
    remedy = f"`casemate keys {role} --keys {folder}` makes one"
    written = _read_toml(path, is_private=True, remedy=remedy)
    public, secret = written.get("public"), written.get("secret")
    if set(written) != {"public", "secret"} or not _is_key(public) or not _is_key(secret):
        raise UsageError(f"{path}: not a key: expected `public` and `secret`, 40 characters each")
    if zmq.curve_public(secret.encode()).decode() != public:
        raise UsageError(f"{path}: the two halves do not belong together")
    return KeyPair(public, secret)


def read_public_key(folder: Path, role: Role) -> str:
    path = folder / f"{role}.pub"
    remedy = f"copy {role}.pub of the {role}'s folder of keys here"
    text = _read(path, is_private=False, remedy=remedy).strip()
    if not _is_key(text):
        raise UsageError(f"{path}: not a public key: expected 40 characters")
    return text


def read_clients(folder: Path) -> tuple[Allowed, ...]:
    """Whom the list lets in, by key. Raises UsageError for a list that is not sound as a whole."""
    path = folder / CLIENTS_FILE
    written = _read_toml(path, is_private=False, remedy="nobody would be let in without it")
    if len(written) > CLIENT_KEYS:
        raise UsageError(f"{path}: {len(written)} clients, of at most {CLIENT_KEYS}")
    allowed: dict[str, Allowed] = {}
    for name, said in written.items():
        entry = {"key": said} if isinstance(said, str) else said
        if not _NAME.fullmatch(name):
            raise UsageError(f"{path}: {name!r}: not a name: letters, digits, _ . @ -")
        if not isinstance(entry, dict) or not {"key"} <= set(entry) <= {"key", "may"}:
            raise UsageError(f'{path}: {name}: expected "KEY" or {{ key = "KEY", may = "watch" }}')
        key, may = entry["key"], entry.get("may", "steer")
        if may not in ("steer", "watch"):
            raise UsageError(f'{path}: {name}: may: expected "steer" or "watch", not {may!r}')
        if not _is_key(key):
            raise UsageError(f"{path}: {name}: not a public key: expected 40 characters of Z85")
        if key in allowed:
            raise UsageError(f"{path}: {name}: the key is {allowed[key].name}'s as well")
        allowed[key] = Allowed(name, key, may)
    return tuple(allowed.values())


def _is_key(text: object) -> TypeGuard[str]:
    from zmq.utils import z85

    if not isinstance(text, str) or not _KEY.fullmatch(text):
        return False
    try:  # five of its characters may say more than four bytes hold
        return len(z85.decode(text)) == 32
    except Exception:  # a struct.error, or what another release of pyzmq makes of it
        return False


def _write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read_toml(path: Path, *, is_private: bool, remedy: str) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path, is_private=is_private, remedy=remedy))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: is not TOML: {error}") from error


def _read(path: Path, *, is_private: bool, remedy: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            seen = os.fstat(file.fileno())
            others = 0o077 if is_private else 0o022
            if not stat.S_ISREG(seen.st_mode):
                raise UsageError(f"{path}: not a file")
            if seen.st_uid not in (0, os.geteuid()):
                raise UsageError(f"{path}: belongs to uid {seen.st_uid}, not to uid {os.geteuid()}")
            if seen.st_mode & others:
                can = "read" if is_private else "write to"
                raise UsageError(
                    f"{path}: others may {can} it (mode {stat.S_IMODE(seen.st_mode):04o}); "
                    f"chmod {'600' if is_private else 'go-w'} it"
                )
            text = file.read(KEY_FILE_SIZE + 1)
            if len(text) > KEY_FILE_SIZE:
                # What is left of a line that was cut might say more than the line did.
                raise UsageError(f"{path}: longer than {KEY_FILE_SIZE} bytes")
            return text.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: does not exist: {remedy}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not text") from None
