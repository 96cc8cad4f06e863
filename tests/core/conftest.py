"""The flag that writes the transcripts anew: `pytest tests/core --regenerate`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate",
        action="store_true",
        help="write the answers in tests/core/scripts/ anew; the diff is to be reviewed",
    )
