"""`tunesmith rate`: people score answers by the rubric, criterion by criterion, each score with its anchor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.evals.votes import Answer


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("rate")
    def rate(
        file: Annotated[
            str,
            typer.Argument(metavar="FILE", help="JSON lines of {id, prompt, answer}, or items.parquet:tuned."),
        ],
        scores: Annotated[Path, typer.Option(metavar="FILE", help="Scores file; only ever added to.")] = Path(
            "scores.jsonl"
        ),
        rater: Annotated[str, typer.Option(metavar="NAME", help="Who is scoring.", envvar="USER")] = "anonymous",
        most: Annotated[int | None, typer.Option(min=1, help="Score at most so many answers now.")] = None,
    ) -> None:
        """Score answers from 1 to 5: helpful, harmless, faithful, format. Stop and resume at any time."""
        from rich.console import Console

        from tunesmith.evals.scores import ScoreBook
        from tunesmith.evals.votes import read_answers

        console, book = Console(), ScoreBook(scores)
        left = book.left(read_answers(file), rater=rater)
        for done, (_, answer) in enumerate(left[:most], start=1):
            console.rule(f"{done} of {len(left)}")
            found = ask_scores(console, answer)
            if found is None:
                return
            book.add(answer, scores=found, rater=rater)
        console.print(f"{scores}: {len(left[:most])} answers scored by {rater}", highlight=False)


def ask_scores(console: Console, answer: Answer) -> dict[str, int] | None:
    """Show one answer and ask for each criterion; `None` where the rater stops."""
    from rich.markup import escape
    from rich.panel import Panel

    from tunesmith.evals.rubric import DEFAULT_RUBRIC

    console.print(Panel(escape(answer.prompt), title="request"))
    console.print(Panel(escape(answer.text), title="answer"))
    scores: dict[str, int] = {}
    for criterion in DEFAULT_RUBRIC:
        console.print(f"[b]{criterion.name}[/b]: {criterion.question}")
        for score, anchor in sorted(criterion.anchors.items()):
            console.print(f"  [b]{score}[/b]  {anchor}", highlight=False)
        while criterion.name not in scores:
            try:
                key = console.input("score, or [b]q[/b]uit: ").strip().lower()
            except EOFError:
                return None
            if key == "q":
                return None
            if key.isdigit() and int(key) in criterion.anchors:
                scores[criterion.name] = int(key)
            else:
                console.print(f"  one of {', '.join(map(str, sorted(criterion.anchors)))}, or q", highlight=False)
    return scores
