"""What a pipeline wishes of the host beyond its own folder, with real sandboxes: paths as they are
(`ro`, `rw`), more of /proc, walls it would do without. The operator's word grants it; what is
granted is that and nothing beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from casemate.supervisor.pipeline import Allow
from runs import Embedded, History, Place
from test_cli_run import Command, casemate, here

__all__ = ["casemate", "here"]  # fixtures

TASKS = """
import os
from pathlib import Path

def read(input):
    return Path(input["read"]).read_text()

def write(input):
    for path in input["write"]:
        Path(path).write_text("by a task")
    return sorted(os.listdir(Path(input["write"][0]).parent))

def look(input):
    return {path: os.path.exists(path) for path in input}

def bad(input):
    raise ValueError("no")

def check(output):
    return not any(os.path.exists(path) for path in output)

def see(error):
    from casemate import RecoveryAction
    return RecoveryAction.skip([path for path in {PATHS!r} if os.path.exists(path)])
"""


@pytest.fixture
def place(place: Place, tmp_path: Path) -> Place:
    for name in ("shown", "written"):
        (tmp_path / name).mkdir()
    (tmp_path / "shown/file").write_text("of the host")
    paths = [str(tmp_path / "shown/file"), str(tmp_path / "written")]
    place.tasks(TASKS.replace("{PATHS!r}", repr(paths)))
    return place


def run(house: Embedded, place: Place, input: Any, *allowed: str, **task: Any) -> History:
    spec = place.spec(allow=Allow.parse(allowed), tasks={task.pop("id"): task})
    return house.run(spec, input=input)


def test_a_path_is_seen_as_it_is_and_not_written_to(
    house: Embedded, place: Place, tmp_path: Path
) -> None:
    shown, word = tmp_path / "shown", f"path:{tmp_path}"
    read = {"read": str(shown / "file")}
    history = run(house, place, read, word, id="read", ro=["../shown"])
    assert history.output("read") == "of the host"
    write = {"write": [str(shown / "new")]}
    history = run(house, place, write, word, id="write", ro=[str(shown)])
    assert history.error("write")["type"] in {"OSError", "PermissionError"}
    assert os.listdir(shown) == ["file"]


def test_a_path_that_may_be_written_to_is_the_hosts_own(
    house: Embedded, place: Place, tmp_path: Path
) -> None:
    written = tmp_path / "written"
    given = {"write": [str(written / "new")]}
    history = run(house, place, given, f"rw:{written}", id="write", rw=["../written"])
    assert history.output("write") == ["new"]
    assert (written / "new").read_text() == "by a task"
    assert (written / "new").stat().st_uid == os.geteuid()


def test_checks_see_nothing_of_it(house: Embedded, place: Place, tmp_path: Path) -> None:
    paths = [str(tmp_path / "shown/file"), str(tmp_path / "written")]
    wish = {"ro": [paths[0]], "rw": [paths[1]]}
    words = (f"path:{paths[0]}", f"rw:{paths[1]}")
    history = run(house, place, paths, *words, id="look", validate="tasks.py:check", **wish)
    assert history.output("look") == dict.fromkeys(paths, True)
    history = run(house, place, None, *words, id="bad", recover="tasks.py:see", **wish)
    assert history.one("task.skipped").data["output"] == []


def test_a_link_that_a_task_puts_in_the_way_of_the_next_leads_nowhere(
    house: Embedded, place: Place, tmp_path: Path
) -> None:
    """The pipeline was judged when the path was a folder; the first task makes it a link."""
    inner = tmp_path / "written/inner"
    inner.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("hush")
    place.tasks(f"""
        import os
        def swap(input):
            os.rmdir({str(inner)!r})
            os.symlink({str(tmp_path / "secret")!r}, {str(inner)!r})
        def read(input):
            return open({str(inner / "file")!r}).read()
        """)
    spec = place.spec(
        allow=Allow.parse([f"rw:{tmp_path / 'written'}"]),
        tasks={
            "swap": {"rw": ["../written"]},
            "read": {"ro": ["../written/inner"], "needs": ["swap"]},
        },
    )
    history = house.run(spec)
    assert inner.is_symlink()
    error = history.error("read")
    assert error["kind"] == "setup" and "symbolic link" in error["message"].lower()


def test_no_program_left_on_the_host_runs_as_somebody_else(
    house: Embedded, place: Place, tmp_path: Path
) -> None:
    """A setuid file in a folder of root's would be root's, to whoever else is on this host."""
    written = tmp_path / "written"
    place.tasks(f"""
        import os, stat
        BITS = stat.S_ISUID | stat.S_ISGID
        def leave(input):
            os.chdir({str(written)!r})
            refused = []
            open("f", "w").close()
            fd = os.open("f", os.O_RDONLY)
            for number, attempt in enumerate((
                lambda: os.chmod("f", 0o755 | stat.S_ISUID),
                lambda: os.fchmod(fd, 0o755 | stat.S_ISGID),
                lambda: os.close(os.open("g", os.O_CREAT | os.O_WRONLY, 0o4755)),
                lambda: os.mknod("h", stat.S_IFREG | 0o4755),
            )):
                try:
                    attempt()
                except PermissionError:
                    refused.append(number)
            os.chmod("f", 0o700)
            return refused
        """)
    history = run(house, place, None, f"rw:{written}", id="leave", rw=["../written"])
    assert history.output("leave") == [0, 1, 2, 3]
    assert all(
        not path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID) for path in written.iterdir()
    )


def test_the_rest_of_proc_is_shown_by_the_operators_word(house: Embedded, place: Place) -> None:
    paths = ["/proc/cpuinfo", "/proc/self/status"]
    history = run(house, place, paths, id="look")
    assert history.output("look") == {"/proc/cpuinfo": False, "/proc/self/status": True}
    history = run(house, place, paths, "proc", id="look", proc="readonly")
    assert history.output("look") == dict.fromkeys(paths, True)
    assert history.one("task.started").data["walls"]["proc"] == "own, hidepid, read-only"


def test_a_wall_that_is_named_stands_where_the_host_gives_it(house: Embedded, place: Place) -> None:
    history = run(house, place, [], "degrade:landlock", id="look", degrade=["landlock"])
    walls = history.one("task.started").data["walls"]
    assert walls["landlock"].startswith("ABI") and walls["degraded"] == []


def test_the_flag_of_the_command_line_is_the_operators_word(casemate: Command, here: Place) -> None:
    here.write(
        "wish.yaml",
        "{name: wish, tasks: {a: {command: [test, -e, /proc/cpuinfo], proc: readonly}}}",
    )
    done = casemate("validate", "wish.yaml")
    assert done.returncode == 2 and "allow proc in casemate.toml" in done.stderr
    assert casemate("validate", "wish.yaml", "--allow", "proc").returncode == 0
    done = casemate("run", "wish.yaml", "--allow", "proc")
    assert done.returncode == 0, done
