"""What the guest does, as root: installs the wheel, runs each round, leaves what came of it.

A round is one pytest. A delegated one runs in a scope with Delegate=yes, asked of the system's
manager by root and of the user's own by the ordinary user; in a leaf of it, where `casemate` places
itself too: pytest would otherwise be a process in the very folder whose controllers are to be
handed on. Any other stays in this unit's cgroup, which is root's, as a login session's is.

Each leaves a JUnit file and a log; `facts.json` says where all this was. Stands alone: only the
interpreter's own library is here when it starts.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import subprocess
import sys
import tarfile
import time
import traceback
from pathlib import Path

JOB = Path("/srv/job")
VENV = Path("/srv/venv")
RESULTS = Path("/srv/results")

# An emulated processor is ten times slower, and all attacks are one fixture of one test.
TEST_PATIENCE = 3000

# Into a leaf of the scope, then the suite.
STEP_ASIDE = (
    'own=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); mkdir "$own/suite" && '
    'echo $$ > "$own/suite/cgroup.procs" && exec "$@"'
)


def tell(line: str) -> None:
    print(f"vm: {line}", flush=True)


def main() -> None:
    job = json.loads((JOB / "job.json").read_text())
    RESULTS.mkdir(mode=0o755)
    RESULTS.chmod(0o1777)
    try:
        add_swap()
        install()
        (RESULTS / "facts.json").write_text(json.dumps(facts()))
        for step in job["rounds"]:
            run_round(**step)
            leave_results()
        if job["ablate"] is not None:
            script = str(JOB / "tests/vm/ablate.py")
            python = str(VENV / "bin/python")
            run("ablate", "root", True, [python, script, str(RESULTS), *job["ablate"]])
    except BaseException:
        (RESULTS / "guest-failed").write_text(traceback.format_exc())
        raise
    finally:
        leave_results()


def leave_results() -> None:
    """After each round, for a guest may be killed in a later one."""
    with tarfile.open("/dev/vdc", "w|") as archive:
        for file in sorted(RESULTS.iterdir()):
            archive.add(file, file.name)
    os.sync()


def add_swap() -> None:
    """For sandboxes not to use."""
    file = "/swap"
    subprocess.run(["fallocate", "-l", "256M", file], check=True)
    Path(file).chmod(0o600)
    subprocess.run(["mkswap", "--quiet", file], check=True)
    subprocess.run(["swapon", file], check=True)


def install() -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run(
        [
            *(str(VENV / "bin/python"), "-m", "pip", "install", "--quiet", "--no-index"),
            *("--find-links", str(JOB / "wheels"), "--requirement", str(JOB / "requirements.txt")),
        ],
        check=True,
    )
    tell(f"installed in {time.monotonic() - began:.0f} s")


def facts() -> dict[str, str]:
    systemd = subprocess.run(
        ["systemctl", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    return {
        "kernel": os.uname().release,
        "systemd": systemd,
        "python": sys.version.split()[0],
        "release": release["PRETTY_NAME"].strip('"'),
        "controllers": Path("/sys/fs/cgroup/cgroup.controllers").read_text().strip(),
        "lsm": Path("/sys/kernel/security/lsm").read_text().strip(),
    }


def run_round(name: str, user: str, delegated: bool, tests: list[str]) -> None:
    command = [
        *(str(VENV / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        f"--timeout={TEST_PATIENCE}",
        *(f"--basetemp=/var/tmp/round-{name}", f"--junitxml={RESULTS}/{name}.xml"),
        *("-m", "not tree", *tests),
    ]
    run(name, user, delegated, command)


def run(name: str, user: str, delegated: bool, command: list[str]) -> None:
    """As this user; what it prints goes into a log, and a line now and then to the console."""
    account = pwd.getpwnam(user)
    environment = {
        "HOME": account.pw_dir,
        "USER": user,
        "LANG": "C.UTF-8",
        "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if user != "root":
        environment["XDG_RUNTIME_DIR"] = f"/run/user/{account.pw_uid}"
    if delegated:
        command = [
            *("systemd-run", "--scope", *(["--user"] if user != "root" else [])),
            *("--quiet", "--collect", "-p", "Delegate=yes", f"--unit=suite-{name}"),
            *("--", "/bin/sh", "-ec", STEP_ASIDE, "sh", *command),
        ]
    began = time.monotonic()
    tell(f"{name}: {shlex.join(command[-6:])}")
    with (RESULTS / f"{name}.log").open("wb") as log:
        running = subprocess.Popen(
            command,
            cwd=JOB,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            user=None if user == "root" else account.pw_uid,
            group=None if user == "root" else account.pw_gid,
            extra_groups=None if user == "root" else [],
        )
        assert running.stdout is not None
        for line in running.stdout:
            log.write(line)
            log.flush()
            text = line.decode(errors="replace").rstrip()
            if text.startswith(("FAILED", "ERROR", "E   ", "vm: ")) or text.endswith("%]"):
                tell(f"{name}: {text.removeprefix('vm: ')[:300]}")
        code = running.wait()
    tell(f"{name}: ended with {code} after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
