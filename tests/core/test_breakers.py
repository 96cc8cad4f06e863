"""Breakers as schedulers see them: several supervisors over the same rows, whatever the order.

`Town` is the rest of the world: the rows, a queue of words to them, and supervisors, each with runs
of its own. A story is random: words are answered late, peers are told late, attempts fail, finish,
hang, runs are paused, cancelled and rolled back, supervisors die. `Simulated` watches each
scheduler as it always does; here it is asked what a breaker promises.
"""

from __future__ import annotations

import contextlib
import math
from random import Random

import pytest
from casemate.protocol.answers import Action
from casemate.protocol.errors import UsageError
from casemate.protocol.events import (
    BreakerClosed,
    BreakerHalfOpen,
    BreakerOpened,
    ErrorKind,
    TaskCancelled,
    TaskError,
    TaskFailed,
    TaskRetrying,
)
from casemate.protocol.pipeline import Breaker, OnOpen, PipelineSpec, Rule
from casemate.supervisor.core import breaker
from casemate.supervisor.core.breaker import Forced, Happening, Probe, Reset, Row, Standing, step
from casemate.supervisor.core.commands import Fetch, ForgetBreaker, Kill, Record, Spawn, TellBreaker
from casemate.supervisor.core.events import (
    Adopt,
    BreakerMoved,
    CancelRun,
    Ended,
    Fetched,
    Input,
    PauseRun,
    ResumeRun,
    Rollback,
    Started,
    Tick,
    Told,
)
from casemate.supervisor.core.scheduler import Scheduler
from casemate.supervisor.core.state import RunState
from msgspec import structs
from simulation.world import Crash, Move, TakeUp

from .simulated import Simulated, make_pipeline, make_task, raw, submit

BOOM = TaskError(kind=ErrorKind.ERROR, message="boom")


def policy(
    key: str = "k",
    failures: int = 2,
    window: float | None = 60,
    open_for: float = 10,
    on_open: OnOpen = OnOpen.KILL,
    wait: float | None = None,
) -> Breaker:
    return Breaker(
        key=key,
        failures=failures,
        window=window,
        open_for=open_for,
        backoff=2,
        max_open_for=100,
        on_open=on_open,
        wait=wait,
    )


def pipeline(
    *names: str, of: Breaker | None = None, edges: tuple[tuple[str, str], ...] = (), retry: int = 1
) -> PipelineSpec:
    tasks = [
        structs.replace(make_task(name, start=1000, retry=retry, delay=0), breaker=of or policy())
        for name in names
    ]
    return make_pipeline(tasks, edges)


class Town:
    """Rows, and supervisors that share them. Nothing is answered before it is asked for."""

    def __init__(self, *supervisors: str, **host: int) -> None:
        self.now = 0.0
        self.rows: dict[str, Row] = {}
        self.worlds = {name: self._world(**host) for name in supervisors or ("one",)}
        self.words: dict[str, list[TellBreaker]] = {name: [] for name in self.worlds}
        self.numbers = dict.fromkeys(self.worlds, 0)
        self.known: dict[str, dict[str, Row]] = {name: {} for name in self.worlds}
        self.live: dict[tuple[str, Probe], str] = {}  # spawned, started, told or killed
        self.spawned: list[Probe] = []

    def _world(self, parallel: int = 8, memory: int = 1000) -> Simulated:
        return Simulated(f"host parallel={parallel} memory={memory}")

    def tell(self, name: str, move: Move) -> None:
        wanted: list[str] = []
        for command in self.worlds[name].do(self.now, move):
            match command:
                case Spawn(run=run, task=task, attempt=attempt):
                    self.live[name, Probe(run, task, attempt)] = "spawned"
                    self.spawned.append(Probe(run, task, attempt))
                case Kill(run=run, task=task, attempt=attempt):
                    self.live[name, Probe(run, task, attempt)] = "killed"
                case TellBreaker():
                    self.words[name].append(command)
                case ForgetBreaker(key=key):
                    self.known[name].pop(key, None)
                case Fetch(run=run):
                    wanted.append(run)
        for run in wanted:
            self.tell(name, Fetched(run, self.worlds[name].outputs(run)))

    def answer(self, name: str) -> None:
        """The oldest word of a supervisor comes to the rows."""
        word = self.words[name].pop(0)
        row = self.rows.get(word.key, Row())
        if word.happening is not None:
            row = self.rows[word.key] = step(row, self.now, word.happening)
        self.numbers[name] = word.number
        self.known[name][word.key] = row
        self.tell(name, BreakerMoved(word.number, word.key, row, self.now))

    def look(self, name: str) -> None:
        """A supervisor sees what its peers have done."""
        for key, before in list(self.known[name].items()):
            row = self.rows.get(key, Row())
            if row != before:
                self.known[name][key] = row
                self.tell(name, BreakerMoved(self.numbers[name], key, row, self.now))

    def talk(self) -> None:
        """Until everybody has said and seen everything."""
        while any(self.words.values()) or any(
            row != self.rows.get(key, Row())
            for known in self.known.values()
            for key, row in known.items()
        ):
            for name in self.worlds:
                while self.words[name]:
                    self.answer(name)
                self.look(name)

    def person(self, happening: Happening, key: str = "k") -> None:
        self.rows[key] = step(self.rows.get(key, Row()), self.now, happening)

    def start(self, name: str, attempt: Probe) -> None:
        self.live[name, attempt] = "started"
        self.tell(name, Started(attempt.run, attempt.task, attempt.attempt, pid=1))

    def end(self, name: str, attempt: Probe, error: TaskError | None) -> None:
        del self.live[name, attempt]
        output = raw(1) if error is None else None
        ended = Ended(attempt.run, attempt.task, attempt.attempt, output=output, error=error)
        self.tell(name, ended)

    def finish(self, run: str, task: str, error: TaskError | None = None) -> None:
        """The live attempt of a task runs to its end, and all is said of it."""
        [(name, attempt)] = [key for key in self.live if (key[1].run, key[1].task) == (run, task)]
        if self.live[name, attempt] == "spawned":
            self.start(name, attempt)
        self.end(name, attempt, error)
        self.talk()

    def bury(self) -> None:
        """What was killed is dead."""
        for (name, attempt), how in list(self.live.items()):
            if how == "killed":
                self.end(name, attempt, TaskError(kind=ErrorKind.LOST, message="killed"))
        self.talk()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for name in self.worlds:
            self.tell(name, Tick())
        self.talk()

    def running(self) -> list[str]:
        return sorted(f"{each.run}/{each.task}#{each.attempt}" for _, each in self.live)

    def journal(self, run: str) -> list[Record]:
        return [r for world in self.worlds.values() for r in world.journal if r.run == run]

    def told(self, run: str) -> list[str]:
        """What the run's journal tells of breakers."""
        names = {BreakerOpened: "opened", BreakerHalfOpen: "half_open", BreakerClosed: "closed"}
        kinds = (type(record.data) for record in self.journal(run))
        return [names[kind] for kind in kinds if kind in names]

    def endings(self, run: str) -> list[ErrorKind]:
        return [
            record.data.error.kind
            for record in self.journal(run)
            if isinstance(record.data, TaskRetrying | TaskFailed | TaskCancelled)
        ]


def two_runs(**of: object) -> Town:
    """Run a of one supervisor and run b of another, a task each, on the same breaker."""
    town = Town("one", "two")
    town.tell("one", submit("a", pipeline("x", "y", of=policy(**of), retry=9)))  # type: ignore[arg-type]  # as `policy` has them
    town.tell("two", submit("b", pipeline("z", of=policy(**of), retry=9)))  # type: ignore[arg-type]  # as `policy` has them
    town.talk()
    return town


def test_nothing_starts_before_the_row_is_known() -> None:
    town = Town()
    town.tell("one", submit("a", pipeline("x")))
    assert town.running() == []
    town.talk()
    assert town.running() == ["a/x#1"]


def test_the_last_failure_opens_it_and_kills_what_runs_of_all_runs_uncounted() -> None:
    town = two_runs()
    town.finish("a", "x", BOOM)
    assert town.running() == ["a/x#2", "a/y#1", "b/z#1"]
    town.finish("a", "x", BOOM)
    assert set(town.live.values()) == {"killed"}
    assert town.running() == ["a/y#1", "b/z#1"]
    town.bury()
    assert town.running() == []
    assert (town.told("a"), town.told("b")) == (["opened"], ["opened"])
    assert town.endings("b") == [ErrorKind.BREAKER_OPEN]
    state = town.worlds["two"].states["b"]
    assert (state.tasks["z"].failures, state.retries) == (0, 0)


def test_behind_the_last_failure_nothing_slips_through() -> None:
    """Not even while the row has not answered, though the task is tried again at once."""
    town = two_runs()
    town.finish("a", "x", BOOM)
    spawned = len(town.spawned)
    town.start("one", Probe("a", "x", 2))
    town.end("one", Probe("a", "x", 2), BOOM)
    assert len(town.spawned) == spawned
    town.talk()
    assert len(town.spawned) == spawned


def test_one_attempt_of_all_is_the_probe_and_its_success_frees_the_rest() -> None:
    town = two_runs()
    town.finish("a", "x", BOOM)
    town.finish("a", "x", BOOM)
    town.bury()
    town.pass_time(9)
    assert town.running() == []
    town.pass_time(1.01)
    assert town.running() == ["a/x#3"]
    assert town.told("b") == ["opened", "half_open"]
    town.finish("a", "x")
    assert town.running() == ["a/y#2", "b/z#2"]
    assert town.told("a") == town.told("b") == ["opened", "half_open", "closed"]


def test_a_probe_that_fails_opens_it_for_longer() -> None:
    town = two_runs()
    town.finish("a", "x", BOOM)
    town.finish("a", "x", BOOM)
    town.bury()
    town.pass_time(10.01)
    town.finish("a", "x", BOOM)
    assert town.told("b") == ["opened", "half_open", "opened"]
    town.pass_time(19.9)
    assert town.running() == []
    town.pass_time(0.2)
    assert len(town.running()) == 1


def test_drain_lets_what_runs_end_and_starts_nothing() -> None:
    town = two_runs(on_open=OnOpen.DRAIN)
    town.finish("a", "x", BOOM)
    town.finish("a", "x", BOOM)
    assert town.running() == ["a/y#1", "b/z#1"]
    town.finish("b", "z")
    town.finish("a", "y", BOOM)
    assert town.running() == []
    assert town.rows["k"].opening == 1


def test_what_is_kept_back_does_not_stand_in_the_way_of_others() -> None:
    town = Town(parallel=1)
    spec = make_pipeline(
        [
            structs.replace(make_task("a", retry=9, delay=0), breaker=policy(failures=1)),
            make_task("b"),
        ]
    )
    town.tell("one", submit("r", spec))
    assert town.running() == ["r/b#1"]  # while the row is asked for
    town.finish("r", "b")
    town.finish("r", "a", BOOM)
    town.tell("one", submit("s", make_pipeline([make_task("c")])))
    assert town.running() == ["s/c#1"]


def test_who_waits_too_long_fails_and_is_not_tried_again() -> None:
    town = Town()
    town.tell(
        "one", submit("a", pipeline("x", of=policy(failures=1, open_for=99, wait=5), retry=9))
    )
    town.talk()
    town.finish("a", "x", BOOM)
    town.pass_time(4.9)
    assert town.endings("a") == [ErrorKind.ERROR]
    town.pass_time(0.2)
    assert town.endings("a") == [ErrorKind.ERROR, ErrorKind.BREAKER_OPEN]
    assert "a" in town.worlds["one"].judge.over


def test_who_waited_too_long_and_is_to_be_tried_again_spends_the_runs_budget() -> None:
    town = Town()
    again = Rule(on=("error", "breaker_open"), do=Action.RETRY, after=0.0)
    task = structs.replace(
        make_task("x", start=1000, rules=(again,)),
        breaker=policy(failures=1, open_for=99, wait=5),
    )
    town.tell("one", submit("a", make_pipeline([task], retry_budget=3)))
    town.talk()
    town.finish("a", "x", BOOM)
    for _ in range(4):
        town.pass_time(5.1)
    assert town.endings("a") == [ErrorKind.ERROR, *[ErrorKind.BREAKER_OPEN] * 3]
    [*_, last] = [r.data for r in town.journal("a") if isinstance(r.data, TaskFailed)]
    assert "retry_budget of 3 is used up" in last.error.message


def test_a_pause_stops_the_wait_and_not_the_breaker() -> None:
    town = two_runs(wait=12)
    town.finish("a", "x", BOOM)
    town.finish("a", "x", BOOM)
    town.bury()
    town.tell("one", PauseRun("a", drain=False))
    town.pass_time(10.01)
    assert town.running() == ["b/z#2"]  # the probe is another run's
    town.pass_time(30)
    town.tell("one", ResumeRun("a"))
    town.talk()
    killed = ErrorKind.BREAKER_OPEN  # y was, when it opened
    assert town.endings("a") == [ErrorKind.ERROR, ErrorKind.ERROR, killed]
    town.finish("b", "z")
    assert town.running() == ["a/x#3", "a/y#2"]


def test_a_probe_whose_run_stands_still_gives_way() -> None:
    town = two_runs()
    town.finish("a", "x", BOOM)
    town.finish("a", "x", BOOM)
    town.bury()
    town.pass_time(10.01)
    assert town.running() == ["a/x#3"]
    town.tell("one", PauseRun("a", drain=False))
    for _ in range(7):
        town.pass_time(1)
    assert town.running() == ["a/x#3", "b/z#2"]
    town.finish("b", "z")
    assert town.rows["k"].standing is Standing.CLOSED


def test_a_living_probe_keeps_its_lease() -> None:
    town = two_runs()
    town.finish("a", "x", BOOM)
    town.finish("a", "x", BOOM)
    town.bury()
    town.pass_time(10.01)
    for _ in range(30):
        town.pass_time(1)
    assert town.running() == ["a/x#3"]


@pytest.mark.parametrize("how", ["cancel", "rollback", "fault"])
def test_a_probe_that_ends_without_an_answer_is_followed_by_another(how: str) -> None:
    town = two_runs()
    town.finish("a", "x", BOOM)
    town.finish("a", "x", BOOM)
    town.bury()
    town.pass_time(10.01)
    if how == "cancel":
        town.tell("one", CancelRun("a", "enough"))
    elif how == "rollback":
        town.tell("one", Rollback("a", "c0", None))
    else:
        town.finish("a", "x", TaskError(kind=ErrorKind.SETUP, message="no room"))
    town.bury()
    town.pass_time(0.5)
    assert len(town.running()) == 1
    assert town.rows["k"].opening == 1


def test_a_run_that_begins_is_told_how_its_breakers_stand() -> None:
    town = two_runs()
    town.person(Forced(7))
    town.talk()
    town.bury()
    town.tell("one", submit("c", pipeline("w")))
    town.talk()
    assert town.told("c") == ["opened"]
    opened = next(r.data for r in town.journal("c") if isinstance(r.data, BreakerOpened))
    assert (opened.failures, opened.open_for) == (0, 7)
    town.person(Reset())
    town.talk()
    assert town.told("c") == town.told("b") == ["opened", "closed"]
    assert len(town.running()) == 4


def test_an_opening_that_came_and_went_unseen_is_told_and_kills() -> None:
    town = two_runs()
    town.person(Forced(7))
    town.person(Reset())
    town.talk()
    assert town.told("b") == ["opened", "closed"]
    assert set(town.live.values()) == {"killed"}
    town.bury()
    assert town.running() == ["a/x#2", "a/y#2", "b/z#2"]


def test_a_row_that_was_lost_is_a_closed_one() -> None:
    town = two_runs()
    town.person(Forced(7))
    town.talk()
    town.bury()
    town.rows.clear()
    town.talk()
    assert town.told("b") == ["opened", "closed"]
    assert len(town.running()) == 3


# Whatever happens.


class Story(Town):
    def __init__(self, random: Random) -> None:
        super().__init__("one", "two", parallel=random.randint(1, 4), memory=8)
        self.random = random
        self.runs: dict[str, str] = {}  # and whose each is
        self.submitted = 0
        self.policies = [
            policy(
                key=key,
                failures=random.randint(1, 3),
                window=random.choice([None, 5, 60]),
                open_for=random.choice([1, 4]),
                on_open=random.choice(list(OnOpen)),
                wait=random.choice([None, None, 3, 30]),
            )
            for key in "kl"
        ]

    def submit(self) -> None:
        random = self.random
        names = "abcd"[: random.randint(1, 4)]
        tasks = [
            structs.replace(
                make_task(
                    name,
                    memory=random.choice([1, 2, 5]),
                    wall=random.choice([None, 3]),
                    grace=random.choice([0, 0, 1]),
                    retry=random.choice([1, 5]),
                    delay=random.choice([0, 1]),
                ),
                breaker=random.choice([None, *self.policies]),
            )
            for name in names
        ]
        edges = [(a, b) for a in names for b in names if a < b and random.random() < 0.3]
        share = random.choice([0, 0.4])
        streams = [edge for edge in edges if random.random() < share]
        plain = [edge for edge in edges if edge not in streams]
        self.submitted += 1
        run, name = f"run{self.submitted}", random.choice(sorted(self.worlds))
        self.runs[run] = name
        limit = random.choice([None, None, 40.0])
        self.tell(name, submit(run, make_pipeline(tasks, plain, streams=streams, timeout=limit)))

    def under_way(self, name: str) -> list[str]:
        over = self.worlds[name].judge.over
        return sorted(r for r, whose in self.runs.items() if whose == name and r not in over)

    def move(self) -> None:
        random = self.random
        self.now += random.choice([0, 0, 0.1, 0.5, 2])
        name = random.choice(sorted(self.worlds))
        what = random.randint(0, 15)
        mine = [key for key in sorted(self.live) if key[0] == name]
        runs = self.under_way(name)
        if what == 0 and self.submitted < 5:
            self.submit()
        elif what <= 3 and self.words[name]:
            self.answer(name)
        elif what <= 5:
            self.look(name)
        elif what == 6:
            self.tell(name, Tick())
        elif what == 7 and random.random() < 0.2:
            happenings: list[Happening] = [Forced(3), Reset()]
            self.person(random.choice(happenings), random.choice("kl"))
        elif what == 8 and runs and random.random() < 0.4:
            run = random.choice(runs)
            wishes: list[Input] = [
                PauseRun(run, drain=random.random() < 0.5), ResumeRun(run), ResumeRun(run),
                CancelRun(run, "enough"), Rollback(run, "c0", None),
            ]  # fmt: skip
            with contextlib.suppress(UsageError):
                self.tell(name, random.choice(wishes))
        elif what == 9 and runs and random.random() < 0.2:
            self.die(name)
        elif mine:
            self.go_on(random.choice(mine))

    def go_on(self, key: tuple[str, Probe]) -> None:
        name, attempt = key
        how = self.live[key]
        if how == "spawned":
            self.start(name, attempt)
        elif how == "killed":
            self.end(name, attempt, TaskError(kind=ErrorKind.CRASH, message="killed"))
        elif how == "started" and self.random.random() < 0.3:
            self.live[key] = "told"
            self.tell(name, Told(attempt.run, attempt.task, attempt.attempt))
        else:
            kinds = [ErrorKind.ERROR, ErrorKind.CRASH, ErrorKind.SETUP, ErrorKind.CONFLICT]
            error = TaskError(kind=self.random.choice(kinds), message="it broke")
            self.end(name, attempt, self.random.choice([None, error, error]))

    def die(self, name: str) -> None:
        """The supervisor is killed; another takes one of its runs, the rest stay interrupted."""
        runs = self.under_way(name)
        self.words[name].clear()
        self.known[name].clear()
        for key in [key for key in self.live if key[0] == name]:
            del self.live[key]
        for run in runs[1:]:
            del self.runs[run]
        self.tell(name, Crash({}))
        self.tell(name, TakeUp(runs[0]))

    def check(self) -> None:
        for name, world in self.worlds.items():
            for run in self.under_way(name):
                assert world.scheduler.state(run) == world.folded[run]

    def finish_all(self) -> None:
        """A fair world: all is said and seen, what lives comes to a good end, time passes."""
        for _ in range(3000):
            self.talk()
            waiting = [name for name in self.worlds if self.under_way(name)]
            if not waiting:
                return
            for name in waiting:
                for run in sorted(self.worlds[name].judge.paused & set(self.under_way(name))):
                    self.tell(name, ResumeRun(run))
            if self.live:
                name, attempt = min(self.live)
                how = self.live[name, attempt]
                if how == "spawned":
                    self.start(name, attempt)
                else:
                    killed = TaskError(kind=ErrorKind.CRASH, message="killed")
                    self.end(name, attempt, killed if how == "killed" else None)
                continue
            due = min(self.worlds[name].scheduler.deadline() for name in waiting)
            if any(self.words.values()):
                continue
            assert due < math.inf, "nothing lives, nothing is due, and a run has not ended"
            self.now = max(self.now, due)
            for name in waiting:
                self.tell(name, Tick())
        raise AssertionError("a run does not end")


def play(seed: int) -> Story:
    story = Story(Random(seed))
    story.submit()
    for _ in range(150):
        story.move()
        story.check()
    story.finish_all()
    return story


@pytest.mark.parametrize("part", range(4))
def test_whatever_happens_every_run_ends_and_the_journal_has_it_all(part: int) -> None:
    seen = {Standing.CLOSED: 0, Standing.OPEN: 0, Standing.HALF_OPEN: 0}
    for seed in range(part * 30, part * 30 + 30):
        story = play(seed)
        for world in story.worlds.values():
            for run, state in world.folded.items():
                for noted in state.breakers.values():
                    seen[noted.standing] += 1
                again = RunState(run, state.spec)
                for record in world.journal:
                    if record.run == run:
                        again.apply(record)
                assert again.breakers == state.breakers
    assert all(seen.values())


def test_every_edge_of_what_a_journal_tells_is_taken() -> None:
    breaker.LIFECYCLE.taken.clear()
    for seed in range(40):
        play(seed)
    assert breaker.LIFECYCLE.taken == breaker.LIFECYCLE.edges()


def test_the_same_inputs_give_the_same_commands() -> None:
    for seed in range(15):
        for world in play(seed).worlds.values():
            if any(isinstance(input, Adopt) for _, input in world.heard):
                continue
            again = Scheduler(world.max_parallel, world.memory)
            assert [again.step(now, input) for now, input in world.heard] == world.answered
