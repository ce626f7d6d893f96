"""Figures of a span of traces: quality, safety, service and cost, over all answers, by segment and over time.

What lives here: from traces and feedback to figures. What does not: comparison with a reference (`monitor.drift`),
verdicts (`monitor.alerts`), reading a database.

    view = View.of(traces, feedback)
    kpis(view)["schema_adherence"]     # Figure(value=0.94, low=0.88, high=0.97, n=120)

Quality and latency count answers alone (status 200, not refused by the client's going away); a share of errors stands
beside them. A rating is the last one that somebody gave to an answer.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.monitor.intervals import Figure, quantile, share
from tunesmith.types import JSON, Feedback, Trace

MAX_SEGMENT_VALUES = 12
"""Values of one dimension that get a row of their own; the others are counted under `(other)`."""
MAX_WINDOWS = 24
LENGTH_EDGES = (100, 300, 1000)
"""Upper edges, in characters of the user's text, of the length segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What tokens cost, in one currency per million."""

    prompt: float
    completion: float


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Traces of one span with what was said about them."""

    traces: tuple[Trace, ...]
    ratings: Mapping[str, float]
    """Trace id -> last rating."""
    corrected: frozenset[str]

    @classmethod
    def of(cls, traces: Iterable[Trace], feedback: Iterable[Feedback]) -> View:
        """Join traces and feedback, oldest feedback first."""
        ratings, corrected = {}, set()
        for item in sorted(feedback, key=lambda item: item.time):
            if item.rating is not None:
                ratings[item.trace_id] = item.rating
            if item.correction is not None:
                corrected.add(item.trace_id)
        return cls(traces=tuple(traces), ratings=ratings, corrected=frozenset(corrected))

    def where(self, keep: Callable[[Trace], bool]) -> View:
        """Return the view of a part of the traces."""
        return View(
            traces=tuple(trace for trace in self.traces if keep(trace)), ratings=self.ratings, corrected=self.corrected
        )

    @property
    def answers(self) -> tuple[Trace, ...]:
        """The traces that are answers."""
        return tuple(trace for trace in self.traces if trace.status == 200)


def user_text(trace: Trace) -> str | None:
    """Return what the user wrote, all user turns joined; `None` where the content was not kept."""
    if trace.messages is None:
        return None
    texts = [message.get("content") or "" for message in trace.messages if message["role"] == "user"]
    return "\n".join(texts)


def kpis(view: View) -> dict[str, Figure]:
    """Return all figures of a view by name. Times are milliseconds, shares are between 0 and 1."""
    answers = view.answers
    rated = [view.ratings[trace.id] for trace in answers if trace.id in view.ratings]
    decided = [rating > 0 for rating in rated if rating != 0]
    latencies = [trace.latency_ms for trace in answers if trace.latency_ms is not None]
    first_tokens = [trace.ttft_ms for trace in answers if trace.ttft_ms is not None]
    lengths = [float(trace.completion_tokens) for trace in answers if trace.completion_tokens is not None]
    return {
        "parse_rate": share(trace.parse_ok for trace in answers if trace.parse_ok is not None),
        "schema_adherence": share(trace.schema_ok for trace in answers if trace.schema_ok is not None),
        "feedback_win_rate": share(decided),
        "correction_rate": share(trace.id in view.corrected for trace in answers),
        "cut_rate": share(trace.finish_reason == "length" for trace in answers),
        "refusal_rate": share(trace.finish_reason == "content_filter" for trace in answers),
        "retry_rate": share(trace.attempts > 1 for trace in answers),
        "flagged_rate": share(bool(trace.guard_flags) for trace in answers),
        "input_flagged_rate": share(_flagged(trace, "input:injection") for trace in answers),
        "output_flagged_rate": share(_flagged(trace, "output:") for trace in answers),
        "pii_rate": share(_flagged(trace, "input:pii") for trace in answers),
        "deviation_rate": share(bool(trace.deviation.keys() - {"retry"}) for trace in answers),
        "client_error_rate": share(400 <= trace.status < 500 for trace in view.traces),
        "server_error_rate": share(trace.status >= 500 for trace in view.traces),
        "latency_p50_ms": quantile(latencies, 0.5),
        "latency_p95_ms": quantile(latencies, 0.95),
        "ttft_p50_ms": quantile(first_tokens, 0.5),
        "ttft_p95_ms": quantile(first_tokens, 0.95),
        "completion_tokens_p50": quantile(lengths, 0.5),
        "completion_tokens_p95": quantile(lengths, 0.95),
    }


KPI_NAMES = tuple(kpis(View(traces=(), ratings={}, corrected=frozenset())))
"""Names that alert rules may use."""


def _flagged(trace: Trace, prefix: str) -> bool:
    return any(flag.startswith(prefix) for flag in trace.guard_flags)


def totals(view: View, prices: Prices | None) -> dict[str, JSON]:
    """Return counts, and the cost where prices are given."""
    prompt = sum(trace.prompt_tokens or 0 for trace in view.answers)
    completion = sum(trace.completion_tokens or 0 for trace in view.answers)
    out: dict[str, JSON] = {
        "requests": len(view.traces),
        "answers": len(view.answers),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "ratings": sum(trace.id in view.ratings for trace in view.traces),
        "corrections": sum(trace.id in view.corrected for trace in view.traces),
        "with_consent": sum(trace.consent is True for trace in view.traces),
        "statuses": dict(sorted(Counter(str(trace.status) for trace in view.traces).items())),
        "errors": dict(sorted(Counter(trace.error for trace in view.traces if trace.error).items())),
        "finish_reasons": dict(sorted(Counter(t.finish_reason for t in view.answers if t.finish_reason).items())),
        "guard_flags": dict(sorted(Counter(flag for t in view.traces for flag in t.guard_flags).items())),
        "contracts": dict(sorted(Counter(trace.contract_sha256 for trace in view.traces).items())),
        "models": dict(sorted(Counter(trace.model for trace in view.traces).items())),
    }
    if prices is not None:
        cost = (prompt * prices.prompt + completion * prices.completion) / 1e6
        out["cost"] = round(cost, 8)
        out["cost_per_answer"] = round(cost / len(view.answers), 8) if view.answers else None
    return out


def answer_fields(completion: str | None) -> dict[str, str]:
    """Return the top-level text, number and boolean fields of a JSON answer as text; nothing for other answers."""
    try:
        value = json.loads(completion or "")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {
        name: item if isinstance(item, str) else json.dumps(item)
        for name, item in value.items()
        if isinstance(item, (str, bool, int, float))
    }


def segments(view: View, *, fields: Sequence[str]) -> dict[str, dict[str, dict[str, JSON]]]:
    """Return dimension -> value -> figures.

    Dimensions are the model, streaming, length of the user's text, tags that clients sent, and the answer's `fields`.
    """
    dimensions: dict[str, Callable[[Trace], str | None]] = {
        "model": lambda trace: trace.model,
        "streamed": lambda trace: "yes" if trace.streamed else "no",
        "prompt_length": _length_name,
    }
    for name in sorted({tag for trace in view.traces for tag in trace.tags}):
        dimensions[f"tag.{name}"] = lambda trace, name=name: trace.tags.get(name)  # type: ignore[misc]
    for name in fields:
        dimensions[f"answer.{name}"] = lambda trace, name=name: answer_fields(trace.completion).get(name)  # type: ignore[misc]
    out: dict[str, dict[str, dict[str, JSON]]] = {}
    for dimension, value_of in dimensions.items():
        groups: dict[str, list[Trace]] = defaultdict(list)
        for trace in view.answers:
            value = value_of(trace)
            if value is not None:
                groups[value].append(trace)
        if not groups:
            continue
        kept = sorted(groups, key=lambda value: (-len(groups[value]), value))
        rest = [trace for value in kept[MAX_SEGMENT_VALUES:] for trace in groups[value]]
        chosen = {value: groups[value] for value in kept[:MAX_SEGMENT_VALUES]} | ({"(other)": rest} if rest else {})
        out[dimension] = {value: _brief(view, members) for value, members in chosen.items()}
    return out


def over_time(view: View) -> list[dict[str, JSON]]:
    """Return figures for windows of equal length, at most `MAX_WINDOWS`, each a whole number of minutes or days."""
    if not view.traces:
        return []
    first, last = min(t.time for t in view.traces), max(t.time for t in view.traces)
    width = next(
        size
        for size in (60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0, 2592000.0, float("inf"))
        if (last - first) / size < MAX_WINDOWS - 1
    )
    if width == float("inf"):
        width = (last - first) / (MAX_WINDOWS - 1)
    groups: dict[int, list[Trace]] = defaultdict(list)
    for trace in view.traces:
        groups[int(trace.time // width)].append(trace)
    return [
        {"start": _iso(number * width), "seconds": width, **_brief(view, groups[number])} for number in sorted(groups)
    ]


def _brief(view: View, members: Sequence[Trace]) -> dict[str, JSON]:
    figures = kpis(View(traces=tuple(members), ratings=view.ratings, corrected=view.corrected))
    names = ("schema_adherence", "feedback_win_rate", "flagged_rate", "server_error_rate", "latency_p50_ms")
    return {"n": len(members), **{name: figures[name].to_json() for name in names}}


def _length_name(trace: Trace) -> str | None:
    text = user_text(trace)
    if text is None:
        return None
    edges = (0, *LENGTH_EDGES)
    for low, high in zip(edges, LENGTH_EDGES, strict=False):
        if len(text) <= high:
            return f"{low + 1 if low else 0} to {high} characters"
    return f"over {LENGTH_EDGES[-1]} characters"


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
