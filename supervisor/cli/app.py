"""The commands and their options; the work is in the files beside this one."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ...protocol.errors import SetupRefused
from . import completion

if TYPE_CHECKING:
    from .afar import Afar

app = typer.Typer(
    name="casemate",
    help="Run untrusted agent code: each attempt of each task in its own sealed process.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

State = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation
    typer.Option("--state", metavar="DIR", help="Where runs are kept."),
]
PipelineFile = Annotated[Path, typer.Argument(help="A pipeline: .yaml, .toml, .json or .py")]
Input = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--input", metavar="JSON|@FILE", help="The run's input."),
]
Workspace = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--workspace", metavar="DIR", help="Use this folder as the workspace."),
]
Allow = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--allow",
        metavar="WORD",
        help="Let the pipeline have this of the host: network, proc, env:NAME, path:DIR, rw:DIR, "
        "degrade:WALL. In the place of what casemate.toml or CASEMATE_ALLOW allows.",
    ),
]
# Where only data is looked at, here.
AllowedThere = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--allow",
        metavar="WORD",
        help="Check as if this were allowed, as of `casemate run`; what counts is what the "
        "supervisor that runs it allows.",
    ),
]
At = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--at", metavar="HOST:PORT", help="Ask the supervisor that listens there (see `keys`)."
    ),
]
Log = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--log",
        metavar="off|warnings|text|json",
        help="What casemate says of itself on stderr; else warnings.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def _afar(at: str, as_json: bool, state: Path | None) -> Afar:
    from .afar import Afar

    return Afar(at, as_json=as_json, state=state)


@app.command(
    epilog='Example: casemate run review.yaml --input \'{"path": "src"}\' '
    "(or: casemate run review.yaml --watch)"
)
def run(
    file: PipelineFile,
    input: Input = None,
    workspace: Workspace = None,
    json: Annotated[
        bool, typer.Option("--json", help="One event a line on stdout, and nothing else.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Stay; when the file or a source is saved, go on."),
    ] = False,
    allow: Allow = None,
    log: Log = None,
    state: State = None,
) -> None:
    """Run a pipeline here and watch it.

    Exit codes: 0 completed, 1 failed, 2 bad usage or pipeline, 3 the sandbox cannot be built here,
    130 cancelled.
    """
    from .run import run_file

    sys.exit(
        run_file(
            file,
            input=input,
            workspace=workspace,
            as_json=json,
            watch=watch,
            allow=allow,
            log=log,
            state=state,
        )
    )


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Example: casemate exec --memory 256MiB --wall 30s -- python3 job.py",
)
def exec(
    command: Annotated[list[str], typer.Argument(metavar="-- CMD ...", help="What to run.")],
    memory: Annotated[str, typer.Option(help="Memory of the whole tree.")] = "512MiB",
    cpu: Annotated[Optional[float], typer.Option(help="Cores, as in 1.5.")] = None,  # noqa: UP045
    pids: Annotated[int, typer.Option(help="Processes and threads.")] = 256,
    wall: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Seconds, or as in 1m30s, until it is killed."),
    ] = None,
    idle: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The same, without any output."),
    ] = None,
    disk: Annotated[str, typer.Option(help="The largest file it may write.")] = "1GiB",
    tmp: Annotated[str, typer.Option(help="Of /tmp and /dev/shm; counts as memory.")] = "256MiB",
    files: Annotated[int, typer.Option(help="Open files of one process.")] = 1024,
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="SIZE", help="Cap of stdout plus stderr."),
    ] = None,
    net: Annotated[str, typer.Option(metavar="none|host", help="Its network.")] = "none",
    ro: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(metavar="P", help="Show this path inside, read-only, at its own place."),
    ] = None,
    rw: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(metavar="P", help="The same, writable."),
    ] = None,
    proc: Annotated[
        str, typer.Option(metavar="pids|readonly", help="How much of /proc it sees.")
    ] = "pids",
    env: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="K|K=V", help="Pass this variable of yours, or set it."),
    ] = None,
    degrade: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="WALL", help="Go without this wall where the host cannot give it."),
    ] = None,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Write verdict, usage and walls in force as JSON."),
    ] = None,
    state: State = None,
) -> None:
    """Run one command in one sandbox, stdio passed through.

    Exits with the command's own code; 124 timed out, 125 the sandbox could not be built, 126 or 127
    as shells do, 137 killed for memory, 128+n by signal n. Where no cgroup holds the memory limit,
    a program that is refused memory may end by itself, with a code of its own (Python: 1).
    """
    try:
        from .exec import exec_command
    except SetupRefused as error:  # of an architecture that no sandbox is known for
        print(f"casemate: {error}", file=sys.stderr)
        sys.exit(125)
    sys.exit(
        exec_command(
            command,
            memory=memory,
            cpu=cpu,
            pids=pids,
            wall=wall,
            idle=idle,
            disk=disk,
            tmp=tmp,
            files=files,
            output=output,
            net=net,
            ro=ro or [],
            rw=rw or [],
            proc=proc,
            env=env or [],
            degrade=degrade or [],
            report=report,
            state=state,
        )
    )


Keys = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--keys", metavar="DIR", help="Where keys are kept."),
]


@app.command(
    epilog="Example: casemate serve --drain 5m (or: casemate serve --listen 10.0.0.5:7601)"
)
def serve(
    drain: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="DURATION",
            help="When told to end, start nothing new and let what runs end, for so long at most.",
        ),
    ] = None,
    pipelines: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR",
            help="Know the pipelines in this folder by name, for `submit NAME`: DIR/NAME.yaml or "
            "DIR/NAME/pipeline.yaml. Read again when they change.",
        ),
    ] = None,
    json: Json = False,
    allow: Allow = None,
    listen: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="HOST:PORT",
            help="Let clients of other hosts in, here and at the next port: those whose keys "
            "clients.toml in --keys names.",
        ),
    ] = None,
    keys: Keys = None,
    log: Log = None,
    state: State = None,
) -> None:
    """Run what is submitted, go on with every run that a dead supervisor left, and stay.

    Paused runs stay paused. Other terminals submit runs, steer and watch them. SIGTERM, ^C or
    `casemate shutdown` ends it, exit 0: what still runs is cut off at once (or left to end:
    --drain, until a second signal), and every run that is not over goes on with the next `serve`
    or `resume`.

    casemate.toml is read again when it changes: `allow` and `max_parallel` count at once, the rest
    from the next start. Where it is broken that is told, also to whoever submits, and what it said
    before stays in force.
    """
    from .serve import serve_runs

    sys.exit(
        serve_runs(
            as_json=json,
            drain=drain,
            pipelines=pipelines,
            allow=allow,
            listen=listen,
            keys=keys,
            log=log,
            state=state,
        )
    )


class KeyRole(StrEnum):
    server = "server"
    client = "client"


@app.command(epilog="Example: casemate keys client")
def keys(
    role: Annotated[KeyRole, typer.Argument(help="Whose pair it is.")],
    keys: Keys = None,
    json: Json = False,
    state: State = None,
) -> None:
    """Make a pair of keys, for supervisors that are reached from other hosts, and print the public
    one.

    The supervisor's folder then has server.key, server.pub and clients.toml, into which the public
    keys of clients go; a client's has client.key, and needs a copy of the supervisor's server.pub.
    Nothing is written over: exits 2 where there is a pair already.
    """
    from .keys import print_new_keys

    sys.exit(print_new_keys(role.value, keys=keys, as_json=json))


@app.command(epilog='Example: casemate submit review.yaml --input \'{"path": "src"}\' --json')
def submit(
    pipeline: Annotated[
        str,
        typer.Argument(help="A pipeline file, or the name of one that the supervisor knows."),
    ],
    input: Input = None,
    workspace: Workspace = None,
    json: Json = False,
    allow: AllowedThere = None,
    at: At = None,
    state: State = None,
) -> None:
    """Have the supervisor of `casemate serve` run a pipeline, and print the run's id.

    A file, and those its tasks import, travel with it: what becomes of them here later changes
    nothing. What the pipeline may do of the host is the supervisor's to allow. Of `serve
    --pipelines DIR` the name is enough: a file there that is broken is told of on stderr, and run
    as it was before.
    """
    from .submit import submit_file

    sys.exit(
        submit_file(
            pipeline,
            input=input,
            workspace=workspace,
            as_json=json,
            allow=allow,
            at=at,
            state=state,
        )
    )


@app.command(epilog="Example: casemate validate review.yaml")
def validate(
    file: PipelineFile,
    json: Json = False,
    allow: AllowedThere = None,
    state: State = None,
) -> None:
    """Check a pipeline without running it. Exits 2 and names every problem when it is not sound."""
    from .validate import validate_file

    sys.exit(validate_file(file, as_json=json, allow=allow, state=state))


@app.command(epilog="Example: casemate schema > casemate.schema.json")
def schema(
    events: Annotated[
        bool, typer.Option("--events", help="Of an event instead, as `--json` prints it.")
    ] = False,
    state: State = None,
) -> None:
    """Print the JSON Schema of pipeline files, for editors."""
    from .validate import print_schema

    print_schema(of_events=events)


@app.command(epilog="Example: casemate doctor --json | jq .missing")
def doctor(
    attack: Annotated[
        bool,
        typer.Option(
            "--attack",
            help="Attack this host from within sandboxes, harmlessly; takes about a minute.",
        ),
    ] = False,
    json: Json = False,
    state: State = None,
) -> None:
    """What this host can enforce: each wall, there or missing, why, and the remedy.

    Exits 3 when a sandbox cannot be built here, and with --attack 1 when an attack was not
    contained.
    """
    if attack:
        from .attack import run_attacks

        sys.exit(run_attacks(as_json=json))
    from .doctor import examine

    sys.exit(examine(as_json=json, state=state))


Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's id, a unique prefix, or `last`.",
        autocompletion=completion.runs,
    ),
]


@app.command(epilog="Example: casemate shutdown --drain 5m")
def shutdown(
    drain: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="DURATION",
            help="Let what runs end, for so long at most; else as `serve --drain` was told.",
        ),
    ] = None,
    at: At = None,
    state: State = None,
) -> None:
    """End the supervisor of `casemate serve`, as SIGTERM does. Nothing is lost."""
    if at is not None:
        sys.exit(_afar(at, False, state).shut_down(drain))
    from .steer import shut_down

    sys.exit(shut_down(drain, state=state))


@app.command(epilog="Example: casemate ps --json | jq '.[0].state'")
def ps(
    all: Annotated[bool, typer.Option("--all", help="Old runs too.")] = False,
    json: Json = False,
    at: At = None,
    state: State = None,
) -> None:
    """List runs, the newest first."""
    if at is not None:
        sys.exit(_afar(at, json, state).list_runs(everything=all))
    from .show import print_ps

    sys.exit(print_ps(everything=all, as_json=json, state=state))


@app.command(epilog="Example: casemate show last --why report")
def show(
    run: Run,
    all: Annotated[
        bool,
        typer.Option("--all", help="The whole story: undone attempts, rollbacks, checkpoints."),
    ] = False,
    why: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="TASK",
            help="Why this task waits, is tried again, failed, ...",
            autocompletion=completion.tasks,
        ),
    ] = None,
    json: Json = False,
    at: At = None,
    state: State = None,
) -> None:
    """Show a run and its tasks, or why one of them is as it is."""
    if at is not None:
        afar = _afar(at, json, state)
        if why is not None or all:
            afar.refuse("show --all" if why is None else "show --why")
        sys.exit(afar.show(run))
    from .show import print_run, print_why

    if why is not None:
        sys.exit(print_why(run, why, as_json=json, state=state))
    sys.exit(print_run(run, everything=all, as_json=json, state=state))


@app.command(epilog="Example: casemate watch last")
def watch(
    run: Annotated[
        str,
        typer.Argument(
            metavar="[RUN]",
            help="A run's id, a unique prefix, or `last`, the newest.",
            autocompletion=completion.runs,
        ),
    ] = "last",
    at: At = None,
    state: State = None,
) -> None:
    """Watch a run on the whole terminal, and steer it: `?` tells the keys.

    Any number of terminals may watch; leaving changes nothing of the run.
    """
    from .watch import watch_run

    sys.exit(watch_run(run, at=at, state=state))


@app.command(epilog="Example: casemate events last --follow --json | jq .kind")
def events(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", help="Until the run has ended.")] = False,
    since: Annotated[int, typer.Option(metavar="N", min=0, help="Begin after seq N.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="One event a line, and nothing else.")
    ] = False,
    at: At = None,
    state: State = None,
) -> None:
    """Print a run's events, from its journal: no supervisor is needed."""
    if at is not None:
        sys.exit(_afar(at, json, state).print_events(run, follow=follow, since=since))
    from .show import print_events

    sys.exit(print_events(run, follow=follow, since=since, as_json=json, state=state))


@app.command(epilog="Example: casemate output last analyze | jq .files")
def output(
    run: Run,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            metavar="[TASK]",
            help="This task's; else those of the run.",
            autocompletion=completion.tasks,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="On one line.")] = False,
    artifact: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="This file that TASK handed over, as it is."),
    ] = None,
    at: At = None,
    state: State = None,
) -> None:
    """Print outputs as JSON, or a file that a task handed over. Exits 1 when there is none."""
    if at is not None:
        afar = _afar(at, json, state)
        if artifact is not None:
            afar.refuse("output --artifact")
        sys.exit(afar.print_output(run, task))
    from .show import print_artifact, print_output

    if artifact is not None:
        sys.exit(print_artifact(run, task, artifact, state=state))
    sys.exit(print_output(run, task, as_json=json, state=state))


@app.command(epilog="Example: casemate checkpoints last")
def checkpoints(run: Run, json: Json = False, at: At = None, state: State = None) -> None:
    """List a run's checkpoints."""
    if at is not None:
        sys.exit(_afar(at, json, state).list_checkpoints(run))
    from .show import list_checkpoints

    sys.exit(list_checkpoints(run, as_json=json, state=state))


@app.command(epilog="Example: casemate pause last --drain")
def pause(
    run: Run,
    drain: Annotated[bool, typer.Option("--drain", help="Let what runs end.")] = False,
    json: Json = False,
    at: At = None,
    state: State = None,
) -> None:
    """Pause a run; `resume` goes on."""
    if at is not None:
        sys.exit(_afar(at, json, state).pause(run, drain=drain))
    from .steer import pause_run

    sys.exit(pause_run(run, drain=drain, as_json=json, state=state))


@app.command(epilog="Example: casemate resume last")
def resume(
    run: Run, json: Json = False, log: Log = None, at: At = None, state: State = None
) -> None:
    """Go on with a paused run, or here with one that was interrupted.

    Exits at once where a living supervisor goes on with it, else as `casemate run` does.
    """
    if at is not None:
        sys.exit(_afar(at, json, state).resume(run))
    from .steer import resume_run

    sys.exit(resume_run(run, as_json=json, log=log, state=state))


@app.command(epilog="Example: casemate cancel last --reason 'wrong input'")
def cancel(
    run: Run,
    reason: Annotated[str, typer.Option(help="Kept in the journal.")] = "cancelled by an operator",
    json: Json = False,
    at: At = None,
    state: State = None,
) -> None:
    """Kill what a run has going and end it."""
    if at is not None:
        sys.exit(_afar(at, json, state).cancel(run, reason=reason))
    from .steer import cancel_run

    sys.exit(cancel_run(run, reason=reason, as_json=json, state=state))


@app.command(epilog="Example: casemate checkpoint last")
def checkpoint(run: Run, json: Json = False, at: At = None, state: State = None) -> None:
    """Make a checkpoint now and print its id."""
    if at is not None:
        sys.exit(_afar(at, json, state).checkpoint(run))
    from .steer import checkpoint_run

    sys.exit(checkpoint_run(run, as_json=json, state=state))


@app.command(epilog="Example: casemate rollback last c3")
def rollback(
    run: Run,
    checkpoint: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            metavar="[CHECKPOINT]",
            help="As `casemate checkpoints` lists them.",
            autocompletion=completion.checkpoints,
        ),
    ] = None,
    before: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="TASK",
            help="Undo this task and what depends on it instead.",
            autocompletion=completion.tasks,
        ),
    ] = None,
    accept_base: Annotated[
        bool, typer.Option("--accept-base", help="Although others changed the workspace.")
    ] = False,
    json: Json = False,
    at: At = None,
    state: State = None,
) -> None:
    """Return a run to a checkpoint, or to just before a task; files included."""
    if at is not None:
        sys.exit(
            _afar(at, json, state).roll_back(
                run, checkpoint, before=before, accept_base=accept_base
            )
        )
    from .steer import roll_back_run

    sys.exit(
        roll_back_run(
            run, checkpoint, before=before, accept_base=accept_base, as_json=json, state=state
        )
    )


@app.command(epilog="Example: casemate fork last c3")
def fork(
    run: Run,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", autocompletion=completion.checkpoints)
    ],
    json: Json = False,
    at: At = None,
    state: State = None,
) -> None:
    """Make a new run that begins where this one was at a checkpoint; prints its id."""
    if at is not None:
        sys.exit(_afar(at, json, state).fork(run, checkpoint))
    from .steer import fork_run

    sys.exit(fork_run(run, checkpoint, as_json=json, state=state))


Checkpoint = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="As of then; else of now.",
        autocompletion=completion.checkpoints,
    ),
]


@app.command(epilog="Example: casemate diff last | git apply")
def diff(
    run: Run,
    checkpoint: Checkpoint = None,
    attempt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="TASK[/N]",
            help="What this attempt alone wrote; also a failed one.",
            autocompletion=completion.attempts,
        ),
    ] = None,
    stat: Annotated[bool, typer.Option("--stat", help="Only a list of what differs.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The same list, machine-readable.")] = False,
    state: State = None,
) -> None:
    """Print what a run changed in its workspace, as a patch.

    What the patch cannot say, and what is risky in it, is told on stderr.
    """
    from .files import print_diff

    sys.exit(
        print_diff(
            run, checkpoint=checkpoint, attempt=attempt, stat=stat, as_json=json, state=state
        )
    )


@app.command(epilog="Example: casemate apply last --allow .github/ --dry-run")
def apply(
    run: Run,
    checkpoint: Checkpoint = None,
    allow: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="PATH",
            help="Apply this risky change too; a slash at the end: all in a folder; `/`: all.",
        ),
    ] = None,
    accept_base: Annotated[
        bool, typer.Option("--accept-base", help="Although others changed the workspace.")
    ] = False,
    last: Annotated[
        bool, typer.Option("--last", help="Where branches clash, take the last in order.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, write nothing.")] = False,
    json: Json = False,
    at: At = None,
    state: State = None,
) -> None:
    """Write what a run that has ended changed into its workspace, or refuse and write nothing.

    Each file is replaced whole. An apply that was cut off is finished by the next. Exit codes:
    0 done, 1 failed midway, 2 refused.
    """
    if at is not None:
        sys.exit(
            _afar(at, json, state).apply(
                run,
                checkpoint=checkpoint,
                allow=allow or [],
                accept_base=accept_base,
                last=last,
                dry_run=dry_run,
            )
        )
    from .files import apply_files

    sys.exit(
        apply_files(
            run,
            checkpoint=checkpoint,
            allow=allow or [],
            accept_base=accept_base,
            last=last,
            dry_run=dry_run,
            as_json=json,
            state=state,
        )
    )


@app.command(epilog="Example: casemate gc --keep 5 --older 7d --dry-run")
def gc(
    keep: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", min=0, help="Keep the newest N that ended (20)."),
    ] = None,
    older: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="DURATION", help="Only runs that ended longer ago, as in 7d."),
    ] = None,
    run: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="RUN",
            help="This run instead, also an interrupted one.",
            autocompletion=completion.runs,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: Json = False,
    state: State = None,
) -> None:
    """Drop old runs that have ended, with their files.

    Of the runs that are kept, the files of failed attempts are dropped (`diff --attempt` shows them
    until then), and what else nothing leads back to. A run that a supervisor owns is let be.
    """
    from .steer import drop_runs

    sys.exit(
        drop_runs(
            keep=keep, older=older, runs=run or [], dry_run=dry_run, as_json=json, state=state
        )
    )


breaker = typer.Typer(
    help="How breakers stand, and a person's hand on them; all runs of the state directory follow.",
    epilog="Example: casemate breaker list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(breaker, name="breaker")
Key = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="As `casemate breaker list` shows it.",
        autocompletion=completion.breakers,
    ),
]


@breaker.command("list", epilog="Example: casemate breaker list --json | jq '.[].key'")
def breaker_list(json: Json = False, at: At = None, state: State = None) -> None:
    """List the breakers that have seen a failure."""
    if at is not None:
        sys.exit(_afar(at, json, state).list_breakers())
    from .breaker import list_breakers

    sys.exit(list_breakers(as_json=json, state=state))


@breaker.command("reset", epilog="Example: casemate breaker reset model-api")
def breaker_reset(key: Key, json: Json = False, at: At = None, state: State = None) -> None:
    """Close a breaker and forget its failures."""
    if at is not None:
        sys.exit(_afar(at, json, state).reset_breaker(key))
    from .breaker import reset_breaker

    sys.exit(reset_breaker(key, as_json=json, state=state))


@breaker.command("open", epilog="Example: casemate breaker open model-api --for 10m")
def breaker_open(
    key: Key,
    open_for: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="Until a probe is let through.")
    ] = "30s",
    json: Json = False,
    at: At = None,
    state: State = None,
) -> None:
    """Open a breaker by hand: what runs of it is killed or drained, as its tasks say."""
    if at is not None:
        sys.exit(_afar(at, json, state).open_breaker(key, open_for=open_for))
    from .breaker import open_breaker

    sys.exit(open_breaker(key, open_for=open_for, as_json=json, state=state))


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"casemate {installed('casemate')}")
        raise typer.Exit
