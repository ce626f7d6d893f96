"""Random conversations for the laws: contents that break naive masks, within what a template says it can render."""

import json
import random

from hypothesis import strategies as st

from tunesmith.chat.control import ASSISTANT_MARKUP
from tunesmith.chat.traits import ArgumentsForm

PIECES = [
    "Hello", " world", "\n", "\n\n", "  ", "\t", ".", "!", "é", "e\u0301", "你好", "👩‍👩‍👧", "שלום", "48", "3.14", '"', "'", "{", "}",
    "<", ">", "|", "<|", "|>", "[", "]", "/", "\\", "user", "assistant", "system", "<think", "think>", "</", "### Response:",
    "Reply", " with", " JSON", "\u200b", "\u00a0", "ﬁ", "\r\n", "a", "Z", "_", "-",
]  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the city."},
                    "days": {"type": "integer"},
                },
                "required": ["city"],
            },
        },
    }
]


def conversations(renderer, *, plant=True):
    """A strategy for `random_conversation`."""
    return st.integers(0, 2**48).map(lambda seed: random_conversation(renderer, random.Random(seed), plant=plant))


def random_conversation(renderer, rng, *, plant=True):
    """Return (messages, tools, turns that train). `plant` puts control strings into contents."""
    traits = renderer.traits
    control = [item for item in renderer.guard.strings if item.strip()][:12] if plant else []
    tools = []
    if traits.renders_tools and traits.arguments is not ArgumentsForm.NONE and rng.random() < 0.5:
        tools = TOOLS
    messages = []
    if traits.takes_system and rng.random() < 0.5:
        messages.append({"role": "system", "content": said(rng, control)})
    for _ in range(rng.choice((1, 1, 2, 3))):
        messages.append({"role": "user", "content": content(rng, control)})
        if tools and rng.random() < 0.5:
            messages += _tool_exchange(rng, control)
        message = {"role": "assistant", "content": said(rng, control)}
        if traits.renders_reasoning and rng.random() < 0.5:
            message["reasoning_content"] = rng.choice(("Because.", "Two\nlines", "48 = 6*8"))
        if rng.random() < 0.1:
            message["train"] = False
        messages.append(message)
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train") is not False]
    return messages, tools, turns


def content(rng, control):
    """Text with whitespace at either end, odd scripts, quotes and control strings; sometimes empty."""
    pool = (*PIECES, *control)
    planted = control or PIECES
    pieces = [rng.choice(planted if rng.random() < 0.25 else pool) for _ in range(rng.randrange(7))]
    return "".join(pieces)


def said(rng, control):
    """Content that an assistant says: at least one word, and none of the markup that models write themselves."""
    plain = [item for item in control if item not in ASSISTANT_MARKUP]
    while True:
        text = content(rng, plain) + rng.choice(("Yes", "48", "ok")) + content(rng, plain)
        if not any(markup in text for markup in ASSISTANT_MARKUP):
            return text


def _tool_exchange(rng, control):
    arguments = {"city": rng.choice(("Paris", "São Paulo", 'a "b"', "x\ny")), "days": rng.randrange(10)}
    call = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    return [
        {"role": "assistant", "tool_calls": [call]},
        {
            "role": "tool",
            "name": "get_weather",
            "tool_call_id": "call00001",
            "content": json.dumps({"degrees": rng.randrange(-9, 40)}) + content(rng, control),
        },
    ]
