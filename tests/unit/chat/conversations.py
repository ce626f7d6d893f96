"""Random conversations for the laws: contents that break naive masks, within what a template says it can render."""

import json

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


def contents(control, *, empty=True):
    """Texts with whitespace at either end, odd scripts, quotes and control strings."""
    pieces = st.one_of(st.sampled_from(PIECES), st.sampled_from(PIECES), st.sampled_from(control))
    return st.lists(pieces, min_size=0 if empty else 1, max_size=6).map("".join)


def said(control):
    """Content that an assistant says: at least one word, and none of the markup that models write themselves."""
    plain = [item for item in control if item not in ASSISTANT_MARKUP] or ["<|x|>"]
    text = st.tuples(contents(plain), st.sampled_from(["Yes", "48", "ok"]), contents(plain)).map("".join)
    return text.filter(lambda item: not any(markup in item for markup in ASSISTANT_MARKUP))


@st.composite
def conversations(draw, renderer, *, plant=True):
    """Return (messages, tools, turns that train). `plant` puts control strings into contents."""
    traits = renderer.traits
    control = [item for item in renderer.guard.strings if item.strip()][:12] if plant else []
    control = control or ["<|x|>"]
    tools = TOOLS if traits.renders_tools and traits.arguments is not ArgumentsForm.NONE and draw(st.booleans()) else []
    messages = []
    if traits.takes_system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(said(control))})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(contents(control))})
        if tools and draw(st.booleans()):
            messages += draw(_tool_exchange(control))
        message = {"role": "assistant", "content": draw(said(control))}
        if traits.renders_reasoning and draw(st.booleans()):
            message["reasoning_content"] = draw(st.sampled_from(["Because.", "Two\nlines", "48 = 6*8"]))
        if draw(st.integers(0, 9)) == 9:
            message["train"] = False
        messages.append(message)
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train") is not False]
    return messages, tools, turns


@st.composite
def _tool_exchange(draw, control):
    arguments = {
        "city": draw(st.sampled_from(["Paris", "São Paulo", 'a "b"', "x\ny"])),
        "days": draw(st.integers(0, 9)),
    }
    call = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    return [
        {"role": "assistant", "tool_calls": [call]},
        {
            "role": "tool",
            "name": "get_weather",
            "tool_call_id": "call00001",
            "content": json.dumps({"degrees": draw(st.integers(-9, 40))}) + draw(contents(control)),
        },
    ]
