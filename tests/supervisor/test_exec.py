"""`casemate exec` and `run_sandboxed`, with real sandboxes: exit codes, limits, what survives.

Whether something of a sandbox still lives is asked of the host's /proc: what must be found gone
carries a number in its arguments that nothing else has. Waits have deadlines that only turn a hang
into a failure.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import casemate
import pytest
from casemate import Limits, SandboxResult, Timeouts, UsageError, run_sandboxed
from casemate.protocol.limits import KIB, MIB
from casemate.sandbox.process import Stdio
from casemate.supervisor.cli.exec import _say
from casemate.supervisor.exec import Execution, Report
from casemate.supervisor.granted import command_spec, granted_limits
from casemate.supervisor.sandboxes import Sandboxes

PATIENCE = 60.0
CLI = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()", "exec"]
SPIN = "while :; do :; done"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_marks = count(os.getpid() * 1000)


@pytest.fixture
def mark() -> str:
    """Seconds to sleep that nobody else would choose."""
    return f"98765.{next(_marks)}"


def alive(mark: str) -> list[int]:
    """Host pids of processes with the mark in their arguments, ours and the CLI's aside."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"sleep" and mark.encode() in words:
            found.append(int(folder.name))
    return found


def wait_until(claim: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def with_signals() -> Iterator[None]:
    """A shell's `&` leaves SIGINT ignored, which is inherited: by us and by whom we start. A
    handler is not: they begin with the default."""
    before = {n: signal.signal(n, signal.default_int_handler) for n in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def started(*command: str, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Gone at the end, whatever the test found."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    state = tmp_path / "state"

    def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL, "cwd": "/", **options}
        if "input" in options:
            del options["stdin"]
        return subprocess.run(
            [*CLI, "--state", str(state), *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            **options,
        )

    return run


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


# --- one execution, in this process ------------------------------------------------------------


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[Sandboxes]:
    made = Sandboxes()
    made.wait_ready()
    yield made
    made.close()


class Runner:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self.sandboxes = sandboxes

    def __call__(
        self,
        *argv: str,
        limits: dict[str, object] | None = None,
        output: int = MIB,
        cwd: str | None = None,
        **options: Any,
    ) -> tuple[Report, str, str]:
        spec = command_spec(
            argv, limits=granted_limits(limits or {}), state=Path("/nowhere"), cwd=cwd
        )
        null = os.open(os.devnull, os.O_RDWR)
        try:
            execution = Execution(self.sandboxes, spec, stdio=Stdio(null, null, null), **options)
            execution.proxy(output, keep=True)
            report = execution.run()
        finally:
            os.close(null)
        out, err = execution.kept
        return report, out.decode(), err.decode()


@pytest.fixture
def run(sandboxes: Sandboxes) -> Runner:
    return Runner(sandboxes)


def test_a_command_completes(run: Runner) -> None:
    report, out, err = run("sh", "-c", "echo out; echo err >&2")
    assert (report.verdict, report.exit_code, report.signal) == ("completed", 0, None)
    assert (out, err) == ("out\n", "err\n")
    assert report.ran and report.error is None
    assert report.usage.cpu is not None and report.usage.memory
    posture = report.walls["posture"]
    assert posture["is_bare"] and posture["no_new_privs"] and posture["seccomp"] == 2


def test_one_that_is_dead_before_it_is_looked_at_is_told_of_like_any_other(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Sandboxes.receive

    def late(sandboxes: Sandboxes) -> None:
        receive(sandboxes)
        time.sleep(0.5)

    monkeypatch.setattr(Sandboxes, "receive", late)
    report, _, _ = run("/bin/true")
    assert report.verdict == "completed" and report.ran
    assert report.walls["posture"]["no_new_privs"]


def test_its_environment_is_clean(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "42")
    _, out, _ = run("env")
    assert "SECRET" not in out and "CASEMATE_SANDBOX=1" in out


@pytest.mark.parametrize(
    ("argv", "verdict", "code", "by"),
    [
        (("sh", "-c", "exit 7"), "error", 7, None),
        (("nonesuch",), "error", 127, None),
        (("/etc/passwd",), "error", 126, None),
        (("sh", "-c", "kill -SEGV $$"), "crash", None, signal.SIGSEGV),
        (("sh", "-c", "ulimit -f 1; exec yes > /tmp/large"), "disk", None, signal.SIGXFSZ),
    ],
)
def test_how_it_ended_is_told(
    run: Runner, argv: tuple[str, ...], verdict: str, code: int | None, by: int | None
) -> None:
    report, _, _ = run(*argv)
    assert (report.verdict, report.exit_code, report.signal) == (verdict, code, by)


@pytest.mark.parametrize(
    ("clocks", "command", "verdict"),
    [
        ({"wall": 0.2}, SPIN, "timeout.wall"),
        ({"idle": 0.2}, SPIN, "timeout.idle"),
        ({"cpu": 0.2}, SPIN, "timeout.cpu"),
        ({"start": 0.0}, SPIN, "timeout.start"),
        # What it says keeps the idle clock from running out; the wall ends it.
        ({"wall": 3.0, "idle": 2.5}, "while :; do echo .; sleep 0.1; done", "timeout.wall"),
    ],
)
def test_every_clock_ends_it(
    run: Runner, clocks: dict[str, Any], command: str, verdict: str
) -> None:
    report, _, _ = run("sh", "-c", command, output=KIB, **clocks)
    assert report.verdict == verdict, report
    assert report.exit_code is None


def test_grace_lets_it_end_by_itself(run: Runner) -> None:
    command = "trap 'echo saved; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    report, out, _ = run("sh", "-c", command, wall=2.0, grace=PATIENCE)
    assert (report.verdict, report.exit_code, out) == ("timeout.wall", 5, "up\nsaved\n")


def test_grace_has_an_end(run: Runner) -> None:
    report, _, _ = run("sh", "-c", "trap '' TERM; " + SPIN, wall=0.5, grace=0.2)
    assert (report.verdict, report.exit_code) == ("timeout.wall", None)


def test_memory(run: Runner) -> None:
    hog = "x = bytearray(1 << 30)\nfor i in range(0, len(x), 4096): x[i] = 1"
    report, _, err = run(sys.executable, "-c", hog, limits={"memory": "64MiB"})
    if report.walls["limits"]["memory"] == "cgroup":
        assert report.verdict == "memory"
    else:  # malloc fails, and Python says so
        assert report.verdict == "error" and "MemoryError" in err


def test_descendants_do_not_outlive_it(run: Runner, mark: str) -> None:
    """Neither one that holds stdout, nor a daemon in a session of its own."""
    daemon = f"(setsid sh -c 'sleep {mark} & sleep {mark}' &) ; sleep {mark} & echo started"
    report, out, _ = run("sh", "-c", daemon)
    assert (report.verdict, out) == ("completed", "started\n")
    assert alive(mark) == []


def test_what_is_killed_is_dead_with_all_it_started(run: Runner, mark: str) -> None:
    daemon = f"(setsid setsid sleep {mark} </dev/null >/dev/null 2>&1 &); {SPIN}"
    report, _, _ = run("sh", "-c", daemon, wall=0.5)
    assert report.verdict == "timeout.wall"
    assert alive(mark) == []


def test_a_flood_is_cut_and_counted(run: Runner) -> None:
    report, out, err = run("sh", "-c", "yes | head -c 3000000; echo last >&2", output=100_000)
    assert report.verdict == "completed"
    assert len(out) + len(err) == 100_000
    assert report.dropped == 3_000_005 - 100_000


def test_a_sandbox_that_cannot_be_built(run: Runner) -> None:
    report, _, _ = run("true", cwd="/nonesuch")
    assert report.verdict == "setup" and not report.ran
    assert "/nonesuch" in str(report.error)


def test_a_zygote_that_dies(mark: str) -> None:
    own = Sandboxes()
    try:
        own.wait_ready()

        def kill_it() -> None:
            wait_until(lambda: alive(mark))
            os.kill(own._zygote.launcher_pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_it)
        killer.start()
        report, _, _ = Runner(own)("sleep", mark)
        killer.join()
        assert report.verdict == "lost"
        assert alive(mark) == []
        assert Runner(own)("true")[0].verdict == "completed"
    finally:
        own.close()


# --- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"memory": "cgroup", "pids": "cgroup", "cpu": "cgroup"}, ""),
        ({"memory": "sampled", "pids": "sampled"}, "memory, pids (only sampled);"),
        ({"memory": "cgroup", "pids": "cgroup", "cpu": "none"}, "cpu (not held at all);"),
        (
            {"memory": "sampled", "pids": "sampled", "cpu": "none"},
            "memory, pids (only sampled), cpu (not held at all);",
        ),
    ],
)
def test_limits_that_no_cgroup_holds_are_told_apart(
    capfd: pytest.CaptureFixture[str], limits: dict[str, str], says: str
) -> None:
    _say(Report(verdict="completed", walls={"limits": limits}), "true", None)
    opening = "casemate: no cgroup holds these limits here: " if says else ""
    said = capfd.readouterr().err
    assert said.startswith(opening + says)
    assert said.count("\n") == bool(says)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--", "true"], 0, ""),
        (["--", "sh", "-c", "exit 7"], 7, ""),
        (["--", "sh", "-c", "kill -TERM $$"], 143, ""),
        (["--", "nonesuch"], 127, "casemate: nonesuch: No such file or directory"),
        (["--", "/etc/passwd"], 126, "casemate: /etc/passwd: Permission denied"),
        (["--wall", "300ms", "--", "sh", "-c", SPIN], 124, "casemate: timeout.wall: "),
        (["--idle", "300ms", "--", "sh", "-c", SPIN], 124, "casemate: timeout.idle: "),
        (
            ["--env", "A=" + "a" * 100_000, "--env", "B=" + "b" * 100_000, "--", "true"],
            125,
            "casemate: setup: ",
        ),
        (["--proc", "all", "--", "true"], 2, "casemate: proc: 'all' is neither pids nor readonly"),
        (["--rw", "/", "--", "true"], 2, "is the whole file system"),
        (["--ro", "/nonesuch", "--", "true"], 2, "casemate: /nonesuch: cannot be shown"),
        (["--memory", "much", "--", "true"], 2, "casemate: memory: "),
        (["--net", "some", "--", "true"], 2, "casemate: network: "),
        (["--output", "x", "--", "true"], 2, "casemate: --output: "),
        (["--degrade", "mount", "--", "true"], 2, "casemate: degrade: mount cannot be given up"),
    ],
)
def test_exit_codes(cli: Cli, words: list[str], code: int, says: str) -> None:
    done = cli(*words)
    assert done.returncode == code, done
    ours = [line for line in done.stderr.splitlines() if "only sampled" not in line]
    if says:
        assert says in ours[-1] and ours[-1].startswith("casemate: ")
    else:
        assert ours == []


def test_memory_has_an_exit_code(cli: Cli, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    hog = "x = bytearray(1 << 30)"
    words = ["--memory", "64MiB", "--report", str(report), "--", sys.executable, "-c", hog]
    done = cli(*words)
    backing = json.loads(report.read_text())["walls"]["limits"]["memory"]
    assert done.returncode == (137 if backing == "cgroup" else 1)


def test_the_report(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("x" * 100_000)
    cli("--report", str(file), "--", "sh", "-c", "exit 3")
    report = json.loads(file.read_text())
    assert (report["verdict"], report["exit_code"], report["signal"]) == ("error", 3, None)
    assert report["error"] == "exited with code 3"
    assert report["seconds"] > 0 and report["usage"]["cpu"] > 0
    assert report["walls"]["seccomp"].startswith("allow-list")
    assert report["walls"]["degraded"] == []
    assert report["walls"]["posture"]["uid"] == [1000, 1000, 1000]


def test_a_report_of_what_could_not_be_built(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    environment = {**os.environ, "CASEMATE_CONFIG": str(tmp_path / "casemate.toml")}
    (tmp_path / "casemate.toml").write_text("")
    big = ["--env", "A=" + "a" * 100_000, "--env", "B=" + "b" * 100_000]
    done = cli("--report", str(file), *big, "--", "true", env=environment)
    assert done.returncode == 125
    assert json.loads(file.read_text())["verdict"] == "setup"


def test_a_report_is_not_led_astray(cli: Cli, tmp_path: Path) -> None:
    """The task has the folder in which the report shall lie, and puts a link in its place."""
    folder, precious = tmp_path / "folder", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("mine")
    attack = f"rm -f {folder}/report; ln -s {precious} {folder}/report"
    done = cli("--rw", str(folder), "--report", f"{folder}/report", "--", "sh", "-c", attack)
    assert done.returncode == 0, done
    assert (folder / "report").is_symlink() and precious.read_text() == "mine"


def test_stdin_passes_through(cli: Cli) -> None:
    text = "a line\n" * 50_000
    assert cli("--", "cat", input=text).stdout == text


def test_stdin_that_is_closed(cli: Cli) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *CLI, "--", "cat"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_folder_is_never_passed_on(number: int) -> None:
    """It would be a way out, for paths can be opened relative to it. CPython itself refuses to
    start with one; were that to change, this must be refused by us."""
    script = f'exec 9</; exec {number}<&9; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *CLI, "--", "touch", "/tmp/x"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1


def test_output_is_capped(cli: Cli) -> None:
    done = cli("--output", "1MiB", "--", "sh", "-c", "yes | head -c 5000000")
    assert done.returncode == 0
    assert len(done.stdout) == MIB
    assert f"casemate: {5_000_000 - MIB} bytes of output beyond 1MiB dropped" in done.stderr


def test_a_reader_that_stops_does_not_delay_a_kill(tmp_path: Path) -> None:
    """stdout is a pipe that nobody reads, full long before the limit."""
    reader, writer = os.pipe()
    with started(
        *CLI,
        "--output",
        "1GiB",
        "--wall",
        "1s",
        "--",
        "yes",
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(writer)
        _, err = process.communicate(timeout=PATIENCE)
    os.close(reader)
    assert process.returncode == 124
    assert "timeout.wall" in err


@pytest.mark.parametrize("capped", [[], ["--output", "1GiB"]])
def test_a_reader_that_goes(capped: list[str]) -> None:
    """As in `| head`: the program finds its pipe broken, whether we are between or not."""
    with started(
        *CLI,
        *capped,
        "--",
        "yes",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("number", ENDING)
def test_signals_end_the_tree(number: signal.Signals, mark: str) -> None:
    command = f"setsid sleep {mark} & trap '' INT TERM HUP; {SPIN}"
    with started(*CLI, "--", "sh", "-c", command) as process:
        wait_until(lambda: alive(mark))
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
    assert alive(mark) == []


def test_sigkill_ends_the_tree(mark: str) -> None:
    command = f"setsid sleep {mark} & trap '' INT TERM HUP; {SPIN}"
    with started(*CLI, "--", "sh", "-c", command) as process:
        wait_until(lambda: alive(mark))
        process.kill()
        process.wait(PATIENCE)
    wait_until(lambda: not alive(mark))


def test_paths_are_shown_at_their_places(cli: Cli, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    command = f"pwd; cat {mine}/file file; echo x > {mine}/new || echo refused; echo x > new"
    words = ["--ro", str(mine), "--rw", str(theirs), "--", "sh", "-c", command]
    done = cli(*words, cwd=theirs)
    assert done.stdout == f"{theirs}\nminetheirsrefused\n", done
    assert (theirs / "new").read_text() == "x\n"
    assert (theirs / "new").owner() == theirs.owner()
    assert not (mine / "new").exists()


def test_elsewhere_it_starts_in_tmp(cli: Cli) -> None:
    assert cli("--", "sh", "-c", "pwd").stdout == "/tmp\n"


def test_the_home_and_state_folders_are_refused(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = cli("--ro", str(home), "--", "true", env={**os.environ, "HOME": str(home)})
    assert done.returncode == 2 and "is the home directory" in done.stderr
    state = tmp_path / "state"
    state.mkdir()
    done = cli("--rw", str(state), "--", "true")
    assert done.returncode == 2 and "state directory" in done.stderr


def test_the_rest_of_proc_is_an_option(cli: Cli) -> None:
    look = ("--", "test", "-r", "/proc/cpuinfo")
    assert cli(*look).returncode == 1
    assert cli("--proc", "readonly", *look).returncode == 0


def test_environment(cli: Cli) -> None:
    environment = {**os.environ, "GIVEN": "1", "KEPT": "2"}
    words = ["--env", "GIVEN", "--env", "SET=a=b", "--env", "UNSET", "--", "env"]
    lines = cli(*words, env=environment).stdout.splitlines()
    assert {"GIVEN=1", "SET=a=b"} <= set(lines)
    assert not any(line.startswith(("KEPT", "UNSET")) for line in lines)


def test_a_configuration_that_was_not_read_is_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "casemate.toml").write_text('degrade = ["seccomp"]')
    done = cli("--", "true", cwd=tmp_path)
    assert done.returncode == 0
    assert "casemate.toml was not read" in done.stderr


def test_a_lone_process_may_try_the_walls_by_a_fork() -> None:
    code = "from casemate.sandbox.probe import probe; assert probe(alone=True) == probe()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


# --- run_sandboxed -----------------------------------------------------------------------------


def test_run_sandboxed() -> None:
    result = run_sandboxed(
        ["python", "-c", "import sys; print('out'); print('err', file=sys.stderr)"]
    )
    assert isinstance(result, SandboxResult)
    assert result.ok and (result.verdict, result.exit_code) == ("completed", 0)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert result.walls["posture"]["seccomp"] == 2


def test_run_sandboxed_input_is_whole() -> None:
    data = os.urandom(MIB)
    assert run_sandboxed(["cat"], input=data).stdout == data


def test_run_sandboxed_keeps_to_its_limits() -> None:
    result = run_sandboxed(
        ["sh", "-c", "yes | head -c 1000000; " + SPIN],
        limits=Limits(output="64KiB"),
        timeouts=Timeouts(wall="1s"),
    )
    assert (result.verdict, result.exit_code, result.signal) == ("timeout.wall", None, None)
    assert len(result.stdout) == 64 * KIB and result.dropped == 1_000_000 - 64 * KIB
    assert not result.ok


def test_run_sandboxed_with_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import os; print(os.getcwd(), os.environ['A'])")
    result = run_sandboxed(["python", "job.py"], workspace=tmp_path, env={"A": "b"})
    assert result.stdout == b"/workspace b\n", result


def test_run_sandboxed_that_cannot_be_built() -> None:
    result = run_sandboxed(["true"], cwd="/nonesuch")
    assert result.verdict == "setup" and "/nonesuch" in str(result.error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": "true"}, "a list of words"),
        ({"command": []}, "a list of words"),
        ({"command": ["true"], "workspace": "/"}, "the whole file system"),
        ({"command": ["true"], "limits": Limits(memory="x")}, "memory: "),
        ({"command": ["true"], "degrade": ["proc"]}, "cannot be given up"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"command": ["\udcff"]}, "not UTF-8"),
    ],
)
def test_run_sandboxed_misused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_sandboxed(**arguments)


def test_run_sandboxed_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_SANDBOX", "1")
    with pytest.raises(UsageError, match="sandbox already"):
        casemate.run_sandboxed(["true"])


def test_run_sandboxed_from_threads() -> None:
    results: list[SandboxResult] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(run_sandboxed(["echo", str(n)])))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(result.stdout for result in results) == [b"0\n", b"1\n", b"2\n"]


def test_a_host_that_dies_takes_its_sandbox_along(mark: str) -> None:
    program = f"import casemate; casemate.run_sandboxed(['sleep', '{mark}'])"
    with started(sys.executable, "-c", program) as host:
        wait_until(lambda: alive(mark))
        host.kill()
        host.wait(PATIENCE)
    wait_until(lambda: not alive(mark))


def test_a_host_that_is_interrupted(mark: str) -> None:
    program = f"import casemate; casemate.run_sandboxed(['sleep', '{mark}'])"
    with started(sys.executable, "-c", program, stderr=subprocess.DEVNULL) as host:
        wait_until(lambda: alive(mark))
        host.send_signal(signal.SIGINT)
        host.wait(PATIENCE)
        assert alive(mark) == []  # it waited for that


def test_a_host_that_hangs_delays_no_kill(mark: str) -> None:
    """Stopped whole, as by a debugger: its sandbox ends on time all the same."""
    program = (
        "import casemate; from casemate import Timeouts; "
        f"r = casemate.run_sandboxed(['sleep', '{mark}'], timeouts=Timeouts(wall='1500ms')); "
        "print(r.verdict)"
    )
    with started(sys.executable, "-c", program, stdout=subprocess.PIPE) as host:
        wait_until(lambda: alive(mark))
        host.send_signal(signal.SIGSTOP)
        wait_until(lambda: not alive(mark))
        host.send_signal(signal.SIGCONT)
        assert host.communicate(timeout=PATIENCE)[0] == b"timeout.wall\n"
