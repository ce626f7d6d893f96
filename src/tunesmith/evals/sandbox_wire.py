"""What the two interpreters of a sandbox say to each other: frames, and values of exact plain type.

    checker:    assert solve([3, 1]) == [1, 3]
                 └─ call "solve" with ["list", [3, 1]] ──> candidate runs it
                    compares real, plain values      <── ["list", [1, 3]]

What comes back is rebuilt from exact standard types, so an object with its own `__eq__` never reaches a comparison: any
other object stays where it is and travels as a number. A candidate that forges messages gains nothing over returning
the forged value from its function.

Standard library only; loaded by path inside the jail, where the project cannot be seen. The two sides are
`sandbox_candidate` and `sandbox_checker`.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

MAX_FRAME_BYTES = 8 << 20
EXACT_JSON_INT = 1 << 53
"""Integers below this are the same number for every JSON reader; larger ones travel as hexadecimal text."""


class Unencodable(Exception):
    """A value has no exact plain form, and the receiver may not hold a handle to it."""


class CandidateGone(Exception):
    """The candidate's interpreter ended while the tests still needed it."""


# ---------------------------------------------------------------------------------------------------- frames


def send(channel: socket.socket, message: Any) -> None:
    """Send one JSON value: four bytes of length, then the text."""
    body = json.dumps(message).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise Unencodable(f"a value of {len(body)} bytes; the sandbox carries {MAX_FRAME_BYTES}")
    channel.sendall(struct.pack(">I", len(body)) + body)


def receive(channel: socket.socket) -> Any:
    """Receive one JSON value. Raises `CandidateGone` at the end of the stream or at a frame that cannot be."""
    (length,) = struct.unpack(">I", _exactly(channel, 4))
    if length > MAX_FRAME_BYTES:
        raise CandidateGone("it sent a frame longer than any answer may be")
    try:
        return json.loads(_exactly(channel, length))
    except (ValueError, RecursionError) as error:
        raise CandidateGone("it sent something that is not an answer") from error


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = channel.recv(min(count, 1 << 16))
        except ConnectionError as error:
            raise CandidateGone("its interpreter ended") from error
        if not part:
            raise CandidateGone("its interpreter ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# ---------------------------------------------------------------------------------------------------- values

Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]

_PLAIN: dict[type, tuple[str, Callable[[Any, Encode], Any], Callable[[Any, Decode], Any]]] = {
    int: ("int", lambda v, e: hex(v), lambda b, d: int(b, 16)),
    float: ("float", lambda v, e: v.hex(), lambda b, d: float.fromhex(b)),
    complex: ("complex", lambda v, e: [v.real.hex(), v.imag.hex()], lambda b, d: complex(*map(float.fromhex, b))),
    bytes: ("bytes", lambda v, e: v.hex(), lambda b, d: bytes.fromhex(b)),
    bytearray: ("bytearray", lambda v, e: v.hex(), lambda b, d: bytearray.fromhex(b)),
    list: ("list", lambda v, e: [e(x) for x in v], lambda b, d: [d(x) for x in b]),
    tuple: ("tuple", lambda v, e: [e(x) for x in v], lambda b, d: tuple(d(x) for x in b)),
    set: ("set", lambda v, e: [e(x) for x in v], lambda b, d: {d(x) for x in b}),
    frozenset: ("frozenset", lambda v, e: [e(x) for x in v], lambda b, d: frozenset(d(x) for x in b)),
    dict: ("dict", lambda v, e: _pairs(v, e), lambda b, d: _mapping(b, d)),
    collections.OrderedDict: (
        "OrderedDict",
        lambda v, e: _pairs(v, e),
        lambda b, d: collections.OrderedDict(_mapping(b, d)),
    ),
    collections.Counter: ("Counter", lambda v, e: _pairs(v, e), lambda b, d: collections.Counter(_mapping(b, d))),
    # The factory stays behind: equality of dictionaries does not look at it.
    collections.defaultdict: (
        "defaultdict",
        lambda v, e: _pairs(v, e),
        lambda b, d: collections.defaultdict(None, _mapping(b, d)),
    ),
    collections.deque: (
        "deque",
        lambda v, e: [[e(x) for x in v], v.maxlen],
        lambda b, d: collections.deque([d(x) for x in b[0]], b[1]),
    ),
    range: ("range", lambda v, e: [e(v.start), e(v.stop), e(v.step)], lambda b, d: range(*[d(x) for x in b])),
    decimal.Decimal: ("Decimal", lambda v, e: str(v), lambda b, d: decimal.Decimal(b)),
    fractions.Fraction: (
        "Fraction",
        lambda v, e: [hex(v.numerator), hex(v.denominator)],
        lambda b, d: fractions.Fraction(int(b[0], 16), int(b[1], 16)),
    ),
    datetime.date: ("date", lambda v, e: v.isoformat(), lambda b, d: datetime.date.fromisoformat(b)),
    datetime.timedelta: (
        "timedelta",
        lambda v, e: [v.days, v.seconds, v.microseconds],
        lambda b, d: datetime.timedelta(*b),
    ),
}
_BY_TAG = {tag: read for tag, _, read in _PLAIN.values()}
_TYPES: frozenset[type[Any]] = frozenset(
    {bool, str, object, type(None), *(kind for kind in _PLAIN if kind.__module__ == "builtins")}
)
_TYPES_BY_NAME = {kind.__name__: kind for kind in _TYPES}
MUTABLE = (list, dict, set, bytearray, collections.deque)


def _pairs(value: dict[Any, Any], encode: Encode) -> list[Any]:
    return [[encode(key), encode(item)] for key, item in value.items()]


def _mapping(body: Any, decode: Decode) -> dict[Any, Any]:
    return {decode(key): decode(item) for key, item in body}


def encode(value: Any, *, refer: Encode) -> Any:
    """Return the JSON form of a value of exact plain type. `refer` answers for every other object."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int and -EXACT_JSON_INT < value < EXACT_JSON_INT:
        return value
    if kind is datetime.datetime and value.tzinfo is None:
        return ["datetime", value.isoformat()]
    if kind is type and value in _TYPES:
        return ["type", value.__name__]
    if kind in _PLAIN:
        tag, write, _ = _PLAIN[kind]
        return [tag, write(value, lambda part: encode(part, refer=refer))]
    return refer(value)


def decode(form: Any, *, resolve: Callable[[int, str], Any]) -> Any:
    """Rebuild a value. `resolve(number, type name)` answers for objects that stayed on the other side."""
    if form is None or isinstance(form, (bool, str, int)):
        return form
    tag, body = form[0], form[1]
    if tag == "object":
        return resolve(int(body[0]), str(body[1]))
    if tag == "type":
        return _TYPES_BY_NAME[body]
    if tag == "datetime":
        return datetime.datetime.fromisoformat(body)
    return _BY_TAG[tag](body, lambda part: decode(part, resolve=resolve))
