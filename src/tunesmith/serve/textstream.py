"""From token ids as they come to text that may be sent: whole characters, stop strings cut off, nothing that must wait.

What lives here: pure bookkeeping of one answer. What does not: generating, guard verdicts (`serve.guardrails`).

    stream = TextStream(decode, stop=("END",), forbidden=())
    stream.push((5, 6))      # -> "He"       a character whose last byte has not come is held back,
    stream.push((7,))        # -> ""         and so is text that may become a stop string
    stream.finish()          # -> "llo"      what was held back
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "�"


class TextStream:
    """Text of one growing answer.

    `stopped` is set once a stop string appeared; `forbidden_hit` is set once a forbidden string appeared, and then no
    character of it was or will be returned.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, stop: Sequence[str], forbidden: Sequence[str]
    ) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._forbidden = tuple(forbidden)
        self._watched = self._stop + self._forbidden
        self._text = ""
        self._num_sent = 0
        self.ids: list[int] = []
        self.stopped = False
        self.forbidden_hit: str | None = None

    @property
    def text(self) -> str:
        """All text so far, a stop string and what follows it cut off."""
        return self._text

    def push(self, ids: Sequence[int]) -> str:
        """Take new tokens and return the text that may be sent now."""
        if self.stopped or self.forbidden_hit is not None:
            return ""
        self.ids.extend(ids)
        self._text = self._decode(self.ids)
        self._look()
        if self.forbidden_hit is not None:
            return ""
        return self._release(len(self._text) if self.stopped else self._safe_length())

    def finish(self) -> str:
        """Return what was held back: nothing more will come."""
        return "" if self.forbidden_hit is not None else self._release(len(self._text))

    def _look(self) -> None:
        """Find the first stop string and any forbidden string before it."""
        places = [(place, text) for text in self._stop if (place := self._text.find(text)) >= 0]
        if places:
            self._text = self._text[: min(places)[0]]
            self.stopped = True
        for text in self._forbidden:
            if text in self._text:
                self.forbidden_hit = text
                return

    def _safe_length(self) -> int:
        """Return how many characters cannot change any more and cannot be the start of a watched string."""
        end = len(self._text)
        while end and self._text[end - 1] == _INCOMPLETE:
            end -= 1
        held = end
        for watched in self._watched:
            for length in range(min(len(watched) - 1, end), 0, -1):
                if self._text.endswith(watched[:length], 0, end):
                    held = min(held, end - length)
                    break
        return held

    def _release(self, end: int) -> str:
        start, self._num_sent = self._num_sent, max(self._num_sent, end)
        return self._text[start : self._num_sent]
