"""What may start now: everything that holds attempts back, and the order of those that are.

A task that is ready enters the `Line` of its run, and `next` says which one starts: a `Grant` of
what it takes from the host, given back with `leave`. Four things hold back, from the inside out:

1.  Limits under a key (`gates.py`): of the task in all runs, a bulkhead, a rate. A run's ready
    tasks that share the same gates stand in one `Lane`, and the lane as a whole waits at the first
    gate that has no room: what is ready behind it under another key goes on, and nobody looks at
    its tasks again before that gate opens. A gate that opens lets as many lanes go on as it has
    room for, and keeps their places until they start. Gates that belong to one task alone are its
    own: where they are closed, it waits as a `Single` and its lane goes on without it.
2.  The run: paused, or with as many alive as it allows itself. It leaves the line, and the places
    that its tasks have at gates.
3.  Slots: how many attempts the host has room for. Runs take turns, the highest priority first,
    then the one with the fewest alive, then the one served longest ago; nobody is passed over for
    ever (`Turns`). Within a run the highest priority goes first, then the graph's order.
4.  The host's memory and cpu, which the limits of all that lives sum up to. The next in line that
    does not fit holds back all behind it: were smaller ones let past, it could wait for ever.

No place is held while another is waited for, or what is over one limit would hold back others
under the next. The price: a task with two keys, both always taken, waits until both are free at
the same moment.

What has changed is written down (`_changed`: runs, `_opened`: gates) and looked at once, by `next`.
A step costs what it moves, whatever waits. Limits by name and by key are over all runs of one
supervisor; another that works on the same state directory counts for itself.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator

from ...protocol.errors import LocalViolation, UsageError
from ...protocol.pipeline import PipelineSpec, TaskSpec
from .attempt import Clock
from .gates import Bulkhead, Count, Gate, Name, Party, RateLimit
from .graph import Graph
from .priority import PriorityQueue, Queued
from .turns import Turns

__all__ = ["Admission", "Grant", "Lane", "Line", "Waiter", "check"]

_MIB = 1024 * 1024

_KINDS: dict[str, type[Gate]] = {
    "task.max_parallel": Bulkhead,
    "task.rate": RateLimit,
    "bulkhead": Bulkhead,
    "rate": RateLimit,
}

# Below this a rebuild of a lane costs more thought than the memory is worth.
_SLACK = 64


class Waiter(Queued):
    """What waits at gates, and takes a place at all of them or none."""

    __slots__ = ("gates", "has_places", "line", "party")

    def __init__(self, line: Line, gates: tuple[Gate, ...]) -> None:
        super().__init__()
        self.line = line
        self.gates = gates
        self.has_places = False
        self.party: Party | None = None  # where it waits


class Lane(Waiter):
    """Ready tasks of one run that share their gates. Those that were withdrawn, or wait at a gate
    of their own, stay in the heap until they come to its top: they stand elsewhere."""

    __slots__ = ("alive", "heap")

    def __init__(self, line: Line, gates: tuple[Gate, ...]) -> None:
        super().__init__(line, gates)
        self.heap: list[int] = []
        self.alive = 0

    def push(self, rank: int) -> None:
        self.line.standing[rank] = self
        self.alive += 1
        heapq.heappush(self.heap, rank)

    def remove_one(self) -> None:
        """One of its tasks stands here no more."""
        self.alive -= 1
        if len(self.heap) > 2 * self.alive + _SLACK:
            self.heap = sorted({each for each in self.heap if self.line.standing.get(each) is self})

    def head(self) -> int | None:
        heap, standing = self.heap, self.line.standing
        while heap and standing.get(heap[0]) is not self:
            heapq.heappop(heap)
        return heap[0] if heap else None


class Single(Waiter):
    """One task of a lane that has gates of its own as well."""

    __slots__ = ("lane", "rank")

    def __init__(self, lane: Lane, gates: tuple[Gate, ...], rank: int) -> None:
        super().__init__(lane.line, gates)
        self.lane = lane
        self.rank = rank


class Line(Queued):
    """One run's ready tasks. A task is known by its rank: where it stands in the run's order."""

    __slots__ = (
        "checks",
        "free",
        "is_drained",
        "is_shut",
        "lane",
        "lanes",
        "live",
        "max_parallel",
        "order",
        "pipeline",
        "places",
        "priority",
        "queue",
        "rank",
        "run",
        "served",
        "singles",
        "specs",
        "standing",
        "uses",
    )

    def __init__(
        self, run: str, spec: PipelineSpec, graph: Graph, specs: dict[str, TaskSpec], served: int
    ) -> None:
        super().__init__()
        self.run = run
        self.pipeline = spec.name
        self.priority = spec.priority
        self.max_parallel = math.inf if spec.max_parallel is None else spec.max_parallel
        self.specs = specs
        self.order, self.rank = graph.order, graph.position
        if any(task.priority for task in spec.tasks):
            self.order = tuple(sorted(graph.order, key=lambda task: -specs[task].priority))
            self.rank = {task: rank for rank, task in enumerate(self.order)}
        self.is_shut = False
        self.is_drained = False
        self.checks: dict[int, None] = {}  # the first come first, before all tasks
        self.live = 0
        self.served = served  # the number of the grant that last served it, or found it new
        self.free = Lane(self, ())  # never waits, and is not in the queue
        self.lanes: dict[tuple[Gate, ...], Lane] = {(): self.free}
        self.lane: Lane | None = None  # whose task is next, as it was when this got its turn
        self.queue: PriorityQueue[float, Lane] = PriorityQueue()  # of lanes that do not wait
        self.singles: dict[int, Single] = {}
        self.standing: dict[int, Lane | Single] = {}  # where each ready task does
        self.places: dict[Waiter, None] = {}  # who has taken some
        self.uses: dict[Gate, None] = {}

    def is_able(self) -> bool:
        """What stands at gates may start, as far as the run is concerned."""
        return not (self.is_shut or self.is_drained or self.live >= self.max_parallel)

    def first(self) -> Lane | None:
        """The lane of the next task that no gate holds back, as far as is known."""
        free = self.free.head()
        if len(self.lanes) == 1:
            return None if free is None else self.free
        gated = self.queue.first()
        if gated is None or (free is not None and free < gated[0]):
            return None if free is None else self.free
        return gated[1]

    def waiters(self) -> Iterator[Waiter]:
        yield from self.lanes.values()
        yield from self.singles.values()


class Grant:
    """A task may start, and this is what it takes."""

    # no frozen dataclass: it would cost three times as much, once an attempt
    __slots__ = ("cpu", "gates", "line", "memory", "task")

    def __init__(
        self, line: Line, task: str, memory: int, cpu: int, gates: tuple[Gate, ...]
    ) -> None:
        self.line = line
        self.task = task
        self.memory = memory
        self.cpu = cpu
        self.gates = gates


def check(spec: PipelineSpec) -> None:
    """Limits under which nothing could ever start are refused."""
    _check_at_least_one(f"pipeline {spec.name}: max_parallel", spec.max_parallel)
    for task in spec.tasks:
        name = f"task {task.id}"
        _check_at_least_one(f"{name}: max_parallel", task.max_parallel)
        if task.bulkhead is not None:
            _check_at_least_one(f"{name}: bulkhead.max_parallel", task.bulkhead.max_parallel)
        if task.rate is not None:
            _check_at_least_one(f"{name}: rate.limit", task.rate.limit)
            if not 0 < task.rate.period < math.inf:
                raise UsageError(f"{name}: rate.period is {task.rate.period:g}, expected seconds")


def _check_at_least_one(name: str, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"{name} is {limit}, expected at least 1")


class Admission:
    def __init__(
        self,
        slots: int,
        memory: int,
        cpu: float,
        clocks: PriorityQueue[float, Clock],
        lets: Callable[[float, Line, str], bool],
    ) -> None:
        """The host's budgets; `clocks`: where a rate's next opening is put; `lets`: what a task
        with a breaker is asked last."""
        # Public to be read: `look.py` tells of them.
        self.slots = 0
        self.memory_budget = memory
        self.cpu_budget = cpu * 1000
        self._clocks = clocks
        self._lets = lets
        self.live = 0
        self.memory = 0
        self.cpu = 0  # thousandths, for sums of 0.1 are never quite 1
        self._grants = 0
        self._has_left = False  # something, since `next` looked: its run may be gone as well
        self._turns: Turns[Line] = Turns()
        self._changed: dict[Line, None] = {}
        self._opened: dict[Gate, None] = {}
        self._counts: dict[tuple[str, str], Count] = {}
        self._gates: dict[Name, Gate] = {}
        self._unused: dict[Count, float] = {}  # rates without a run, and until when they matter
        self.resize(slots)

    def resize(self, slots: int) -> None:
        if slots < 1:
            raise LocalViolation(f"scheduler: max_parallel is {slots}, expected at least 1")
        self.slots = slots
        self._has_left = True

    # Runs.

    def line(
        self, now: float, run: str, spec: PipelineSpec, graph: Graph, specs: dict[str, TaskSpec]
    ) -> Line:
        """Of a new run."""
        for count in [count for count, until in self._unused.items() if until <= now]:
            del self._unused[count], self._counts[count.key]
        return Line(run, spec, graph, specs, self._grants)

    def shut(self, line: Line, is_shut: bool, is_drained: bool = False) -> None:
        """Whether nothing of the run may start for now, or nothing but checks."""
        line.is_shut = is_shut
        line.is_drained = is_drained
        self._changed[line] = None

    def clear(self, line: Line) -> None:
        """Nothing of it is ready any more."""
        for waiter in line.waiters():
            self._let_go(waiter)
            if waiter.party is not None:
                self._quit(waiter, waiter.party)
        line.lanes = {(): Lane(line, ())}
        line.free = line.lanes[()]
        line.queue = PriorityQueue()
        line.checks.clear()
        line.singles.clear()
        line.standing.clear()
        self._changed[line] = None

    def forget(self, line: Line) -> None:
        """The run has ended."""
        self.clear(line)
        self._turns.discard(line)
        del self._changed[line]
        self._has_left = True
        for gate in line.uses:
            gate.users -= 1
            self._retire(gate)

    # Tasks.

    def enter(self, line: Line, task: str, *, is_check: bool = False) -> None:
        """A task is ready to start. `is_check`: it is a check that
        starts. What was begun goes first, for it is one question from being over; and it is bound
        by no key, since it is not the task's own work."""
        rank, spec = line.rank[task], line.specs[task]
        self._changed[line] = None
        if is_check:
            line.checks[rank] = None
            return
        lane = line.free
        if not (spec.max_parallel is None and spec.bulkhead is None and spec.rate is None):
            own, shared = self._gates_of(line, spec)
            found = line.lanes.get(shared)
            lane = line.lanes[shared] = Lane(line, shared) if found is None else found
            if own:
                line.singles[rank] = Single(lane, own, rank)
        lane.push(rank)
        if lane is not line.free:
            self._place(lane)

    def withdraw(self, line: Line, task: str) -> None:
        """A task is not ready any more, if it was."""
        rank = line.rank[task]
        line.checks.pop(rank, None)
        standing = line.standing.pop(rank, None)
        single = line.singles.pop(rank, None)
        if single is not None:
            self._let_go(single)
            if single.party is not None:
                self._quit(single, single.party)
        if isinstance(standing, Lane):
            standing.remove_one()
            self._place(standing)
        self._changed[line] = None

    def refusal(self, spec: TaskSpec) -> str | None:
        """Why a task can never start here."""
        if spec.limits.memory <= self.memory_budget:
            return None
        return (
            f"limits.memory is {spec.limits.memory / _MIB:g} MiB, and the host's memory budget for "
            f"all tasks is {self.memory_budget / _MIB:g} MiB: lower the limit or raise the budget"
        )

    def before(self, line: Line, task: str) -> tuple[int, str | None] | None:
        """How many of its run are before it, as far as no key holds them back, and the first of
        them; None: it is not ready."""
        rank, standing = line.rank[task], line.standing
        if rank not in standing:
            return None
        ranks = sorted(each for each, at in standing.items() if each < rank and at.party is None)
        return len(ranks), line.order[ranks[0]] if ranks else None

    def held(self, line: Line, task: str) -> str | None:
        """The limit under a key that a ready task waits for, in words."""
        waiter = line.standing.get(line.rank[task])
        party = None if waiter is None else waiter.party
        return None if party is None else party.gate.words()

    def next(self, now: float) -> Grant | None:
        """The task that starts now, if one may. Where none did and nothing has changed since, none
        does: that is most steps."""
        while (self._changed or self._opened or self._has_left) and self.live < self.slots:
            self._has_left = False
            self._catch_up(now)
            line = self._turns.first()
            if line is None:
                return None
            lane, single = None, None
            if line.checks:
                rank = next(iter(line.checks))
            else:
                lane = line.lane
                assert lane is not None, "a line without a task has no turn"
                if lane.gates and not self._is_let_in(now, lane):
                    continue
                rank = lane.heap[0]
                single = line.singles.get(rank) if line.singles else None
                if single is not None and not self._is_let_in(now, single):
                    continue
            task = line.order[rank]
            spec = line.specs[task]
            if lane is not None and spec.breaker is not None and not self._lets(now, line, task):
                self.withdraw(line, task)  # whoever said no enters it again
                continue
            limits = spec.limits
            memory = limits.memory
            # A ceiling above what the host has is no wish for more: it takes all there is.
            cpu = 0
            if limits.cpu is not None:
                cpu = math.ceil(min(limits.cpu * 1000, self.cpu_budget))
            if self.memory + memory > self.memory_budget or self.cpu + cpu > self.cpu_budget:
                return None
            gates: tuple[Gate, ...] = ()
            if lane is None:
                del line.checks[rank]
            else:
                gates = lane.gates if single is None else lane.gates + single.gates
                self._start(now, lane, rank, single, gates)
            self._grants += 1
            line.served = self._grants
            line.live += 1
            self._turns.served(line)
            self._changed[line] = None
            self.live += 1
            self.memory += memory
            self.cpu += cpu
            return Grant(line, task, memory, cpu, gates)
        return None

    def leave(self, grant: Grant) -> None:
        """What was started has ended."""
        line = grant.line
        line.live -= 1
        self.live -= 1
        self.memory -= grant.memory
        self.cpu -= grant.cpu
        for gate in grant.gates:
            gate.end()
            self._stir(gate.count)
        self._changed[line] = None

    def keys(self) -> set[tuple[str, str]]:
        """What is counted at this moment: for who looks after what is remembered."""
        return set(self._counts)

    def opened(self, gate: Gate) -> None:
        """The time of a gate has come."""
        self._clocks.discard(gate)
        self._opened[gate] = None

    # What happens inside `next`.

    def _catch_up(self, now: float) -> None:
        """Look at everything that has changed."""
        while self._changed or self._opened:
            while self._changed:
                self._queue(self._changed.popitem()[0])
            if self._opened:
                self._wake(now, self._opened.popitem()[0])

    def _queue(self, line: Line) -> None:
        line.lane = None
        if line.is_able():
            line.lane = line.first()
        else:
            for waiter in list(line.places):
                self._let_go(waiter)
        has_check = line.checks and not line.is_shut and line.live < line.max_parallel
        if line.lane is None and not has_check:
            self._turns.discard(line)
        else:
            self._turns.put((-line.priority, line.live, line.served), line)

    def _start(
        self, now: float, lane: Lane, rank: int, single: Single | None, gates: tuple[Gate, ...]
    ) -> None:
        line = lane.line
        heapq.heappop(lane.heap)
        lane.alive -= 1
        del line.standing[rank]
        if gates:
            lane.has_places = False
            line.places.pop(lane, None)
            if single is not None:
                del line.singles[rank]
                line.places.pop(single, None)
            for gate in gates:
                gate.start(now)
                self._stir(gate.count)
            self._place(lane)

    def _place(self, lane: Lane) -> None:
        """After anything that may have changed which of its tasks is the first."""
        line = lane.line
        if lane is line.free:
            return
        head = lane.head()
        if head is None:
            self._let_go(lane)
            if lane.party is not None:
                self._quit(lane, lane.party)
            line.queue.discard(lane)
        elif lane.party is not None:
            lane.party.waiters.put(head, lane)
        else:
            line.queue.put(head, lane)

    # Gates.

    def _is_let_in(self, now: float, waiter: Waiter) -> bool:
        """Whether it has a place at each of its gates; else it waits at one that has none."""
        if waiter.has_places:
            closed = next((gate for gate in waiter.gates if gate.is_overdrawn(now)), None)
            if closed is None:
                return True
            self._let_go(waiter)
        else:
            closed = next((gate for gate in waiter.gates if not gate.has_room(now)), None)
            if closed is None:
                self._take(waiter)
                return True
        self._wait_at(closed, waiter)
        return False

    def _take(self, waiter: Waiter) -> None:
        for gate in waiter.gates:
            gate.take()
        waiter.has_places = True
        waiter.line.places[waiter] = None

    def _let_go(self, waiter: Waiter) -> None:
        """Give back the places it has, if it has any."""
        if waiter.has_places:
            waiter.has_places = False
            del waiter.line.places[waiter]
            for gate in waiter.gates:
                gate.give_back()
                self._stir(gate.count)

    def _wait_at(self, gate: Gate, waiter: Waiter) -> None:
        line = waiter.line
        party = gate.parties.get(line)
        if party is None:
            party = gate.parties[line] = Party(gate, line)
            gate.arrivals += 1
            gate.turns.put((-line.priority, gate.arrivals, 0), party)
        waiter.party = party
        if isinstance(waiter, Single):
            line.standing[waiter.rank] = waiter
            waiter.lane.remove_one()
            self._place(waiter.lane)
            party.waiters.put(waiter.rank, waiter)
        elif isinstance(waiter, Lane):
            line.queue.discard(waiter)
            party.waiters.put(waiter.heap[0], waiter)
        self._changed[line] = None
        self._arm(gate)

    def _quit(self, waiter: Waiter, party: Party) -> None:
        """It waits no longer."""
        party.waiters.discard(waiter)
        waiter.party = None
        if party.waiters.first() is None:
            party.gate.turns.discard(party)
            del party.gate.parties[party.line]
            self._arm(party.gate)

    def _wake(self, now: float, gate: Gate) -> None:
        """As many as there is room for go on, with places at all their gates; the next one that
        would have to wait elsewhere does that, and makes room for another."""
        while gate.has_room(now) and (party := gate.turns.first()) is not None:
            line = party.line
            first = party.waiters.first()
            assert first is not None, "a party is gone with its last"
            waiter = first[1]
            closed = next((each for each in waiter.gates if not each.has_room(now)), None)
            if closed is None and line.is_able():
                gate.arrivals += 1
                gate.turns.put((-line.priority, gate.arrivals, 0), party)
                gate.turns.served(party)
            self._quit(waiter, party)
            if isinstance(waiter, Single):
                waiter.lane.push(waiter.rank)
                self._place(waiter.lane)
            elif isinstance(waiter, Lane):
                self._place(waiter)
            self._changed[line] = None
            if line.is_able():  # else it finds out when its run may start something again
                if closed is None:
                    self._take(waiter)
                else:
                    self._wait_at(closed, waiter)
        self._arm(gate)

    def _stir(self, count: Count) -> None:
        """Somebody who waits at a gate of this count may go on now, or at another time."""
        for gate in count.gates:
            if gate.parties:
                self._opened[gate] = None

    def _arm(self, gate: Gate) -> None:
        due = gate.due() if gate.parties else math.inf
        if due < math.inf:
            self._clocks.put(due, gate)
        else:
            self._clocks.discard(gate)

    def _gates_of(self, line: Line, spec: TaskSpec) -> tuple[tuple[Gate, ...], tuple[Gate, ...]]:
        """Those of the task alone, and those that others share."""
        own: list[Gate] = []
        shared: list[Gate] = []
        name = f"{line.pipeline}/{spec.id}"
        if spec.max_parallel is not None:
            own.append(self._gate("task.max_parallel", name, spec.max_parallel))
        if spec.bulkhead is not None:
            shared.append(self._gate("bulkhead", spec.bulkhead.key, spec.bulkhead.max_parallel))
        if (rate := spec.rate) is not None:
            if rate.key is None:
                own.append(self._gate("task.rate", name, rate.limit, rate.period))
            else:
                shared.append(self._gate("rate", rate.key, rate.limit, rate.period))
        for gate in (*own, *shared):
            if gate not in line.uses:
                line.uses[gate] = None
                gate.users += 1
        return tuple(own), tuple(shared)

    def _gate(self, kind: str, key: str, limit: int = 0, period: float = 0.0) -> Gate:
        name: Name = (kind, key, limit, period)
        gate = self._gates.get(name)
        if gate is None:
            count = self._counts.get((kind, key))
            if count is None:
                count = self._counts[kind, key] = Count((kind, key))
            self._unused.pop(count, None)
            gate = self._gates[name] = _KINDS[kind](name, count)
        return gate

    def _retire(self, gate: Gate) -> None:
        """Forget a gate that nobody names, but not how a rate was used within its period."""
        count = gate.count
        if gate.users:
            return
        self._clocks.discard(gate)
        self._opened.pop(gate, None)
        count.gates.remove(gate)
        del self._gates[gate.name]
        if not count.gates and count.starts:
            self._unused[count] = count.starts[-1] + count.period
        elif not count.gates:
            del self._counts[count.key]
