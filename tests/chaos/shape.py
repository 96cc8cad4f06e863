"""Sixty tasks in chains and diamonds, drawn from a seed, that give the same every time.

Three lanes leave one root and meet in one sink. A lane grows by chains and by diamonds, and now and
then waits for another lane. Each task proves what it was given: its output holds a digest of its
input, so a wrong value anywhere shows in the sink. Beside that a task may emit (effects, which the
journal keeps), save its state and go on from it, answer with a value too large for a row, and take
its time, so that there is something to kill.

With streams some of the edges are: what such a task emits, its consumers get item by item while it
runs, and say what they make of each. Their files are strangers: neither sees the other's.

Its files are drawn too. A task reads some of what it can see, and writes, appends, moves, removes,
links, changes modes and makes folders anew, some of it before it takes its time and some after. No
two branches may change the same path; so it touches only what all who touched it before are above
it in the graph, with a folder made anew counting for everything beneath it. The last task reads all
that is there, and fails where that is not exactly what was drawn.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

__all__ = ["WORK", "draw", "make_base"]

LANES = 3

# The longest that a task takes its time, in seconds: it shall die in the midst of things, and the
# whole run shall take seconds.
LONGEST = 0.12

BASE = [f"d{folder}/f{number}" for folder in range(8) for number in range(8)]

WORK = '''
"""What every task of the drawn pipeline does: as its spec says, and the same in every attempt."""
import hashlib, json, os, shutil, time

def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

def seen(paths):
    found = []
    for path in paths:
        status = os.lstat(path)
        content = os.readlink(path) if os.path.islink(path) else open(path).read()
        found.append([path, status.st_mode, content])
    return found

def everything():
    return sorted(
        os.path.relpath(os.path.join(folder, name))
        for folder, folders, files in os.walk(".")
        for name in files  # links too: none that is drawn leads to a folder
    )

def touch(operations, given):
    for what, path, *more in operations:
        if what == "write":
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(f"{given} {path}\\n" * more[0])
        elif what == "append":
            with open(path, "a") as file:
                file.write(f"{given}\\n")
        elif what == "move":
            os.rename(path, more[0])
        elif what == "remove":
            os.unlink(path)
        elif what == "link":
            os.symlink(more[0], path)
        elif what == "mode":
            os.chmod(path, more[0])
        elif what == "renew":
            shutil.rmtree(path)
            os.mkdir(path)

def work(input, ctx):
    spec = ctx.spec
    os.chdir(ctx.workspace)
    if spec["is_last"] and everything() != spec["reads"]:
        raise AssertionError(f"found {everything()}, expected {spec['reads']}")
    received = {}
    for source in spec["streams"]:
        for item in ctx.stream(source):
            received.setdefault(source, []).append(item)
            ctx.emit({"made of": digest(item)})
    given = digest([input, received, seen(spec["reads"])])
    touch(spec["before"], given)
    if spec["saves"]:
        state = ctx.saved or {"steps": 0, "sum": given}
        while state["steps"] < spec["saves"]:
            time.sleep(spec["seconds"] / spec["saves"])
            state = {"steps": state["steps"] + 1, "sum": digest(state)}
            ctx.save(state)
        result = state["sum"]
    else:
        result = given
        for number in range(spec["items"]):
            ctx.emit({"number": number, "of": given})
            time.sleep(spec["seconds"] / spec["items"])
    touch(spec["after"], given)
    return {"task": ctx.task_id, "result": result, "pad": "x" * spec["pad"]}
'''


def edges(random: Random, size: int) -> dict[str, list[str]]:
    """Task: those it needs, all of them drawn before it."""
    needs: dict[str, list[str]] = {}

    def add(*above: str) -> str:
        name = f"t{len(needs):02}"
        needs[name] = sorted(set(above))
        return name

    root = add()
    ends = [root] * LANES
    while (room := size - 1 - len(needs)) > 0:
        lane = random.randrange(LANES)
        width = random.randint(2, 4)
        if width < room and random.random() < 0.5:
            ends[lane] = add(*[add(ends[lane]) for _ in range(width)])
        elif random.random() < 0.2:
            ends[lane] = add(ends[lane], random.choice(ends))
        else:
            for _ in range(min(room, random.randint(1, 4))):
                ends[lane] = add(ends[lane])
    add(*ends)
    return needs


class Files:
    """Which paths each task can see, and may touch. `streams` are those of its needs that it does
    not wait for: it sees what they see, and not what they write."""

    def __init__(
        self, random: Random, needs: dict[str, list[str]], streams: dict[str, list[str]]
    ) -> None:
        self._random = random
        self._above: dict[str, set[str]] = {}  # whose files a task sees
        before: dict[str, set[str]] = {}
        for task, direct in needs.items():
            before[task] = set(direct).union(*(before[each] for each in direct))
            self._above[task] = set[str]().union(
                *(self._above[each] for each in streams[task]),
                *({each} | before[each] for each in direct if each not in streams[task]),
            )
        self._done: dict[str, list[list[Any]]] = {}
        self._touched: dict[str, set[str]] = {}  # path: who changed it
        self._renewed: dict[str, set[str]] = {}  # folder: who made it anew

    def visible(self, task: str) -> dict[str, str]:
        """Path: "file" or "link"."""
        paths = dict.fromkeys(BASE, "file")
        for other, operations in self._done.items():
            if other == task or other in self._above[task]:
                for what, path, *more in operations:
                    if what in ("write", "link"):
                        paths[path] = "link" if what == "link" else "file"
                    elif what == "move":
                        paths[more[0]] = paths.pop(path)
                    elif what == "remove":
                        del paths[path]
                    elif what == "renew":
                        paths = {p: k for p, k in paths.items() if not p.startswith(f"{path}/")}
        return paths

    def may_touch(self, task: str, path: str) -> bool:
        folder = path.partition("/")[0]
        others = self._touched.get(path, set()) | self._renewed.get(folder, set())
        return others <= self._above[task] | {task}

    def may_renew(self, task: str, folder: str) -> bool:
        others = self._renewed.get(folder, set()).union(
            *(who for path, who in self._touched.items() if path.startswith(f"{folder}/"))
        )
        return others <= self._above[task] | {task}

    def draw(self, task: str, is_last: bool) -> tuple[list[str], list[list[Any]]]:
        """What it reads, and what it does, in this order."""
        random = self._random
        paths = sorted(self.visible(task))
        reads = paths if is_last else random.sample(paths, min(len(paths), 12))
        done = self._done[task] = []
        for number in range(random.randint(1, 5)):
            operation = self._operation(task, f"{task}-{number}")
            if operation is None:
                continue
            done.append(operation)
            if operation[0] == "renew":
                self._renewed.setdefault(operation[1], set()).add(task)
            else:
                moved = operation[2:] if operation[0] == "move" else []
                for path in [operation[1], *moved]:
                    self._touched.setdefault(path, set()).add(task)
        return sorted(reads), done

    def _operation(self, task: str, new: str) -> list[Any] | None:
        random = self._random
        visible = self.visible(task)
        files = sorted(
            path for path, kind in visible.items() if kind == "file" and self.may_touch(task, path)
        )
        folders = sorted({path.partition("/")[0] for path in BASE})
        folder = random.choice(folders)
        match random.choice(
            ["write", "write", "append", "move", "remove", "link", "mode", "renew"]
        ):
            case "write" if random.random() < 0.3:
                return ["write", f"of-{task}/deep/{new}", random.choice([1, 3000])]
            case "write" if self.may_touch(task, f"{folder}/{new}"):
                return ["write", f"{folder}/{new}", random.choice([0, 1, 100])]
            case "link" if self.may_touch(task, f"{folder}/{new}"):
                return ["link", f"{folder}/{new}", f"../{new}"]
            case "append" if files:
                return ["append", random.choice(files)]
            case "remove" if files:
                return ["remove", random.choice(files)]
            case "mode" if files:
                return ["mode", random.choice(files), random.choice([0o755, 0o600, 0o640])]
            case "move" if files and self.may_touch(task, f"{folder}/{new}"):
                return ["move", random.choice(files), f"{folder}/{new}"]
            case "renew" if self.may_renew(task, folder) and random.random() < 0.5:
                return ["renew", folder]
        return None


def make_base(folder: Path) -> None:
    for path in BASE:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{path}\n" * 20)


def draw(seed: int, size: int, streaming: float = 0.0) -> dict[str, Any]:
    """A pipeline's document, whose code is WORK in `tasks.py` and whose workspace `base`. Every
    attempt may be killed, so every task may be tried often. `streaming`: the share of edges that
    are streams. The last task waits for all, and so sees all."""
    random = Random(seed)
    needs = edges(random, size)
    streams = {
        task: [each for each in above if streaming and random.random() < streaming]
        for task, above in needs.items()
    }
    streams[list(needs)[-1]] = []
    files = Files(random, needs, streams)
    tasks: dict[str, Any] = {}
    for name, above in needs.items():
        is_last = len(tasks) == size - 1
        reads, operations = files.draw(name, is_last)
        early = random.randint(0, len(operations))
        tasks[name] = {
            "execute": "tasks.py:work",
            "needs": [each for each in above if each not in streams[name]],
            "retry": {"attempts": 20, "delay": "10ms", "on": ["crash"]},
            "spec": {
                "seconds": round(random.uniform(0, LONGEST), 3),
                "items": random.randint(1, 5),
                "saves": random.choice([0, 0, 0, 3]),
                "pad": random.choice([0, 0, 0, 40_000]),
                "streams": streams[name],
                "is_last": is_last,
                "reads": reads,
                "before": operations[:early],
                "after": operations[early:],
            },
        }
    flowing = [
        {"from": source, "to": task, "stream": True}
        for task, sources in streams.items()
        for source in sources
    ]
    return {"workspace": "base", "tasks": tasks, "edges": flowing}
