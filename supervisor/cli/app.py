"""The commands and their options; the work is in the files beside this one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

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
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command(epilog='Example: casemate run review.yaml --input \'{"path": "src"}\'')
def run(
    file: Annotated[Path, typer.Argument(help="A pipeline: .yaml, .toml, .json or .py")],
    input: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--input", metavar="JSON|@FILE", help="The run's input."),
    ] = None,
    workspace: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--workspace", metavar="DIR", help="Use this folder as the workspace."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One event a line on stdout, and nothing else.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and run again when a file beside it changes.")
    ] = False,
    state: State = None,
) -> None:
    """Run a pipeline here and watch it.

    Exit codes: 0 completed, 1 failed, 2 bad usage or pipeline, 3 the sandbox cannot be built here,
    130 cancelled.
    """
    from .run import run_file

    sys.exit(
        run_file(file, input=input, workspace=workspace, as_json=json, watch=watch, state=state)
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
    from .exec import exec_command

    sys.exit(
        exec_command(
            command,
            memory=memory,
            cpu=cpu,
            pids=pids,
            wall=wall,
            idle=idle,
            disk=disk,
            output=output,
            net=net,
            ro=ro or [],
            rw=rw or [],
            env=env or [],
            degrade=degrade or [],
            report=report,
            state=state,
        )
    )


@app.command(epilog="Example: casemate validate review.yaml")
def validate(
    file: Annotated[Path, typer.Argument(help="A pipeline: .yaml, .toml, .json or .py")],
    json: Json = False,
    state: State = None,
) -> None:
    """Check a pipeline without running it. Exits 2 and names every problem when it is not sound."""
    from .validate import validate_file

    sys.exit(validate_file(file, as_json=json, state=state))


@app.command(epilog="Example: casemate schema > casemate.schema.json")
def schema(state: State = None) -> None:
    """Print the JSON Schema of pipeline files, for editors."""
    from .validate import print_schema

    print_schema()


@app.command(epilog="Example: casemate doctor --json | jq .missing")
def doctor(json: Json = False, state: State = None) -> None:
    """What this host can enforce: each wall, there or missing, why, and the remedy.

    Exits 3 when a sandbox cannot be built here.
    """
    from .doctor import examine

    sys.exit(examine(as_json=json, state=state))


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"casemate {installed('casemate')}")
        raise typer.Exit
