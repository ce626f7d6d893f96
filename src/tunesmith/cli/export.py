"""`tunesmith export`: a bundle as a merged folder or a GGUF file, for other engines, with its contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import StoreOption
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.serve.exported import Export


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("export")
    def export(
        target: Annotated[str, typer.Argument(metavar="BUNDLE", help="A run, a ref, a bundle's folder; an export.")],
        out: Annotated[Path | None, typer.Argument(metavar="OUT", help="New folder.")] = None,
        to: Annotated[str, typer.Option(metavar="merged|gguf", help="A Hugging Face folder, or llama.cpp.")] = "merged",
        dtype: Annotated[
            str | None,
            typer.Option(metavar="DTYPE", help="merged: float32, bfloat16, float16; gguf: F32, F16, BF16, Q8_0."),
        ] = None,
        base: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the base model.")] = None,
        device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
        check: Annotated[bool, typer.Option("--check", help="Check an export instead of making one.")] = False,
        store: StoreOption = None,
    ) -> None:
        """Write a bundle as a merged folder or a GGUF file that carries its contract, proved against the adapter."""
        from tunesmith.api.exporting import check_export
        from tunesmith.api.exporting import export as run

        if check:
            _show(check_export(target))
            typer.echo("unchanged: every file, the contract and its golden vectors")
            return
        if out is None:
            raise RecipeError("where to is missing", expected="tunesmith export BUNDLE OUT --to merged|gguf")
        _show(run(target, out, to=to, dtype=dtype, base=base, device=device, store=store))


def _show(export: Export) -> None:
    facts, agreement = export.manifest, export.manifest["agreement"]
    base_kl = f"{agreement['mean_kl_of_base']:.2g}"
    typer.echo(f"{export.name}, {facts['dtype']}: {export.weights}")
    typer.echo(
        f"against base and adapter in float32: mean KL {agreement['mean_kl']:.2g} nats (bare base {base_kl}), "
        f"the same most likely token at {agreement['top1']:.1%} of {agreement['positions']} positions"
    )
    if "trained_on_base_in" in facts:
        other = facts["agreement_on_unquantised_base"]
        typer.echo(
            f"merged into what the base in {facts['trained_on_base_in']} computed with, as in training; on the plain "
            f"base the adapter is {other['mean_kl']:.2g} nats off, the same most likely token at {other['top1']:.1%}"
        )
    typer.echo(f"contract {export.contract.sha256[:12]}, {len(export.contract.golden)} golden vectors reproduced")
