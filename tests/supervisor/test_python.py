"""`python: PATH`, with real interpreters: a virtual environment of the one that runs the tests, and
whatever others this machine has. The function runs there, behind the same walls, and has the same
context as in the guest; of casemate nothing is installed in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.errors import UsageError
from casemate.supervisor.interpreter import find_interpreter
from casemate.supervisor.pipeline import Allow, PipelineError
from runs import Embedded, History, Place

ANY = Allow.parse(["path:/"])

TASKS = """
import datetime, os, sys

def about(input):
    return {"version": list(sys.version_info[:2]), "prefix": sys.prefix, "program": sys.executable}

def packages(input):
    import msgspec, of_the_venv
    return [of_the_venv.VALUE, msgspec.__version__, "zmq" in sys.modules, "casemate" in sys.modules]

def talk(input, ctx):
    print("on stdout")
    print("on stderr", file=sys.stderr)
    ctx.log("of", attempt=ctx.attempt)
    ctx.progress(1, 2)
    ctx.emit({"given": input, "spec": ctx.spec, "who": ctx.task_id})
    ctx.save({"n": 7})
    os.getppid()
    return {"bytes": b"\\x00\\xff", "nan": float("nan"), "$bytes": {"$bytes": "x"}}

def hand_over(input, ctx):
    from pathlib import Path
    Path("/tmp/made").write_text("made")
    return ctx.artifact("/tmp/made"), ctx.artifact("/tmp/made", "again")

def each(input):
    for n in range(3):
        yield n
    return "done"

async def each_later(input, ctx):
    import asyncio
    for n in range(3):
        await asyncio.sleep(0)
        yield n

async def later(input):
    import asyncio
    await asyncio.sleep(0)
    return input

def read(input, ctx):
    return [item for item in ctx.stream("each")]

async def read_later(input, ctx):
    found = []
    async for item in ctx.stream("each"):
        found.append(item)
    return found

def twice(input, ctx):
    if ctx.attempt == 1:
        ctx.save("kept")
        raise ValueError("first")
    return ctx.saved

def boom(input):
    class Mine(ValueError):
        retry_after = 0
    raise Mine("no")

def odd(input):
    return {"a": {1, 2}}

def leave(input):
    os._exit(0)

def abort(input):
    os.abort()

def wait(input, ctx):
    import time
    try:
        ctx.emit("waiting")
        time.sleep(3600)
    finally:
        ctx.emit("tidied")

async def wait_later(input, ctx):
    import asyncio
    try:
        ctx.emit("waiting")
        await asyncio.sleep(3600)
    finally:
        ctx.emit("tidied")

def environment(input):
    return dict(os.environ)

def descriptors(input):
    import subprocess
    return subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True).stdout.split()

def posture(input):
    wanted = ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Uid")
    lines = open("/proc/self/status").read().splitlines()
    found = {line.split(":")[0]: line.split(":")[1].split() for line in lines}
    return {name: found[name] for name in wanted}

def good(output):
    return output["version"][0] == 3

def bad(output):
    from casemate import ValidationResult
    return ValidationResult(False, ["on %d.%d" % sys.version_info[:2]])

def skip(error):
    from casemate import RecoveryAction
    return RecoveryAction.skip([error.kind, error.message, list(sys.version_info[:2])])

def nothing(error):
    return None
"""


def venv(folder: Path, python: str = sys.executable) -> Path:
    subprocess.run([python, "-I", "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    (packages / "of_the_venv.py").write_text("VALUE = 'its own'\n")
    # Another one than the guest's: neither may see the other's.
    (packages / "msgspec.py").write_text("__version__ = 'of the venv'\n")
    return folder


def others() -> list[str]:
    """Interpreters of this machine that are not the one of the tests, one of each version."""
    places = [Path("/usr/bin/python3"), *sorted(Path.home().glob(".pyenv/versions/*/bin/python"))]
    found: dict[str, str] = {}
    for place in places:
        if os.access(place, os.X_OK):
            code = "import sys; print(*sys.version_info[:2], sys.version_info >= (3, 8))"
            version = subprocess.run([place, "-I", "-c", code], capture_output=True, text=True)
            if version.stdout.endswith("True\n"):
                found.setdefault(version.stdout + str(place).partition("/bin")[0], str(place))
    return list(found.values())


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return venv(tmp_path_factory.mktemp("environment") / "venv")


@pytest.fixture
def place(place: Place) -> Place:
    place.tasks(TASKS)
    return place


def run(
    house: Embedded, place: Place, python: Path | str, input: Any = None, **tasks: Any
) -> History:
    tasks = {
        name: ({"command": given} if isinstance(given, list) else given) | {"python": str(python)}
        for name, given in tasks.items()
    }
    edges = [
        {"from": name, "to": to, "stream": True}
        for to, given in tasks.items()
        for name in given.pop("reads", ())
    ]
    return house.run(place.spec(allow=ANY, tasks=tasks, edges=edges), input=input)


def test_the_function_runs_in_the_environment_with_its_packages_and_none_of_ours(
    house: Embedded, place: Place, environment: Path
) -> None:
    history = run(house, place, environment, about={}, packages={})
    assert history.output("about")["prefix"] == str(environment)
    assert history.output("packages") == ["its own", "of the venv", False, False]


@pytest.mark.parametrize("python", others())
def test_the_function_runs_in_any_interpreter_of_this_machine(
    house: Embedded, place: Place, python: str, tmp_path: Path
) -> None:
    code = "import sys; print(*sys.version_info[:2])"
    version = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True).stdout
    history = run(
        house, place, python, {"k": [1]},
        about={"validate": "tasks.py:good"}, each={}, later={}, read={"reads": ["each"]},
        talk={"spec": {"a": 1}},
    )  # fmt: skip
    assert " ".join(map(str, history.output("about")["version"])) == version.strip()
    assert history.output("later") == {"k": [1]}
    assert (history.items("each"), history.output("read")) == ([0, 1, 2], [0, 1, 2])
    assert history.output("talk")["bytes"] == b"\x00\xff"


def test_it_has_the_context_that_a_function_in_the_guest_has(
    house: Embedded, place: Place, environment: Path
) -> None:
    given = {"at": [1, b"x"], "big": 2**63}
    history = run(
        house, place, environment, given,
        talk={"spec": {"role": b"r"}}, each={}, each_later={}, later={}, hand_over={},
        read={"reads": ["each"]}, read_later={"reads": ["each"]},
    )  # fmt: skip
    assert history.items("talk") == [{"given": given, "spec": {"role": b"r"}, "who": "talk"}]
    assert history.text("talk", "stdout") == "on stdout\n"
    assert history.text("talk", "stderr") == "on stderr\n"
    [log] = [e for e in history.of("task.log", "talk") if e.data["stream"] == "log"]
    assert (log.data["text"], log.data["fields"]) == ("of", {"attempt": 1})
    assert history.one("task.progress", "talk").data == {"done": 1, "total": 2}
    output = history.output("talk")
    assert (output["bytes"], output["$bytes"]) == (b"\x00\xff", {"$bytes": "x"})
    assert output["nan"] != output["nan"]
    assert (history.items("each"), history.output("each")) == ([0, 1, 2], "done")
    assert history.items("each_later") == [0, 1, 2]
    assert history.output("hand_over") == ["made", "again"]
    names = [event.data["name"] for event in history.of("task.artifact", "hand_over")]
    assert names == ["made", "again"]
    assert history.output("read") == history.output("read_later") == [0, 1, 2]


def test_what_it_saved_is_there_for_its_next_attempt(
    house: Embedded, place: Place, environment: Path
) -> None:
    history = run(house, place, environment, twice={"retry": {"attempts": 2, "delay": 0}})
    assert history.output("twice") == "kept"
    assert history.one("task.retrying", "twice").data["error"]["message"] == "first"


def test_what_it_raises_is_told_as_its_own(
    house: Embedded, place: Place, environment: Path
) -> None:
    history = run(house, place, environment, boom={}, odd={}, leave={}, abort={})
    boom = history.error("boom")
    assert (boom["kind"], boom["message"], boom["type"]) == (
        "error",
        "no",
        "tasks.boom.<locals>.Mine",
    )
    assert "in boom" in boom["traceback"] and "shim.py" not in boom["traceback"]
    odd = history.error("odd")
    assert odd["kind"] == "invalid_output" and odd["message"].startswith("output.a: set")
    assert [history.error(name)["kind"] for name in ("leave", "abort")] == ["crash", "crash"]
    assert "SIGABRT" in history.error("abort")["message"]


@pytest.mark.parametrize("name", ["wait", "wait_later"])
def test_it_ends_in_order_when_it_is_asked_to(
    house: Embedded, place: Place, environment: Path, name: str
) -> None:
    task = {"python": str(environment), "timeouts": {"grace": "60s"}}
    live = house.start(place.spec(allow=ANY, tasks={name: task}))
    live.wait("task.emitted")
    live.cancel()
    history = live.finish()
    assert history.outcome == "run.cancelled"
    assert history.items(name) == ["waiting", "tidied"]


def test_its_checks_run_in_it_too(house: Embedded, place: Place, environment: Path) -> None:
    version = list(sys.version_info[:2])
    history = run(
        house, place, environment,
        about={"validate": "tasks.py:bad"}, boom={"recover": "tasks.py:skip"},
        odd={"recover": "tasks.py:nothing"},
    )  # fmt: skip
    assert history.error("about")["reasons"] == ["on {}.{}".format(*version)]
    assert history.one("task.skipped", "boom").data["output"] == ["error", "no", version]
    assert history.error("odd")["kind"] == "invalid_output"


def test_a_command_finds_it_as_python(house: Embedded, place: Place, environment: Path) -> None:
    code = "import sys, of_the_venv; print(sys.prefix, of_the_venv.VALUE)"
    history = run(house, place, environment, show=["python", "-c", code])
    assert history.text("show", "stdout") == f"{environment} its own\n"


def test_the_walls_around_it_are_those_around_the_guest(
    house: Embedded, place: Place, environment: Path
) -> None:
    inside = run(house, place, environment, posture={}).output("posture")
    ours = house.run(place.spec(tasks={"posture": {}})).output("posture")
    inside.pop("Uid"), ours.pop("Uid")  # each sandbox has its own
    assert inside == ours
    assert inside["CapBnd"] == ["0000000000000000"] and inside["Seccomp"] == ["2"]


def test_its_environment_is_clean_and_nothing_but_stdio_survives_an_exec(
    house: Embedded, place: Place, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "LD_PRELOAD", "MY_SECRET"):
        monkeypatch.setenv(name, "x")
    history = run(house, place, environment, environment={"env": {"GIVEN": "1"}}, descriptors={})
    found = history.output("environment")
    names = {"PATH", "LANG", "HOME", "TMPDIR", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "GIVEN"}
    ours = {"CASEMATE_RUN", "CASEMATE_TASK", "CASEMATE_ATTEMPT", "CASEMATE_SANDBOX"}
    assert found.keys() - {"LC_CTYPE"} == names | ours
    assert found["PATH"] == f"{environment}/bin:/usr/local/bin:/usr/bin:/bin"
    assert history.output("descriptors") == ["0", "1", "2", "3"], "the last is of ls itself"


# --- what may be named ----------------------------------------------------------------------------


def refused(place: Place, python: str, *words: str, **task: Any) -> str:
    with pytest.raises(PipelineError) as error:
        place.spec(allow=Allow.parse(words), tasks={"about": {"python": python, **task}})
    return str(error.value)


def test_an_interpreter_takes_the_operators_word_and_so_does_what_it_was_made_from(
    place: Place, tmp_path: Path
) -> None:
    made = venv(place.path / "venv")
    message = refused(place, "venv")
    assert f'tasks.about.python: "venv" is an interpreter in {made}' in message
    assert f"allow path:{made} in casemate.toml" in message
    base = Path(sys.base_prefix).resolve()
    if not base.is_relative_to("/usr"):
        assert f"allow path:{base} in" in refused(place, "venv", f"path:{made}")
    spec = place.spec(
        allow=Allow.parse([f"path:{made}", f"path:{base}"]), tasks={"about": {"python": "venv"}}
    )
    python = spec.tasks[0].python
    assert python is not None and python.executable == str(made / "bin/python")
    assert not any(bind.writable for bind in python.binds)


def test_the_systems_own_shows_nothing_more_and_takes_the_word_all_the_same(place: Place) -> None:
    program = Path("/usr/bin/env")  # an interpreter as much as the next one, to who only looks
    message = refused(place, str(program))
    assert f"allow path:{program.resolve()}" in message
    spec = place.spec(
        allow=Allow.parse([f"path:{program}"]), tasks={"about": {"python": str(program)}}
    )
    assert spec.tasks[0].python is not None and spec.tasks[0].python.binds == ()


def test_an_environment_cannot_name_what_holds_everything_as_its_base(place: Place) -> None:
    made = venv(place.path / "venv")
    home = Path.home()
    (made / "pyvenv.cfg").write_text(f"home = {home}/bin\n")
    assert "is the home directory" in refused(place, "venv", "path:/")
    (made / "pyvenv.cfg").write_text("home = /etc/x\n")
    assert "No such file" in refused(place, "venv", "path:/")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: None, "is not there, or not a file"),
        (lambda at: at.mkdir(), "has no bin/python; name an interpreter or its folder"),
        (lambda at: at.write_text("#!/bin/sh\n"), "is a script that starts an interpreter"),
        (lambda at: at.write_text("text"), "is not a program"),
        (lambda at: os.mkfifo(at), "is not there, or not a file"),
    ],
)
def test_what_is_no_interpreter_is_told(tmp_path: Path, make: Any, message: str) -> None:
    at = tmp_path / "python"
    make(at)
    with pytest.raises(UsageError, match=message):
        find_interpreter(at)


def test_each_link_on_the_way_to_the_program_is_seen(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name / "bin").mkdir(parents=True)
    (tmp_path / "c/bin/python3.99").write_bytes(b"\x7fELF")
    (tmp_path / "b/bin/python3").symlink_to("../../c/bin/python3.99")
    (tmp_path / "a/bin/python").symlink_to(tmp_path / "b/bin/python3")
    found = find_interpreter(tmp_path / "a")
    assert found.folders == tuple(tmp_path / name for name in ("a", "b", "c"))
    assert (found.home, found.is_venv) == (tmp_path / "a", False)


def test_a_pickled_function_cannot_go_there(place: Place) -> None:
    pickled = {"pickle": b"x", "name": "f"}
    message = refused(place, "/usr/bin/env", "path:/", execute=pickled)
    assert "execute is pickled by value, which another interpreter cannot open; define f" in message
