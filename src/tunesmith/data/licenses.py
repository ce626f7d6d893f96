"""Licences: which SPDX expressions are known to allow training.

What lives here: the vocabulary and one question, `license_allowed`. What does not: rows (`data.policy`).

A licence is an SPDX identifier or expression. `A OR B` may be used where one side is allowed, `A AND B` where both are.
"""

from __future__ import annotations

import re
from collections.abc import Collection

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


def normal_license(said: str | None) -> str | None:
    """Return a licence in lower case with usual misspellings mended, or `None` where nothing is said."""
    if said is None or said.strip().casefold() in _UNKNOWN:
        return None
    text = " ".join(said.split()).casefold()
    return _ALIASES.get(text, text)


def license_allowed(said: str, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression may be used: any side of OR, every side of AND, exceptions ignored."""
    names = {_ALIASES.get(name.casefold(), name.casefold()) for name in allowed}
    text = normal_license(said)
    if text is None:
        return False
    for choice in re.split(r"\s+or\s+", text.strip("()")):
        parts = [part.strip("() ").split(" with ")[0] for part in re.split(r"\s+and\s+", choice)]
        if all(_ALIASES.get(part, part) in names for part in parts):
            return True
    return False
