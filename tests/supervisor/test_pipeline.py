"""Pipeline files: what they say, what they may not ask for, and how they are told what is wrong."""

# ruff: noqa: E501  (messages stand here as people see them, on one line)

from __future__ import annotations

import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol import codec
from casemate.protocol.errors import UsageError
from casemate.protocol.pipeline import (
    TASK_ID_PATTERN,
    Base,
    Bind,
    Breaker,
    Bulkhead,
    Checkpoints,
    CommandEntry,
    Conflict,
    Edge,
    FileEntry,
    Limits,
    ModuleEntry,
    Network,
    OnOpen,
    PickleEntry,
    PipelineSpec,
    ProcView,
    Rate,
    Retry,
    TaskSpec,
    Timeouts,
)
from casemate.protocol.units import parse_size
from casemate.supervisor.pipeline import (
    Allow,
    PipelineError,
    compile_document,
    describing,
    json_schema,
    load_pipeline,
)
from casemate.supervisor.reading import parse_text
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = 2**20

REVIEW = """\
    name: review
    workspace: ./repo              # never written to
    defaults: {limits: {memory: 256MiB}, timeouts: {wall: 60s}}
    tasks:
      analyze:  {execute: "agents.py:analyze", retry: {attempts: 3, delay: 500ms, on: timeout}}
      refactor: {execute: "agents.py:refactor", spec: {role: refactorer}, limits: {cpu: 0.5}}
      test:     {command: [python, -m, pytest, -q], timeouts: {wall: 2m}, needs: [analyze]}
    edges:
      - {from: analyze, to: refactor}
      - [refactor, test]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "project/repo").mkdir(parents=True)
    (tmp_path / "project/agents.py").write_text("def analyze(input, ctx): ...\n")
    (tmp_path / "outside").mkdir()
    return tmp_path / "project"


def write(folder: Path, text: str, name: str = "review.yaml") -> Path:
    file = folder / name
    file.write_text(textwrap.dedent(text))
    return file


def task(spec: PipelineSpec, id: str) -> TaskSpec:
    return next(task for task in spec.tasks if task.id == id)


def refusal(folder: Path, text: str, name: str = "review.yaml", allow: Allow | None = None) -> str:
    """What is said of a file that cannot be used, with its folder taken off."""
    with pytest.raises(PipelineError) as error:
        load_pipeline(write(folder, text, name), allow)
    return str(error.value).replace(f"{folder}/", "")


# --- what a file says ----------------------------------------------------------------------------


def test_a_file_becomes_a_resolved_pipeline(folder: Path) -> None:
    spec = load_pipeline(write(folder, REVIEW))
    assert spec.name == "review"
    assert spec.root == str(folder)
    assert spec.workspace == str(folder / "repo")
    assert spec.edges == (
        Edge("analyze", "refactor"),
        Edge("analyze", "test"),
        Edge("refactor", "test"),
    )
    assert [task.id for task in spec.tasks] == ["analyze", "refactor", "test"]
    assert task(spec, "analyze").execute == FileEntry("agents.py", "analyze")
    assert task(spec, "test").execute == CommandEntry(("python", "-m", "pytest", "-q"))
    assert codec.decode_value(task(spec, "refactor").spec) == {"role": "refactorer"}


def test_a_tasks_word_goes_before_the_pipelines_and_that_before_the_defaults(folder: Path) -> None:
    spec = load_pipeline(write(folder, REVIEW))
    assert task(spec, "refactor").limits.memory == 256 * MIB
    assert task(spec, "refactor").limits.cpu == 0.5
    assert task(spec, "refactor").limits.pids == 256
    assert task(spec, "refactor").timeouts.wall == 60
    assert task(spec, "test").timeouts.wall == 120
    assert task(spec, "analyze").retry.attempts == 3
    assert task(spec, "analyze").retry.on == ("timeout",)
    assert task(spec, "test").retry.attempts == 1


def test_what_is_not_said_has_the_documented_defaults(folder: Path) -> None:
    spec = load_pipeline(
        write(folder, "{name: x, tasks: {a: {command: [true]}}}".replace("true", "ls"))
    )
    [only] = spec.tasks
    assert only.limits == Limits(
        memory=512 * MIB, cpu=None, pids=256, files=1024, tmp=256 * MIB, disk=1024 * MIB,
        output=16 * MIB,
    )  # fmt: skip
    assert only.timeouts == Timeouts(start=10, wall=600, idle=None, cpu=None, grace=0)
    assert only.retry == Retry(
        attempts=1, delay=1, backoff=2, max_delay=60, jitter=0.1,
        on=("error", "invalid_output", "timeout", "memory", "pids", "disk", "output_limit", "crash",
            "protocol"),
    )  # fmt: skip
    assert (only.network, only.env, only.host_env, only.sources) == (Network.NONE, {}, (), ())
    assert (spec.workspace, spec.fail_fast, spec.timeout, spec.max_parallel) == (
        None, False, None, None,
    )  # fmt: skip


def test_a_stream_edge_says_so_and_any_other_is_plain(folder: Path) -> None:
    text = """\
    name: x
    stream_backlog: 1MiB
    tasks: {a: {command: [ls]}, b: {command: [ls]}, c: {command: [ls], needs: b}}
    edges:
      - {from: a, to: b, stream: true}
      - {from: a, to: c, stream: false}
    """
    spec = load_pipeline(write(folder, text))
    assert spec.edges == (Edge("a", "b", stream=True), Edge("a", "c"), Edge("b", "c"))
    assert spec.stream_backlog == MIB
    assert load_pipeline(write(folder, REVIEW)).stream_backlog == 64 * MIB


def test_no_limit_is_said_by_null_or_none(folder: Path) -> None:
    text = "{name: x, tasks: {a: {command: [ls], timeouts: {wall: null}}}}"
    assert load_pipeline(write(folder, text)).tasks[0].timeouts.wall is None
    text = 'name = "x"\ntasks.a = {command = ["ls"], timeouts = {wall = "none"}}'
    assert load_pipeline(write(folder, text, "x.toml")).tasks[0].timeouts.wall is None


def test_yaml_toml_and_json_say_the_same(folder: Path) -> None:
    from_yaml = load_pipeline(write(folder, REVIEW))
    toml = """
        name = "review"
        workspace = "./repo"
        edges = [{from = "analyze", to = "refactor"}, ["refactor", "test"]]
        [defaults]
        limits.memory = "256MiB"
        timeouts.wall = 60
        [tasks.analyze]
        execute = "agents.py:analyze"
        retry = {attempts = 3, delay = 0.5, on = ["timeout"]}
        [tasks.refactor]
        execute = "agents.py:refactor"
        spec.role = "refactorer"
        limits.cpu = 0.5
        [tasks.test]
        command = ["python", "-m", "pytest", "-q"]
        timeouts.wall = "2m"
        needs = "analyze"
    """
    assert comparable(load_pipeline(write(folder, toml, "review.toml"))) == comparable(from_yaml)
    data = {
        "$schema": "https://example.org/schema.json",
        "name": "review",
        "workspace": "repo",
        "defaults": {"limits": {"memory": 256 * MIB}, "timeouts": {"wall": "1m"}},
        "tasks": {
            "analyze": {
                "execute": "agents.py:analyze",
                "retry": {"attempts": 3, "delay": "0.5s", "on": ["timeout"]},
            },
            "refactor": {
                "execute": "agents.py:refactor",
                "spec": {"role": "refactorer"},
                "limits": {"cpu": 0.5},
            },
            "test": {"command": ["python", "-m", "pytest", "-q"], "timeouts": {"wall": 120}},
        },
        "edges": {"analyze": ["refactor", "test"], "refactor": "test"},
    }
    for indent in (None, 2, "\t"):
        file = write(folder, json.dumps(data, indent=indent), "review.json")
        assert comparable(load_pipeline(file)) == comparable(from_yaml)


def comparable(spec: PipelineSpec) -> tuple[object, ...]:
    return (
        spec.name, spec.edges, spec.root, spec.workspace,
        [(t.id, t.execute, bytes(t.spec), t.limits, t.timeouts, t.retry) for t in spec.tasks],
    )  # fmt: skip


def test_yaml_is_read_by_the_rules_of_1_2(folder: Path) -> None:
    text = """
        name: "off"
        tasks:
          no: {command: [ls, 1:30, yes, 2024-01-01], spec: {octal: 0o17, ten: 010, on: off, x: 0x1F, f: 1e3}, env: {N: 1}}
        """
    [only] = load_pipeline(write(folder, text)).tasks
    assert only.id == "no"
    assert only.execute == CommandEntry(("ls", "1:30", "yes", "2024-01-01"))
    assert codec.decode_value(only.spec) == {
        "octal": 15, "ten": 10, "on": "off", "x": 31, "f": 1000.0,
    }  # fmt: skip
    assert only.env == {"N": "1"}


def test_anchors_and_merges_work(folder: Path) -> None:
    text = """
        name: x
        tasks:
          a: &base {command: [ls], env: {A: "1"}, limits: {pids: 9}}
          b: {<<: *base, env: {B: "2"}}
          c: {<<: [{limits: {pids: 10}}, *base]}
        """
    spec = load_pipeline(write(folder, text))
    assert task(spec, "b").execute == CommandEntry(("ls",))
    assert task(spec, "b").env == {"B": "2"}
    assert task(spec, "b").limits.pids == 9
    assert task(spec, "c").limits.pids == 10


def test_a_function_may_be_named_by_file_by_module_or_carried_as_a_pickle(folder: Path) -> None:
    def entry(execute: object) -> object:
        document: dict[str, object] = {"name": "x", "tasks": {"a": {"execute": execute}}}
        return compile_document(document, root=folder).tasks[0].execute

    assert entry("agents.py:Agent.run") == FileEntry("agents.py", "Agent.run")
    assert entry("json.tool:main") == ModuleEntry("json.tool", "main")
    assert entry({"pickle": b"\x80", "name": "f"}) == PickleEntry(b"\x80", "f")


def test_sources_and_environment_of_the_defaults_are_added_to(folder: Path) -> None:
    text = """
        name: x
        defaults: {sources: [agents.py], env: {A: "1", B: "1"}, network: none}
        tasks:
          a: {command: [ls], sources: ./repo/, env: {B: "2"}}
        """
    [only] = load_pipeline(write(folder, text)).tasks
    assert only.sources == ("agents.py", "repo")
    assert only.env == {"A": "1", "B": "2"}


def test_a_symlinked_pipeline_file_means_the_folder_it_was_named_in(folder: Path) -> None:
    original = write(
        folder.parent / "outside", "{name: x, workspace: repo, tasks: {a: {command: [ls]}}}"
    )
    (folder / "link.yaml").symlink_to(original)
    assert load_pipeline(folder / "link.yaml").workspace == str(folder / "repo")


# --- what is wrong -------------------------------------------------------------------------------

BAD = [
    # shape
    ("", "review.yaml: is empty; a pipeline has at least name and tasks"),
    ("- a", "review.yaml:1: expected a map with name and tasks, got a list"),
    ("name: x", "review.yaml: tasks: is missing; write tasks: and below it one key for each task"),
    ("name: x\ntasks: {}", "review.yaml:2: tasks: is empty; a pipeline has at least one task"),
    ("name: x\ntasks: [a]", "review.yaml:2: tasks: expected a map, got a list"),
    ("tasks: {a: {command: [ls]}}", "review.yaml: name: is missing; every pipeline has a name"),
    (
        "name: a/b\ntasks: {a: {command: [ls]}}",
        'review.yaml:1: name: "a/b": a name is up to 100 letters, digits, spaces, . _ or -',
    ),
    (
        "name: x\ntasks: {a.b: {command: [ls]}}",
        'review.yaml:2: tasks."a.b": "a.b": a task\'s id is 1 to 64 letters, digits, _ or -',
    ),
    ("name: x\ntasks:\n  a:\n", "review.yaml:3: tasks.a: expected a map, got nothing"),
    # keys
    (
        "name: x\ntasks:\n  a:\n    command: [ls]\n    limits: {memroy: 1GiB}",
        "review.yaml:5: tasks.a.limits.memroy: unknown key; did you mean memory?",
    ),
    (
        "name: x\nqqq: 3\ntasks: {a: {command: [ls], zzz: 1}}",
        """\
        review.yaml: 2 problems
          review.yaml:2: qqq: unknown key; the keys here are base, checkpoints, conflict, defaults, edges, fail_fast, max_parallel, name, priority, retry_budget, rollback_budget, stream_backlog, tasks, timeout, workspace
          review.yaml:3: tasks.a.zzz: unknown key; the keys here are always, breaker, bulkhead, command, degrade, env, execute, fallbacks, limits, max_parallel, needs, network, output_schema, preload, priority, proc, python, rate, recover, retry, ro, rw, sources, spec, timeouts, validate""",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], proc: all, degrade: [mount]}}",
        """\
        review.yaml: 2 problems
          review.yaml:2: tasks.a.degrade[0]: expected user, net, ipc, uts, cgroup, seccomp or landlock, got "mount"
          review.yaml:2: tasks.a.proc: expected pids or readonly, got "all\"""",
    ),
    # what is done about failures
    (
        "name: x\ntasks: {a: {command: [ls], validate: check}}",
        "review.yaml:2: tasks.a.validate: \"check\" names no function; write FILE.py:FUNCTION (beside "
        "the pipeline's file) or PACKAGE.MODULE:FUNCTION",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], validate: 'gone.py:check'}}",
        "review.yaml:2: tasks.a.validate: \"gone.py\" in {folder}: No such file or directory",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], output_schema: [1]}}",
        "review.yaml:2: tasks.a.output_schema: expected a JSON Schema such as {type: object}, got "
        "a list",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{do: retry}]}}",
        "review.yaml:2: tasks.a.recover: rule 1: on is missing; name error kinds, such as [error, "
        "timeout]",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{on: error, do: rety}]}}",
        "review.yaml:2: tasks.a.recover: rule 1: do is \"rety\"; expected retry, skip, fallback, "
        "rollback, fail; did you mean retry?",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{on: cancelled, do: fail}]}}",
        "review.yaml:2: tasks.a.recover: rule 1: \"cancelled\" is not an error kind that can be "
        "recovered from",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{on: error, do: skip, after: 1s}]}}",
        "review.yaml:2: tasks.a.recover: rule 1: \"after\": unknown key; the keys here are do, "
        "on, output",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{on: error, do: [skip]}]}}",
        "review.yaml:2: tasks.a.recover: rule 1: do is a list; expected retry, skip, fallback, "
        "rollback, fail",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{on: error, do: skip, output: {$bytes: '!'}}]}}",
        "review.yaml:2: tasks.a.recover: rule 1: output: $bytes stands for base64 text, got '!'; "
        "for a dict with this key write $$bytes",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{on: error, do: retry, after: 2d}]}}",
        'review.yaml:2: tasks.a.recover: rule 1: after is "2d", more than a day',
    ),
    (
        f"name: x\ntasks: {{a: {{command: [ls], recover: [{', '.join(['{on: disk, do: fail}'] * 65)}]}}}}",
        "review.yaml:2: tasks.a.recover: 65 rules, at most 64: the first that covers a kind counts",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{on: error, do: skip, output: &o "
        f"{'x' * 150 * 1024}}}, {{on: disk, do: skip, output: *o}}]}}}}",
        "review.yaml:2: tasks.a.recover: the outputs of its rules are 300 KiB together, at most 256: "
        "have a recover function give what is so large",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{on: error, do: fallback}]}}",
        "review.yaml:2: tasks.a.recover: rule 1: fallback needs fallback: the name of one of the "
        "task's fallbacks",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], recover: [{on: error, do: fallback, fallback: b}]}}",
        "review.yaml:2: tasks.a.recover: rule 1: \"b\" is none of the task's fallbacks",
    ),
    (
        "name: x\ntasks: {a: {command: [ls]}, b: {command: [ls], recover: [{on: error, "
        "do: rollback, to: c}]}}",
        'review.yaml:2: tasks.b.recover: rule 1: "c" is neither this task nor upstream of it; a '
        "rollback from here goes to one of those",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], fallbacks: {cheap: 3}}}",
        "review.yaml:2: tasks.a.fallbacks: cheap: expected a text, got 3; write "
        "FILE.py:FUNCTION (beside the pipeline's file) or PACKAGE.MODULE:FUNCTION",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], always: true}}",
        "review.yaml:2: tasks.a: needs nothing; name in `needs` what it cleans up after",
    ),
    (
        "name: x\ntasks: {a: {command: [ls]}, b: {command: [ls], always: true, needs: a, "
        "timeouts: {wall: none}}}",
        "review.yaml:2: tasks.b.timeouts: has no wall limit; an `always` task is not under the "
        "run's deadline and needs its own",
    ),
    (
        "name: x\ntasks: {a: {command: [ls]}, b: {command: [ls], always: true}}\n"
        "edges: [{from: a, to: b, stream: true}]",
        "review.yaml:2: tasks.b: reads a stream, and an `always` task cannot; use plain edges",
    ),
    ("name: x\nname: y\n", "review.yaml:2: name is given twice, first on line 1"),
    # values
    (
        "name: x\nfail_fast: yes\ntasks: {a: {command: [ls]}}",
        'review.yaml:2: fail_fast: expected true or false, got "yes"',
    ),
    (
        "name: x\ntasks: {a: {command: [ls], limits: {memory: 1k, pids: '3', cpu: 0}}}",
        """\
        review.yaml: 3 problems
          review.yaml:2: tasks.a.limits.memory: 1KiB is too little; at least 8MiB: the sandbox's own Python needs that
          review.yaml:2: tasks.a.limits.cpu: 0 is too little; at least 0.01
          review.yaml:2: tasks.a.limits.pids: expected a whole number, got "3\"""",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], timeouts: {wall: 60 sec, idle: 0, start: none}}}",
        """\
        review.yaml: 3 problems
          review.yaml:2: tasks.a.timeouts.start: 'none' is not a duration; write a number of seconds or a text such as 500ms, 30s, 1m30s, 2h
          review.yaml:2: tasks.a.timeouts.wall: '60 sec' is not a duration; write a number of seconds or a text such as 500ms, 30s, 1m30s, 2h
          review.yaml:2: tasks.a.timeouts.idle: 0 leaves no time at all; write none for no limit""",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], retry: {attempts: 101, on: [timeot, setup]}}}",
        """\
        review.yaml: 2 problems
          review.yaml:2: tasks.a.retry.attempts: 101 is too much; at most 100
          review.yaml:2: tasks.a.retry.on: "timeot" is not an error kind that can be retried; did you mean timeout?""",
    ),
    (
        "name: x\ntasks: {a: {command: ls -l}}",
        'review.yaml:2: tasks.a.command: expected a list of words, got "ls -l"; for a shell write '
        '[bash, -c, "ls -l"]',
    ),
    (
        "name: x\ntasks: {a: {command: [sleep, 3]}}",
        "review.yaml:2: tasks.a.command: every word must be a text, got 3; quote it",
    ),
    (
        "name: x\ntasks: {a: {network: bridge, command: [ls]}}",
        'review.yaml:2: tasks.a.network: expected none or host, got "bridge"',
    ),
    (
        "name: x\ntasks: {a: {command: [ls], env: {CASEMATE_RUN: x}}}",
        "review.yaml:2: tasks.a.env: CASEMATE_RUN: the names that begin with CASEMATE_ are the "
        "sandbox's own",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], env: {DEBUG: true}}}",
        "review.yaml:2: tasks.a.env: DEBUG: expected a text, got true; quote it",
    ),
    (
        "name: x\ntasks: {a: {command: [ls], spec: reviewer}}",
        'review.yaml:2: tasks.a.spec: expected a map such as {role: reviewer}, got "reviewer"',
    ),
    # what runs
    (
        "name: x\ntasks: {a: {}}",
        "review.yaml:2: tasks.a: has neither execute nor command; add one, such as "
        "execute: agents.py:analyze",
    ),
    (
        "name: x\ntasks: {a: {execute: 'agents.py:analyze', command: [ls]}}",
        "review.yaml:2: tasks.a: has both execute and command; take one out",
    ),
    (
        "name: x\ntasks: {a: {execute: analyze}}",
        'review.yaml:2: tasks.a.execute: "analyze" names no function; write FILE.py:FUNCTION '
        "(beside the pipeline's file) or PACKAGE.MODULE:FUNCTION",
    ),
    (
        "name: x\ntasks: {a: {execute: 'agent.py:analyze'}}",
        'review.yaml:2: tasks.a.execute: "agent.py" in {folder}: No such file or directory',
    ),
    # the graph
    (
        "name: x\ntasks:\n  analyze: {command: [ls]}\n  b: {command: [ls], needs: [analyse]}",
        'review.yaml:4: tasks.b.needs[0]: there is no task "analyse"; did you mean analyze?',
    ),
    (
        "name: x\ntasks: {a: {command: [ls]}}\nedges:\n  - [a, a]\n  - {from: a, to: q}\n  - [a]\n  - {a: b}",
        """\
        review.yaml: 4 problems
          review.yaml:4: edges[0]: task a waits for itself
          review.yaml:5: edges[1].to: there is no task "q"
          review.yaml:6: edges[2]: expected {from: a, to: b} or [a, b], got a list of 1
          review.yaml:7: edges[3]: expected {from: a, to: b} or [a, b], got a map with "a\"""",
    ),
    (
        "name: x\ntasks: {a: {command: [ls]}, b: {command: [ls]}}\nstream_backlog: 1KiB\nedges:\n  - {from: a, to: b, stream: soon}\n  - {from: a, to: b, stream: true, steam: 1}\n  - [a, b]",
        """\
        review.yaml: 4 problems
          review.yaml:3: stream_backlog: 1KiB is too little; at least 1MiB: so much is on its way to a task that runs
          review.yaml:5: edges[0].stream: expected true or false, got "soon"
          review.yaml:6: edges[1].steam: unknown key; did you mean stream?
          review.yaml:7: edges[2]: the edge from a to b is given both with and without stream: true; take one out""",
    ),
    (
        "name: x\ntasks:\n  a: {command: [ls], needs: c}\n  b: {command: [ls], needs: a}\n  c: {command: [ls], needs: b}",
        "review.yaml:4: tasks.b.needs: a cycle: a → b → c → a; take one of these edges out",
    ),
    # the format itself
    ("name: x\n\tasks: 1", "review.yaml:2: is not YAML: a tab; YAML is indented with spaces"),
    ("name: [x\n", "review.yaml:2: is not YAML: while parsing a flow sequence, did not find "
     "expected ',' or ']'"),
    ("name: !!python/object:os.system x", 'review.yaml:1: the tag "tag:yaml.org,2002:python/object:'
     'os.system": a pipeline file is plain data'),
    ("a: 1\n---\nb: 2", "review.yaml:2: a second document begins here; a file holds one"),
    ("a: *b", "review.yaml:1: *b stands for nothing said before"),
    ("? [a]\n: b", "review.yaml:1: a key must be a text"),
    ("a: {<<: 3}", "review.yaml:1: << takes a map or a list of maps"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_a_bad_file_is_told_where_what_and_what_to_do(
    folder: Path, text: str, message: str
) -> None:
    expected = textwrap.dedent(message).replace("{folder}", str(folder))
    assert refusal(folder, text) == expected


def test_every_problem_is_said_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = """\
        name: review
        workspace: ../outside
        tasks:
          a: {execute: "missing.py:f", limits: {memory: lots}, network: host}
          b: {command: [ls], needs: [c, d], env: {TOKEN: null}}
          c: {command: [ls], needs: [b]}
        """
    assert [line.split(": ")[1] for line in refusal(folder, text).splitlines()[1:]] == [
        "workspace",
        "tasks.a.limits.memory",
        "tasks.a.execute",
        "tasks.a.network",
        "tasks.b.needs[1]",
        "tasks.b.env.TOKEN",
        "tasks.c.needs",
    ]


def test_a_thousand_problems_are_counted_not_printed(folder: Path) -> None:
    tasks = "".join(f"  t{number}: {{}}\n" for number in range(1000))
    message = refusal(folder, f"name: x\ntasks:\n{tasks}")
    assert message.startswith("review.yaml: 1000 problems\n")
    assert message.endswith("\n  and 980 more")
    assert len(message.splitlines()) == 22


def test_problems_are_also_there_apart_for_programs(folder: Path) -> None:
    with pytest.raises(PipelineError) as error:
        load_pipeline(write(folder, "name: x\ntasks: {a: {limits: {cpu: -1}, command: [ls]}}"))
    [problem] = error.value.problems
    assert (problem.path, problem.line) == (("tasks", "a", "limits", "cpu"), 2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.json",
            '{"name": "x",\n "tasks": {"a": {"command": ["ls"],\n "wall": 3}}}',
            "x.json:3: tasks.a.wall: unknown key; the keys here are always, breaker, ",
        ),
        ("x.json", '{"name": "x",}', "x.json:1: is not JSON: "),
        ("x.json", '{"name": "x",\n"name": "y"}', 'x.json: the key "name" is given twice in one map'),
        ("x.json", '{"name": NaN}', "x.json: NaN is not JSON"),
        ("x.json", "[" * 5000 + "]" * 5000, "x.json: nested more than 64 deep"),
        (
            "x.toml",
            'name = "x"\n\n[tasks.a]\ncommand = ["ls"]\n[tasks.a.limits]\nmemroy = 1\n',
            "x.toml:6: tasks.a.limits.memroy: unknown key; did you mean memory?",
        ),
        (
            "x.toml",
            'name = "x"\n[tasks.a]\ncommand = ["ls"]\n[[edges]]\nfrom = "a"\nto = "b"\n',
            'x.toml:6: edges[0].to: there is no task "b"',
        ),
        ("x.toml", 'name = "x"\nname = "y"\n', "x.toml:2: is not TOML: Cannot overwrite a value"),
        ("x.toml", "a = " + "[" * 100 + "]" * 100, "x.toml: nested more than 64 deep"),
        ("x.txt", "", "x.txt: a pipeline file ends in .yaml, .yml, .toml, .json or .py"),
        ("x.py", "", "x.py: is a program: it is loaded inside a sandbox, never read here"),
    ],
)  # fmt: skip
def test_json_and_toml_are_told_as_well(folder: Path, name: str, text: str, message: str) -> None:
    assert refusal(folder, text, name).startswith(message)


def test_a_document_without_a_file_is_called_by_its_name() -> None:
    with pytest.raises(PipelineError, match=r"^pipeline x: tasks\.a\.comand: unknown key; did you"):
        compile_document(
            {"name": "x", "tasks": {"a": {"comand": 1, "command": ["x"]}}}, root=Path()
        )


@pytest.mark.parametrize(
    "document",
    [
        {1: 2},
        {"name": "x", "tasks": {1: {"command": ["x"]}}},
        {"name": "x", "tasks": {"a": {1: 2, "command": ["x"]}}},
        {"name": "x", "tasks": {"a": {"command": ["x"], "limits": {1: 2}}}},
        {"name": "x", "tasks": {"a": {"command": ["x"], "env": {1: "2"}}}},
        {"name": "x", "tasks": {"a": {"command": ["x"], "needs": [["a"]]}}},
        {"name": "x", "tasks": {"a": {"command": ["x"], "spec": {"f": object()}}}},
        {"name": "x", "tasks": {"a": {"command": ["x"], "spec": {"n": 2**70}}}},
        {"name": "x", "tasks": {"a": {"command": ["x"], "limits": {"pids": 2**70}}}},
        {"name": "x", "tasks": {"a": {"command": ["x"], "timeouts": {"wall": float("nan")}}}},
        {"name": "x", "tasks": {"a": {"execute": {"pickle": "text", "name": "f"}}}},
        {"name": "x", "tasks": {"a": {"execute": "a\0b.py:f"}}},
        {"name": "x", "tasks": {"a": {"command": ["x"], "sources": ["a\0b", "\ud800", "x" * 9999]}}},
        {"name": "x", "workspace": "", "edges": 3, "tasks": {"a": {"command": ["\0"]}}},
        {"name": "x", "tasks": {"\x1b[31m": {"command": ["x"]}}},
    ],
)  # fmt: skip
def test_no_document_of_any_shape_gets_another_error(
    document: dict[Any, Any], folder: Path
) -> None:
    with pytest.raises(PipelineError) as error:
        compile_document(document, root=folder)
    assert str(error.value).isprintable() or "\n" in str(error.value)
    assert "\x1b" not in str(error.value)


KEYS = st.sampled_from(
    ["name", "tasks", "edges", "defaults", "limits", "timeouts", "retry", "memory", "wall", "on", "a",
     "execute", "command", "needs", "env", "sources", "spec", "from", "to", "workspace", "pickle"]
) | st.text(max_size=3)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
    | st.sampled_from(["a", "1s", "1MiB", "agents.py:f", "none", "host", ".", "/", "repo"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
TASKS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "c.d"]), st.dictionaries(KEYS, VALUES) | VALUES
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "name": VALUES,
        "tasks": TASKS | VALUES,
        "edges": VALUES,
        "defaults": VALUES,
        "a": VALUES,
    },
)


@given(DOCUMENTS)
@settings(max_examples=300, deadline=None)
def test_whatever_a_document_holds_it_is_a_pipeline_or_one_error(
    document: dict[str, object],
) -> None:
    try:
        compile_document(document, root=Path("/nonexistent"))
    except PipelineError as error:
        assert error.problems
        assert "\x1b" not in str(error)


@given(
    st.text(alphabet="ab:-?[]{},&*!|>'\"%#@` \n\t<0.", max_size=40),
    st.sampled_from([".yaml", ".json", ".toml"]),
)
@settings(max_examples=500, deadline=None)
def test_whatever_a_file_holds_it_is_a_document_or_one_error(text: str, suffix: str) -> None:
    try:
        parse_text(text, suffix, "x")
    except PipelineError as error:
        assert len(error.problems) == 1


# --- files that mean harm ------------------------------------------------------------------------


def test_a_bomb_of_aliases_costs_what_it_stands_for(folder: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    message = refusal(folder, "\n".join(levels))
    assert message.endswith("more than 300000 values, aliases counted in full")


def test_a_bomb_of_merges_as_well(folder: Path) -> None:
    levels = ["a0: &a0 {x: 1}"]
    levels += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    message = refusal(folder, "\n".join(levels))
    assert message.endswith("more than 300000 values, aliases counted in full")


@pytest.mark.parametrize("start", ["[", "{a: ", "- ", "? "])
def test_depth_is_refused_before_the_parser_looks_further(folder: Path, start: str) -> None:
    # libyaml is quadratic here: read to their ends, the first two would take half an hour
    message = refusal(folder, start * 1_000_000)
    assert "nested more than 64 deep" in message or "a key must be a text" in message


def test_a_file_too_large_is_not_read(folder: Path) -> None:
    message = refusal(folder, "#" * (4 * MIB + 1))
    assert message == ("review.yaml: is larger than 4 MiB; give large data as the run's input")


def test_the_keys_of_an_edge_are_told_harmlessly(folder: Path) -> None:
    message = refusal(folder, 'name: x\ntasks: {a: {command: [ls]}}\nedges: [{"\\e[31m": a}]')
    assert "\x1b" not in message
    assert '"\\u001b[31m"' in message


def test_a_fifo_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "x.yaml")
    with pytest.raises(PipelineError, match="is not a regular file"):
        load_pipeline(folder / "x.yaml")


def test_bytes_that_are_not_text_are_told_their_line(folder: Path) -> None:
    (folder / "x.yaml").write_bytes(b"name: x\n\xff")
    with pytest.raises(PipelineError, match=r"x\.yaml:2: is not UTF-8 text"):
        load_pipeline(folder / "x.yaml")


def test_a_file_that_is_not_there_is_said_so(folder: Path) -> None:
    with pytest.raises(PipelineError, match=r"no\.yaml: cannot be read: No such file or directory"):
        load_pipeline(folder / "no.yaml")


# --- no authority over the host ------------------------------------------------------------------

ASKING = "{{name: x, tasks: {{a: {{command: [ls], {ask}}}}}}}"


def workspace(path: str) -> str:
    return f"{{name: x, workspace: '{path}', tasks: {{a: {{command: [ls]}}}}}}"


def test_a_workspace_outside_takes_the_operators_word(folder: Path) -> None:
    outside = folder.parent / "outside"
    assert refusal(folder, workspace("../outside")) == (
        f'review.yaml:1: workspace: "../outside" leads to {outside}, which is outside the '
        f"pipeline's folder and takes the operator's word: allow path:{outside} in casemate.toml, "
        "CASEMATE_ALLOW or --allow"
    )
    allow = Allow.parse([f"path:{folder.parent}"])
    spec = load_pipeline(write(folder, workspace("../outside")), allow)
    assert spec.workspace == str(outside)


def test_a_symlink_leads_no_further_than_its_target_may(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "agents.py").unlink()
    (folder / "agents.py").symlink_to("/etc/passwd")
    assert "outside the pipeline's folder" in refusal(folder, workspace("link"))
    assert "outside the pipeline's folder" in refusal(folder, ASKING.format(ask="sources: [link]"))
    text = "{name: x, tasks: {a: {execute: 'agents.py:f'}}}"
    assert '"agents.py" leads to /etc/passwd, outside' in refusal(folder, text)


def test_a_tasks_file_is_beneath_the_folder_whatever_the_operator_allows(folder: Path) -> None:
    (folder.parent / "outside/f.py").touch()
    text = "{name: x, tasks: {a: {execute: '../outside/f.py:f'}}}"
    message = refusal(folder, text, allow=Allow.parse(["path:/"]))
    assert message.endswith("outside the pipeline's folder; move it there")


@pytest.mark.parametrize("key", ["workspace", "sources", "ro", "rw"])
def test_the_places_that_hold_everything_are_refused_whoever_asks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    home = folder / "home"
    state = folder / "state"
    (state / "runs/x").mkdir(parents=True)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    allow = Allow.parse(["path:/", "rw:/"], state=state)

    def refused(path: str) -> str:
        text = workspace(path) if key == "workspace" else ASKING.format(ask=f"{key}: ['{path}']")
        return refusal(folder, text, allow=allow).split(": ", 2)[2]

    assert refused("/") == '"/" is the whole file system; name a folder below it'
    assert refused("home") == '"home" is the home directory; name a folder below it'
    assert refused("state").startswith('"state" is in casemate\'s state directory')
    assert refused("state/runs/x").startswith('"state/runs/x" is in casemate\'s state directory')
    assert refused(".").startswith('"." holds ')


def test_the_operators_own_workspace_may_be_anywhere_but_there(folder: Path) -> None:
    file = write(folder, workspace("repo"))
    outside = folder.parent / "outside"
    assert load_pipeline(file, workspace=outside).workspace == str(outside)
    with pytest.raises(PipelineError, match="yaml: the workspace / is the whole file system"):
        load_pipeline(file, workspace=Path("/"))
    with pytest.raises(PipelineError, match=r"the workspace .*/nowhere is not a folder"):
        load_pipeline(file, workspace=folder / "nowhere")


def test_the_hosts_network_takes_the_operators_word(folder: Path) -> None:
    text = ASKING.format(ask="network: host")
    assert refusal(folder, text) == (
        "review.yaml:1: tasks.a.network: the host's network takes the operator's word: allow "
        "network in casemate.toml, CASEMATE_ALLOW or --allow"
    )
    [only] = load_pipeline(write(folder, text), Allow.parse(["network"])).tasks
    assert only.network is Network.HOST


def test_a_variable_of_the_host_takes_the_operators_word_and_stays_out_of_the_spec(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "hush")
    text = ASKING.format(ask="env: {API_KEY: null, MODE: fast}")
    assert refusal(folder, text) == (
        "review.yaml:1: tasks.a.env.API_KEY: the host's own API_KEY takes the operator's word: "
        "allow env:API_KEY in casemate.toml, CASEMATE_ALLOW or --allow; or write its value here"
    )
    [only] = load_pipeline(write(folder, text), Allow.parse(["env:API_KEY"])).tasks
    assert only.env == {"MODE": "fast"}
    assert only.host_env == ("API_KEY",)


def test_a_source_outside_keeps_its_absolute_path(folder: Path) -> None:
    allow = Allow.parse([f"path:{folder.parent}"])
    text = ASKING.format(ask="sources: [../outside, agents.py]")
    [only] = load_pipeline(write(folder, text), allow).tasks
    assert only.sources == (str(folder.parent / "outside"), "agents.py")


def test_the_host_as_it_is_takes_the_operators_word_even_in_the_own_folder(folder: Path) -> None:
    outside = folder.parent / "outside"
    text = """\
        name: x
        defaults: {ro: [repo], degrade: seccomp, proc: readonly}
        tasks:
          a: {command: [ls], rw: [../outside], degrade: [net]}
        """
    where = "takes the operator's word: allow"
    end = "in casemate.toml, CASEMATE_ALLOW or --allow"
    assert refusal(folder, text).splitlines() == [
        "review.yaml: 5 problems",
        "  review.yaml:2: defaults.proc: readonly shows files of the whole host (its processors, "
        f"interrupts, settings) and {where} proc {end}",
        f"  review.yaml:2: defaults.ro[0]: to see repo itself {where} path:repo {end}",
        "  review.yaml:2: defaults.degrade[0]: to go without the seccomp wall "
        f"{where} degrade:seccomp {end}",
        f"  review.yaml:4: tasks.a.rw[0]: to write to {outside} itself {where} rw:{outside} {end}",
        f"  review.yaml:4: tasks.a.degrade[0]: to go without the net wall {where} degrade:net {end}",
    ]
    words = ["proc", f"path:{folder / 'repo'}", f"rw:{outside}", "degrade:net", "degrade:seccomp"]
    [only] = load_pipeline(write(folder, text), Allow.parse(words)).tasks
    assert only.binds == (
        Bind(str(folder / "repo"), str(folder / "repo")),
        Bind(str(outside), str(outside), writable=True),
    )
    assert (only.degrade, only.proc) == (("net", "seccomp"), ProcView.READONLY)


def test_who_may_read_may_not_write_and_who_may_write_may_read(folder: Path) -> None:
    outside = folder.parent / "outside"
    text = ASKING.format(ask="rw: [../outside]")
    assert "allow rw:" in refusal(folder, text, allow=Allow.parse([f"path:{folder.parent}"]))
    allow = Allow.parse([f"rw:{folder.parent}"])
    [only] = load_pipeline(write(folder, ASKING.format(ask="ro: [../outside]")), allow).tasks
    assert only.binds == (Bind(str(outside), str(outside)),)
    assert load_pipeline(write(folder, workspace("../outside")), allow).workspace == str(outside)


def test_a_linked_path_is_seen_at_its_own_name(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "outside")
    allow = Allow.parse([f"path:{folder.parent}"])
    [only] = load_pipeline(write(folder, ASKING.format(ask="ro: link")), allow).tasks
    assert only.binds == (Bind(str(folder.parent / "outside"), str(folder / "link")),)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ("ro: [/proc/sys]", "tasks.a.ro[0]: /proc/sys: /proc belongs to the sandbox itself"),
        ("rw: /dev/null", "tasks.a.rw[0]: /dev/null: /dev belongs to the sandbox itself"),
        ("ro: [nowhere]", "tasks.a.ro[0]: \"nowhere\" in {folder}: No such file or directory"),
        ("ro: [repo], rw: [repo]",
         "tasks.a.rw[0]: repo is to be both read-only and writable; take one out"),
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_shown_is_refused_whoever_asks(
    folder: Path, ask: str, message: str
) -> None:
    found = refusal(folder, ASKING.format(ask=ask), allow=Allow.parse(["rw:/"]))
    assert found.replace(str(folder), "{folder}") == "review.yaml:1: " + message


def test_what_the_operator_does_without_anyway_a_pipeline_may_name(folder: Path) -> None:
    allow = Allow.parse([], degrade=["landlock"])
    [only] = load_pipeline(write(folder, ASKING.format(ask="degrade: landlock")), allow).tasks
    assert only.degrade == ("landlock",)


@pytest.mark.parametrize(
    "word",
    ["", "all", "env:", "env:A B", "path:relative", "rw:relative", "degrade", "degrade:mount"],
)
def test_a_grant_that_means_nothing_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="means nothing; expected network, proc, env:NAME, path:"):
        Allow.parse([word])


# --- the schema, and .py files -------------------------------------------------------------------


CHECKPOINTS_EXPECTED = "expected every-task, none, {after: [tasks]} or {every: 30s}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("every-task", Checkpoints()),
        ("none", Checkpoints(every_task=False)),
        ("{after: a}", Checkpoints(every_task=False, after=("a",))),
        ("{after: [a, a]}", Checkpoints(every_task=False, after=("a",))),
        ("{every: 30s}", Checkpoints(every_task=False, every=30.0)),
    ],
)
def test_checkpoints_are_made_as_the_file_says(
    folder: Path, text: str, expected: Checkpoints
) -> None:
    keys = f"checkpoints: {text}\nbase: snapshot\nconflict: last\n"
    spec = load_pipeline(write(folder, f"name: x\n{keys}tasks: {{a: {{command: [ls]}}}}"))
    assert spec.checkpoints == expected
    assert (spec.base, spec.conflict) == (Base.SNAPSHOT, Conflict.LAST)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("often", f'checkpoints: {CHECKPOINTS_EXPECTED}, got "often"'),
        ("{}", f"checkpoints: {CHECKPOINTS_EXPECTED}, got a map"),
        ("{every: 0s}", "checkpoints: 0 leaves no time at all; write none for no limit"),
        ("{after: [b]}", 'checkpoints.after: there is no task "b"'),
        ("{after: [1]}", "checkpoints: after: expected a list of tasks, got a list"),
    ],
)
def test_checkpoints_that_cannot_be_are_refused(folder: Path, text: str, message: str) -> None:
    document = f"name: x\ncheckpoints: {text}\ntasks: {{a: {{command: [ls]}}}}"
    assert refusal(folder, document) == f"review.yaml:2: {message}"


def test_a_breaker_has_its_defaults_and_the_tasks_own_key(folder: Path) -> None:
    document = """\
        name: x
        defaults: {breaker: {failures: 3, window: none}}
        tasks:
          a: {command: [ls]}
          b: {command: [ls], breaker: {key: model api, open_for: 20m, on_open: drain, wait: none}}
          c: {command: [ls], breaker: null}
        """
    a, b, c = load_pipeline(write(folder, document)).tasks
    assert a.breaker == Breaker(
        key="x/a",
        failures=3,
        window=None,
        open_for=30,
        backoff=2,
        max_open_for=600,
        on_open=OnOpen.KILL,
        wait=300,
    )
    assert b.breaker is not None
    assert (b.breaker.key, b.breaker.failures, b.breaker.on_open) == ("model api", 3, OnOpen.DRAIN)
    assert (b.breaker.open_for, b.breaker.max_open_for, b.breaker.wait) == (1200, 1200, None)
    assert c.breaker is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{failures: 0}", "failures: 0 is too little; at least 1"),
        ("{failures: 1001}", "failures: 1001 is too much; at most 1000"),
        ("{open_for: 0s}", "open_for: 0 leaves no time at all"),
        ("{on_open: explode}", 'on_open: expected kill or drain, got "explode"'),
        ("{key: /x}", 'key: "/x": a key is up to 200 letters, digits, spaces, . _ - / or :'),
        ("{fails: 3}", "fails: unknown key; did you mean failures?"),
    ],
)
def test_breakers_that_cannot_be_are_refused(folder: Path, text: str, message: str) -> None:
    document = f"name: x\ntasks:\n  a: {{command: [ls], breaker: {text}}}"
    assert refusal(folder, document) == f"review.yaml:3: tasks.a.breaker.{message}"


def test_the_schema_has_the_models_keys_and_no_others() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["name", "tasks"]
    assert set(schema["properties"]) == {
        "$schema", "name", "tasks", "edges", "workspace", "defaults", "fail_fast", "timeout",
        "max_parallel", "base", "conflict", "checkpoints", "stream_backlog", "retry_budget",
        "rollback_budget", "priority",
    }  # fmt: skip
    models = schema["$defs"]
    assert set(models["Task"]["properties"]) == {
        "execute", "command", "spec", "needs", "limits", "timeouts", "retry", "sources", "env",
        "max_parallel", "bulkhead", "rate", "priority", "preload",
        "network", "breaker", "validate", "output_schema", "recover", "fallbacks", "always",
        "ro", "rw", "degrade", "proc", "python",
    }  # fmt: skip
    assert set(models["Limits"]["properties"]) == set(Limits.__struct_fields__)
    assert set(models["Timeouts"]["properties"]) == set(Timeouts.__struct_fields__)
    assert set(models["Retry"]["properties"]) == set(Retry.__struct_fields__)
    assert set(models["Breaker"]["properties"]) == set(Breaker.__struct_fields__)
    for each in (schema, *models.values(), schema["properties"]["tasks"]):
        assert each["additionalProperties"] is False
    assert list(schema["properties"]["tasks"]["patternProperties"]) == [TASK_ID_PATTERN]


def test_the_schemas_defaults_are_the_ones_a_run_gets(folder: Path) -> None:
    [only] = load_pipeline(write(folder, "{name: x, tasks: {a: {command: [ls]}}}")).tasks
    models = json_schema()["$defs"]
    for name, resolved in (("Limits", only.limits), ("Timeouts", only.timeouts)):
        for key, each in models[name]["properties"].items():
            assert each["default"] == getattr(resolved, key)
    for key, each in models["Retry"]["properties"].items():
        default = getattr(only.retry, key)
        assert each["default"] == (list(default) if isinstance(default, tuple) else default)


LIMITED = """\
name: x
tasks:
  a: {command: [ls], KEY}
  b: {command: [ls], bulkhead: {key: api, max_parallel: 2}, rate: {limit: 5/s, key: api}}
"""


def test_limits_by_key_and_priorities_are_read(folder: Path) -> None:
    keys = "max_parallel: 3, priority: -2, rate: 10/min, bulkhead: {key: api, max_parallel: 2}"
    first, second = load_pipeline(write(folder, LIMITED.replace("KEY", keys))).tasks
    assert (first.max_parallel, first.priority) == (3, -2)
    assert first.rate == Rate(limit=10, period=60)
    assert first.bulkhead == second.bulkhead == Bulkhead(key="api", max_parallel=2)
    assert second.rate == Rate(limit=5, period=1, key="api")
    assert (second.max_parallel, second.priority) == (None, 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("rate: ten", "rate.limit: 'ten' is not a rate; write how many within which time, such as"),
        ("rate: 10", "rate.limit: 10 is not a rate; write how many within which time"),
        ("rate: 0/min", "rate.limit: '0/min' is not a rate"),
        ("rate: 1000000/s", "rate.limit: 1000000 is too much; at most 100000"),
        ("rate: {key: k}", "rate.limit: is missing; write how many within which time"),
        ("rate: {limit: 1/s, kye: k}", "rate.kye: unknown key; did you mean key?"),
        ("bulkhead: api", "bulkhead: expected a map, got"),
        ("bulkhead: {key: api}", "bulkhead.max_parallel: is missing; write how many attempts at"),
        ("bulkhead: {max_parallel: 1}", "bulkhead.key: is missing; name what the tasks share"),
        (
            "bulkhead: {key: a@b, max_parallel: 1}",
            'bulkhead.key: "a@b": a key is up to 200 letters',
        ),
        ("max_parallel: 0", "max_parallel: 0 is too little; at least 1"),
        ("priority: 101", "priority: 101 is too much; at most 100"),
        ("priority: high", 'priority: expected a whole number, got "high"'),
    ],
)
def test_limits_that_cannot_be_are_refused(folder: Path, keys: str, message: str) -> None:
    assert refusal(folder, LIMITED.replace("KEY", keys)).startswith(
        f"review.yaml:3: tasks.a.{message}"
    )


@pytest.mark.parametrize(
    ("preload", "message"),
    [
        ("[numpy, a b]", '"a b" is no module\'s name, such as numpy.linalg'),
        ("[numpy..linalg]", '"numpy..linalg" is no module\'s name'),
        ("[3]", "3 is no module's name"),
        ("{numpy: 1}", "expected a list of modules, such as [numpy], got a map"),
        (f"[{', '.join(f'm{n}' for n in range(65))}]", "65 modules are too many; at most 64"),
        ("numpy, python: .", "is imported by casemate's own interpreter, and this task has one"),
    ],
)
def test_modules_that_cannot_be_imported_ahead_are_refused(
    folder: Path, preload: str, message: str
) -> None:
    text = f"{{name: x, tasks: {{a: {{execute: 'json.tool:main', preload: {preload}}}}}}}"
    assert f"tasks.a.preload: {message}" in refusal(folder, text)
    command = "{name: x, tasks: {a: {command: [ls], preload: json}}}"
    assert refusal(folder, command).endswith(
        "tasks.a.preload: a command imports by itself; preload is for functions"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("rate: {limit: 4/s, key: api}", "rate.limit: 5/s for the key api, which has 4/s"),
        (
            "bulkhead: {key: api, max_parallel: 1}",
            "bulkhead.max_parallel: max_parallel: 2 for the key api, which has max_parallel: 1",
        ),
    ],
)
def test_two_limits_for_one_key_are_a_slip(folder: Path, keys: str, message: str) -> None:
    assert refusal(folder, LIMITED.replace("KEY", keys)) == (
        f"review.yaml:4: tasks.b.{message} further up"
    )


@pytest.mark.parametrize(
    "written", ["64k", "64 KiB", "1.5GiB", "10B", "7", "12 parsecs", "", "GiB"]
)
def test_the_schemas_sizes_are_the_parsers(written: str) -> None:
    memory = json_schema()["$defs"]["Limits"]["properties"]["memory"]
    [pattern] = [each["pattern"] for each in memory["anyOf"] if "pattern" in each]
    try:
        parse_size(written)
        is_size = True
    except ValueError:
        is_size = False
    assert (re.search(pattern, written) is not None) == is_size


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("y" * (128 * 1024), "tasks.a.command: is 128 KiB, at most 128: hand large data over"),
        ("\ud800", "tasks.a.command: holds half of a surrogate pair"),
    ],
)
def test_a_command_that_no_message_can_carry_is_refused(folder: Path, word: str, why: str) -> None:
    document = {"name": "x", "tasks": {"a": {"command": ["echo", word]}}}
    write(folder, json.dumps(document), "review.json")
    with pytest.raises(PipelineError) as refused:
        load_pipeline(folder / "review.json")
    assert why in str(refused.value)


def test_a_py_file_is_described_by_a_task_that_sees_its_neighbours_alone(folder: Path) -> None:
    write(folder, "import agents", "review.py")
    write(folder, "SECRET=1", ".env")
    (folder / "package").mkdir()
    (folder / "package/__init__.py").touch()
    spec, value = describing(folder / "review.py")
    [only] = spec.tasks
    assert only.execute == ModuleEntry("casemate.sandbox.describe", "describe")
    assert only.sources == ("agents.py", "package", "review.py")
    assert only.network is Network.NONE
    assert codec.decode_value(value) == {"file": "review.py"}
    with pytest.raises(PipelineError, match=r"no\.py: cannot be read: there is no such file"):
        describing(folder / "no.py")
