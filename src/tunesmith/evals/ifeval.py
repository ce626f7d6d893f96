"""IFEval: did a response follow its verifiable instructions, read strictly and loosely.

    verdict = check(response, ["punctuation:no_comma"], [{}])
    verdict.strict, verdict.loose              # (True,), (True,)
    accuracies([verdict])["prompt_level_strict_acc"]

What lives here: the two readings and the four accuracies. What does not: the rules themselves (`ifeval_rules`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.errors import DataError
from tunesmith.evals.ifeval_rules import followed
from tunesmith.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class IfevalVerdict:
    """One response: for each of its instructions, whether it was followed."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]

    @property
    def all_strict(self) -> bool:
        """Whether every instruction was followed to the letter."""
        return all(self.strict)

    @property
    def all_loose(self) -> bool:
        """Whether every instruction was followed by some loose reading, not needfully the same one."""
        return all(self.loose)


def check(response: str, instruction_ids: Sequence[str], kwargs: Sequence[Mapping[str, JSON]]) -> IfevalVerdict:
    """Check a response against its instructions; `kwargs[i]` are the arguments of `instruction_ids[i]`.

    An empty response follows nothing. Strict reads the response as it is. Loose also accepts it without its first
    line, without its last, without both, and each of these without any asterisk: an introduction, a closing remark or
    markdown emphasis is forgiven. Loose is therefore an upper bound and never below strict.
    Source: Zhou et al. 2023 (arXiv 2311.07911), section 2.2 and the released code.

    Raises `DataError` for unknown instructions, bad arguments, no instructions, or lists of different lengths.
    """
    if not instruction_ids or len(instruction_ids) != len(kwargs):
        raise DataError(
            "an IFEval row needs one set of arguments for each instruction",
            expected=f"{len(instruction_ids)} instructions, at least one, and as many sets of arguments",
            found=f"{len(kwargs)} sets of arguments",
        )
    strict, loose = [], []
    readings = loose_readings(response)
    for name, args in zip(instruction_ids, kwargs, strict=True):
        strict.append(_follows(name, response, args))
        loose.append(any(_follows(name, reading, args) for reading in readings))
    return IfevalVerdict(strict=tuple(strict), loose=tuple(loose))


def loose_readings(response: str) -> tuple[str, ...]:
    """Return the eight texts that the loose reading accepts, the response itself first."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return tuple(cut + [text.replace("*", "") for text in cut])


def _follows(name: str, text: str, args: Mapping[str, JSON]) -> bool:
    # The rule runs first, so that a bad argument is found whatever the model wrote.
    return followed(name, text, args) and bool(text.strip())


def accuracies(verdicts: Sequence[IfevalVerdict]) -> dict[str, float]:
    """Return the four accuracies by their usual names.

    Prompt level counts responses with every instruction followed; instruction level counts instructions, so a prompt
    with three weighs three times. Raises `ValueError` without verdicts.
    """
    if not verdicts:
        raise ValueError("no verdicts")
    out = {}
    for reading in ("strict", "loose"):
        lists = [verdict.strict if reading == "strict" else verdict.loose for verdict in verdicts]
        out[f"prompt_level_{reading}_acc"] = sum(map(all, lists)) / len(lists)
        out[f"inst_level_{reading}_acc"] = sum(map(sum, lists)) / sum(map(len, lists))
    return out
