"""Quality rules: each has a name, a reason that people can read, and a test that it can fail.

What lives here: rules over one row. What does not: rules over pairs of rows (`data.dedup`), licences (`data.policy`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunesmith.data.lineage import Ledger
from tunesmith.types import Row

Lint = Callable[[Row], list[tuple[str, str]]]
"""Row -> (kind, message) of everything in it that breaks the contract, as rows of its role must keep it."""


def drop_empty(rows: Sequence[Row], ledger: Ledger) -> list[Row]:
    """Drop rows whose answer, or every prompt, is blank."""
    kept = []
    for row in rows:
        messages = row.conversation.messages
        answers = [message for message in messages if message.role == "assistant"]
        asked = [message for message in messages if message.role == "user"]
        last = answers[-1]
        if not (last.content or "").strip() and not last.tool_calls:
            ledger.drop(row, reason="empty_answer", detail="expected an answer, found only white space")
        elif asked and not any((message.content or "").strip() for message in asked):
            ledger.drop(row, reason="empty_prompt", detail="expected a prompt, found only white space")
        else:
            kept.append(row)
    return kept


def drop_too_long(rows: Sequence[Row], ledger: Ledger, *, max_chars: int) -> list[Row]:
    """Drop rows that hold more than `max_chars` characters over all turns."""
    kept = []
    for row in rows:
        length = sum(len(message.content or "") for message in row.conversation.messages)
        if length > max_chars:
            detail = f"expected at most {max_chars:,} characters, found {length:,}"
            ledger.drop(row, reason="too_long", detail=detail, score=float(length))
        else:
            kept.append(row)
    return kept


def drop_contract_violations(rows: Sequence[Row], ledger: Ledger, lint: Lint) -> list[Row]:
    """Drop rows that break the contract: the reason is the kind of the first violation, the detail names all."""
    kept = []
    for row in rows:
        violations = lint(row)
        if violations:
            detail = "; ".join(f"{kind}: {message}" for kind, message in violations)
            ledger.drop(row, reason=violations[0][0], detail=detail)
        else:
            kept.append(row)
    return kept
