"""Each kind of error and each answer to it, as real runs: `python -m answers` prints the table."""
