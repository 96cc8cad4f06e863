"""The commands with `--at HOST:PORT`: asked of a supervisor on another host, and printed as if it
were on this one.

What only a run's files can tell (`diff`, artifacts, the whole story) stays with the commands there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ...protocol.control import RunState
from ...protocol.errors import UsageError
from ..client import Client
from ..cursor import PipelineEvent
from .breaker import print_breaker, print_breakers
from .files import print_applied
from .show import (
    count_done,
    giving_kinds,
    no_output,
    print_checkpoints,
    print_each,
    print_given,
    print_json,
    print_runs,
    print_standing,
)
from .view import printable

__all__ = ["Afar"]

# As many as `ps` lists of the runs at hand: each is asked for.
_LISTED = 20


class Afar:
    """One command each; the exit code. `state` is what was said beside `--at`, which is refused."""

    def __init__(self, at: str, *, as_json: bool, state: Path | None) -> None:
        self._at = at
        self._as_json = as_json
        self._state = state

    def _client(self) -> Client:
        return Client(at=self._at, state=self._state)

    def _say(self, run: str, words: str, **more: str | None) -> int:
        if self._as_json:
            print_json({"run": run} | {key: value for key, value in more.items() if value})
        else:
            print(printable(words))
        return 0

    # ---- looking

    def list_runs(self, *, everything: bool) -> int:
        with self._client() as client:
            known = client.runs()
            rows = []
            for run in known if everything else known[:_LISTED]:
                tasks = () if run.state is RunState.DAMAGED else client.show(run.id)[1]
                rows.append((run, count_done(tasks), len(tasks)))
            breakers = [each for each in client.breakers() if each.state != "closed"]
        print_runs(rows, breakers, as_json=self._as_json)
        return 0

    def show(self, run: str) -> int:
        with self._client() as client:
            summary, tasks = client.show(run)
            breakers = [
                each
                for each in client.breakers()
                if each.state != "closed" and each.key in summary.breakers
            ]
        print_standing(summary, tasks, breakers, as_json=self._as_json)
        return 0

    def list_checkpoints(self, run: str) -> int:
        with self._client() as client:
            summary = client.summary(run)
            events = _until(client, summary.id, 0, summary.last_seq, whole=False)
            found = [event for event in events if event.kind == "checkpoint.created"]
        print_checkpoints(summary.id, found, as_json=self._as_json)
        return 0

    def print_events(self, run: str, *, follow: bool, since: int) -> int:
        with self._client() as client:
            summary, tasks = client.show(run)
            events = (
                iter(client.events(summary.id, since, whole=self._as_json))
                if follow
                else _until(client, summary.id, since, summary.last_seq, whole=self._as_json)
            )
            try:
                print_each(events, tasks, as_json=self._as_json)
            except KeyboardInterrupt:
                return 130
        return 0

    def print_output(self, run: str, task: str | None) -> int:
        with self._client() as client:
            summary, tasks = client.show(run)
            kinds = giving_kinds(summary, tasks, task)
            found, is_sure = None, True
            for event in _until(client, summary.id, 0, summary.last_seq, whole=False):
                if event.kind in kinds and event.task == task:
                    found, is_sure = event.seq, True
                elif event.kind == "run.rolled_back":
                    is_sure = False  # it may have undone that, or given back an earlier one
            if found is None:
                raise no_output(summary.id, task)
            if not is_sure:
                self.refuse(f"what of the output of {task or 'the run'} its rollback has left")
            event = next(iter(client.events(summary.id, found - 1)))
        print_given(event, as_json=self._as_json)
        return 0

    # ---- steering

    def pause(self, run: str, *, drain: bool) -> int:
        with self._client() as client:
            run = client.summary(run).id
            client.pause(run, drain=drain)
        return self._say(run, f"run {run} is paused")

    def resume(self, run: str) -> int:
        with self._client() as client:
            run = client.summary(run).id
            client.resume(run)
        return self._say(run, f"run {run} goes on")

    def cancel(self, run: str, *, reason: str) -> int:
        with self._client() as client:
            run = client.summary(run).id
            client.cancel(run, reason)
        return self._say(run, f"run {run} is being cancelled")

    def checkpoint(self, run: str) -> int:
        with self._client() as client:
            run = client.summary(run).id
            made = client.checkpoint(run)
        return self._say(run, made, checkpoint=made)

    def roll_back(
        self, run: str, checkpoint: str | None, *, before: str | None, accept_base: bool
    ) -> int:
        with self._client() as client:
            run = client.summary(run).id
            client.rollback(run, checkpoint, before=before, accept_base=accept_base)
        words = f"run {run} is rolled back to {checkpoint or f'before {before}'}"
        return self._say(run, words, checkpoint=checkpoint, before=before)

    def apply(
        self,
        run: str,
        *,
        checkpoint: str | None,
        allow: list[str],
        accept_base: bool,
        last: bool,
        dry_run: bool,
    ) -> int:
        with self._client() as client:
            summary = client.summary(run)
            try:
                applied = client.apply(
                    summary.id,
                    checkpoint=checkpoint,
                    allow=allow,
                    accept_base=accept_base,
                    last=last,
                    dry_run=dry_run,
                )
            except UsageError as refusal:
                if not self._as_json:
                    raise
                print_json({"run": summary.id, "applied": False, "problem": str(refusal)})
                return 2
        standing = None if checkpoint is not None else summary.state
        print_applied(summary.id, standing, applied, dry_run=dry_run, as_json=self._as_json)
        return 0

    def shut_down(self, drain: str | None) -> int:
        with self._client() as client:
            client.shutdown(drain)
        print(f"the supervisor at {self._at} is ending")
        return 0

    def fork(self, run: str, checkpoint: str) -> int:
        with self._client() as client:
            run = client.summary(run).id
            made = client.fork(run, checkpoint)
        return self._say(made, made, source=run)

    # ---- breakers

    def list_breakers(self) -> int:
        with self._client() as client:
            print_breakers(client.breakers(), self._at, as_json=self._as_json)
        return 0

    def reset_breaker(self, key: str) -> int:
        with self._client() as client:
            print_breaker(client.reset_breaker(key), as_json=self._as_json)
        return 0

    def open_breaker(self, key: str, *, open_for: str) -> int:
        with self._client() as client:
            print_breaker(client.open_breaker(key, open_for), as_json=self._as_json)
        return 0

    def refuse(self, what: str) -> NoReturn:
        raise UsageError(f"{what}: that is in the run's files; ask for it at {self._at}")


def _until(
    client: Client, run: str, since: int, last: int, *, whole: bool
) -> Iterator[PipelineEvent]:
    """What there is, of a run that may go on."""
    if since >= last:
        return
    for event in client.events(run, since, whole=whole):
        yield event
        if event.seq >= last:
            return
