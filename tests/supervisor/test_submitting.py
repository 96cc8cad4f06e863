"""`casemate submit`: a pipeline with all it needs travels to a `casemate serve`, and becomes one
run there whatever is killed in between."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from casemate import CasemateError, UsageError
from casemate.protocol import codec
from casemate.protocol.control import RunState
from casemate.protocol.limits import SUBMISSION_SIZE, SUBMISSIONS_KEPT
from casemate.supervisor.bundle import pack, unpack
from casemate.supervisor.control import Client
from casemate.supervisor.journal import JournalReader, NotBegunError
from casemate.supervisor.overview import list_runs, summarise
from casemate.supervisor.pipeline import Allow, compile_document
from casemate.supervisor.reading import Document
from casemate.supervisor.state import StateDirectory
from casemate.supervisor.submissions import Submissions
from fakes import wait_until
from msgspec import Raw
from runs import Embedded, Place, serving
from verifier import assert_true_story

TASKS = """
import time
from pathlib import Path
from helper import WORD
def first(input):
    return [input, WORD]
def second(input, ctx):
    ctx.emit("here")
    while ctx.attempt == 1 and input["first"][0] == "hang":
        time.sleep(0.01)
    return input["first"]
def look(input, ctx):
    return (ctx.workspace / "file").read_text()
"""
CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]
CHAIN: dict[str, Any] = {
    "name": "chain",
    "defaults": {"sources": ["helper.py"], "limits": {"memory": "64MiB"}},
    "tasks": {
        "first": {"execute": "tasks.py:first"},
        "second": {"execute": "tasks.py:second", "needs": ["first"]},
    },
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "place")
    place.tasks(TASKS)
    place.write("helper.py", "WORD = 'as it was'")
    place.write("chain.json", json.dumps(CHAIN))
    return place


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def submit(state: Path, file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*CASEMATE, "submit", str(file), "--state", str(state), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def wait_ready(state: Path) -> None:
    house = StateDirectory(state)
    wait_until(lambda: any(each.accepts for each in house.living_supervisors()))


def stands(state: Path, run: str) -> RunState:
    return summarise(StateDirectory(state).run(run)).state


def wait_ended(state: Path, run: str) -> None:
    wait_until(lambda: stands(state, run) is RunState.COMPLETED)


def wait_hanging(state: Path, run: str) -> None:
    """Until `first` has completed and `second` hangs, which it does in its first attempt."""

    def is_there() -> bool:
        try:
            with JournalReader(StateDirectory(state).run(run)) as reader:
                return any(event.kind == "task.emitted" for event in reader.events())
        except NotBegunError:
            return False

    wait_until(is_there)


def outputs(state: Path, run: str) -> Any:
    with JournalReader(StateDirectory(state).run(run)) as reader:
        last = reader.events(reader.last_seq() - 1)[-1]
    return codec.decode_value(last.data)["outputs"]


def bundle_of(place: Place, value: Any, **changes: Any) -> bytes:
    document = Document(CHAIN | changes, "chain.json")
    spec = compile_document(document, root=place.path)
    return pack(document, spec, Raw(codec.encode_value(value)))


def test_a_pipeline_travels_with_what_its_tasks_import(state: Path, place: Place) -> None:
    with serving(state) as service:
        wait_ready(state)
        done = submit(state, place.path / "chain.json", "--json", "--input", '"hang"')
        assert (done.returncode, done.stderr) == (0, "")
        run = json.loads(done.stdout)["run"]
        wait_hanging(state, run)
        shutil.rmtree(place.path)
        service.kill()  # even its second life has the sources as they were
    with serving(state):
        wait_ended(state, run)
    assert outputs(state, run) == {"second": ["hang", "as it was"]}
    assert_true_story(state, run)


def test_the_workspace_is_the_submitters(state: Path, place: Place, tmp_path: Path) -> None:
    for folder in (place.path / "own", tmp_path / "other"):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    document = {"name": "look", "workspace": "own", "tasks": {"look": {"execute": "tasks.py:look"}}}
    document["tasks"]["look"]["sources"] = ["helper.py"]  # type: ignore[index]
    file = place.write("look.json", json.dumps(document))
    with serving(state):
        wait_ready(state)
        for arguments, seen in (((), "own"), (("--workspace", str(tmp_path / "other")), "other")):
            run = submit(state, file, *arguments).stdout.strip()
            wait_ended(state, run)
            assert outputs(state, run) == {"look": seen}


def test_what_is_wrong_is_said_to_the_submitter(state: Path, place: Place) -> None:
    file = place.path / "chain.json"
    assert "start one with `casemate serve`" in submit(state, file).stderr
    broken = place.write("broken.yaml", "name: x\ntasks: {a: {exec: b}}")
    network = json.loads(json.dumps(CHAIN))
    network["tasks"]["first"]["network"] = "host"
    greedy = place.write("greedy.json", json.dumps(network))
    with serving(state):
        wait_ready(state)
        done = submit(state, broken)
        assert done.returncode == 2 and "broken.yaml:2: tasks.a.exec" in done.stderr
        # What the submitter allows is not what counts.
        done = submit(state, greedy, "--allow", "network")
        assert done.returncode == 2 and "tasks.first.network" in done.stderr
        assert list_runs(StateDirectory(state)) == []
        assert list((state / "submissions").iterdir()) == []


def test_only_who_says_so_takes_submissions(state: Path, place: Place) -> None:
    with Embedded(state) as house, Client(StateDirectory(state)) as client:
        with pytest.raises(UsageError, match="casemate serve"):
            client.submit(bundle_of(place, 1))
        runs: list[str] = []
        house.supervisor._on_submitted = runs.append  # it did not say so when it began
        with pytest.raises(UsageError, match="casemate serve"):
            client.submit(bundle_of(place, 1))
    assert runs == []


def test_a_submission_is_one_run_however_often_it_is_named(state: Path, place: Place) -> None:
    name = "0123456789abcdef" * 2
    with Client(StateDirectory(state)) as client:
        with serving(state) as service:
            wait_ready(state)
            run, _ = client.submit(bundle_of(place, "hang"), name)
            assert client.submit(bundle_of(place, "hang"), name) == (run, ())
            wait_hanging(state, run)
            service.kill()
        with serving(state):
            wait_ready(state)
            assert client.submit(bundle_of(place, "hang"), name) == (run, ())
            wait_ended(state, run)
    assert [each.id for each in list_runs(StateDirectory(state))] == [run]


def test_one_that_was_taken_and_had_not_begun_is_begun_by_the_next(
    state: Path, place: Place
) -> None:
    name = "0" * 32
    bundle = bundle_of(place, "value")
    store = Submissions(StateDirectory.open(state))
    assert store.write(name, 0, bundle) == len(bundle)
    store.take(name, digest_of(bundle))
    with serving(state):
        wait_until(lambda: store.run_of(name) is not None)
        run = store.run_of(name)
        assert run is not None
        wait_ended(state, run)
    assert outputs(state, run) == {"second": ["value", "as it was"]}
    assert store.pending() == []


def digest_of(bundle: bytes) -> bytes:
    return sha256(bundle).digest()


def test_twenty_runs_go_on_after_a_kill_and_repeat_nothing(
    state: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_MAX_PARALLEL", "20")
    with serving(state) as service:
        wait_ready(state)
        with Client(StateDirectory(state)) as client:
            runs = [client.submit(bundle_of(place, "hang"))[0] for _ in range(20)]
        for run in runs:
            wait_hanging(state, run)
        service.kill()
    with serving(state):
        for run in runs:
            wait_ended(state, run)
    for run in runs:
        assert_true_story(state, run)
        with JournalReader(StateDirectory(state).run(run)) as reader:
            completed = [e.task for e in reader.events() if e.kind == "task.completed"]
        assert completed == ["first", "second"]


def test_an_upload_grows_piece_by_piece_and_only_at_its_end(tmp_path: Path) -> None:
    store, name = Submissions(StateDirectory.open(tmp_path / "state")), "a" * 32
    assert store.write(name, 0, b"one") == 3
    assert store.write(name, 0, b"one") == 3  # said again: nothing changes
    assert store.write(name, 7, b"hole") == 3
    assert store.write(name, 3, b"two") == 6
    with pytest.raises(UsageError, match="upload it again"):
        store.take(name, digest_of(b"another"))
    assert store.write(name, 0, b"anew") == 4
    assert store.take(name, digest_of(b"anew")) == b"anew"
    with pytest.raises(UsageError, match="was not uploaded"):
        store.take("b" * 32, digest_of(b""))


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    store = Submissions(StateDirectory.open(tmp_path / "state"))
    for number in range(SUBMISSIONS_KEPT):
        store.write(f"{number:032x}", 0, b"x")
    with pytest.raises(UsageError, match="submissions wait"):
        store.write("f" * 32, 0, b"x")
    assert store.write(f"{0:032x}", 1, b"y") == 2
    large = tmp_path / "state/submissions" / f"{1:032x}.upload"
    with large.open("r+b") as file:
        file.truncate(SUBMISSION_SIZE)
    with pytest.raises(UsageError, match="at most 256 MiB"):
        store.write(f"{1:032x}", SUBMISSION_SIZE, b"x")


def test_what_is_seen_as_it_is_on_this_host_travels_by_its_whole_path(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    document: dict[str, Any] = {
        "name": "seen",
        "defaults": {"ro": "data"},
        "tasks": {"a": {"command": ["ls"], "rw": ["../out"]}},
    }
    (tmp_path.parent / "out").mkdir(exist_ok=True)
    allow = Allow.parse(["rw:/"])
    here = compile_document(document, root=tmp_path, allow=allow)
    packed = pack(Document(document, "seen.yaml"), here, Raw(b"\xc0"))
    (tmp_path / "there").mkdir()
    spec, _ = unpack(packed, tmp_path / "there", allow)
    assert spec.tasks[0].binds == here.tasks[0].binds != ()


@pytest.mark.parametrize("name", ["../out", "/abs", "a//b", "", ".", "a/../b", "nul\0"])
def test_a_bundle_writes_nothing_beside_its_folder(tmp_path: Path, name: str) -> None:
    packed = msgspec.msgpack.encode(
        {"source": "x", "document": Raw(b"\xc0"), "files": {name: b""}, "workspace": None,
         "input": Raw(b"\xc0")}
    )  # fmt: skip
    with pytest.raises(UsageError, match="a file cannot be named"):
        unpack(packed, tmp_path / "in", Allow())
    assert list(tmp_path.iterdir()) == []


def made_up(source: str = "x", **parts: Any) -> bytes:
    """A bundle that `pack` would not make."""
    whole: dict[str, Any] = {
        "source": source,
        "document": Raw(msgspec.msgpack.encode({"name": "x", "tasks": {"a": {"command": ["ls"]}}})),
        "files": {},
        "workspace": None,
        "input": Raw(b"\xc0"),
    }
    return msgspec.msgpack.encode(whole | parts)


def nowhere(tmp_path: Path) -> str:
    """A link that leads to itself."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    return str(loop)


HOPELESS: dict[str, tuple[dict[str, Any], str]] = {
    "a name too long": ({"files": {"n" * 300: b""}}, "a file cannot be named 'nnn"),
    "a file below a file": ({"files": {"a": b"", "a/b": b""}}, "cannot be named 'a/b'"),
    "a file that is a folder": ({"files": {"a/b": b"", "a": b""}}, "cannot be named 'a'"),
    "odd keys": ({"document": Raw(b"\x81\x01\xc0")}, "not a value"),
    "nul in the workspace": ({"workspace": "/a\0b"}, "workspace.*null"),
    "a workspace too long": ({"workspace": "/" + "a" * 300}, "workspace.*too long"),
}


@pytest.mark.parametrize(("parts", "problem"), HOPELESS.values(), ids=HOPELESS)
def test_what_can_never_be_a_run_is_the_submitters_to_mend(
    tmp_path: Path, parts: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        unpack(made_up(**parts), tmp_path / "in", Allow())


def test_a_workspace_that_leads_to_itself_is_the_submitters_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workspace"):
        unpack(made_up(workspace=nowhere(tmp_path)), tmp_path / "in", Allow())


def test_nothing_that_is_submitted_keeps_the_next_serve_from_starting(
    state: Path, place: Place
) -> None:
    with serving(state):
        wait_ready(state)
        with Client(StateDirectory(state)) as client:
            for parts, _ in HOPELESS.values():
                with pytest.raises(UsageError):
                    client.submit(made_up(**parts))
        assert list((state / "submissions").iterdir()) == []
    with serving(state):
        wait_ready(state)
        with Client(StateDirectory(state)) as client:
            wait_ended(state, client.submit(bundle_of(place, "value"))[0])


def full(*_: object, **__: object) -> str:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_was_refused_while_the_disk_was_full_does_not_run_later(
    state: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    bundle = bundle_of(place, "value")
    with Embedded(state, on_submitted=runs.append) as house:
        with Client(StateDirectory(state)) as client, monkeypatch.context() as patched:
            patched.setattr(tempfile, "mkdtemp", full)
            with pytest.raises(CasemateError, match="No space left"):
                client.submit(bundle)
        house.call(house.supervisor.start_submitted())
        assert Submissions(StateDirectory(state)).pending() == runs == []


def test_what_nobody_was_told_of_waits_for_a_disk_that_is_not_full(
    state: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, bundle = "0" * 32, bundle_of(place, "value")
    store = Submissions(StateDirectory.open(state))
    store.write(name, 0, bundle)
    store.take(name, digest_of(bundle))
    runs: list[str] = []
    with Embedded(state, on_submitted=runs.append) as house:
        with monkeypatch.context() as patched:
            patched.setattr(tempfile, "mkdtemp", full)
            with pytest.raises(UsageError, match="No space left"):
                house.call(house.supervisor.start_submitted())
        assert store.pending() == [name]
        house.call(house.supervisor.start_submitted())
        assert [store.run_of(name)] == runs
    assert store.pending() == []


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    for packed in (b"", b"\xc1", b"\x80", b"\x91" * 100_000):
        with pytest.raises(UsageError, match="is no bundle"):
            unpack(packed, tmp_path, Allow())
