"""Text as near-duplicate and overlap checks see it: normalised words and the numbers among them.

What lives here: one normalisation, used wherever two texts are compared. What does not: what is compared with what.

    words("Where is order #4711?")  ->  ["where", "is", "order", "4711"]
"""

from __future__ import annotations

import json
import re
import unicodedata

from tunesmith.types import Conversation, Message

_WORD = re.compile(r"[^\W_]+(?:['’.,][^\W_]+)*|[$€£¥₹%]", re.UNICODE)
_NUMBER = re.compile(r"[\d$€£¥₹%]")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")


def normal_text(text: str) -> str:
    """Return a text in NFKC, case folded, white space runs as one space: equal for exact duplicates."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()) if text else ""


def words(text: str) -> list[str]:
    """Return the words of a text in order, normalised.

    A number with points or commas is one word, and so is a sign of money. Scripts without spaces give one word a
    character, so that two texts in them can share some.
    """
    folded = text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    found = _WORD.findall(folded)
    if folded.isascii() or not _WIDE.search(folded):
        return found
    out: list[str] = []
    for word in found:
        out.extend(word if _WIDE.search(word) else [word])
    return out


def numbers(found: list[str]) -> tuple[str, ...]:
    """Return the words that hold a digit or are a sign of money, sorted: texts with other numbers are other texts."""
    return tuple(sorted(word for word in found if not word.isalpha() and _NUMBER.search(word)))


def prompt_text(conversation: Conversation) -> str:
    """Return what was asked: all turns before the last assistant turn, without the system prompt that rows share."""
    last = _last_answer(conversation)
    asked = conversation.messages if last is None else conversation.messages[:last]
    return "\n".join(message_text(message) for message in asked if message.role not in ("system", "developer"))


def answer_text(conversation: Conversation) -> str:
    """Return what was answered: the last assistant turn, and what follows it."""
    last = _last_answer(conversation)
    return "" if last is None else "\n".join(message_text(message) for message in conversation.messages[last:])


def _last_answer(conversation: Conversation) -> int | None:
    for index in range(len(conversation.messages) - 1, -1, -1):
        if conversation.messages[index].role == "assistant":
            return index
    return None


def message_text(message: Message) -> str:
    """Return content and calls of a message as one text."""
    parts = [message.content or ""]
    for call in message.tool_calls:
        arguments = call.arguments
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, sort_keys=True, ensure_ascii=False)
        parts.append(f"{call.name} {text}")
    return "\n".join(part for part in parts if part)
