"""Console: where every verb prints its tables.

A terminal has its own width. A file or a pipe has none, and rich would fold tables at 80 columns, in the middle of
what a script or a log reader looks for.
"""

from __future__ import annotations

import os

from rich.console import Console

_PIPE_COLUMNS = 200


def make_console() -> Console:
    """Return the console for standard output."""
    console = Console()
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(width=_PIPE_COLUMNS)
