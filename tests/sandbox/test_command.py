"""Tasks in any language: what a command is given, what it may say, how its end is judged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from casemate.protocol import codec
from casemate.protocol.messages import (
    Credit,
    Emit,
    End,
    Fail,
    Item,
    Log,
    Message,
    Progress,
    Result,
    Save,
    Saved,
)
from casemate.protocol.pipeline import CommandEntry
from casemate.sandbox import command
from casemate.sandbox.context import RuntimeContext
from fakes import FakeSupervisor, GuestHost, wait_until
from msgspec import Raw


@pytest.fixture
def guest(guest_host: GuestHost, tmp_path: Path) -> Iterator[FakeSupervisor]:
    with FakeSupervisor(guest_host, tmp_path) as supervisor:
        yield supervisor
    # No sandbox ends what a command leaves behind: known by its TMPDIR, for its guest is gone.
    while left := [each for each in psutil.process_iter() if _tmpdir(each) == str(supervisor.tmp)]:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _tmpdir(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("TMPDIR")
    except psutil.Error:
        return None


def shell(script: str) -> CommandEntry:
    return CommandEntry(("sh", "-c", script))


def python(script: str) -> CommandEntry:
    opening = (
        "import json, os\n"
        "given = json.load(open(os.environ['CASEMATE_INPUT'], encoding='utf-8'))\n"
        "events = open(int(os.environ['CASEMATE_EVENTS_FD']), 'w', encoding='utf-8')\n"
        "def say(**event): print(json.dumps(event), file=events, flush=True)\n"
    )
    return CommandEntry((sys.executable, "-c", opening + script))


def events(line: str) -> str:
    """A shell line that says one event."""
    return f"echo '{line}' >&$CASEMATE_EVENTS_FD\n"


def test_a_shell_command_speaks(guest: FakeSupervisor) -> None:
    guest.start(
        shell(
            events('{"emit": {"line": 3}}')
            + events('{"progress": {"done": 1, "total": 4}}')
            + events('{"progress": 2}')
            + events('{"log": "compiling"}')
            + events('{"log": {"message": "linking", "objects": 3}}')
            + events('{"output": {"files": 12}}')
        )
    )
    said, outcome = guest.finish()
    assert [_told(message) for message in said] == [
        {"line": 3}, (1.0, 4.0), (2.0, None), ("compiling", {}), ("linking", {"objects": 3}),
    ]  # fmt: skip
    assert isinstance(outcome, Result)
    assert codec.decode_value(outcome.output) == {"files": 12}


def _told(message: Message) -> object:
    match message:
        case Emit(item=item):
            return codec.decode_value(item)
        case Progress(done=done, total=total):
            return (done, total)
        case Log(text=text, fields=fields):
            return (text, codec.decode_value(fields))
    raise AssertionError(message)


def test_input_and_output_keep_bytes_and_datetimes(guest: FakeSupervisor) -> None:
    value = {"data": b"\x00\xff", "at": datetime(2026, 11, 23, tzinfo=UTC), "text": "ü\n"}
    assert guest.output(python("say(output=given)"), value) == value


def test_input_is_json_with_bytes_in_base64(guest: FakeSupervisor) -> None:
    guest.output(shell('cat "$CASEMATE_INPUT"'), {"data": b"\x00"})
    assert json.loads(guest.stdout()) == {"data": {"$bytes": "AA=="}}


def test_exit_0_without_an_output_is_none(guest: FakeSupervisor) -> None:
    assert guest.output(CommandEntry(("true",))) is None


def test_standard_streams_are_passed_through(guest: FakeSupervisor) -> None:
    guest.output(shell("echo to stdout; echo to stderr >&2; cat"))
    assert (guest.stdout(), guest.stderr()) == ("to stdout\n", "to stderr\n")


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("exit 3", "error", "'sh' ended with exit code 3"),
        ("exit 127", "error", "'sh' ended with exit code 127 (a shell's word for: not found)"),
        ("exit 126", "error", "'sh' ended with exit code 126 (a shell's word for: not executable)"),
        ("kill -SEGV $$", "crash", "'sh' was killed by SIGSEGV"),
        ("kill -KILL $$", "crash", "'sh' was killed by SIGKILL"),
        ("kill -40 $$", "crash", "'sh' was killed by signal 40"),
    ],
)
def test_how_it_ended_is_told(guest: FakeSupervisor, script: str, kind: str, message: str) -> None:
    failure = guest.failure(shell(events('{"output": 1}') + script))
    assert failure == Fail(kind=kind, message=message)


def test_a_program_that_is_not_there(guest: FakeSupervisor) -> None:
    failure = guest.failure(CommandEntry(("no-such-program", "-v")))
    assert failure.kind == "error"
    assert failure.message.startswith("cannot run 'no-such-program': not found in the sandbox in P")


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ("#!/bin/sh\n", 0o644, "not executable"),
        ("echo no first line\n", 0o755, "not a program for this machine"),
        ("#!/no/such/shell\n", 0o755, "the interpreter that its first line names"),
        (None, 0o755, "not found in the sandbox"),
    ],
)
def test_a_program_that_cannot_run(
    guest: FakeSupervisor, tmp_path: Path, text: str | None, mode: int, why: str
) -> None:
    program = tmp_path / "program"
    if text is not None:
        program.write_text(text)
        program.chmod(mode)
    failure = guest.failure(CommandEntry((str(program),)))
    assert failure.kind == "error"
    assert failure.message.startswith(f"cannot run '{program}': ")
    assert why in failure.message


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON: "),
        (
            "[1]",
            "expected an object with one key of emit, progress, log, save, artifact, output: [1]",
        ),
        ('{"emit": 1, "log": "x"}', "expected an object with one key"),
        ('{"emitted": 1}', "expected an object with one key"),
        ('{"emit": 1267650600228229401496703205376}', "item: int of 101 bits"),
        ('{"emit": {"$bytes": "!"}}', "emit: $bytes stands for base64 text"),
        ('{"progress": "half"}', "progress: expected a number, got str"),
        ('{"progress": true}', "progress: expected a number, got bool"),
        ('{"progress": {"total": 3}}', "progress: expected a number or {done, total}"),
        ('{"progress": NaN}', "expected finite numbers"),
        ('{"log": {"message": "m", "n": 1267650600228229401496703205376}}', "fields.n: int of"),
    ],
)
def test_a_line_that_says_nothing_we_know_ends_it(
    guest: FakeSupervisor, line: str, why: str
) -> None:
    entry = shell(events('{"log": "first"}') + "\n" + events(line) + "sleep 600")
    failure = guest.failure(entry)
    assert failure.kind == "error"
    assert failure.message.startswith("line 2 of $CASEMATE_EVENTS_FD: ")
    assert why in failure.message


def test_bytes_that_are_no_text_end_it(guest: FakeSupervisor) -> None:
    failure = guest.failure(shell("printf '\\377\\n' >&$CASEMATE_EVENTS_FD"))
    assert "line 1 of $CASEMATE_EVENTS_FD: not JSON" in failure.message


def test_json_nested_without_end_ends_it(guest: FakeSupervisor) -> None:
    failure = guest.failure(python("print('[' * 100_000, file=events, flush=True)"))
    assert "line 1 of $CASEMATE_EVENTS_FD: not JSON" in failure.message
    assert len(failure.message) < 1000


def test_an_item_too_large_for_a_message_ends_it(guest: FakeSupervisor) -> None:
    failure = guest.failure(python("say(emit='x' * 2_000_000)"))
    assert "line 1 of $CASEMATE_EVENTS_FD: emit: emitted item of 2000005 bytes" in failure.message


def test_a_second_output_ends_it(guest: FakeSupervisor) -> None:
    failure = guest.failure(python("say(output=1)\nsay(output=2)"))
    assert "line 2 of $CASEMATE_EVENTS_FD: output: a second output" in failure.message


def test_an_output_that_cannot_be_carried_is_invalid(guest: FakeSupervisor) -> None:
    failure = guest.failure(python("say(output=[2 ** 90])"))
    assert (failure.kind, failure.message[:24]) == ("invalid_output", "output[0]: int of 91 bit")


def test_a_large_output_goes_by_file(guest: FakeSupervisor) -> None:
    outcome = guest.run(python("say(output='x' * 5_000_000)"))
    assert isinstance(outcome, Result)
    data = (guest.outbox / "output").read_bytes()
    assert outcome.digest == hashlib.sha256(data).digest()
    assert codec.decode_value(data) == "x" * 5_000_000


def test_the_last_line_needs_no_newline_and_empty_lines_say_nothing(guest: FakeSupervisor) -> None:
    entry = shell("printf '\\n \\n{\"output\": 1}' >&$CASEMATE_EVENTS_FD")
    assert guest.output(entry) == 1


def test_lines_come_whole_however_they_are_cut(guest: FakeSupervisor) -> None:
    script = (
        "text = ''.join(json.dumps({'emit': [n, 'é' * n]}, ensure_ascii=False) + '\\n'\n"
        "               for n in range(300)).encode()\n"
        "for start in range(0, len(text), 997):\n"
        "    os.write(events.fileno(), text[start:start + 997])\n"
    )
    guest.start(python(script))
    said, _ = guest.finish()
    assert [_told(message) for message in said] == [[n, "é" * n] for n in range(300)]


def test_a_line_beyond_all_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "EVENTS_LINE_SIZE", 100)
    lines = command.Events(_silent())
    lines.feed(b'{"output": 1}\n' + b"x" * 100)
    with pytest.raises(command.CommandError, match=r"line 2 of .* longer than 100 bytes"):
        lines.feed(b"x")


def _silent() -> RuntimeContext:
    class Silent:
        def send(self, message: Message) -> None:
            raise AssertionError(message)

        def is_cancelled(self) -> bool:
            return False

        def deadline(self) -> float | None:
            return None

        def save(self, message: Save) -> None:
            raise AssertionError(message)

        def take(self, upstream: str) -> Any:
            raise AssertionError(upstream)

        async def take_later(self, upstream: str) -> Any:
            raise AssertionError(upstream)

    return RuntimeContext(
        Silent(), run_id="r", task_id="t", attempt=1, spec=None, workspace=None,
        idempotency_key="r/t",
    )  # fmt: skip


def test_the_pipe_may_be_closed_long_before_the_end(guest: FakeSupervisor) -> None:
    guest.start(python("say(output=1)\nevents.close()\nopen(given).read()"), str(_fifo(guest)))
    # It goes on after the close until the FIFO has a writer that leaves.
    with _fifo_path(guest).open("w"):
        pass
    _, outcome = guest.finish()
    assert isinstance(outcome, Result)


def _fifo_path(guest: FakeSupervisor) -> Path:
    return guest.folder / "fifo"


def _fifo(guest: FakeSupervisor) -> Path:
    os.mkfifo(_fifo_path(guest))
    return _fifo_path(guest)


def test_a_background_child_that_holds_the_pipe_is_not_waited_for(guest: FakeSupervisor) -> None:
    assert guest.output(shell("sleep 600 & " + events('{"output": "done"}'))) == "done"


def test_a_background_child_that_floods_the_pipe_cannot_prevent_the_end(
    guest: FakeSupervisor,
) -> None:
    script = (
        "if os.fork() == 0:\n"
        "    while True: os.write(events.fileno(), b'{\"progress\": 1}\\n' * 1000)\n"
    )
    guest.start(python(script))
    _, outcome = guest.finish()
    assert isinstance(outcome, Result)


def test_a_command_inherits_three_descriptors_and_the_events(guest: FakeSupervisor) -> None:
    script = (
        "import stat\nsay(output=[sorted(os.listdir('/proc/self/fd'), key=int), events.fileno()])"
    )
    listed, number = guest.output(python(script))
    # listdir itself has one open
    own = {fd for fd in listed if int(fd) not in (0, 1, 2, number)}
    assert set(listed) - own == {"0", "1", "2", str(number)}
    assert len(own) == 1


def test_a_command_leads_its_own_group(guest: FakeSupervisor) -> None:
    pid, group, session = guest.output(
        python("say(output=[os.getpid(), os.getpgid(0), os.getsid(0)])")
    )
    assert pid == group == session


def test_sigterm_reaches_the_whole_group(guest: FakeSupervisor) -> None:
    child = (
        "trap 'echo child; exit' TERM\n"
        + events('{"emit": "running"}')
        + "while :; do sleep 0.01; done"
    )
    guest.source("child.sh", child)
    guest.start(shell(f"trap 'echo parent; exit 5' TERM\nsh {guest.sources}/child.sh & wait; wait"))
    assert isinstance(guest.next(), Emit)
    guest.cancel()
    guest.terminate()
    _, outcome = guest.finish()
    assert outcome == Fail(kind="error", message="'sh' ended with exit code 5")
    wait_until(lambda: sorted(guest.stdout().split()) == ["child", "parent"])


def test_a_command_that_ends_by_sigterm_says_so(guest: FakeSupervisor) -> None:
    guest.start(shell(events('{"emit": "running"}') + "sleep 600"))
    assert isinstance(guest.next(), Emit)
    guest.terminate()
    _, outcome = guest.finish()
    assert outcome == Fail(kind="crash", message="'sh' was killed by SIGTERM")


def test_sigterm_passes_a_blocked_emit(guest: FakeSupervisor) -> None:
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('terminated', flush=True), os._exit(0)))\n"
        "while True:\n"
        "    say(emit='x' * 900_000)\n    print('sent', flush=True)\n"
    )
    guest.start(python(script))
    wait_until(lambda: guest.stdout().count("sent") >= 16)
    guest.terminate()
    wait_until(lambda: "terminated" in guest.stdout())
    _, outcome = guest.finish()
    # Cut off in the middle of a line, most likely; whole lines before it have been passed on.
    assert isinstance(outcome, Result | Fail)


# -- streams and saved states ----------------------------------------------------------------------


def test_the_items_of_a_stream_come_as_lines_and_end(guest: FakeSupervisor) -> None:
    guest.start(
        python(
            "with open(os.environ['CASEMATE_STREAM_WEB_SEARCH'], encoding='utf-8') as stream:\n"
            "    for line in stream: say(emit=json.loads(line))\n"
            "say(output='end of file')"
        ),
        streams=("web-search",),
    )
    for item in ({"text": "ü\n"}, b"\x00", None, float("inf")):
        guest.give("web-search", item)
        while isinstance(message := guest.next(), Credit):
            pass
        assert _told(message) == item
    guest.send(End(upstream="web-search"))
    _, outcome = guest.finish()
    assert isinstance(outcome, Result)
    assert codec.decode_value(outcome.output) == "end of file"


def test_a_stream_that_has_ended_is_still_read_whole_by_who_opens_it_late(
    guest: FakeSupervisor,
) -> None:
    opener = _fifo(guest)
    guest.start(
        shell(f'read go <{opener}; cat "$CASEMATE_STREAM_A" "$CASEMATE_STREAM_B"'),
        streams=("a", "b"),
    )
    guest.give("b", 1, 2)
    guest.send(End(upstream="a"))
    guest.send(End(upstream="b"))
    opener.write_text("go\n")
    guest.finish()
    assert guest.stdout() == "1\n2\n"


def test_a_stream_that_is_never_opened_hinders_nobody(guest: FakeSupervisor) -> None:
    guest.start(shell(events('{"output": 1}')), streams=("a",))
    guest.give("a", 1)
    _, outcome = guest.finish()
    assert isinstance(outcome, Result)
    assert codec.decode_value(outcome.output) == 1


def test_a_stream_may_be_closed_early_and_is_not_there_a_second_time(
    guest: FakeSupervisor,
) -> None:
    guest.start(
        shell(
            'head -n 1 "$CASEMATE_STREAM_A"\n'
            'while [ -e "$CASEMATE_STREAM_A" ]; do sleep 0.01; done\n'
            'cat "$CASEMATE_STREAM_A" || ' + events('{"output": "gone"}')
        ),
        streams=("a",),
    )
    guest.give("a", "x" * 100_000)
    guest.give("a", *["y" * 10_000] * 50)
    _, outcome = guest.finish()
    assert isinstance(outcome, Result)
    assert codec.decode_value(outcome.output) == "gone"
    assert guest.stdout() == json.dumps("x" * 100_000) + "\n"


def test_two_streams_of_one_name_are_refused(guest: FakeSupervisor) -> None:
    failure = guest.failure(shell("true"), streams=("web-search", "Web_Search"))
    assert failure.message == (
        "the streams of web-search and Web_Search would both be $CASEMATE_STREAM_WEB_SEARCH: "
        "rename one of these tasks"
    )


def test_an_item_that_is_no_value_ends_it(guest: FakeSupervisor) -> None:
    guest.start(shell('cat "$CASEMATE_STREAM_A"; sleep 600'), streams=("a",))
    guest.send(Item(upstream="a", items=(Raw(b"\x01"), Raw(b"\xa1\xff"))))
    _, outcome = guest.finish()
    assert isinstance(outcome, Fail)
    assert outcome.message.startswith("$CASEMATE_STREAM_A: an item of the stream 'a' is not a valu")


def test_a_command_saves_and_the_next_attempt_finds_it(guest: FakeSupervisor) -> None:
    guest.start(shell(events('{"save": {"line": 7}}') + events('{"emit": 1}')))
    message = guest.next()
    assert isinstance(message, Save)
    assert codec.decode_value(message.state) == {"line": 7}
    guest.send(Saved())
    assert isinstance(guest.finish()[1], Result)


def test_a_saved_state_is_a_file(guest: FakeSupervisor) -> None:
    script = shell('echo "${CASEMATE_SAVED-none}"; cat "$CASEMATE_SAVED"')
    guest.output(script, saved={"line": 7, "at": b"\x00"})
    assert json.loads(guest.stdout().splitlines()[1]) == {"line": 7, "at": {"$bytes": "AA=="}}


def test_without_a_saved_state_nothing_is_set(guest: FakeSupervisor) -> None:
    guest.output(shell('echo "${CASEMATE_SAVED-none}"'))
    assert guest.stdout() == "none\n"


def test_a_state_too_large_ends_it(guest: FakeSupervisor) -> None:
    failure = guest.failure(python("say(save='x' * 300_000)"))
    assert "line 1 of $CASEMATE_EVENTS_FD: save: saved state of 300005 bytes" in failure.message


def test_sigterm_passes_a_command_that_waits_for_an_item(guest: FakeSupervisor) -> None:
    guest.start(
        shell(
            "trap 'echo tidied; exit 5' TERM\n"
            + events('{"emit": 1}')
            + 'cat "$CASEMATE_STREAM_A" & wait'
        ),
        streams=("a",),
    )
    assert isinstance(guest.next(), Emit)
    guest.cancel()
    guest.terminate()
    _, outcome = guest.finish()
    assert outcome == Fail(kind="error", message="'sh' ended with exit code 5")
    assert guest.stdout() == "tidied\n"
