"""Licences: which SPDX expressions are known to allow training.

What lives here: the vocabulary, and two questions: is a text SPDX, and is it allowed. What does not: rows
(`data.policy`).

A licence is an SPDX identifier or expression. `A OR B` may be used where one side is allowed, `A AND B` where both are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection

from tunesmith.errors import nearest

PERMISSIVE = (
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC0-1.0",
    "CDLA-Permissive-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "ODC-By-1.0",
    "PDDL-1.0",
    "Unlicense",
    "Zlib",
)
"""Licences that allow training and commercial use with at most attribution."""

_ALIASES = {
    "cc0": "cc0-1.0",
    "cc by 4.0": "cc-by-4.0",
    "cc-by-4": "cc-by-4.0",
    "apache 2.0": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache license 2.0": "apache-2.0",
    "mit license": "mit",
    "odc-by": "odc-by-1.0",
    "pddl": "pddl-1.0",
    "bsd-3": "bsd-3-clause",
}
"""Usual spellings that are not SPDX -> the SPDX identifier they can only mean."""

_UNKNOWN = {"", "unknown", "other", "none", "n/a", "noassertion", "?", "-"}


@functools.lru_cache(maxsize=4096)  # asked several times a row, and a file names few
def normal_license(said: str | None) -> str | None:
    """Return the SPDX expression that a licence means, its text where that is none, `None` where nothing is said."""
    if said is None or said.strip().casefold() in _UNKNOWN:
        return None
    text = " ".join(said.split())
    try:
        return spdx_expression(text)
    except ValueError:
        return text


def spdx_expression(said: str) -> str:
    """Return a licence as a canonical SPDX expression, usual spellings mended.

    `LicenseRef-NAME` is SPDX's form for a licence of your own. Raises `ValueError` that names the nearest identifiers.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    text = " ".join(said.split())
    try:
        return str(canonicalize_license_expression(_ALIASES.get(text.casefold(), text)))
    except InvalidLicenseExpression:
        close = ", ".join(_nearest(text))
        raise ValueError(
            f"{said!r} is no SPDX expression; nearest: {close}; a licence of your own is LicenseRef-NAME"
        ) from None


def _nearest(text: str) -> list[str]:
    from packaging.licenses._spdx import LICENSES

    known = {name: entry["id"] for name, entry in LICENSES.items() if not entry["deprecated"]}
    usual = {name.casefold() for name in PERMISSIVE}
    word = text.casefold().replace(" ", "-")
    found = nearest(word, usual, most=1) + nearest(word, known)
    return list(dict.fromkeys(known[name] for name in found))[:3]


def license_allowed(said: str, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression may be used: any side of OR, every side of AND, exceptions ignored."""
    names = {(normal_license(name) or "").casefold() for name in allowed}
    text = normal_license(said)
    if text is None:
        return False
    if text.casefold() in names:
        return True
    tokens = [token for token in re.split(r"([()]|\s+)", text.casefold()) if token.strip()]
    try:
        value = _any_of(tokens, names)
    except IndexError:
        return False
    return value and not tokens


def _any_of(tokens: list[str], names: Collection[str]) -> bool:
    """Take `A OR B ...` from the front of the tokens."""
    value = _all_of(tokens, names)
    while tokens and tokens[0] == "or":
        tokens.pop(0)
        value = _all_of(tokens, names) or value
    return value


def _all_of(tokens: list[str], names: Collection[str]) -> bool:
    """Take `A AND B ...`: AND binds closer than OR (SPDX 2.3, annex D.4.5)."""
    value = _one_of(tokens, names)
    while tokens and tokens[0] == "and":
        tokens.pop(0)
        value = _one_of(tokens, names) and value
    return value


def _one_of(tokens: list[str], names: Collection[str]) -> bool:
    if tokens[0] == "(":
        tokens.pop(0)
        value = _any_of(tokens, names)
        tokens.pop(0)
    else:
        value = tokens.pop(0) in names
    if tokens and tokens[0] == "with":
        del tokens[:2]
    return value
