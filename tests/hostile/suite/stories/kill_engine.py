"""Outlive the supervisor, killed without a word, and its next start.

Source: Dagster: step processes that outlive their killed parent and finish; circus#1044.
"""

from __future__ import annotations

import secrets

import psutil

from ..arena import cgroups_of, wait_until
from ..require import require
from ..stage import Stage, processes_of

WALLS = ("kill", "pid")


def attack(stage: Stage) -> str:
    seconds = f"36{secrets.randbelow(10**9):09}.5"
    script = f"setsid sh -c 'sleep {seconds} & sleep {seconds}' & sleep {seconds}"
    with stage.start("run", stage.pipeline(stay=script)) as command:
        try:
            wait_until(lambda: len(processes_of("sleep", seconds)) == 3)
            [engine, *_] = psutil.Process(command.pid).children()
            engine.kill()
            wait_until(lambda: not processes_of("sleep", seconds))
        finally:
            command.kill()
    stage.succeed("run", stage.pipeline(good="true"))
    require(cgroups_of(engine.pid) == [], "its cgroups are left")
    return "killed with it"
