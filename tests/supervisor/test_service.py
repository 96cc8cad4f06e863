"""The unit that ships: systemd reads it without a complaint, and what it promises is in it.

That it starts, serves and stops is tried where there is a systemd to do so: `make test-vm`
(tests/vm/checks_service.py).
"""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from casemate import supervisor

[FOLDER] = supervisor.__path__
UNIT = Path(FOLDER, "casemate.service")
COMMAND = "/opt/casemate/bin/casemate serve"

# Under each of these no sandbox can be made, or none in which Node and Java run.
IMPOSSIBLE = {
    "MemoryDenyWriteExecute",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelTunables",
    "ProtectProc",
    "RestrictNamespaces",
    "RestrictSUIDSGID",
    "SystemCallFilter",
}


def keys() -> dict[str, list[str]]:
    found = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#;[":
            name, equals, value = line.partition("=")
            assert equals, line
            found[name].append(value)
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Type", "notify"),
        ("ExecStart", COMMAND),
        ("User", "casemate"),
        ("Delegate", "cpu memory pids"),
        ("OOMPolicy", "continue"),
        ("KillMode", "mixed"),
        ("CapabilityBoundingSet", ""),
        ("NoNewPrivileges", "yes"),
        ("StateDirectoryMode", "0700"),
        ("RuntimeDirectoryMode", "0700"),
    ],
)
def test_what_the_walls_and_limits_need_is_in_it(name: str, value: str) -> None:
    assert keys()[name] == [value]


def test_nothing_in_it_forbids_sandboxes() -> None:
    assert not IMPOSSIBLE & keys().keys()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_has_nothing_to_complain_of(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(COMMAND, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, [])
