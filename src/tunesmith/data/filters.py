"""Filters: rows that break a rule are flagged or dropped, each with its reason.

What lives here: what is done with rows that are empty, too long, or break the contract, a quality rule or a check of
the recipe's own. What does not: the quality rules (`data.quality`), rules over pairs of rows (`data.dedup`), licences
(`data.policy`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Literal

from tunesmith.data.checks import Check
from tunesmith.data.engines import LOCAL, Engine, parts_of
from tunesmith.data.lineage import Ledger
from tunesmith.data.quality import Issue, Limits, RuleName, find_issues
from tunesmith.types import Conversation, Row

Lint = Callable[[Row], list[tuple[str, str]]]
"""Row -> (kind, message) of everything in it that breaks the contract, as rows of its role must keep it."""


Action = Literal["off", "flag", "drop"]
"""What is done with a row that breaks a rule: a flag is for a person to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Which quality rules are looked at, with which thresholds, and what follows."""

    limits: Limits = field(default_factory=Limits)
    actions: Mapping[RuleName, Action] = field(default_factory=dict)
    """Rule -> what follows; rules that are not named are off."""
    checks: Sequence[tuple[Check, Action]] = ()
    """The recipe's own checks, each with what follows."""


def issues_in(conversations: Sequence[Conversation], *, limits: Limits, rules: Sequence[RuleName]) -> list[list[Issue]]:
    """Return what the named rules find in each row of a part."""
    return [find_issues(conversation, limits, rules) for conversation in conversations]


def judge_quality(rows: Sequence[Row], ledger: Ledger, quality: Quality, *, engine: Engine = LOCAL) -> list[Row]:
    """Flag or drop rows that break a quality rule or a check: one flag a rule, the first drop ends it.

    The recipe's own checks are functions of this process, so they run here.
    """
    rules: list[RuleName] = [rule for rule, action in quality.actions.items() if action != "off"]
    look = partial(issues_in, limits=quality.limits, rules=rules)
    issues = chain.from_iterable(engine.map(look, parts_of([row.conversation for row in rows])))
    kept = []
    for row, issues_of_row in zip(rows, issues, strict=True):
        found: list[tuple[str, str, float | None, Action]] = [
            (issue.rule, issue.detail, issue.score, quality.actions[issue.rule]) for issue in issues_of_row
        ]
        for check, action in quality.checks:
            complaint = check.complaint(row) if action != "off" else None
            if complaint is not None:
                found.append((check.name, complaint, None, action))
        drop = next((one for one in found if one[3] == "drop"), None)
        if drop is not None:
            ledger.drop(row, reason=drop[0], detail=drop[1], score=drop[2])
            continue
        for reason, detail, score, _ in found:
            ledger.flag(row, reason=reason, detail=detail, score=score)
        kept.append(row)
    return kept


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
