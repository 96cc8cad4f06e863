"""`casemate keys`: a pair of keys for a supervisor, or for one of its clients."""

from __future__ import annotations

from pathlib import Path

from ..config import load_config
from ..keys import CLIENTS_FILE, Role, make_keys
from .show import print_json

__all__ = ["print_new_keys"]


def print_new_keys(role: Role, *, keys: Path | None, as_json: bool) -> int:
    folder = load_config(keys=keys).keys
    private, public = make_keys(folder, role)
    if as_json:
        print_json({"role": role, "private": str(private), "public": public})
        return 0
    print(f"{private}: made; it stays where it is, and is nobody else's to read")
    print(f"public key: {public}")
    if role == "server":
        print(f"clients need {folder / 'server.pub'}; whom to let in says {folder / CLIENTS_FILE}")
    else:
        print(f'for {CLIENTS_FILE} of the supervisor: NAME = "{public}"')
        print(f"needed beside it: {folder / 'server.pub'}, a copy of the supervisor's")
    return 0
