"""What the guest does, as root: installs the wheel, runs each suite as each user, leaves results.

A suite runs in a scope that systemd delegated, in a leaf of it, as `casemate` places itself: pytest
would otherwise be a process in the very folder whose controllers are to be handed on. Of results
there are one JUnit file and one log for each round, and `facts.json`.

    root    systemd-run --scope -p Delegate=yes ...
    agent   the same asked of the user's own manager, with systemd-run --user

Stands alone: only the interpreter's own library is here when it starts.
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
USER = "agent"

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
        install()
        (RESULTS / "facts.json").write_text(json.dumps(facts()))
        for step in job["rounds"]:
            run_round(**step)
    except BaseException:
        (RESULTS / "guest-failed").write_text(traceback.format_exc())
        raise
    finally:
        with tarfile.open("/dev/vdc", "w|") as archive:
            for file in sorted(RESULTS.iterdir()):
                archive.add(file, file.name)
        os.sync()


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


def run_round(name: str, user: str, arguments: list[str]) -> None:
    """One pytest, in a delegated scope of this user's."""
    account = pwd.getpwnam(user)
    scratch = Path("/var/tmp") / f"round-{name}"
    environment = {
        "HOME": account.pw_dir,
        "USER": user,
        "LANG": "C.UTF-8",
        "PATH": f"{VENV}/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_RUNTIME_DIR": f"/run/user/{account.pw_uid}",
        "CASEMATE_VM_ROUND": name,
    }
    if user == "root":
        del environment["XDG_RUNTIME_DIR"]
        scope = ["systemd-run", "--scope"]
    else:
        scope = ["systemd-run", "--user", "--scope"]
    pytest = [
        *(str(VENV / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *(f"--basetemp={scratch}", f"--junitxml={RESULTS}/{name}.xml", *arguments),
    ]
    command = [
        *scope,
        *("--quiet", "--collect", "-p", "Delegate=yes", f"--unit=suite-{name}"),
        *("--", "/bin/sh", "-ec", STEP_ASIDE, "sh", *pytest),
    ]
    began = time.monotonic()
    tell(f"{name}: {shlex.join(arguments)}")
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
            if line.startswith((b"tests/", b"FAILED", b"ERROR")) or b"[" in line[-8:]:
                tell(f"{name}: {line.decode(errors='replace').rstrip()[:150]}")
        code = running.wait()
    tell(f"{name}: ended with {code} after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
