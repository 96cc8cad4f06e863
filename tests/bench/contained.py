"""How many of the attacks each of three sandboxes contains, side by side in one run.

    python tests/bench/contained.py [--json]

The programs are the suite's `attacks/` (`tests/hostile/suite`), those that need nothing of casemate
around them: no link, no layer, no sources. Each is the same Python program everywhere, with a
workspace that it may read, a /tmp that it may write to, and no network:

    bubblewrap  --unshare-all --die-with-parent --new-session --clearenv, /usr, the interpreter and
                the workspace read-only, its own /proc and /dev, a tmpfs at /tmp
    sandlock    from PyPI, into an environment that is thrown away: the same folders readable, one
                of its own writable, /proc and harmless devices as its README has them, no network,
                a clean environment, and its limits
    casemate    `casemate exec --ro WORKSPACE`, with its defaults

An attack is contained when it raises, and the workspace is as it was. Under root all of this
happens in pid and mount namespaces of its own: a sandbox that has none, and lets an attack through,
must not let it through to this host's init.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import casemate
import msgspec
from casemate.hostile.attack import Attack, Kind, attacks_in
from casemate.hostile.target import Target, files_in

# No attack takes longer than a second; one that waits for ever came to nothing.
PATIENCE = 20.0

# What of casemate a plain program has not got.
NEEDS_CASEMATE = re.compile(r'"/workspace/|/sources|find_listener|__file__|msgspec')

# Inside: exit 0 when the attack came to something.
PROGRAM = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
attack = importlib.import_module("casemate.hostile.attacks." + sys.argv[2])
try:
    print(attack.attack(json.loads(sys.argv[3])))
except BaseException as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(77)
"""
RAISED = 77

SANDLOCK = """
import json, sys
from sandlock import Sandbox
given = json.loads(sys.argv[1])
result = Sandbox(**given["policy"]).run(given["argv"], timeout=given["timeout"])
sys.stdout.buffer.write(result.stdout or b"")
sys.stderr.buffer.write(result.stderr or b"")
sys.exit(result.exit_code if result.exit_code is not None and result.exit_code >= 0 else 1)
"""

Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, slots=True)
class Ground:
    """What all three show."""

    site: Path  # casemate and what it imports, as plain folders
    scratch: Path
    workspace: Path

    @property
    def interpreter(self) -> list[str]:
        """Folders that Python itself needs, beside /usr."""
        prefixes = {str(Path(sys.base_prefix).resolve()), str(Path(sys.prefix).resolve())}
        return sorted(prefix for prefix in prefixes if not prefix.startswith("/usr"))


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """One that hangs is killed with its group, and raised nothing that mattered."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return subprocess.CompletedProcess(command, RAISED, "hangs", "")
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def bubblewrap(ground: Ground) -> Run:
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--setenv", "PATH", "/usr/bin:/bin"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for name in ("bin", "sbin", "lib", "lib64"):
        command += ["--symlink", f"usr/{name}", f"/{name}"]
    for path in ("/usr", *ground.interpreter, str(ground.site), str(ground.workspace)):
        command += ["--ro-bind", path, path]
    command.append("--")
    return lambda argv: run([*command, *argv])


def sandlock(ground: Ground, python: Path) -> Run:
    devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    policy = {
        "fs_readable": [
            *("/usr", "/bin", "/sbin", "/lib", "/lib64", "/proc"),
            *ground.interpreter,
            *devices,
            str(ground.site),
            str(ground.workspace),
        ],
        "fs_writable": [str(ground.scratch), "/dev/null"],
        "clean_env": True,
        "no_coredump": True,
        "max_memory": "512M",
        "max_processes": 64,
        "max_open_files": 256,
        "cwd": str(ground.scratch),
        "env": {"TMPDIR": str(ground.scratch)},
    }

    def start(argv: list[str]) -> subprocess.CompletedProcess[str]:
        asked = {"policy": policy, "argv": argv, "timeout": 20}
        return run([str(python), "-c", SANDLOCK, json.dumps(asked)])

    return start


def with_casemate(ground: Ground) -> Run:
    cli = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()", "exec"]
    binds = [word for path in (ground.site, ground.workspace) for word in ("--ro", str(path))]
    return lambda argv: run([*cli, *binds, "--state", str(ground.scratch / "state"), "--", *argv])


def install_sandlock(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "sandlock"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return python


def copy_site(site: Path) -> None:
    """Followed through every link: an editable install is nothing but links."""
    for module in (casemate, msgspec):
        package = Path(str(module.__file__)).parent
        shutil.copytree(package, site / package.name, ignore=shutil.ignore_patterns("__pycache__"))


def plain_attacks() -> list[Attack]:
    return [
        attack
        for attack in attacks_in(Kind.REACH)
        if not NEEDS_CASEMATE.search(Path(str(attack.module.__file__)).read_text())
    ]


def somebody() -> subprocess.Popen[bytes]:
    """A process of this host to be reached, with a number that no sandbox comes to by itself."""
    while True:
        found = subprocess.Popen(["sleep", "infinity"], start_new_session=True)
        if found.pid > 500:
            return found
        found.kill()
        found.wait()


def restore(workspace: Path, files: dict[str, tuple[int, str]]) -> None:
    """As it was, so that one attack's success is not the next one's."""
    for name in files_in(workspace).keys() - files.keys():
        (workspace / name).unlink()
    for name, (mode, text) in files.items():
        (workspace / name).write_text(text)
        (workspace / name).chmod(mode)


def try_all(
    attacks: list[Attack], sandboxes: dict[str, Run], ground: Ground, target: Target
) -> dict[str, dict[str, str | None]]:
    """{attack: {sandbox: what came of it}}; a success is None, what raised is told."""
    found: dict[str, dict[str, str | None]] = {}
    for attack in attacks:
        given = [str(ground.site), attack.name, json.dumps(target.input)]
        found[attack.name] = {}
        for name, start in sandboxes.items():
            done = start([sys.executable, "-I", "-c", PROGRAM, *given])
            changed = files_in(ground.workspace) != target.files
            if changed:
                restore(ground.workspace, target.files)
            if done.returncode not in (0, RAISED):
                raise SystemExit(f"{attack.name} in {name}: {done.returncode}: {done.stderr}")
            got_through = changed or (done.returncode == 0 and attack.module.EXPECTED is not None)
            said = done.stdout.strip().splitlines()
            found[attack.name][name] = None if got_through else (said or ["nothing"])[-1]
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return found


def print_table(found: dict[str, dict[str, str | None]], names: list[str]) -> None:
    width = max(map(len, found))
    print(f"{'':{width}}  " + "  ".join(f"{name:11}" for name in names))
    for attack, answers in found.items():
        if None in answers.values():
            words = ("THROUGH" if answers[name] is None else "contained" for name in names)
            print(f"{attack:{width}}  " + "  ".join(f"{word:11}" for word in words))
    print(f"(and {sum(None not in each.values() for each in found.values())} that all contain)")
    counts = [sum(each[name] is not None for each in found.values()) for name in names]
    totals = (f"{count} of {len(found)}" for count in counts)
    print(f"{'contained':{width}}  " + "  ".join(f"{total:11}" for total in totals))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="what came of each, too")
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if os.geteuid() == 0 and not asked.apart:
        apart = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork"]
        words = [*apart, "--mount-proc", "--kill-child", sys.executable, *sys.argv, "--apart"]
        os.execvp(words[0], words)
    with tempfile.TemporaryDirectory(prefix="casemate-contained-") as name:
        folder = Path(name)
        target = Target(folder / "target")
        # Apart from what is to be reached: a path that leads to a bind exists inside, too.
        ground = Ground(folder / "site", folder / "scratch", folder / "work" / "workspace")
        ground.scratch.mkdir()
        shutil.copytree(target.workspace, ground.workspace, ignore=shutil.ignore_patterns("socket"))
        (folder / "work" / "secret").write_text("the supervisor's")
        copy_site(ground.site)
        folder.chmod(0o755)
        os.environ.update(target.environment)
        supervisor = somebody()
        target.input |= {
            "workspace": str(ground.workspace),
            "pid": supervisor.pid,
            "group": supervisor.pid,
            "state": str(folder / "target" / "home"),
            "events": target.input["socket"],
            "control": target.input["socket"],
        }
        sandboxes = {
            "bubblewrap": bubblewrap(ground),
            "sandlock": sandlock(ground, install_sandlock(folder / "sandlock")),
            "casemate": with_casemate(ground),
        }
        try:
            found = try_all(plain_attacks(), sandboxes, ground, target)
        finally:
            supervisor.kill()
            supervisor.wait()
            target.close()
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        print_table(found, list(sandboxes))


if __name__ == "__main__":
    main()
