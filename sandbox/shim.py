"""A task's function in an interpreter that has nothing of casemate: this one file, run by it.

    guest (our interpreter, the link) ⇄ shim (the task's interpreter, its function)

`foreign.py`, the guest's end, starts it as `python -I shim.py JOB`. What it has to say goes as a
command's would (DESIGN §5): lines of JSON on one descriptor, input and saved state from files,
streams from FIFOs. One key more, `failed`, tells what the function raised, and one byte comes back
when a `save` is durable or an `artifact` copied. The walls stood before its process was made.

The standard library of Python 3.8 alone, so that whichever interpreter a person names will do;
that is why it repeats, in small, what guest.py and the codec do with better means. A task's file
may say `from casemate import …`: where there is none to import, the names that make sense inside
are made up here, and from Python 3.11 on the builder's are ours, which needs no library either.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import importlib
import importlib.util
import inspect
import json
import math
import os
import re
import signal
import sys
import threading
import traceback
import types
from importlib.machinery import SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Function = Callable[..., Any]

# Freed when the task has run out of memory, so that saying so has some.
RESERVE_SIZE = 512 * 1024
TRACEBACK_FRAMES = 100
VALUE_DEPTH = 128
ERROR_TEXT_SIZE = 16 * 1024

# All of it from Python 3.10 on; before, a task's file had better not be called `json.py`.
STDLIB = frozenset(getattr(sys, "stdlib_module_names", sys.builtin_module_names))

_WORD = re.compile(r"\$+(bytes|datetime|float)")
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Cancelled(BaseException):
    """Raised in the main thread when the supervisor wants the task to end."""


class UsageError(Exception):
    """A mistake that our own words say everything of."""


class Refused(Exception):
    """An output that cannot be carried."""


class ValidationResult:
    def __init__(self, ok: bool, reasons: Any = ()) -> None:
        self.ok = ok
        self.reasons = reasons


class RecoveryAction:
    """Made by one of its functions, as casemate's own."""

    def __init__(
        self, *, do: str, after: float | None = None, output: Any = None, to: str | None = None
    ) -> None:
        self.do, self.after, self.output, self.to = do, after, output, to

    @classmethod
    def retry(cls, after: float | None = None) -> RecoveryAction:
        return cls(do="retry", after=after)

    @classmethod
    def skip(cls, output: Any = None) -> RecoveryAction:
        return cls(do="skip", output=output)

    @classmethod
    def fallback(cls, name: str) -> RecoveryAction:
        return cls(do="fallback", to=name)

    @classmethod
    def rollback(cls, task: str) -> RecoveryAction:
        return cls(do="rollback", to=task)

    @classmethod
    def fail(cls) -> RecoveryAction:
        return cls(do="fail")


# -- values ----------------------------------------------------------------------------------------


def to_jsonable(value: Any, path: str, depth: int = VALUE_DEPTH) -> Any:
    """As casemate writes values where JSON is spoken; Refused where one cannot be carried."""
    if value is None or isinstance(value, (bool, str)):
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            raise Refused(f"{path}: text with lone surrogates is not carried; use bytes")
        return value
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise Refused(f"{path}: int of {value.bit_length()} bits is not carried; use a str")
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, datetime.datetime):
        if value.utcoffset() is None:
            raise Refused(f"{path}: datetime without a time zone is not carried; give it one")
        utc = value.astimezone(datetime.timezone.utc)  # noqa: UP017  (3.8 has no datetime.UTC)
        return {"$datetime": utc.isoformat().replace("+00:00", "Z")}
    if not depth:
        raise Refused(f"{path[:256]}: nested deeper than {VALUE_DEPTH} levels (is it a cycle?)")
    if isinstance(value, (list, tuple)):
        return [to_jsonable(each, f"{path}[{n}]", depth - 1) for n, each in enumerate(value)]
    if isinstance(value, dict):
        made = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise Refused(f"{path}: key {key!r:.40} is not carried; keys must be str")
            made[key] = to_jsonable(item, f"{path}.{key[:40]}", depth - 1)
        if len(made) == 1:
            ((key, item),) = made.items()
            if _WORD.fullmatch(key):
                return {f"${key}": item}
        return made
    raise Refused(
        f"{path[:256]}: {type(value).__name__} is not carried; use JSON-like data, bytes or "
        "datetimes"
    )


def from_jsonable(data: Any) -> Any:
    if isinstance(data, list):
        return [from_jsonable(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) == 1:
        ((word, item),) = data.items()
        if word.startswith("$$") and _WORD.fullmatch(word):
            return {word[1:]: from_jsonable(item)}
        if word == "$bytes":
            return base64.b64decode(item)
        if word == "$datetime":
            return datetime.datetime.fromisoformat(item.replace("Z", "+00:00"))
        if word == "$float":
            return _FLOATS[item]
    return {key: from_jsonable(item) for key, item in data.items()}


def read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        return from_jsonable(json.load(file))


# -- speaking --------------------------------------------------------------------------------------


class Speaker:
    """Lines on the events' descriptor, each whole. A fork of the task has no say."""

    def __init__(self, fd: int, done_fd: int) -> None:
        self._fd = fd
        self._done_fd = done_fd
        self._pid = os.getpid()
        self._lock = threading.Lock()

    @property
    def is_ours(self) -> bool:
        return os.getpid() == self._pid

    def say(self, key: str, value: Any) -> None:
        line = json.dumps({key: to_jsonable(value, key)}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._write(line)

    def ask(self, key: str, value: Any) -> None:
        """Say it, and wait until it has been done."""
        line = json.dumps({key: to_jsonable(value, key)}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._write(line)
            if not os.read(self._done_fd, 1):
                raise RuntimeError("the task has ended")

    def _write(self, line: bytes) -> None:
        if not self.is_ours:
            raise RuntimeError("only the task's own process can speak for it, not a fork of it")
        left = memoryview(line)
        while left:
            left = left[os.write(self._fd, left) :]


class Stream:
    """The items of one upstream task, for `for` and `async for`; each is handed over once."""

    def __init__(self, upstream: str, path: str) -> None:
        self.upstream = upstream
        self._path = path
        self._lock = threading.Lock()
        self._file: Any = None
        self._left: list[Any] = []

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        with self._lock:
            if self._left:
                return self._left.pop(0)
            if self._file is None:
                self._file = open(self._path, encoding="utf-8")  # noqa: PTH123, SIM115
            line = self._file.readline()
        if not line:
            raise StopIteration
        return from_jsonable(json.loads(line))

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        import asyncio

        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[Any] = loop.create_future()

        def deliver(item: Any) -> None:
            if not arrived.cancelled():
                arrived.set_result(item)
            elif item is not self:  # who waited for it has been cancelled; the next one gets it
                self._left.append(item)

        def read() -> None:
            item = next(self, self)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(deliver, item)

        # Not the loop's own threads: asyncio.run would wait for one that waits for an item.
        threading.Thread(target=read, daemon=True).start()
        found = await arrived
        if found is self:
            raise StopAsyncIteration
        return found


class Context:
    """What `sandbox/context.py` describes, said in lines of JSON. `deadline` is that of the start:
    a pause moves it unseen."""

    def __init__(self, speaker: Speaker, about: dict[str, Any], saved: Any) -> None:
        self._speaker = speaker
        self.run_id = about["run_id"]
        self.task_id = about["task_id"]
        self.attempt = about["attempt"]
        self.spec = about["spec"]
        self.idempotency_key = about["idempotency_key"]
        self.deadline = about["deadline"]
        self.saved = saved
        self.cancelled = False
        self._streams = {name: Stream(name, path) for name, path in about["streams"].items()}
        self.workspace: Any = about["workspace"]
        if self.workspace is not None:
            import pathlib

            self.workspace = pathlib.Path(self.workspace)

    def emit(self, item: Any) -> None:
        self._speaker.say("emit", item)

    def log(*given: Any, **fields: Any) -> None:
        self, message = given
        self._speaker.say("log", {**fields, "message": str(message)})

    def progress(self, done: float, total: float | None = None) -> None:
        given = (float(done), None if total is None else float(total))
        if not all(each is None or math.isfinite(each) for each in given):
            raise ValueError(f"progress({done}, {total}): expected finite numbers")
        self._speaker.say("progress", {"done": given[0], "total": given[1]})

    def save(self, state: Any) -> None:
        self._speaker.ask("save", state)

    def artifact(self, path: Any, name: str | None = None) -> str:
        whole = os.path.abspath(os.fspath(path))
        if name is None:
            name = os.path.basename(whole)
            if self.workspace is not None:
                below = os.path.relpath(whole, self.workspace)
                name = name if below.startswith("..") else below
        self._speaker.ask("artifact", {"path": whole, "name": name})
        return name

    @property
    def streams(self) -> tuple[Stream, ...]:
        return tuple(self._streams.values())

    def stream(self, upstream: str) -> Stream:
        if upstream not in self._streams:
            names = ", ".join(sorted(self._streams)) or "none"
            raise UsageError(
                f"ctx.stream({upstream!r}): stream edges lead to {self.task_id} from: {names}; "
                "what plain edges bring is in the input"
            )
        return self._streams[upstream]


class Termination:
    """SIGTERM, once, as something the task's code can act on."""

    def __init__(self) -> None:
        self.context: Context | None = None
        self.interrupt: Callable[[], None] = _raise_cancelled
        self.has_come = False
        self._is_armed = True
        # Ends a blocking call into which the interpreter went just before SIGTERM came; the guest
        # passes on those that init sends after it.
        signal.signal(signal.SIGURG, lambda number, frame: None)
        signal.signal(signal.SIGTERM, self._handle)
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))

    def disarm(self) -> None:
        self._is_armed = False

    def _handle(self, number: int, frame: Any) -> None:
        if self._is_armed:
            self._is_armed, self.has_come = False, True
            if self.context is not None:
                self.context.cancelled = True
            self.interrupt()


def _raise_cancelled() -> NoReturn:
    raise Cancelled("cancelled by the supervisor")


# -- loading and calling ---------------------------------------------------------------------------


class Offer:
    """Finds and loads `casemate` for files that import it, where nothing else has it."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "casemate":
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        if sys.version_info >= (3, 11):  # noqa: UP036  (what runs this is not what casemate needs)
            module.__path__ = [self._package]
            file = os.path.join(self._package, "__init__.py")
            with open(file, encoding="utf-8") as source:  # noqa: PTH123
                exec(compile(source.read(), file, "exec"), module.__dict__)
        for name, value in (
            ("ValidationResult", ValidationResult),
            ("RecoveryAction", RecoveryAction),
            ("RuntimeContext", Context),
            ("UsageError", UsageError),
        ):
            setattr(module, name, value)


def search_first(folder: str) -> None:
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)


def load(entry: dict[str, str], sources: str) -> Function:
    search_first(sources)
    where = entry.get("file") or entry["module"]
    module = load_file(sources, where) if "file" in entry else importlib.import_module(where)
    found: Any = module
    for part in entry["name"].split("."):
        if not hasattr(found, part):
            raise UsageError(f"{where} has no {entry['name']!r}")
        found = getattr(found, part)
    found = found if callable(found) else getattr(found, "execute", None)
    if not callable(found):
        raise UsageError(f"{where}: {entry['name']!r} is not a function")
    return found  # type: ignore[no-any-return]  # what a task's file holds


def load_file(sources: str, file: str) -> types.ModuleType:
    path = os.path.join(sources, file)
    if not os.path.isfile(path):
        raise UsageError(
            f"{file}: not in the sandbox; it sees only the task's own file and its `sources`"
        )
    folder, last = os.path.split(path)
    name = os.path.splitext(last)[0]
    if folder != sources and os.path.isfile(os.path.join(folder, "__init__.py")):
        parts = [] if name == "__init__" else [name]
        while folder != sources and os.path.isfile(os.path.join(folder, "__init__.py")):
            folder, package = os.path.split(folder)
            parts.insert(0, package)
        search_first(folder)
        return importlib.import_module(".".join(parts))
    search_first(folder)
    while name in sys.modules or name in STDLIB:
        name += "_"  # taking the name of a module that we or the task use would break its users
    loader = SourceFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def call(function: Function, value: Any, context: Context, termination: Termination) -> Any:
    """Run any of the four kinds of function to its end; each yield is an emit."""
    positional, named = arguments(function, value, context)
    given = function(*positional, **named)
    if inspect.isgenerator(given):
        return drive(given, context)
    if inspect.isasyncgen(given):
        return run_async(drive_async(given, context), termination)
    if inspect.isawaitable(given):
        return run_async(given, termination)
    return given


def arguments(
    function: Function, value: Any, context: Context
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(input, ctx), (input), (ctx) or (), told apart by the signature: see guest.py."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # some functions written in C
        return (value,), {}
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in places]
    required = len([p for p in places if p.default is p.empty])
    if required > 2:
        raise UsageError(
            f"{getattr(function, '__qualname__', function)} takes {', '.join(names)}; a task takes "
            "(input, ctx), (input), (ctx) or ()"
        )
    has_named_context = any(p.kind is p.KEYWORD_ONLY and p.name == "ctx" for p in parameters)
    named = {"ctx": context} if has_named_context else {}
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return ((value,) if has_named_context else (value, context)), named
    if not names or names[0] == "ctx":
        return (context,) * len(names[:1]), named
    takes_context = len(names) > 1 and (required > 1 or names[1] == "ctx")
    return ((value, context) if takes_context else (value,)), named


def drive(generator: Any, context: Context) -> Any:
    try:
        item = next(generator)
        while True:
            try:
                context.emit(item)
            except BaseException as error:
                item = generator.throw(error)
            else:
                item = next(generator)
    except StopIteration as stop:
        return stop.value
    finally:
        generator.close()


async def drive_async(generator: Any, context: Context) -> None:
    try:
        item = await generator.__anext__()
        while True:
            try:
                context.emit(item)
            except BaseException as error:
                item = await generator.athrow(error)
            else:
                item = await generator.__anext__()
    except StopAsyncIteration:
        return
    finally:
        await generator.aclose()


def run_async(work: Any, termination: Termination) -> Any:
    # Here and not above: half of a start (CPU, Python 3.11), needed by some.
    import asyncio

    async def supervised() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                loop.call_soon_threadsafe(task.cancel)

        termination.interrupt = interrupt
        return await work

    return asyncio.run(supervised())


# -- the job ---------------------------------------------------------------------------------------


def perform(job: dict[str, Any], speaker: Speaker, termination: Termination) -> Any:
    value = read_json(job["input"])
    sys.meta_path.append(Offer(job["package"]))
    if job["part"] == "execute":
        saved = None if job["saved"] is None else read_json(job["saved"])
        context = Context(speaker, job["context"], saved)
        termination.context = context
        return call(load(job["entry"], job["sources"]), value, context, termination)
    function = load(job["entry"], job["sources"])
    given = function(_attributes(value) if job["part"] == "recover" else value)
    if inspect.isawaitable(given):
        given = run_async(given, termination)
    return answer(job["part"], given)


def _attributes(error: Any) -> Any:
    return types.SimpleNamespace(
        **{
            name: _attributes(item) if name == "usage" and isinstance(item, dict) else item
            for name, item in error.items()
        }
    )


def answer(part: str, given: Any) -> Any:
    """By what it has, not by its class: the interpreter may have a casemate of its own."""
    if part == "recover":
        if given is None:
            return None
        if all(hasattr(given, name) for name in ("do", "after", "output", "to")):
            do = str(getattr(given.do, "value", given.do))
            return {"do": do, "after": given.after, "output": given.output, "to": given.to}
        expected = "a RecoveryAction, such as RecoveryAction.retry(), or None"
    else:
        if isinstance(given, bool):
            return {"ok": given, "reasons": []}
        if all(hasattr(given, name) for name in ("ok", "reasons")):
            return {"ok": bool(given.ok), "reasons": [str(reason) for reason in given.reasons]}
        expected = "a ValidationResult(ok, reasons), or True or False"
    raise UsageError(f"{part} returned {type(given).__name__}; it returns {expected}")


def failure(error: BaseException) -> dict[str, Any]:
    own = isinstance(error, (UsageError, Refused))
    kind = type(error)
    name = kind.__qualname__
    try:
        message = str(error) or kind.__name__
    except BaseException as broken:  # a task's own __str__ may raise anything
        message = f"{kind.__name__} (its str() raised {type(broken).__name__})"
    if isinstance(error, SystemExit):
        message = f"called sys.exit({error.code!r}); a task ends by returning or raising"
    elif isinstance(error, ModuleNotFoundError):
        message = (
            f"{error}; this interpreter ({sys.executable}) has its own packages, the task's own "
            f"file and its `sources`: if {error.name!r} is yours, name its file or folder there"
        )
    wait: Any = getattr(error, "retry_after", None)
    return {
        "kind": "invalid_output" if isinstance(error, Refused) else "error",
        "message": message[:ERROR_TEXT_SIZE],
        "type": None
        if own
        else name
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{name}",
        "traceback": None if own else told(error),
        "retry_after": float(wait) if type(wait) in (int, float) and math.isfinite(wait) else None,
    }


def told(error: BaseException) -> str | None:
    """The traceback without our frames; None: no others are left."""
    try:
        made = traceback.TracebackException.from_exception(error, limit=-TRACEBACK_FRAMES)
        left, has_others = [made], False
        while left:
            each = left.pop()
            each.stack[:] = [
                frame
                for frame in each.stack
                if frame.filename != __file__ and not frame.filename.startswith("<frozen importlib")
            ]
            has_others = has_others or bool(each.stack)
            left += [e for e in (each.__cause__, each.__context__) if e is not None]
            left += getattr(each, "exceptions", None) or []
        return "".join(made.format())[-ERROR_TEXT_SIZE:] if has_others else None
    except BaseException as broken:  # the task's exceptions choose what formatting them does
        return f"(no traceback: formatting it raised {type(broken).__name__})"


def main() -> NoReturn:
    termination = Termination()
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        job = json.load(file)
    job["context"]["spec"] = from_jsonable(job["context"]["spec"])
    # What the programs that the task starts must not have: theirs would be taken for its words.
    for fd in (job["events_fd"], job["done_fd"]):
        os.set_inheritable(fd, False)
    sys.argv = ["casemate-task"]
    sys.dont_write_bytecode = True
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]  # of a TextIOWrapper, which they are
            encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
    speaker = Speaker(job["events_fd"], job["done_fd"])
    reserve: bytes | None = bytes(RESERVE_SIZE)
    code = 0
    try:
        output = perform(job, speaker, termination)
        termination.disarm()
        if speaker.is_ours:
            speaker.say("output", output)
    except BaseException as error:
        reserve = None  # noqa: F841  (its memory is what we speak with)
        termination.disarm()
        code = 0 if speaker.is_ours else 1
        if speaker.is_ours:
            if type(error).__name__ == "CancelledError" and termination.has_come:
                error = Cancelled("cancelled by the supervisor")
            speaker.say("failed", failure(error))
    for stream in (sys.stdout, sys.stderr):
        # nobody may read it any more, or the task has closed or replaced it
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)  # what it left behind, threads and atexit functions, dies with the sandbox


if __name__ == "__main__":
    main()
