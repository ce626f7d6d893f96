"""Compare shell commands without running them: whole command, template, utilities.

    compare_commands("find . -name '*.txt' | wc -l", 'find /tmp -name "*.py" | wc -l')
    # CommandMatch(command=False, template=True, utilities=True)

What lives here: reading a command into words and operators as a POSIX shell does, and three ways of being equal. What
does not: execution, which no score here needs.

Full command and template accuracy are those of NL2Bash (Lin et al. 2018, arXiv:1802.08979, section 5). Its templates
give every argument a type by a grammar of 135 utilities; here an argument is an argument, so a template match says a
little less. Words are compared after the shell's own quote removal: `'*.txt'`, `"*.txt"` and `\\*.txt` are one word,
and `*.txt`, which the shell would expand, is another. `"$x"` and `$x` count as one, although the latter is split.
Flags keep their order and their form: `-la` is not `-l -a`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_OPERATORS = ("&>>", "<<<", "<<-", ">>", "<<", "&&", "||", "|&", ";;", "&>", ">&", "<&", ">|", "<>", *"|;&<>()\n")
_REDIRECTIONS = frozenset({">", ">>", "<", "<<", "<<<", "<<-", "&>", "&>>", ">&", "<&", ">|", "<>"})
_RESERVED = frozenset(
    {"!", "{", "}", "if", "then", "elif", "else", "fi", "for", "in", "do", "done", "while", "until", "case", "esac"}
)
_LIFTERS = {
    "sudo": frozenset({"-u", "-g"}),
    "xargs": frozenset({"-I", "-n", "-P", "-L", "-s", "-d", "-E", "-a", "-i"}),
    "nohup": frozenset(),
    "env": frozenset({"-u"}),
    "exec": frozenset(),
    "command": frozenset(),
}
"""Utilities whose first argument is a command of its own, each with its flags that take a value."""
_ACTIONS = frozenset({"-exec", "-execdir", "-ok", "-okdir"})
"""Arguments of `find` behind which a command stands."""
_ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")
_SPECIAL = frozenset("*?[]~{}$`#\\")
"""Characters that mean something to a shell where they are not quoted."""
ARGUMENT = "ARG"
_FENCE = re.compile(r"```[\w+-]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandMatch:
    """How far two commands agree; each implies the next."""

    command: bool
    """The same words and operators."""
    template: bool
    """The same utilities, flags and operators, whatever the arguments are."""
    utilities: bool
    """The same utilities in the same order."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    is_operator: bool
    inner: tuple[str, ...] = ()
    """Commands of substitutions inside the word."""


def compare_commands(answer: str, expected: str) -> CommandMatch:
    """Compare an answer with the expected command. An answer that no shell could read matches nothing.

    Raises `ValueError` where the expected command cannot be read: its quotes do not close.
    """
    wanted = list(_tokens(expected))
    try:
        found = list(_tokens(answer))
    except ValueError:
        return CommandMatch(command=False, template=False, utilities=False)
    same = [(t.text, t.is_operator) for t in found] == [(t.text, t.is_operator) for t in wanted]
    template = same or _template(found) == _template(wanted)
    return CommandMatch(command=same, template=template, utilities=template or _utilities(found) == _utilities(wanted))


def words(command: str) -> list[str]:
    """Return words and operators in order, a special character that was quoted with a backslash before it.

    Raises `ValueError` for a quote or substitution that does not close.
    """
    return [token.text for token in _tokens(command)]


def extract_command(answer: str) -> str:
    """Return the command of an answer: the content of its first code fence, or all of it; no prompt sign `$ `."""
    fenced = _FENCE.search(answer)
    return (fenced[1] if fenced else answer).strip().removeprefix("$ ")


def is_readable(command: str) -> bool:
    """Whether there is a word at all, and quotes and substitutions close."""
    try:
        return bool(list(_tokens(command)))
    except ValueError:
        return False


def _tokens(command: str) -> Iterator[_Token]:
    """Yield words and operators. Raises `ValueError` for a quote or substitution that does not close."""
    place, length = 0, len(command)
    while place < length:
        char = command[place]
        if char in " \t\r" or command.startswith("\\\n", place):
            place += 2 if char == "\\" else 1
        elif char == "#":
            place = command.find("\n", place) if "\n" in command[place:] else length
        elif (operator := _operator_at(command, place)) is not None:
            yield _Token(operator, True)
            place += len(operator)
        else:
            token, place = _word(command, place)
            yield token


def _operator_at(command: str, place: int) -> str | None:
    if command.startswith(("<(", ">("), place):
        return None  # a process substitution is a word
    return next((operator for operator in _OPERATORS if command.startswith(operator, place)), None)


def _word(command: str, place: int) -> tuple[_Token, int]:
    """Read one word from `place`; quotes are removed, and special characters that they protected are escaped."""
    parts: list[str] = []
    inner: list[str] = []
    while place < len(command):
        char = command[place]
        if char in " \t\r" or _operator_at(command, place) is not None:
            break
        if char == "'":
            end = command.find("'", place + 1)
            if end < 0:
                raise ValueError("a single quote does not close")
            parts.append(_protect(command[place + 1 : end]))
            place = end + 1
        elif char == '"':
            place = _double_quoted(command, place + 1, parts, inner)
        elif char == "\\":
            if command[place + 1 : place + 2] != "\n":
                parts.append(_protect(command[place + 1 : place + 2] or char))
            place += 2
        else:
            place = _plain(command, place, parts, inner)
    return _Token("".join(parts), False, tuple(inner)), place


def _double_quoted(command: str, place: int, parts: list[str], inner: list[str]) -> int:
    """Read to the closing double quote; return the place behind it."""
    while place < len(command):
        char = command[place]
        if char == '"':
            return place + 1
        if char == "\\" and place + 1 < len(command) and command[place + 1] in '$`"\\\n':
            if command[place + 1] != "\n":
                parts.append(_protect(command[place + 1]))
            place += 2
        elif char in "$`":
            place = _plain(command, place, parts, inner)
        else:
            parts.append(_protect(char))
            place += 1
    raise ValueError("a double quote does not close")


def _plain(command: str, place: int, parts: list[str], inner: list[str]) -> int:
    """Take one unquoted character, or a whole substitution; return the place behind it."""
    if command[place] == "`":
        end = command.find("`", place + 1)
        if end < 0:
            raise ValueError("a backquote does not close")
        content = command[place + 1 : end]
        opening, behind = "$(", end + 1
    elif command.startswith(("$(", "<(", ">("), place):
        behind = _closing(command, place + 2)
        content, opening = command[place + 2 : behind - 1], command[place : place + 2]
    else:
        parts.append(command[place])
        return place + 1
    inner.append(content)
    words = " ".join(token.text for token in _tokens(content))
    parts.append(f"{opening}{words})")
    return behind


def _closing(command: str, place: int) -> int:
    """Return the place behind the bracket that closes a substitution whose content starts at `place`."""
    depth = 1
    while place < len(command):
        char = command[place]
        if char == "'":
            place = command.find("'", place + 1)
            if place < 0:
                raise ValueError("a single quote inside a substitution does not close")
        elif char == '"':
            place = _double_quoted(command, place + 1, [], []) - 1
        elif char == "\\":
            place += 1
        elif char in "()":
            depth += 1 if char == "(" else -1
            if depth == 0:
                return place + 1
        place += 1
    raise ValueError("a substitution does not close")


def _protect(text: str) -> str:
    """Escape what a shell would have read differently without quotes."""
    return "".join(f"\\{char}" if char in _SPECIAL or char.isspace() else char for char in text)


def _template(tokens: list[_Token]) -> list[str]:
    """Return utilities, flags and operators in order, every argument replaced; substitutions are read like commands."""
    out: list[str] = []
    for kind, token in _roles(tokens):
        if kind == "argument":
            inner = [part for command in token.inner for part in _template(list(_tokens(command)))]
            out += ["$(", *inner, ")"] if token.inner else [ARGUMENT]
        else:
            out.append(token.text)
    return out


def _utilities(tokens: list[_Token]) -> list[str]:
    """Return the utilities in the order in which they stand, those of substitutions included."""
    out: list[str] = []
    for kind, token in _roles(tokens):
        if kind == "utility":
            out.append(token.text)
        for command in token.inner:
            out += _utilities(list(_tokens(command)))
    return out


def _roles(tokens: list[_Token]) -> Iterator[tuple[str, _Token]]:
    """Yield each token with its role: `operator`, `utility`, `flag` or `argument`."""
    starts, lifter, valued, redirected = True, "", False, False
    for token in tokens:
        text = token.text
        if token.is_operator:
            redirected = text in _REDIRECTIONS
            starts = starts if redirected else True
            yield "operator", token
            continue
        if redirected:
            redirected = False
            yield "argument", token
        elif starts and text in _RESERVED:
            yield "operator", token
        elif starts and _ASSIGNMENT.match(text):
            yield "argument", token
        elif starts and not (lifter and (valued or text.startswith("-"))):
            lifter, starts = (text, True) if text in _LIFTERS else ("", False)
            valued = False
            yield "utility", token
        elif starts and not valued:
            valued = text in _LIFTERS[lifter]
            yield "flag", token
        elif starts:
            valued = False
            yield "argument", token
        elif text in _ACTIONS:
            starts = True
            yield "flag", token
        else:
            yield ("flag" if text.startswith("-") and len(text) > 1 else "argument"), token
