"""Signs that a model lost the thread: loops, abrupt ends, empty answers.

What lives here: rates that show broken training or serving (a stop token never learned, a forced one learned too
well). What does not: whether an answer is right (`evals.scorers`).
"""

from __future__ import annotations

from collections.abc import Sequence

LOOP_REPEATS = 4
"""An ending that repeats at least this many times in a row is a loop."""
LOOP_MIN_TOKENS = 12
"""A loop covers at least this many tokens, so that `1111` or a short list of zeros is none."""

_SENTENCE_ENDS = frozenset(".!?…:;)]}\"'”’»`*>|")


def ends_in_loop(ids: Sequence[int]) -> bool:
    """Whether the end of an answer is one run of tokens repeated `LOOP_REPEATS` times or more."""
    size = len(ids)
    for period in range(1, size // LOOP_REPEATS + 1):
        repeats = max(LOOP_REPEATS, -(-LOOP_MIN_TOKENS // period))
        span = repeats * period
        if span > size:
            continue
        tail = ids[size - span :]
        if all(tail[place] == tail[place % period] for place in range(period, span)):
            return True
    return False


def ends_abruptly(answer: str, *, stopped: bool) -> bool:
    """Whether an answer that the model itself ended breaks off inside a sentence.

    Only prose is judged: an answer of fewer than eight words, or one that ends a line of code or a bare value, is
    not abrupt.
    """
    text = answer.rstrip()
    if not stopped or len(text.split()) < 8:
        return False
    last_line = text.splitlines()[-1]
    if len(last_line.split()) < 4:
        return False
    return text[-1] not in _SENTENCE_ENDS and (text[-1] == "," or text[-1].islower())


def is_empty(answer: str) -> bool:
    """Whether an answer holds nothing but white space."""
    return not answer.strip()
