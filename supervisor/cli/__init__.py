"""The `casemate` command. One file a command; each imports what it needs when it is called."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> None:
    """Entry point. Errors a person can mend are one line and exit code 2 (3: no sandbox here)."""
    # Exit codes and messages are ours; typer's pretty tracebacks would print local variables.
    os.environ.setdefault("TYPER_STANDARD_TRACEBACK", "1")
    from ...protocol.errors import CasemateError, LocalViolation, SetupRefused, UsageError
    from .app import app

    try:
        try:
            app(prog_name="casemate")
        finally:
            if sys.stdout is not None:  # closed by our caller
                sys.stdout.flush()  # not left to the interpreter, which makes 120 of a failure
    except UsageError as error:
        _say(error)
        sys.exit(2)
    except SetupRefused as error:
        _say(error)
        sys.exit(3)
    except LocalViolation:
        raise  # a bug of ours: whoever reports it should have the traceback
    except CasemateError as error:
        _say(error)
        sys.exit(1)
    except BrokenPipeError:
        _reader_left()
    except SystemExit as ending:
        # What typer and rich make of it is 1, which is "failed" here.
        if isinstance(ending.__context__, BrokenPipeError):
            _reader_left()
        raise


def _reader_left() -> NoReturn:
    """The reader of our output went away (`| head`): nothing is left to say to it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(141)


def _say(error: Exception) -> None:
    """On stderr. A `.py` pipeline's own words may be in it, so each line is made harmless."""
    from .view import printable

    lines = [printable(line, 2000) for line in str(error).split("\n")]
    print("casemate: " + "\n".join(lines).rstrip(), file=sys.stderr)
