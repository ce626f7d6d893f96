"""Refusals: the one error that rendering, masking and linting raise, with a kind that programs can count.

What lives here: `RefusalKind` and `Refused`. Every refusal names what was found and what to do; none is a guess.

    raise Refused(RefusalKind.NO_STOP, "the template ends an assistant turn with no control token")
"""

from __future__ import annotations

import enum

from tunesmith.errors import ContractError


class RefusalKind(enum.StrEnum):
    """Why a conversation cannot be rendered or masked."""

    BAD_INPUT = "bad_input"
    """The conversation is not in the shape of chat messages."""
    UNSUPPORTED_CONTENT = "unsupported_content"
    """Images, audio or other parts that are not text."""
    TEMPLATE_ERROR = "template_error"
    """The template is not valid, or raised for these messages."""
    CONTROL_STRING = "control_string"
    """The template acts on a control string inside content, so it cannot be kept apart from the template's own."""
    CONTENT_DROPPED = "content_dropped"
    """The rendering does not contain what a message says."""
    REASONING_DROPPED = "reasoning_dropped"
    """A trained turn has reasoning that the template leaves out."""
    TOOL_CALLS_DROPPED = "tool_calls_dropped"
    """A message has tool calls that the template leaves out."""
    TOOLS_DROPPED = "tools_dropped"
    """The conversation declares tools that the template leaves out."""
    NOT_SERVING_PREFIX = "not_serving_prefix"
    """The training text of a turn does not begin with the prompt that a server would send."""
    BOUNDARY = "boundary"
    """The answer cannot be encoded so that prompt and answer keep their own tokens."""
    NO_STOP = "no_stop"
    """Nothing in the rendering ends the assistant's turn."""
    NO_TARGET = "no_target"
    """No token of the conversation would train."""
    TWO_BOS = "two_bos"
    """The rendering starts with two beginning-of-sequence tokens."""
    FOREIGN_SYSTEM = "foreign_system"
    """The conversation has a system prompt other than the contract's."""
    OVERLONG = "overlong"
    """The example is longer than the budget."""


class Refused(ContractError):
    """A conversation or template that is refused rather than guessed at."""

    def __init__(
        self,
        kind: RefusalKind,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.kind = kind
        super().__init__(what, where=where, expected=expected, found=found, hint=hint)
