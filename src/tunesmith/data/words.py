"""Text as near-duplicate and overlap checks see it: normalised words and the numbers among them.

What lives here: one normalisation, used wherever two texts are compared. What does not: what is compared with what.

    words("Where is order #4711?")    ->  ["where", "is", "order", "4711"]
    numbers("2 lamps for $5.90")      ->  ["2", "$", "5", "90"]
"""

from __future__ import annotations

import json
import re
import unicodedata

from tunesmith.types import Conversation, Message

_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_NUMBER = re.compile(r"\d+|[$€£¥₹%]")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")
_WORDS_ONLY = bytes(ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else 32 for code in range(256))
WORD_BYTES = bytes(code if code >= 128 else _WORDS_ONLY[code] for code in range(256))
"""Table for `bytes.translate`: letters and digits in lower case, blanks for all else; bytes beyond ASCII stay."""
_WIDE_OR_RUN = re.compile(f"{_WIDE.pattern}|(?:(?!{_WIDE.pattern})[^\\W_])+")
_DIGITS_ONLY = bytes(code if 48 <= code <= 57 else 32 for code in range(256))


def normal_text(text: str) -> str:
    """Return a text in NFKC, case folded, white space runs as one space: equal for exact duplicates."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split())


def words(text: str) -> list[str]:
    """Return the words of a text in order, normalised: runs of letters and digits.

    Scripts without spaces give one word a character, so that two texts in them can share some.
    """
    return word_text(text).split()


def word_text(text: str) -> str:
    """Return the words of a text joined by one space."""
    if text.isascii():
        return b" ".join(text.encode().translate(_WORDS_ONLY).split()).decode()
    folded = unicodedata.normalize("NFKC", text).casefold()
    found = _WORD.findall(folded)
    if not _WIDE.search(folded):
        return " ".join(found)
    return " ".join(_WIDE_OR_RUN.findall(folded))


def tokens(text: str) -> list[str]:
    """Return a text split at white space, with the signs and case of each token; a character of a script without
    spaces is one.
    """
    return text.split() if text.isascii() else _WIDE.sub(r" \g<0> ", text).split()


def numbers(text: str) -> list[str]:
    """Return the digit runs and signs of money of a text: texts with other numbers are other texts."""
    if text.isascii():
        found = text.encode().translate(_DIGITS_ONLY).decode().split()
        return [*found, *("$" * text.count("$")), *("%" * text.count("%"))]
    return _NUMBER.findall(unicodedata.normalize("NFKC", text))


def money_signs(text: str) -> list[str]:
    """Return the signs of money and percent of a text in order."""
    return [sign for sign in unicodedata.normalize("NFKC", text) if sign in "$€£¥₹%"]


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
