"""A run as the terminal shows it: a bar where there is a terminal, few plain lines where there is none."""

import contextlib
import io

import pytest
from rich.console import Console

from tunesmith.cli import progress as progress_module
from tunesmith.cli.progress import TerminalListener
from tunesmith.cli.text import duration, figure, leaves, size


def shown(*, terminal, steps, monkeypatch, seconds_per_step=0.0):
    """The text of a run of one stage that reports `steps` steps."""
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, legacy_windows=False)
    with TerminalListener(console) as listener:
        listener.stage_started("train", index=2, count=3, reason="never run")
        listener.stage_waits("train", holder="77")
        for step in range(1, steps + 1):
            clock[0] += seconds_per_step
            fields = {"loss": 1.5, "tokens_per_second": 1234}
            listener.stage_progress("train", done=step, total=steps, note=f"step {step}", fields=fields)
        listener.stage_event("train", name="say", fields={"text": "bf16 is faster here [measured]"})
        listener.stage_event("train", name="train_step", fields={"secret": "detail"})
        listener.stage_finished("train", status="done", seconds=75.0, summary={"loss": 1.25, "name": "x"})
        listener.stage_finished("report", status="cached", seconds=0.0, summary={})
    return out.getvalue()


def test_without_a_terminal_lines_are_few_and_plain(monkeypatch):
    text = shown(terminal=False, steps=1000, monkeypatch=monkeypatch, seconds_per_step=0.1)
    assert "\x1b" not in text
    assert 5 <= sum("tok/s" in line for line in text.splitlines()) <= 10
    assert "loss 1.5  tok/s 1,234" in text


def test_on_a_terminal_the_figures_stand_beside_the_bar(monkeypatch):
    text = shown(terminal=True, steps=3, monkeypatch=monkeypatch)
    assert "\x1b" in text
    assert "train" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_the_end_of_a_stage_and_what_it_announced_stay_on_screen(terminal, monkeypatch):
    text = shown(terminal=terminal, steps=1, monkeypatch=monkeypatch)
    for words in (
        "(2/3) never run",
        "process 77",
        "bf16 is faster here [measured]",
        "1 min 15 s",
        "loss 1.25",
        "cached",
    ):
        assert words in text
    assert "detail" not in text
    assert "name x" not in text


def test_the_bar_is_taken_down_when_a_stage_fails():
    out = io.StringIO()
    with contextlib.suppress(ValueError), TerminalListener(Console(file=out, force_terminal=True)) as listener:
        listener.stage_started("train", index=1, count=1, reason="x")
        raise ValueError
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # cursor hidden, cursor back


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.44, "0.4 s"), (12.4, "12 s"), (75, "1 min 15 s"), (59.7, "60 s"), (3600, "1 h 00 min"), (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_sizes_and_figures_read_well():
    assert [size(n) for n in (None, 12, 3400, 3.4e6, 1.25e9)] == ["-", "12 B", "3.4 kB", "3.4 MB", "1.2 GB"]
    values = (None, True, 1234, 0.123456, 12345.6, [1, 2], {}, "a\nb", "x" * 200)
    assert [figure(v) for v in values[:-1]] == ["-", "yes", "1,234", "0.1235", "12,346", "1, 2", "none", "a b"]
    assert len(figure(values[-1])) == 100
    nested = {"a": {"b": 1, "c": {}}, "d": [{"e": 2}], "f": [1]}
    assert list(leaves(nested)) == [("a.b", 1), ("a.c", {}), ("d[0].e", 2), ("f", [1])]
