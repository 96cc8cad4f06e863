"""Nothing of the host's environment reaches what runs inside: not its secrets, not what would steer
an interpreter or a loader, not the packages of whoever's home this is. The supervisor is started
in the midst of all that; each kind of sandbox tells what it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from casemate.supervisor.pipeline import Allow
from runs import Embedded, Place

BASE = {"PATH", "LANG", "HOME", "TMPDIR", "PYTHONDONTWRITEBYTECODE"}
OURS = {"CASEMATE_SANDBOX", "CASEMATE_RUN", "CASEMATE_TASK", "CASEMATE_ATTEMPT"}
OF_COMMANDS = {"CASEMATE_INPUT", "CASEMATE_EVENTS_FD"}

# What a host may have set; the folders are filled in.
STEERING = {
    "PYTHONPATH": "{planted}", "PYTHONHOME": "", "PYTHONSTARTUP": "{planted}/start.py",
    "PYTHONUSERBASE": "{planted}", "PYTHONBREAKPOINT": "planted.hit", "PYTHONWARNINGS": "error",
    "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "2", "LD_PRELOAD": "", "LD_LIBRARY_PATH": "{planted}",
    "LD_AUDIT": "", "GCONV_PATH": "{planted}", "BASH_ENV": "{planted}/start.sh",
    "NODE_OPTIONS": "--require {planted}/start.js", "GIT_DIR": "{planted}", "HOME": "{home}",
    "MY_SECRET": "hush", "XDG_CONFIG_HOME": "{home}", "AWS_SECRET_ACCESS_KEY": "hush",
}  # fmt: skip

LOOK = """
import os, site, sys
def look():
    return {
        "names": sorted(os.environ),
        "home": os.environ["HOME"],
        "steered": [sys.flags.optimize, sys.flags.utf8_mode, len(sys.warnoptions)],
        "path": [p for p in sys.path if "planted" in p or "home" in p],
        "user": site.ENABLE_USER_SITE or False,
        "planted": "planted" in sys.modules,
    }
"""
TASKS = (
    LOOK
    + """
def task(input):
    return look()
def check(output):
    from casemate import ValidationResult
    import json
    return ValidationResult(False, [json.dumps(look())])
def bad(input):
    raise ValueError("no")
def recover(error):
    from casemate import RecoveryAction
    return RecoveryAction.skip(look())
"""
)
NOTHING = {"home": "/tmp", "path": [], "user": False, "planted": False}


@pytest.fixture
def steered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A host whose environment is full; its own folder."""
    planted, home = tmp_path / "planted", tmp_path / "home"
    own = home / f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    own.mkdir(parents=True)
    planted.mkdir()
    for folder in (planted, own):
        (folder / "planted.py").write_text("def hit(): pass\n")
        (folder / "sitecustomize.py").write_text("import planted\n")
        (folder / "usercustomize.py").write_text("import planted\n")
    for name, value in STEERING.items():
        monkeypatch.setenv(name, value.format(planted=planted, home=home))
    yield tmp_path


@pytest.fixture
def house(steered: Path) -> Iterator[Embedded]:
    with Embedded(steered / "state") as house:
        yield house


def names(found: dict[str, Any]) -> set[str]:
    return set(found.pop("names")) - {"LC_CTYPE"}  # which Python sets itself


def test_a_task_and_its_checks_have_the_base_and_nothing_else(
    house: Embedded, place: Place
) -> None:
    place.tasks(TASKS)
    history = house.run(
        place.spec(
            tasks={"task": {}, "task2": {"execute": "tasks.py:task", "validate": "tasks.py:check"},
                   "bad": {"recover": "tasks.py:recover"}},
        )
    )  # fmt: skip
    for found in (
        history.output("task"),
        json.loads(history.error("task2")["reasons"][0]),
        history.one("task.skipped", "bad").data["output"],
    ):
        assert names(found) == BASE | OURS
        assert found == NOTHING | {"steered": [0, 0, 0]}


def test_a_command_has_the_base_and_what_speaks_for_it(house: Embedded, place: Place) -> None:
    show = LOOK + "import json; print(json.dumps(look()))"
    word = {"MY_SECRET": None, "GIVEN": "1"}
    history = house.run(
        place.spec(
            tasks={"show": {"command": ["python", "-c", show]},
                   "sh": {"command": ["env"], "env": word}},
            allow=Allow.parse(["env:MY_SECRET"]),
        )
    )  # fmt: skip
    found = json.loads(history.text("show", "stdout"))
    assert names(found) == BASE | OURS | OF_COMMANDS
    assert found == NOTHING | {"steered": [0, 0, 0], "user": found["user"]}
    assert history.error("sh")["kind"] == "setup", "the engine was not given it"


def test_a_pipeline_file_is_loaded_in_an_environment_as_clean(steered: Path, place: Place) -> None:
    place.write(
        "pipeline.py",
        LOOK + "from casemate import Pipeline, Task\n"
        "found = look()\n"
        "pipeline = Pipeline('x' + '-'.join(n for n in found['names'] if 'SECRET' in n))\n"
        "pipeline.add_task(Task('t', command=['ls'], spec=found))\n",
    )
    cli = "from casemate.supervisor.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-I", "-c", cli, "validate", "pipeline.py", "--json"],
        cwd=place.path,
        env={**os.environ, "CASEMATE_STATE": str(steered / "state")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)["name"] == "x", done


def test_exec_has_the_base_and_what_env_names(steered: Path) -> None:
    cli = "from casemate.supervisor.cli import main; main()"
    show = LOOK + "import json; print(json.dumps(look()))"
    words = ["exec", "--state", str(steered / "state"), "--env", "AWS_SECRET_ACCESS_KEY"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", cli, *words, "--", "python", "-c", show],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    assert names(found) == BASE | {"CASEMATE_SANDBOX", "AWS_SECRET_ACCESS_KEY"}
    assert found == NOTHING | {"steered": [0, 0, 0], "user": found["user"]}
