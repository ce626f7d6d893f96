"""`tunesmith judge`: systems' answers compared by a model at an OpenAI-compatible URL."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.compare import shown_range
from tunesmith.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.api.judging import Judging

TIMEOUT_SECONDS = 300.0


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("judge")
    def judge(
        files: Annotated[
            list[str],
            typer.Argument(metavar="FILE...", help="Answers: JSON lines {id, prompt, answer}, or items.parquet:base."),
        ],
        url: Annotated[str, typer.Option(metavar="URL", help="OpenAI-compatible endpoint that ends in /v1.")],
        model: Annotated[str, typer.Option(metavar="NAME", help="The judge's model name there.")],
        api_key_env: Annotated[
            str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds the key.")
        ] = None,
        structure: Annotated[
            str, typer.Option(help="How the reply's form is asked for: json_schema, or prompt.")
        ] = "json_schema",
        verdicts: Annotated[
            Path, typer.Option(metavar="FILE", help="Verdicts, kept so that nothing is asked twice.")
        ] = Path("verdicts.jsonl"),
        most: Annotated[int | None, typer.Option(min=1, help="Judge at most so many items.")] = None,
        workers: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
        rubric: Annotated[
            bool, typer.Option("--rubric", help="Score every answer too: helpful, harmless, ...")
        ] = False,
        people: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Votes of `tunesmith compare`, to correct the judge by."),
        ] = None,
        people_seed: Annotated[int, typer.Option(help="Seed that the votes file was begun with.")] = 0,
        people_scores: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Scores of `tunesmith rate`, to hold the judge's rubric against."),
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Compare every two systems in both orders; more than two get Bradley-Terry strengths."""
        import httpx
        from rich.console import Console

        from tunesmith.api.judging import judge_answers
        from tunesmith.errors import PlanError
        from tunesmith.evals.judge import ChatJudge, Structure

        console = Console(stderr=as_json)
        if structure not in [form.value for form in Structure]:
            raise PlanError("no such form", where="--structure", expected="json_schema or prompt", found=structure)
        key = None if api_key_env is None else os.environ.get(api_key_env)
        if api_key_env is not None and not key:
            raise PlanError("the environment has no such key", where="--api-key-env", found=api_key_env)
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client, console.status("judging") as status:
            found = judge_answers(
                files,
                ChatJudge(client=client, url=url, model=model, api_key=key, structure=Structure(structure)),
                verdicts=verdicts,
                most=most,
                workers=workers,
                rubric=rubric,
                people=people,
                people_seed=people_seed,
                people_scores=people_scores,
                progress=lambda done: status.update(f"{done} verdicts"),
            )
        if as_json:
            typer.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        else:
            print_judging(console, found)


def _short_names(sources: Sequence[str]) -> dict[str, str]:
    """Return source -> its name without the folder that all lie in."""
    folders = [os.path.dirname(source) for source in sources]
    if len({os.path.isabs(folder) for folder in folders}) > 1 or not all(folders):
        return {source: source for source in sources}
    shared = os.path.commonpath(folders)
    return {source: os.path.relpath(source, shared) if shared else source for source in sources}


def print_judging(console: Console, found: Judging) -> None:
    """Print win rates with the judge's biases, strengths and rubric means."""
    short = _short_names([name for pair in found.pairs for name in (pair.baseline, pair.candidate)])
    for pair in found.pairs:
        report = pair.report
        console.rule(f"{short[pair.candidate]} against {short[pair.baseline]}", characters="-")
        length_controlled = report.length_controlled
        lines = [
            ("preferred (ties half)", shown_range(report.win_rate)),
            ("better / equal / worse", " / ".join(f"{report.shares[name]:.0%}" for name in ("win", "tie", "loss"))),
            ("at equal length", shown_range(length_controlled) if length_controlled else "not resolvable"),
            ("answer shown first won", shown_range(report.first_shown) + ("  biased" * report.position_biased)),
            ("verdicts that flip with the order", shown_range(report.flips)),
            ("longer answer won", shown_range(report.longer_wins) + ("  biased" * report.length_biased)),
            ("corrected by people", shown_range(pair.corrected)),
            ("failed requests", ", ".join(f"{n} {kind}" for kind, n in pair.failures.items()) or "none"),
        ]
        for name, text in lines:
            console.print(f"{name:34} {text}", highlight=False)
    if found.ratings:
        console.rule("Bradley-Terry", characters="-")
        for one in found.ratings:
            bounds = f"{one.strength:+.2f} ({one.low:+.2f} to {one.high:+.2f})"
            console.print(f"{one.rank}. {short[one.model]:31} {bounds}, Elo {one.elo:.0f}", highlight=False)
    for system, scores in found.rubric.items():
        console.rule(f"rubric, {short[system]}", characters="-")
        for name, mean in scores.items():
            console.print(f"{name:34} {shown_range(mean)}", highlight=False)
    for name, agreed in found.agreement.items():
        kappa = shown_range(agreed.weighted_kappa)
        text = (
            f"weighted kappa {kappa}; the same score {agreed.exact:.0%}; judge kinder by {agreed.mean_difference:+.2f}"
        )
        console.print(f"with people, {name:21} {text}", highlight=False)
