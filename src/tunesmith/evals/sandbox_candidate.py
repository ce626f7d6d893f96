"""The untrusted side of a sandbox: runs the program, then does what the checker asks until it hangs up.

Nothing here is trusted: the program shares this interpreter and may patch all of it. Standard library and
`sandbox_wire` only; loaded by path inside the jail.
"""

from __future__ import annotations

import json
import socket
import sys
import types
from collections.abc import Callable
from typing import Any

from tunesmith.evals.sandbox_wire import MUTABLE, CandidateGone, Unencodable, decode, encode, receive, send


class _Held:
    """Objects of the candidate that the checker refers to by number."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}

    def refer(self, value: Any) -> Any:
        """Keep an object and return the number that stands for it."""
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return ["object", [number, type(value).__name__]]

    def resolve(self, number: int, _name: str) -> Any:
        """Return the object of a number."""
        return self.objects[number]


def obey(channel_fd: int, parcel: dict[str, str]) -> None:
    """Run the program, then do what the checker asks until it hangs up. This is the untrusted side."""
    channel = socket.socket(fileno=channel_fd)
    held = _Held()
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(parcel["program"], "<candidate>", "exec"), module.__dict__)
    except BaseException as error:  # noqa: BLE001 - whatever it raises is the answer
        send(channel, {"raised": [type(error).__name__, str(error)[:2000]]})
        return
    send(channel, {"loaded": sorted(name for name in vars(module) if not name.startswith("__"))})
    while True:
        try:
            order = receive(channel)
        except CandidateGone:
            return
        try:
            reply = _do(order, module, held)
            json.dumps(reply)
        except BaseException as error:  # noqa: BLE001 - as above
            reply = {"raised": [type(error).__name__, str(error)[:2000]]}
        try:
            send(channel, reply)
        except Unencodable as error:
            send(channel, {"raised": ["Unencodable", str(error)]})


def _do(order: list[Any], module: types.ModuleType, held: _Held) -> dict[str, Any]:
    verb, *rest = order
    if verb == "name":
        value = getattr(module, rest[0])
        if isinstance(value, types.ModuleType):
            return {"module": value.__name__}
        return {"value": encode(value, refer=held.refer)}
    values = [decode(form, resolve=held.resolve) for form in rest]
    if verb == "call":
        function, arguments, named = values
        answer = function(*arguments, **named)
        after = [encode(x, refer=held.refer) if type(x) in MUTABLE else None for x in arguments]
        return {"value": encode(answer, refer=held.refer), "arguments": after}
    actions: dict[str, Callable[..., Any]] = {
        "attribute": getattr,
        "assign": setattr,
        "item": lambda thing, key: thing[key],
        "length": len,
        "iterate": iter,
        "next": lambda thing: [next(thing)],
        "text": str,
        "repr": repr,
        "true": bool,
    }
    if verb == "next":
        try:
            return {"value": encode(actions[verb](*values), refer=held.refer)}
        except StopIteration:
            return {"value": encode([], refer=held.refer)}
    return {"value": encode(actions[verb](*values), refer=held.refer)}
