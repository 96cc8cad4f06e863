"""Bytes to messages and values and back: the one place where a guest's bytes are decoded.

Two layers. A *message* is `u8 kind | msgpack map` of a struct in `messages.py`. What is decoded
has been checked whole: known kind and fields, texts within their bounds, finite numbers, claims a
guest may make. `encode` obeys the same rules, so that a bug of ours shows where it was made; texts
that come from a task's code (log lines, error messages) are cut to their bounds there.

A *value* is a user's: None, bool, int (64 bits, or unsigned 64), float (NaN and infinities too: a
diverged loss should not cost a task its result), str, bytes, datetimes with a time zone (they come
back in UTC), lists (tuples come back as lists) and dicts with str keys, at most VALUE_DEPTH deep.
Inside messages values stay `Raw`: msgspec only steps over them. `Raw` therefore means one whole
msgpack value of unknown content: text may be bad UTF-8, extension types and odd keys may be in it.
Only `decode_value` opens values, and only `checked_raw` lets bytes in that came by file.

`decode_value` uses types that can only say list and str-keyed dict. Letting msgspec build `Any`
would be simpler, but then arrays are keys as well, and hashes of tuples can be made to collide:
300 KB took 4 s, quadratic, in C that no signal stops (msgspec 0.22, Python 3.11).

Where JSON is spoken, bytes are {"$bytes": base64}, datetimes {"$datetime": RFC 3339}, non-finite
floats {"$float": "nan" | "inf" | "-inf"}. A user's own dict whose only key is one of these words
gets one more "$" in front ("$$bytes"), and so does one that already has several; on the way back
one is taken off. Every value survives the round trip; other keys with "$" are left alone.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from enum import Enum
from typing import Any, Never

import msgspec
from msgspec import Raw, Struct

from .answers import Action, RecoveryAction, ValidationResult
from .errors import LocalViolation, RemoteViolation, UsageError
from .limits import (
    ARTIFACT_NAME_SIZE,
    ARTIFACTS_SIZE,
    ERROR_TEXT_SIZE,
    ERROR_TYPE_SIZE,
    ITEM_SIZE,
    LINK_VERSION,
    LOG_TEXT_SIZE,
    MESSAGE_SIZE,
    READ_DEPTH,
    REASON_LENGTH,
    REASONS,
    REFUSAL_SUBJECT,
    REFUSALS,
    RETRY_AFTER,
    SAVED_SIZE,
    STREAM_CREDIT_ITEMS,
    VALUE_DEPTH,
    VALUE_SIZE,
)
from .messages import (
    FROM_GUEST,
    FROM_SUPERVISOR,
    Accept,
    Artifact,
    Cancel,
    Credit,
    Deadline,
    Emit,
    End,
    Fail,
    Hello,
    Item,
    Kind,
    Log,
    Message,
    Part,
    Progress,
    Result,
    Run,
    Save,
    Saved,
)
from .refusals import Refusal

__all__ = [
    "GuestMessage",
    "SupervisorMessage",
    "ValueRefused",
    "artifact_name_problem",
    "checked_raw",
    "cut_text",
    "decode_from_guest",
    "decode_from_supervisor",
    "decode_recovery",
    "decode_validation",
    "decode_value",
    "encode",
    "encode_recovery",
    "encode_validation",
    "encode_value",
    "from_jsonable",
    "kind_of",
    "to_jsonable",
]

GuestMessage = Hello | Emit | Log | Progress | Save | Artifact | Credit | Result | Fail
SupervisorMessage = Accept | Run | Saved | Item | End | Deadline | Cancel


class ValueRefused(UsageError):
    """A value that cannot be carried; the message names its path, its type and the remedy."""


# --- messages ----------------------------------------------------------------------------------

# Error kinds a guest may claim of itself; the others are the supervisor's to find.
_CLAIMS = frozenset({"error", "crash", "invalid_output", "output_limit"})
_NIL = b"\xc0"
_DIGEST_SIZE = 32  # SHA-256
_TASK_ID_SIZE = 64
_QUOTED_SIZE = 300  # of a decoder's message, which may quote the guest

_KIND: dict[type[Struct], Kind] = {
    struct: kind for kind, struct in (FROM_GUEST | FROM_SUPERVISOR).items()
}
_PREFIX = {struct: bytes((kind,)) for struct, kind in _KIND.items()}
_GUEST = {int(kind): msgspec.msgpack.Decoder(struct) for kind, struct in FROM_GUEST.items()}
_SUPERVISOR = {
    int(kind): msgspec.msgpack.Decoder(struct) for kind, struct in FROM_SUPERVISOR.items()
}
_encode = msgspec.msgpack.Encoder().encode


def kind_of(message: Message) -> Kind:
    return _KIND[type(message)]


def encode(message: Message) -> bytes:
    """The frame of a message. Texts of Log and Fail are cut; any other excess is our bug."""
    if isinstance(message, Log):
        message = Log(text=cut_text(message.text, LOG_TEXT_SIZE), fields=message.fields)
    elif isinstance(message, Fail):
        message = Fail(
            kind=message.kind,
            message=cut_text(message.message, ERROR_TEXT_SIZE),
            type=None if message.type is None else cut_text(message.type, ERROR_TYPE_SIZE),
            traceback=(
                None if message.traceback is None else cut_text(message.traceback, ERROR_TEXT_SIZE)
            ),
            retry_after=message.retry_after,
            refused=tuple(
                Refusal(each.wall, cut_text(each.subject, REFUSAL_SUBJECT))
                for each in message.refused[:REFUSALS]
            ),
        )
    name = kind_of(message).name
    problem = _problem(message)
    if problem is None:
        try:
            frame = _PREFIX[type(message)] + _encode(message)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            problem = str(error)
        else:
            if len(frame) <= MESSAGE_SIZE:
                return frame
            problem = f"message of {len(frame)} bytes; at most {MESSAGE_SIZE} may be sent"
    raise LocalViolation(f"{name}: {problem}")


def decode_from_guest(frame: bytes) -> GuestMessage:
    message: GuestMessage = _decode(frame, _GUEST)
    return message


def decode_from_supervisor(frame: bytes) -> SupervisorMessage:
    message: SupervisorMessage = _decode(frame, _SUPERVISOR)
    return message


# `Any` because the two tables of decoders have no nearer common type; the callers name it.
def _decode(frame: bytes, decoders: dict[int, msgspec.msgpack.Decoder[Any]]) -> Any:
    if not frame:
        raise RemoteViolation("empty message")
    decoder = decoders.get(frame[0])
    if decoder is None:
        raise RemoteViolation(f"message of kind {frame[0]}, which this side never gets")
    try:
        message = decoder.decode(frame[1:])
    except (ValueError, RecursionError) as error:
        problem: str | None = cut_text(str(error), _QUOTED_SIZE)
    else:
        problem = _problem(message)
        if problem is None:
            return message
    # Outside the handler: a chained UnicodeDecodeError would keep the guest's bytes alive.
    raise RemoteViolation(f"{Kind(frame[0]).name}: {problem}")


def _problem(message: Message) -> str | None:
    """What the types do not say. The commonest first: this runs for every message."""
    match message:
        case Emit(item=item):
            size = memoryview(item).nbytes
            return None if size <= ITEM_SIZE else f"item of {size} bytes; at most {ITEM_SIZE}"
        case Log(text=text, fields=fields):
            if not _is_map(fields):
                return "fields must be a map"
            return _excess("text", text, LOG_TEXT_SIZE)
        case Progress(done=done, total=total):
            if not math.isfinite(done) or not (total is None or math.isfinite(total)):
                return "numbers must be finite"
            return None
        case Item(upstream=upstream, items=items):
            if not 0 < len(items) <= STREAM_CREDIT_ITEMS:
                return f"{len(items)} items; from 1 to {STREAM_CREDIT_ITEMS} go together"
            return _excess("upstream", upstream, _TASK_ID_SIZE)
        case Credit(upstream=upstream, items=count):
            if not 0 < count <= STREAM_CREDIT_ITEMS:
                return f"credit for {count} items; from 1 to {STREAM_CREDIT_ITEMS} are under way"
            return _excess("upstream", upstream, _TASK_ID_SIZE)
        case Result():
            return _result_problem(message)
        case Save(state=state):
            return _state_problem(state)
        case Saved():
            return None
        case End(upstream=upstream):
            return _excess("upstream", upstream, _TASK_ID_SIZE)
        case Deadline(deadline=deadline):
            if deadline is not None and not math.isfinite(deadline):
                return f"deadline {deadline}"
            return None
        case Artifact(name=name, size=size, digest=digest):
            if not 0 <= size <= ARTIFACTS_SIZE or len(digest) != _DIGEST_SIZE:
                return f"an artifact of {size} bytes, with a digest of {len(digest)}"
            return artifact_name_problem(name)
        case Fail():
            if message.kind not in _CLAIMS:
                return f"a guest may not claim the error kind {cut_text(message.kind, 64)!r}"
            return (
                _excess("message", message.message, ERROR_TEXT_SIZE)
                or _excess("type", message.type or "", ERROR_TYPE_SIZE)
                or _excess("traceback", message.traceback or "", ERROR_TEXT_SIZE)
                or _wait_problem("retry_after", message.retry_after)
                or _refusals_problem(message.refused)
            )
        case Hello(version=version) | Accept(version=version) if version != LINK_VERSION:
            return f"version {version}; this side speaks {LINK_VERSION}"
        case Hello(pid=pid):
            return None if 0 < pid < 1 << 31 else f"pid {pid}"
        case Accept():
            return None
        case Cancel(grace=grace):
            return None if 0 <= grace < math.inf else f"grace {grace}"
        case Run(input_file=input_file):
            if input_file is not None and bytes(message.input) != _NIL:
                return "input given twice, as a value and as a file"
            has_schema = message.part is Part.VALIDATE and bytes(message.schema) != _NIL
            if message.entry is None and not has_schema:
                return "nothing to call"
            return _state_problem(message.saved)


def artifact_name_problem(name: str) -> str | None:
    """Why an artifact cannot be called this; None: it can. A relative path that names a file:
    whoever unpacks artifacts into a folder of his own stays in it."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return f"an artifact's name that is no text: {name[:64]!a}"
    shown = ascii(name if len(name) <= 64 else f"{name[:64]}…")
    if size > ARTIFACT_NAME_SIZE:
        return f"an artifact's name of {size} bytes, of at most {ARTIFACT_NAME_SIZE}: {shown}"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return f"an artifact's name is a relative path without '..': {shown}"
    if not name.isprintable() or "\\" in name:
        return f"an artifact's name has only printable characters, and no backslash: {shown}"
    return None


def _refusals_problem(refused: tuple[Refusal, ...]) -> str | None:
    if len(refused) > REFUSALS:
        return f"{len(refused)} refusals; at most {REFUSALS}"
    for each in refused:
        if problem := _excess("subject", each.subject, REFUSAL_SUBJECT):
            return problem
    return None


def _result_problem(result: Result) -> str | None:
    digest, size = result.digest, result.size
    if digest is None and size is None:
        return None
    if digest is None or size is None:
        return "digest and size go together"
    if bytes(result.output) != _NIL:
        return "output given twice, as a value and as a file"
    if len(digest) != _DIGEST_SIZE:
        return f"digest of {len(digest)} bytes"
    if not 0 < size <= VALUE_SIZE:
        return f"output file of {size} bytes; at most {VALUE_SIZE} may be"
    return None


def _state_problem(state: Raw) -> str | None:
    size = memoryview(state).nbytes
    return f"state of {size} bytes; at most {SAVED_SIZE} are kept" if size > SAVED_SIZE else None


def _wait_problem(name: str, seconds: float | None) -> str | None:
    if seconds is not None and not 0 <= seconds <= RETRY_AFTER:
        return f"{name} of {seconds:g} s; from 0 to {RETRY_AFTER:g} may be asked for"
    return None


def _is_map(raw: Raw) -> bool:
    return memoryview(raw)[0] in _MAPS


def _excess(name: str, text: str, limit: int) -> str | None:
    # A character is at most four bytes: most texts need no second look.
    if len(text) * 4 <= limit or len(text.encode()) <= limit:
        return None
    return f"{name} of more than {limit} bytes"


def cut_text(text: str, size: int) -> str:
    """`text` in at most `size` bytes of UTF-8 (`size` ≥ 64), its head and its tail where it is too
    long: an error's cause is at the end of a traceback. Lone surrogates become escapes."""
    if len(text) * 4 <= size and text.isascii():
        return text
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= size:
        return raw.decode()
    kept = size - 40  # the note's own length, for up to 19 digits
    tail = kept * 3 // 4
    head = kept - tail
    note = f" [... {len(raw) - kept} bytes cut ...] "
    return raw[:head].decode("utf-8", "ignore") + note + raw[-tail:].decode("utf-8", "ignore")


# --- answers -----------------------------------------------------------------------------------


class _Validation(Struct, frozen=True, forbid_unknown_fields=True):
    ok: bool
    reasons: tuple[str, ...]


class _Recovery(Struct, frozen=True, forbid_unknown_fields=True):
    do: Action
    after: float | None
    output: Raw
    to: str | None


_decode_validation = msgspec.msgpack.Decoder(_Validation).decode
_decode_recovery = msgspec.msgpack.Decoder(_Recovery | None).decode


def encode_validation(result: ValidationResult) -> Raw:
    """The output of a sandbox that validates. Reasons are cut to their bounds."""
    reasons = [str(reason) for reason in result.reasons]
    if len(reasons) > REASONS:
        reasons[REASONS - 1 :] = [f"... and {len(reasons) - REASONS + 1} more"]
    cut = tuple(cut_text(reason, REASON_LENGTH) for reason in reasons)
    return Raw(_encode(_Validation(bool(result.ok), cut)))


def decode_validation(raw: Raw) -> ValidationResult:
    """RemoteViolation where it is none."""
    try:
        found = _decode_validation(raw)
    except (ValueError, RecursionError) as error:
        problem: str = cut_text(str(error), _QUOTED_SIZE)
    else:
        excess = (_excess("a reason", reason, REASON_LENGTH) for reason in found.reasons)
        if len(found.reasons) <= REASONS and not any(excess):
            return ValidationResult(found.ok, found.reasons)
        problem = f"at most {REASONS} reasons of {REASON_LENGTH} bytes may be given"
    raise RemoteViolation(f"not the answer of a validation: {problem}")


def encode_recovery(action: RecoveryAction | None) -> Raw:
    """The output of a sandbox that recovers. ValueRefused for an output that cannot be carried."""
    if action is None:
        return Raw(_NIL)
    output = Raw(encode_value(action.output))
    return Raw(_encode(_Recovery(action.do, action.after, output, action.to)))


def decode_recovery(raw: Raw) -> RecoveryAction | None:
    """Its output still closed. RemoteViolation where it is none, or asks for what cannot be."""
    try:
        found = _decode_recovery(raw)
    except (ValueError, RecursionError) as error:
        problem: str | None = cut_text(str(error), _QUOTED_SIZE)
    else:
        if found is None:
            return None
        problem = _wait_problem("after", found.after) or _excess(
            "to", found.to or "", _TASK_ID_SIZE
        )
        if (found.to is not None) is not (found.do in (Action.FALLBACK, Action.ROLLBACK)):
            problem = f"{found.do} to {cut_text(str(found.to), 64)!r}"
        if problem is None:
            # A copy: the view would keep all the bytes that came with it.
            output = Raw(bytes(found.output))
            return RecoveryAction(do=found.do, after=found.after, output=output, to=found.to)
    raise RemoteViolation(f"not the answer of a recovery: {problem}")


# --- values ------------------------------------------------------------------------------------


def _refuse_extension(code: int, data: memoryview) -> Never:
    raise ValueError(f"extension type {code} is not carried")


# Types for the first levels of a value, which are all there is to most: they build at full speed,
# what is safe, and fail on the rest (a union may not hold str next to bytes or datetime). Each
# level doubles the size of the type; six take half a millisecond to set up.
_Scalar = None | bool | int | float | str
_SHALLOW_LEVELS = 6


def _shallow_type() -> Any:  # a type made at run time has no static type
    made: Any = _Scalar
    for _ in range(_SHALLOW_LEVELS):
        made = _Scalar | list[made] | dict[str, made]
    return made


_decode_shallow = msgspec.msgpack.Decoder(_shallow_type()).decode
_open_list = msgspec.msgpack.Decoder(list[Raw]).decode
_open_dict = msgspec.msgpack.Decoder(dict[str, Raw]).decode
# Only for bytes that begin neither an array nor a map, where `Any` cannot nest.
_decode_scalar = msgspec.msgpack.Decoder(Any, ext_hook=_refuse_extension).decode
_step_over = msgspec.msgpack.Decoder(Raw).decode

_MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
_ARRAYS = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))


def checked_raw(data: bytes) -> Raw:
    """`data` as a closed value, if it is exactly one: what came by file must not break the
    message or the event it is put into."""
    try:
        return _step_over(data)
    except (ValueError, RecursionError) as error:
        problem = cut_text(str(error), _QUOTED_SIZE)
    raise RemoteViolation(f"not a value: {problem}")


# `Any`: a user's value has whatever type its user knows it to have.
def decode_value(raw: Raw | bytes) -> Any:
    """A user's value. RemoteViolation when it is none; its cost is linear in its size, within the
    factor of READ_DEPTH, and its memory at most about a hundredfold."""
    try:
        return _opened(raw, READ_DEPTH)
    except (ValueError, RecursionError) as error:
        problem = cut_text(str(error), _QUOTED_SIZE)
    raise RemoteViolation(f"not a value: {problem}")


def _opened(raw: Raw | bytes, depth: int) -> Any:
    first = memoryview(raw)[:1]
    if not first or (first[0] not in _MAPS and first[0] not in _ARRAYS):
        return _decode_scalar(raw)
    if depth >= _SHALLOW_LEVELS:
        try:
            return _decode_shallow(raw)
        except msgspec.ValidationError:
            pass  # bytes or datetimes in it, or deeper, or wrong
    if not depth:
        raise ValueError(f"nested deeper than {READ_DEPTH} levels")
    if first[0] in _ARRAYS:
        return [_opened(item, depth - 1) for item in _open_list(raw)]
    return {key: _opened(item, depth - 1) for key, item in _open_dict(raw).items()}


# What msgspec encodes exactly as we mean it.
_FLAT = frozenset((type(None), bool, int, float, str, bytes))


def encode_value(value: object, name: str = "output") -> bytes:
    """The bytes of a user's value; ValueRefused where it cannot be carried. `name` begins paths."""
    if _is_plain((value,), VALUE_DEPTH + 1):
        try:
            return _encode(value)
        except (ValueError, OverflowError):
            pass  # too large an int, text that is not UTF-8: the slow way finds where
    return _encode(_carried(value, name, VALUE_DEPTH))


# `Any`: exact types decide below, and mypy does not narrow by `type(x) is`.
def _is_plain(items: Iterable[Any], depth: int) -> bool:
    """Whether msgspec encodes all of this as we would: it also takes sets, dataclasses, UUIDs,
    naive datetimes and more, as something else, and refuses subclasses of str."""
    if not depth:
        return False
    for item in items:
        kind = type(item)
        if kind in _FLAT:
            continue
        if kind is dict:
            for key in item:
                if type(key) is not str:
                    return False
            if not _is_plain(item.values(), depth - 1):
                return False
        elif kind is list or kind is tuple:
            if not _is_plain(item, depth - 1):
                return False
        else:
            return False
    return True


def _carried(value: object, path: str, depth: int) -> object:
    """A copy of `value` of exact types alone, or ValueRefused."""
    match value:
        case None | bool():
            return value
        case str():
            return _carried_text(value, path)
        case int():
            if not -(1 << 63) <= value < 1 << 64:
                raise _refused(path, f"int of {value.bit_length()} bits", "use a str")
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case bytes() | bytearray() | memoryview():
            return bytes(value)
        case datetime():
            return _carried_datetime(value, path)
        case list() | tuple():
            _check_depth(path, depth)
            return [
                _carried(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(value)
            ]
        case dict():
            _check_depth(path, depth)
            return {
                _carried_key(key, path): _carried(item, f"{path}{_step(key)}", depth - 1)
                for key, item in value.items()
            }
    raise _refused(path, _type_name(value), _remedy(value))


def _carried_text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused(path, "text with lone surrogates", "use bytes (os.fsencode)") from None
    return str.__str__(text)


def _carried_key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise _refused(path, f"key {_short(repr(key))} ({_type_name(key)})", "keys must be str")
    return _carried_text(key, f"{path}, a key")


def _carried_datetime(value: datetime, path: str) -> datetime:
    if value.utcoffset() is None:
        raise _refused(path, "datetime without a time zone", "give it one (tz=datetime.UTC)")
    try:
        utc = value.astimezone(UTC)
    except OverflowError:
        raise _refused(path, "datetime out of range in UTC", "use a str") from None
    return datetime.combine(date(utc.year, utc.month, utc.day), utc.time(), UTC)


def _check_depth(path: str, depth: int) -> None:
    if not depth:
        raise _refused(path, "nesting this deep", f"at most {VALUE_DEPTH} levels (is it a cycle?)")


def _refused(path: str, what: str, remedy: str) -> ValueRefused:
    return ValueRefused(f"{cut_text(path, 256)}: {what} is not carried; {remedy}")


def _step(key: object) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f".{_short(key)}"
    return f"[{_short(repr(key))}]"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _remedy(value: object) -> str:
    kind = type(value)
    if isinstance(value, Enum):
        return "use its value"
    if isinstance(value, set | frozenset):
        return "use a sorted list"
    if isinstance(value, date | time):
        return "use isoformat()"
    for method in ("tolist", "model_dump", "_asdict"):  # numpy and array; pydantic; others
        if hasattr(kind, method):
            return f"use its {method}()"
    if hasattr(kind, "__dataclass_fields__"):
        return "use dataclasses.asdict()"
    if hasattr(kind, "keys"):
        return "use a dict"
    if hasattr(kind, "__iter__"):
        return "use a list"
    return "use JSON-like data, bytes or datetimes"


# --- values where JSON is spoken ---------------------------------------------------------------

_WORD = re.compile(r"\$+(bytes|datetime|float)")
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_jsonable(value: object, name: str = "output") -> Any:
    """A value as what `json` can write and `from_jsonable` reads back."""
    return _jsonable(value, name, READ_DEPTH)


def _jsonable(value: object, path: str, depth: int) -> object:
    match value:
        case float() if not math.isfinite(value):
            return {"$float": repr(float(value))}
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return {"$bytes": base64.b64encode(value).decode()}
        case datetime():
            utc = _carried_datetime(value, path)
            return {"$datetime": utc.isoformat().replace("+00:00", "Z")}
        case list() | tuple():
            _check_depth(path, depth)
            return [
                _jsonable(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(value)
            ]
        case dict():
            _check_depth(path, depth)
            made = {
                _carried_key(key, path): _jsonable(item, f"{path}{_step(key)}", depth - 1)
                for key, item in value.items()
            }
            if len(made) == 1:
                ((key, item),) = made.items()
                if _WORD.fullmatch(key):
                    return {f"${key}": item}
            return made
    raise _refused(path, _type_name(value), _remedy(value))


def from_jsonable(data: object, name: str = "input") -> Any:
    """The value that JSON data stands for; ValueRefused where a "$" word is used wrongly."""
    return _unjsonable(data, name, READ_DEPTH)


def _unjsonable(data: object, path: str, depth: int) -> object:
    if isinstance(data, list):
        _check_depth(path, depth)
        return [_unjsonable(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    _check_depth(path, depth)
    if len(data) == 1:
        ((key, item),) = data.items()
        if isinstance(key, str) and _WORD.fullmatch(key):
            if key.startswith("$$"):
                return {key[1:]: _unjsonable(item, f"{path}{_step(key)}", depth - 1)}
            return _from_word(key, item, path)
    return {key: _unjsonable(item, f"{path}{_step(key)}", depth - 1) for key, item in data.items()}


def _from_word(word: str, item: object, path: str) -> object:
    try:
        if isinstance(item, str):
            if word == "$bytes":
                return base64.b64decode(item, validate=True)
            if word == "$datetime":
                moment = msgspec.convert(item, datetime)
                if moment.tzinfo is not None:
                    return moment.astimezone(UTC)
            elif item in _FLOATS:
                return _FLOATS[item]
    except (ValueError, OverflowError, binascii.Error):
        pass
    raise ValueRefused(
        f"{cut_text(path, 256)}: {word} stands for {_MEANING[word]}, got {_short(repr(item))}; "
        f"for a dict with this key write ${word}"
    )


_MEANING = {
    "$bytes": "base64 text",
    "$datetime": "an RFC 3339 time with its zone",
    "$float": "nan, inf or -inf",
}
