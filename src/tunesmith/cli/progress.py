"""Progress: a run as the terminal shows it: one bar for the stage at work, one line for each that ended.

On a terminal the bar moves; elsewhere (a file, a pipe, CI) plain lines appear, at most one every few seconds. Figures
that a stage passes along (`loss`, `tokens_per_second`) stand beside the bar.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tunesmith.cli.text import duration, figure, is_number, size
from tunesmith.types import JSON

_PLAIN_SECONDS = 10.0
_MARKS = {"done": "[green]done[/]", "cached": "[dim]cached[/]", "failed": "[red]failed[/]"}
_SHORT = {
    "grad_norm": "grad",
    "learning_rate": "lr",
    "tokens_per_second": "tok/s",
    "supervised_per_second": "supervised/s",
    "peak_memory_bytes": "memory",
    "seconds_left": "left",
}


class TerminalListener:
    """Draws a run. Use it as a context manager, so that the bar is taken down however the run ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._count = 0
        if console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> TerminalListener:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def stage_started(self, table: str, *, index: int, count: int, reason: str) -> None:
        """Put up the stage's bar."""
        self._count = count
        self._last_line = time.monotonic()
        self._console.print(f"[bold]{escape(table)}[/] [dim]({index}/{count}) {escape(reason)}[/]", highlight=False)
        if self._progress is not None:
            self._task = self._progress.add_task(table, total=None, note="")

    def stage_waits(self, table: str, *, holder: str) -> None:
        """Say whom the stage waits for."""
        self._console.print(f"  waiting: process {escape(holder)} is making the same artifact", highlight=False)

    def stage_progress(
        self, table: str, *, done: float, total: float | None, note: str, fields: Mapping[str, JSON]
    ) -> None:
        """Move the bar, or print a line where there is none."""
        text = "  ".join([*([note] if note else []), *_figures(fields)])
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=escape(text))
            return
        moment = time.monotonic()
        if moment - self._last_line >= _PLAIN_SECONDS:
            self._last_line = moment
            share = f"{done / total:.0%} " if total else ""
            self._console.print(f"  {share}{escape(text)}", highlight=False)

    def stage_event(self, table: str, *, name: str, fields: Mapping[str, JSON]) -> None:
        """Print what a stage announces under the name `say`; everything else is in the event file."""
        if name == "say":
            self._console.print(f"  {escape(str(fields.get('text', '')))}", highlight=False)

    def stage_finished(self, table: str, *, status: str, seconds: float, summary: Mapping[str, JSON]) -> None:
        """Take down the bar and say how the stage ended."""
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        took = "" if status == "cached" else f" in {duration(seconds)}"
        figures = "  ".join(_figures({key: value for key, value in summary.items() if is_number(value)})[:5])
        self._console.print(
            f"  {_MARKS.get(status, status)}{took}  [dim]{escape(figures)}[/]"
            if status != "cached"
            else f"[bold]{escape(table)}[/] {_MARKS[status]}",
            highlight=False,
        )


def _figures(fields: Mapping[str, JSON]) -> list[str]:
    return [f"{_SHORT.get(key, key)} {_value(key, value)}" for key, value in fields.items()]


def _value(key: str, value: JSON) -> str:
    if key.endswith("_bytes"):
        return size(value)
    if key.startswith("seconds"):
        return duration(value)
    if key.endswith("_per_second") and is_number(value):
        return f"{value:,.0f}"
    return figure(value)
