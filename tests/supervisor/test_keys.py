"""Pairs of keys are private and never written over; a list that is not sound lets nobody in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from casemate import UsageError
from casemate.protocol.limits import KEY_FILE_SIZE
from casemate.supervisor.keys import (
    Allowed,
    Role,
    make_keys,
    read_clients,
    read_pair,
    read_public_key,
)

ADA = "4]o!<3tzBSh9kMNL)GGp-{E]3{cb8]Gup2A/nz?1"
EVE = "1V<Lhbc-$GB@^&rTpak^pq9cD8dj6=D%E5^KF&V#"


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_pair_is_private_and_is_read_back(role: Role, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "keys"
    private, public = make_keys(folder, role)
    assert private.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    pair = read_pair(folder, role)
    assert pair.public == public == read_public_key(folder, role)
    assert pair.secret not in repr(pair) and pair.secret != public
    assert pair.secret not in (folder / f"{role}.pub").read_text()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    make_keys(tmp_path, "server")
    make_keys(tmp_path, "client")
    (tmp_path / "clients.toml").write_text(f'ada = "{ADA}"\n')
    before = {each.name: each.read_text() for each in tmp_path.iterdir()}
    for gone in ("server.pub", "server.key"):  # one half is enough to refuse
        kept = (tmp_path / gone).read_text()
        (tmp_path / gone).unlink()
        with pytest.raises(UsageError, match="exists already"):
            make_keys(tmp_path, "server")
        (tmp_path / gone).write_text(kept)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == before
    for each in ("server.pub", "server.key"):
        (tmp_path / each).unlink()
    make_keys(tmp_path, "server")
    assert (tmp_path / "clients.toml").read_text() == before["clients.toml"]


def test_the_list_that_is_made_lets_nobody_in(tmp_path: Path) -> None:
    make_keys(tmp_path, "server")
    assert read_clients(tmp_path) == ()


def test_the_list_names_clients_and_what_they_may(tmp_path: Path) -> None:
    text = f'ada = "{ADA}"\n"eve@wall" = {{ key = "{EVE}", may = "watch" }}\n'
    (tmp_path / "clients.toml").write_text(text)
    assert read_clients(tmp_path) == (
        Allowed("ada", ADA, "steer"),
        Allowed("eve@wall", EVE, "watch"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ada = ", "is not TOML"),
        ('ada = "short"', "ada: not a public key"),
        (f'ada = "{ADA[:-1]} "', "ada: not a public key"),
        (f'ada = "{"#" * 40}"', "ada: not a public key"),  # says more than 32 bytes hold
        ("ada = 7", "ada: expected"),
        (f'ada = {{ key = "{ADA}", may = "all" }}', 'may: expected "steer" or "watch"'),
        (f'ada = {{ key = "{ADA}", more = 1 }}', "ada: expected"),
        ('ada = { may = "watch" }', "ada: expected"),
        (f'"a b" = "{ADA}"', "'a b': not a name"),
        (f'ada = "{ADA}"\neve = "{ADA}"', "eve: the key is ada's as well"),
        ("".join(f'c{n} = "{ADA}"\n' for n in range(1001)), "1001 clients, of at most 1000"),
    ],
)
def test_a_list_that_is_not_sound_is_refused_whole(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "clients.toml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)):
        read_clients(tmp_path)


def test_a_list_that_is_too_long_is_refused_and_never_cut(tmp_path: Path) -> None:
    begun = f'[dash]\nkey = "{ADA}"\n'
    comment = "#" * (KEY_FILE_SIZE - len(begun) - 1)
    (tmp_path / "clients.toml").write_text(f"{begun}{comment}\n")
    assert read_clients(tmp_path) == (Allowed("dash", ADA, "steer"),)
    # A cut at the end of the comment would make a steerer of who may watch.
    (tmp_path / "clients.toml").write_text(f'{begun}{comment}\nmay = "watch"\n')
    with pytest.raises(UsageError, match="longer than 262144 bytes"):
        read_clients(tmp_path)


def _become_a_fifo(key: Path) -> None:
    key.unlink()
    os.mkfifo(key, 0o600)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "casemate keys client"),
        (lambda key: key.chmod(0o640), "others may read it (mode 0640)"),
        (lambda key: key.write_text("public = 1"), "not a key"),
        (lambda key: key.write_bytes(b"\xff"), "is not text"),
        (
            lambda key: key.write_text(f'public = "{ADA}"\nsecret = "{EVE}"'),
            "do not belong together",
        ),
        (_become_a_fifo, "not a file"),
    ],
    ids=["missing", "open", "another_thing", "not_text", "two_halves", "fifo"],
)
def test_a_private_file_that_is_none_is_refused(
    spoil: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    make_keys(tmp_path, "client")
    spoil(tmp_path / "client.key")
    with pytest.raises(UsageError, match=re.escape(words)):
        read_pair(tmp_path, "client")


def test_the_command_prints_the_public_half_and_exits_2_where_there_is_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()", "keys"]
    command += ["client", "--keys", str(tmp_path / "keys")]
    made = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    public = json.loads(made.stdout)["public"]
    assert public == read_public_key(tmp_path / "keys", "client")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (2, "") and "exists already" in again.stderr
    assert read_public_key(tmp_path / "keys", "client") == public
