"""Foreign marks: what other projects write on a message to say how it trains, in this project's own keys.

What lives here: the keys and their translation. What does not: what the marks do (`turns`).

    own_marks({"role": "assistant", "content": "Yes.", "loss_weight": 0.5})   ->  {..., "weight": 0.5}

Sources: axolotl `prompt_strategies/chat_template.py` (`training`, and `train_detail` with an inclusive `end_offset`:
what no entry names does not train), LLaMA-Factory (`loss_weight`), ms-swift (`loss`), torchtune `data/_messages.py`
(`masked`). OpenAI's and mistral-finetune's `weight` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.types import JSON

_RENAMED = (("loss_weight", "weight"), ("training", "train"), ("loss", "train"))
_DETAIL = ("train_detail", "training_detail")


def own_marks(message: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the message with our keys; one that it has already wins. Raises `Refused` for marks that say nothing."""
    out = dict(message)
    for theirs, ours in _RENAMED:
        if theirs in out:
            value = out.pop(theirs)
            out.setdefault(ours, value)
    if "masked" in out:
        masked = out.pop("masked")
        if not isinstance(masked, bool):
            raise _unreadable("masked", masked, expected="true or false")
        out.setdefault("train", not masked)
    for key in _DETAIL:
        detail = out.pop(key, None)
        if detail:
            spans = _spans(detail, str(out.get("content") or ""))
            out.setdefault("spans", spans)
            out.setdefault("train", any(factor > 0 for _, _, factor in spans))
    return out


def _spans(detail: JSON, content: str) -> list[tuple[int, int, float]]:
    """Return `[start, end, factor]` of axolotl's entries: all of the content is masked, then what trains is not."""
    spans = [(0, len(content), 0.0)]
    for entry in detail if isinstance(detail, list) else (detail,):
        named = entry if isinstance(entry, Mapping) else {}
        low, high, trains = named.get("begin_offset"), named.get("end_offset"), named.get("train")
        if type(low) is not int or type(high) is not int or not isinstance(trains, bool):
            raise _unreadable("train_detail", entry, expected='{"begin_offset": 0, "end_offset": 8, "train": true}')
        if trains:
            spans.append((low, high + 1, 1.0))
    return spans


def _unreadable(key: str, value: JSON, *, expected: str) -> Refused:
    what = f"what {key} says about training cannot be read"
    return Refused(RefusalKind.BAD_INPUT, what, expected=expected, found=repr(value)[:80])
