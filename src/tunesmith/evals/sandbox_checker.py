"""The trusted side of a sandbox: runs the tests in its own interpreter and reports each to the pipe of the verdict.

The tests never leave here: the candidate sees the arguments of each call and nothing else. An object that has no exact
plain form is a `Remote` here, equal to itself alone.

Two rules settle what a test means:
 - Values compare as Python compares them (`1 == True`, `1 == 1.0`), once rebuilt. Identity (`is`) is not carried over.
 - A name in a test belongs to the test where the test or its set-up binds it, then to the builtins, then to the
   candidate: a candidate that defines `sorted` or `set` does not change what the test's `sorted` means. The exception
   is a suite whose only names are builtins, such as `assert sum(10, 15) == 6`: the function that its first assertion
   calls is then what is being tested.

Standard library and `sandbox_wire` only; loaded by path inside the jail.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import socket
import sys
from typing import Any

from tunesmith.evals.sandbox_wire import MUTABLE, CandidateGone, Unencodable, decode, encode, receive, send


class RemoteError(Exception):
    """The candidate raised something that is not a builtin exception."""


class Link:
    """The checker's end: asks, and turns answers into plain values, `Remote`s or exceptions."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.remotes: dict[int, Remote] = {}

    def refer(self, value: Any) -> Any:
        """Return the number of a remote object; refuse the test's own objects."""
        if isinstance(value, Remote):
            return ["object", [object.__getattribute__(value, "_number"), ""]]
        raise Unencodable(f"a test hands over a {type(value).__name__}, which the sandbox cannot carry")

    def resolve(self, number: int, name: str) -> Remote:
        """Return the one `Remote` of a number."""
        return self.remotes.setdefault(number, Remote(self, number, name))

    def ask(self, verb: str, *forms: Any) -> dict[str, Any]:
        """Send an order and return its reply. Raises what the candidate raised."""
        send(self.channel, [verb, *forms])
        reply = receive(self.channel)
        if not isinstance(reply, dict):
            raise CandidateGone("it sent something that is not an answer")
        if "raised" in reply:
            raise _as_exception(reply["raised"])
        return reply

    def value(self, verb: str, *values: Any) -> Any:
        """Ask for one value about other values."""
        reply = self.ask(verb, *[encode(value, refer=self.refer) for value in values])
        return self.read(reply.get("value"))

    def read(self, form: Any) -> Any:
        """Rebuild an answer. Raises `CandidateGone` where it is none."""
        try:
            return decode(form, resolve=self.resolve)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise CandidateGone("it sent something that is not an answer") from error

    def call(self, function: Remote, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call, and carry changes of mutable arguments back into the test's own objects."""
        forms = [encode(x, refer=self.refer) for x in (function, list(arguments), named)]
        reply = self.ask("call", *forms)
        changed = reply.get("arguments")
        for mine, form in zip(arguments, changed if isinstance(changed, list) else [], strict=False):
            if type(mine) in MUTABLE and form is not None:
                _replace_content_(mine, self.read(form))
        return self.read(reply.get("value"))


def _as_exception(raised: Any) -> BaseException:
    if not (isinstance(raised, list) and len(raised) == 2 and all(isinstance(part, str) for part in raised)):
        return CandidateGone("it sent something that is not an answer")
    name, text = raised
    kind = getattr(builtins, name, None)
    if name == "Unencodable":
        return RemoteError(f"the answer is {text}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:
            return RemoteError(f"{name}: {text}")
    return RemoteError(f"{name}: {text}")


def _replace_content_(mine: Any, theirs: Any) -> None:
    if type(mine) is not type(theirs):
        raise CandidateGone("it sent something that is not an answer")
    mine.clear()
    if isinstance(mine, (dict, set)):
        mine.update(theirs)
    else:
        mine.extend(theirs)


class Remote:
    """An object that only the candidate's interpreter knows. Equal to itself alone."""

    __slots__ = ("_link", "_name", "_number")

    def __init__(self, link: Link, number: int, name: str) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_name", name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it in the candidate's interpreter."""
        return self._link.call(self, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.value("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.value("assign", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._link.value("item", self, key)

    def __len__(self) -> int:
        length = self._link.value("length", self)
        if type(length) is not int:
            raise TypeError("a length that is not an int")
        return length

    def __bool__(self) -> bool:
        return self._link.value("true", self) is True

    # No `__contains__`: Python then iterates and compares plain values here, where the candidate cannot answer for it.
    def __iter__(self) -> Any:
        walker = self._link.value("iterate", self)
        while found := self._link.value("next", walker):
            if type(found) is not list or len(found) != 1:
                raise CandidateGone("it sent something that is not an answer")
            yield found[0]

    def __str__(self) -> str:
        return str(self._link.value("text", self))

    def __repr__(self) -> str:
        return str(self._link.value("repr", self))


def check(channel_fd: int, verdict_fd: int, parcel: dict[str, Any]) -> None:
    """Run set-up and tests one by one and write one JSON line each to the verdict's pipe."""
    link = Link(socket.socket(fileno=channel_fd))

    def report(event: str, **fields: Any) -> None:
        os.write(verdict_fd, json.dumps({"event": event, **fields}).encode() + b"\n")

    try:
        greeting = receive(link.channel)
    except CandidateGone as error:
        report("not_loaded", kind="gone", detail=str(error))
        return
    if not isinstance(greeting, dict) or not isinstance(greeting.get("loaded"), list):
        raised = greeting.get("raised") if isinstance(greeting, dict) else None
        kind, text = raised if isinstance(raised, list) and len(raised) == 2 else ("unknown", "")
        report("not_loaded", kind="raised", detail=f"{kind}: {text}"[:2000])
        return
    sources = [parcel["setup"], *parcel["tests"]]
    tests = _Tests(link, offered={name for name in greeting["loaded"] if isinstance(name, str)}, sources=sources)
    report("loaded")
    for index, source in enumerate(sources):
        outcome, detail = tests.run(source)
        report("test", index=index - 1, outcome=outcome, detail=detail[:2000])
        if outcome == "gone":
            return
    report("done")


class _Tests:
    """The tests' own names, and which of the candidate's they have used so far."""

    def __init__(self, link: Link, *, offered: set[str], sources: list[str]) -> None:
        self.link = link
        self.lendable = offered & (offered - vars(builtins).keys() | _subject_among_builtins(sources))
        self.used: set[str] = set()
        self.namespace: dict[str, Any] = {"__name__": "tests"}

    def run(self, source: str) -> tuple[str, str]:
        """Run one statement list. Returns an outcome (passed, failed, raised, gone, unusable) and its detail."""
        try:
            tree = ast.parse(source)
            code = compile(tree, "<test>", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return "unusable", f"the test does not parse: {error}"
        # Names of earlier statements count too: a function defined there may be called here.
        self.used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        lent: dict[str, Any] = {}
        try:
            for name in sorted((self.used & self.lendable) - self.namespace.keys()):
                lent[name] = _lend(self.link, name)
            self.namespace.update(lent)
            exec(code, self.namespace)
        except CandidateGone as error:
            return "gone", str(error)
        except Unencodable as error:
            return "unusable", str(error)
        except AssertionError as error:
            return "failed", str(error) or source
        except BaseException as error:  # noqa: BLE001 - a test may raise anything
            return "raised", f"{type(error).__name__}: {error}"
        finally:
            # What the statement did not bind anew stays the candidate's, and is fetched again for the next one.
            for name, value in lent.items():
                if self.namespace.get(name, self) is value:
                    del self.namespace[name]
        return "passed", ""


def _subject_among_builtins(sources: list[str]) -> set[str]:
    """Return the builtin name that the tests are about, where they use no other kind of name; else nothing."""
    try:
        nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()  # reported by the test that does not parse
    if {node.id for node in nodes if isinstance(node, ast.Name)} - vars(builtins).keys():
        return set()
    for node in nodes:
        if isinstance(node, ast.Assert):
            called = [part.func for part in ast.walk(node.test) if isinstance(part, ast.Call)]
            return {called[0].id} if called and isinstance(called[0], ast.Name) else set()
    return set()


def _lend(link: Link, name: str) -> Any:
    """Fetch what the candidate calls `name`. A module is the checker's own, and of the standard library."""
    reply = link.ask("name", name)
    if "module" in reply:
        module = reply["module"]
        if isinstance(module, str) and module.split(".")[0] in sys.stdlib_module_names:
            return importlib.import_module(module)
        raise RemoteError(f"{name} is a module that the tests may not use: {module}")
    return link.read(reply.get("value"))
