"""`tunesmith compare`: two systems' answers compared blind by people, in the terminal or on a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.evals.stats import Estimate
    from tunesmith.evals.votes import Comparison, Showing, VoteBook

_KEYS = {"1": "first", "2": "second", "t": "tie", "s": "skip"}
_QUESTION = "better answer: [b]1[/b], [b]2[/b], [b]t[/b]ie, [b]s[/b]kip, [b]u[/b]ndo the last, [b]q[/b]uit: "


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("compare")
    def compare(
        baseline: Annotated[
            str,
            typer.Argument(metavar="FILE_A", help="Baseline: JSON lines {id, prompt, answer}, or items.parquet:base."),
        ],
        candidate: Annotated[str, typer.Argument(metavar="FILE_B", help="Candidate, in the same form.")],
        votes: Annotated[Path, typer.Option(metavar="FILE", help="Votes file; only ever added to.")] = Path(
            "votes.jsonl"
        ),
        rater: Annotated[str, typer.Option(metavar="NAME", help="Who is voting.", envvar="USER")] = "anonymous",
        seed: Annotated[int, typer.Option(help="Seed of the order and the sides.")] = 0,
        page: Annotated[
            Path | None, typer.Option(metavar="HTML", help="Write a page for this rater instead of asking here.")
        ] = None,
        imported: Annotated[
            list[Path] | None,
            typer.Option("--import", metavar="JSON", help="Add the votes that a page downloaded. May be repeated."),
        ] = None,
        report: Annotated[bool, typer.Option("--report", help="Ask nothing; show what the votes say.")] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Compare two systems' answers blind: sides shuffled, ties allowed, stop and resume at any time."""
        from rich.console import Console

        from tunesmith.evals.compare_page import render_page
        from tunesmith.evals.votes import VoteBook, import_page_votes, pair_answers, plan_showings, read_answers

        console = Console(stderr=as_json)
        comparison = pair_answers(read_answers(baseline), read_answers(candidate))
        if page is not None:
            page.write_text(render_page(comparison, rater=rater, seed=seed), encoding="utf-8")
            console.print(f"{page}: open it in a browser, download the votes, then --import them", highlight=False)
            return
        book = VoteBook.open(votes, comparison, seed=seed)
        if book.num_cut_short:
            console.print(f"{votes}: {book.num_cut_short} line(s) cut short by a crash are left out", highlight=False)
        for path in imported or ():
            added = import_page_votes(book, comparison, _read_json(path), seed=seed)
            console.print(f"{path}: {added} new votes", highlight=False)
        if not report and not imported:
            ask(console, book, plan_showings(comparison, rater=rater, seed=seed), rater=rater)
        print_report(console, book, comparison, as_json=as_json)


def _read_json(path: Path) -> object:
    from tunesmith.errors import DataError

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("cannot read the downloaded votes", where=str(path), found=str(error)) from error


def ask(console: Console, book: VoteBook, showings: list[Showing], *, rater: str) -> None:
    """Show one item after the other and append each choice, until all are done or the rater stops."""
    from rich.markup import escape
    from rich.panel import Panel

    voted: list[Showing] = []
    while True:
        standing = book.standing(rater)
        left = [showing for showing in showings if showing.item not in standing]
        if not left:
            return
        showing = left[0]
        console.rule(f"{len(showings) - len(left) + 1} of {len(showings)}")
        console.print(Panel(escape(showing.prompt), title="request"))
        console.print(Panel(escape(showing.first), title="answer 1"))
        console.print(Panel(escape(showing.second), title="answer 2"))
        try:
            key = console.input(_QUESTION).strip().lower()[:1]
        except EOFError:
            return
        if key == "q":
            return
        if key == "u" and voted:
            book.add(voted.pop(), choice="undo", rater=rater)
        elif key in _KEYS:
            book.add(showing, choice=_KEYS[key], rater=rater)
            voted.append(showing)
        else:
            console.print("[yellow]1, 2, t, s, u or q[/yellow]")


def print_report(console: Console, book: VoteBook, comparison: Comparison, *, as_json: bool) -> None:
    """Print win rate, biases and agreement, for people or as JSON."""
    from tunesmith.evals.preference import preference
    from tunesmith.evals.votes import rater_agreement

    votes = book.votes(comparison)
    if not votes:
        console.print("no votes yet")
        return
    found, agreement = preference(votes), rater_agreement(votes, comparison)
    if as_json:
        out = {
            **found.to_json(),
            "raters": book.raters,
            "agreement": agreement.to_json() if agreement is not None else None,
            "equal_answers": len(comparison.equal),
            "only_a": comparison.only_a,
            "only_b": comparison.only_b,
        }
        typer.echo(json.dumps(out, indent=1, ensure_ascii=False))
        return
    console.rule("what the votes say")
    lines = [
        ("B preferred to A (ties half)", shown_range(found.win_rate)),
        ("B better / equal / A better", " / ".join(f"{found.shares[name]:.0%}" for name in ("win", "tie", "loss"))),
        ("at equal length", shown_range(found.length_controlled) if found.length_controlled else "not resolvable"),
        ("longer answer won", shown_range(found.longer_wins) + ("  biased" if found.length_biased else "")),
        ("answer 1 won", shown_range(found.first_shown) + ("  biased" if found.position_biased else "")),
        ("agreement of raters (alpha)", shown_range(agreement) if agreement else "-"),
        ("items, votes, raters", f"{found.num_items}, {found.num_votes}, {len(book.raters)}"),
        ("equal answers, counted as ties", str(len(comparison.equal))),
        ("answered by one system only", f"A {comparison.only_a}, B {comparison.only_b}"),
    ]
    for name, text in lines:
        console.print(f"{name:32} {text}", highlight=False)


def shown_range(found: Estimate | None) -> str:
    """Return a figure with its interval, for people."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:.3f} (too few for an interval)"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}, n={found.n})"
