"""`casemate watch`: a run on the whole terminal, from any terminal, as one more observer.

Three things go on at once. *Following* feeds the dashboard: how the run stands and what led there,
then every event as it comes, skipping what this terminal is too slow for; when nobody tells of the
run any more it says so and looks again, and a run that has ended is looked at now and then, since
somebody may roll it back. *Keys* change what is looked at, at once, and wish things. *Wishes* are
carried out by the client as any other program would, one after another; what they come to is said
in the bottom line. Leaving changes nothing of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from ...protocol.control import RunState
from ...protocol.errors import CasemateError, LocalViolation, UsageError
from ...protocol.limits import HEARTBEAT_SECONDS
from ..client import AsyncClient
from ..config import load_config
from ..observing import Observation, ObservationLost
from .dashboard import Dashboard
from .drawing import draw, table_room
from .terminal import Terminal
from .view import bytes_of, counted, printable
from .viewer import Choice, Verb, Viewer, Wish

__all__ = ["watch_run"]

# How many events before now are read when it begins: all of most runs, a second's work of a flood.
_HISTORY = 10_000

# Events are drawn this often, keys at once; clocks go on meanwhile.
_FRAME_SECONDS = 0.25

# How often it is looked whether a run goes on that has ended, or that nobody has.
_LOOK_SECONDS = 1.0

# Events that are taken in at once: of a flood some thousands a second, no core's whole time. What
# queues hold meanwhile (11 000 at most) is shown seconds late; the rest is skipped.
_AT_ONCE = 1000

# A supervisor's silence is noticed by its heartbeats; after that nothing is waited for.
_PATIENCE = HEARTBEAT_SECONDS

# A rollback of a large workspace takes its time; who wants to leave before waits for its answer.
_VERB_SECONDS = 120.0


def watch_run(run: str, *, at: str | None, state: Path | None) -> int:
    if at is not None and state is not None:
        raise UsageError("watch: --at or --state, not both")
    has_cursor = os.environ.get("TERM", "dumb") != "dumb"
    if not (has_cursor and sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "watch: this is no terminal that can be drawn on; `casemate events "
            f"{run} --follow` prints what happens"
        )
    config = load_config(state=state)
    asyncio.run(_watch(AsyncClient(config=config, patience=_VERB_SECONDS, at=at), run))
    return 0


async def _watch(client: AsyncClient, run: str) -> None:
    async with client:
        summary, _ = await client.show(run)
        watch = Watch(client, summary.id)
        loop = asyncio.get_running_loop()
        with Terminal(sys.stdin.fileno(), sys.stdout.fileno(), watch.press) as terminal:
            loop.add_signal_handler(signal.SIGWINCH, watch.changed.set)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                loop.add_signal_handler(number, watch.press, "ctrl+c")

            def again() -> None:
                terminal.take()
                watch.changed.set()

            loop.add_signal_handler(signal.SIGCONT, again)
            await watch.show(terminal)


class Watch:
    """`changed`: something is to be drawn that a person waits for."""

    def __init__(self, client: AsyncClient, run: str) -> None:
        self._client = client
        self._viewer = Viewer()
        self._dashboard = Dashboard(run)
        self._following: asyncio.Task[None] | None = None
        self._wishes: set[asyncio.Task[None]] = set()
        self._room = 1
        self._has_left = False
        self.changed = asyncio.Event()

    async def show(self, terminal: Terminal) -> None:
        self._open(self._dashboard.run)
        try:
            while not self._has_left:
                width, height = terminal.size()
                self._room = table_room(height)
                now = time.time()
                terminal.paint(draw(self._dashboard, self._viewer, width, height, now))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), _FRAME_SECONDS)
                self.changed.clear()
                self._raise_bugs()
        finally:
            assert self._following is not None
            for task in (self._following, *self._wishes):
                task.cancel()
            await asyncio.gather(self._following, *self._wishes, return_exceptions=True)

    def press(self, key: str) -> None:
        wish = self._viewer.press(key, self._dashboard, self._room)
        self.changed.set()
        if wish is None:
            return
        if wish.verb is Verb.LEAVE:
            self._has_left = True
        elif wish.verb is Verb.OPEN:
            self._open(wish.run or self._dashboard.run)
        else:
            doing = self._carry_out(wish, self._dashboard.run, self._viewer)
            task = asyncio.get_running_loop().create_task(doing)
            self._wishes.add(task)

    def _raise_bugs(self) -> None:
        """What nobody expected must not leave a screen that stands still."""
        done = {task for task in self._wishes if task.done()}
        self._wishes -= done
        if self._following is not None and self._following.done():
            done.add(self._following)
        for task in done:
            task.result()

    # ---- wishes

    async def _carry_out(self, wish: Wish, run: str, viewer: Viewer) -> None:
        """`run` and `viewer`: of when the key was pressed. Another run may be looked at before the
        answer is there: then it is shown to nobody, and what it offers is chosen by nobody."""
        try:
            viewer.say(await self._answer(wish, run, viewer))
        except CasemateError as error:
            viewer.say(printable(str(error).replace("\n", "; "), 500), is_bad=True)
        self.changed.set()

    async def _answer(self, wish: Wish, run: str, viewer: Viewer) -> str:
        client = self._client
        match wish.verb:
            case Verb.PAUSE:
                await client.pause(run)
                return f"run {run} is paused"
            case Verb.RESUME:
                await client.resume(run)
                return f"run {run} goes on"
            case Verb.CANCEL:
                await client.cancel(run, "cancelled by who watched it")
                return f"run {run} is being cancelled"
            case Verb.ROLLBACK:
                await client.rollback(run, wish.checkpoint, before=wish.before)
                return f"run {run} is rolled back to {wish.checkpoint or f'before {wish.before}'}"
            case Verb.LIST_CHECKPOINTS:
                await self._offer_checkpoints(run, viewer)
            case Verb.LIST_RUNS:
                await self._offer_runs(viewer)
        return ""

    async def _offer_checkpoints(self, run: str, viewer: Viewer) -> None:
        choices = []
        if (task := viewer.selected) is not None:
            question = f"Roll back to before {task}? It and all that depends on it are undone."
            label = f"before {task}, which is selected"
            choices.append(Choice(label, Wish(Verb.ROLLBACK, before=task), question))
        for each in reversed(await self._client.checkpoints(run)):
            name = printable(each.checkpoint)
            label = f"{name:6} {counted(each.total, 'task'):>10}"
            if each.files:
                label += f", {counted(each.files, 'file')}, {bytes_of(each.bytes)}"
            label += f"  {printable(', '.join(each.tasks), 60)}"
            question = f"Roll back to {name}? What completed after it is undone, files too."
            choices.append(Choice(label, Wish(Verb.ROLLBACK, each.checkpoint), question))
        viewer.offer(f"Roll back run {run} to", choices)

    async def _offer_runs(self, viewer: Viewer) -> None:
        choices = [
            Choice(
                f"{each.id}  {each.state:12} {printable(each.pipeline or '', 40)}",
                Wish(Verb.OPEN, run=each.id),
            )
            for each in await self._client.runs()
        ]
        viewer.offer("Open run", choices)

    # ---- following

    def _open(self, run: str) -> None:
        if self._following is not None:
            self._following.cancel()
        self._dashboard, self._viewer = Dashboard(run), Viewer()
        self._following = asyncio.get_running_loop().create_task(self._follow(self._dashboard))

    async def _follow(self, dashboard: Dashboard) -> None:
        try:
            while True:
                try:
                    await self._follow_once(dashboard)
                except (UsageError, LocalViolation):
                    raise
                except CasemateError:  # whoever is elsewhere is away
                    dashboard.lose()
                    await asyncio.sleep(_LOOK_SECONDS)
        except UsageError as error:  # the run is gone: `gc` dropped it
            self._viewer.say(printable(str(error)), is_bad=True)

    async def _follow_once(self, dashboard: Dashboard) -> None:
        """Until it has ended or nobody tells of it, and there is something new of it. Raises
        CasemateError where nobody says how it stands."""
        await self._catch_up(dashboard)
        if not dashboard.has_ended and dashboard.state is not RunState.INTERRUPTED:
            with contextlib.suppress(ObservationLost):
                await self._read_live(dashboard)
            if not dashboard.has_ended:
                dashboard.lose()
        await self._wait_for_more(dashboard)

    async def _catch_up(self, dashboard: Dashboard) -> None:
        """The graph, how the run stands, and what led there, as far as it is not known."""
        summary, tasks = await self._client.show(dashboard.run)
        last, since = summary.last_seq, max(dashboard.seen, summary.last_seq - _HISTORY)
        if last:
            await self._lay_out(dashboard)
            await self._read(dashboard, since, last, whole=False)
        dashboard.take(summary, tasks)

    async def _lay_out(self, dashboard: Dashboard) -> None:
        """Once there is a first event, which alone is read whole: the graph is in it."""
        if not dashboard.is_laid_out:
            await self._read(dashboard, 0, 1, whole=True)

    async def _read(self, dashboard: Dashboard, since: int, until: int, *, whole: bool) -> None:
        if since >= until:
            return
        events = self._client.events(dashboard.run, since, whole=whole, patience=_PATIENCE)
        with contextlib.suppress(ObservationLost):
            async with contextlib.aclosing(aiter(events)) as told:  # type: ignore[type-var]
                async for event in told:
                    dashboard.see(event)
                    if event.seq >= until:
                        return
                    if not event.seq % _AT_ONCE:
                        await asyncio.sleep(0)  # keys in between

    async def _read_live(self, dashboard: Dashboard) -> None:
        """Until the run has ended. Raises ObservationLost where nobody tells of it."""
        events = self._client.events(dashboard.run, whole=False, lossy=True, patience=_PATIENCE)
        finding = asyncio.get_running_loop().create_task(_find(events, dashboard))
        try:
            await self._see_live(events, dashboard)
        finally:
            finding.cancel()

    async def _see_live(self, events: Observation, dashboard: Dashboard) -> None:
        known, count = None, 0
        async for event in events:
            snapshot = events.snapshot
            if snapshot is not None and snapshot is not known:
                known = snapshot
                if snapshot.as_of - dashboard.seen < _AT_ONCE:
                    await self._read(dashboard, dashboard.seen, snapshot.as_of, whole=False)
                await self._lay_out(dashboard)
                dashboard.take(snapshot.run, snapshot.tasks)
            dashboard.see(event)
            if event.seq == 1:
                await self._lay_out(dashboard)
            count += 1
            if count >= _AT_ONCE:
                # What comes faster than that nobody reads: it is skipped, not run after.
                count = 0
                await asyncio.sleep(_FRAME_SECONDS)
                if dashboard.has_holes:
                    dashboard.take(*await self._client.show(dashboard.run))

    async def _wait_for_more(self, dashboard: Dashboard) -> None:
        """Until there is something new of a run that has ended, or that nobody had."""
        while True:
            summary = await self._client.summary(dashboard.run)
            if summary.state is not dashboard.state or summary.last_seq > dashboard.seen:
                return
            if summary.state in (RunState.RUNNING, RunState.PAUSED):
                return
            await asyncio.sleep(_LOOK_SECONDS)


async def _find(events: Observation, dashboard: Dashboard) -> None:
    """A run may be silent for long; that its supervisor has answered is enough."""
    while (told := events.snapshot) is None or told.run.state is RunState.INTERRUPTED:
        await asyncio.sleep(_FRAME_SECONDS)
    dashboard.find()
