"""`tunesmith serve`: answer OpenAI-compatible requests with a bundle that proved itself."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tunesmith.cli.options import StoreOption

if TYPE_CHECKING:
    from tunesmith.serve.process import Listening


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("serve")
    def serve(
        target: Annotated[
            str | None,
            typer.Argument(
                metavar="[RUN|REF|BUNDLE]", help="A run, a ref, or a bundle's folder; production by default."
            ),
        ] = None,
        host: Annotated[str, typer.Option(help="Address; one that others reach needs --api-key.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
        base: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the base model.")] = None,
        traces: Annotated[
            str | None, typer.Option(metavar="URL", help="Trace database: a file, or a SQLAlchemy URL.")
        ] = None,
        api_key: Annotated[
            str | None, typer.Option(help="Key that clients must send.", envvar="TUNESMITH_API_KEY")
        ] = None,
        consent: Annotated[
            bool | None,
            typer.Option("--consent/--no-consent", help="What holds where a request does not say `store`."),
        ] = None,
        dtype: Annotated[
            Literal["bundle", "float32", "bfloat16", "float16"],
            typer.Option(help="Number format; `bundle` is the one that was evaluated."),
        ] = "bundle",
        device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
        max_running: Annotated[int, typer.Option(min=1, help="Answers generated at once.")] = 8,
        max_waiting: Annotated[int, typer.Option(min=1, help="Requests that wait; one more gets 429.")] = 64,
        max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longest prompt.")] = 4096,
        max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that a request may ask for.")] = 1024,
        timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one answer.")] = 120.0,
        ready_file: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Write the URL here, as JSON, once requests are taken.")
        ] = None,
        until_eof: Annotated[
            bool, typer.Option("--until-eof", help="Stop when standard input ends: not to outlive who started it.")
        ] = False,
        store: StoreOption = None,
    ) -> None:
        """Serve a bundle: /v1/chat/completions, /v1/models, /v1/feedback, /health, /metrics."""
        from tunesmith.api.deployment import serve as run
        from tunesmith.serve.app import Settings
        from tunesmith.serve.limits import Limits

        if until_eof:
            threading.Thread(target=_stop_at_eof, name="tunesmith-stdin", daemon=True).start()
        limits = Limits(
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=max_new_tokens,
            max_running=max_running,
            max_waiting=max_waiting,
            request_seconds=timeout,
        )
        run(
            target,
            base=base,
            host=host,
            port=port,
            traces=traces,
            settings=Settings(limits=limits, api_key=api_key, consent=consent),
            dtype=dtype,
            device=device,
            on_ready=lambda listening: _say_ready(listening, ready_file),
            log=lambda name, fields: typer.echo(f"{name}: {json.dumps(dict(fields))}", err=True),
            store=store,
        )


def _stop_at_eof() -> None:
    """Wait for the end of standard input, which comes when the process at its other end dies, and stop in order."""
    # The descriptor, not sys.stdin: a thread inside a buffered read holds a lock that the interpreter needs to exit
    while os.read(0, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _say_ready(listening: Listening, ready_file: Path | None) -> None:
    bundle, proof = listening.bundle, listening.proof
    typer.echo(f"serving {bundle.name} at {listening.url}/v1")
    typer.echo(f"  base      {bundle.base.id}, {listening.dtype}")
    typer.echo(f"  contract  {bundle.contract.sha256[:12]}: {proof.golden_vectors} golden vectors reproduced")
    if proof.mean_logprob_error is not None:
        share = f"{proof.mean_logprob_error:.2%}"
        typer.echo(f"  weights   {proof.golden_probabilities} golden probabilities reproduced, {share} off on average")
    if listening.dtype != bundle.dtype:
        typer.echo(f"  note      evaluated in {bundle.dtype}: the measured quality is not quite this server's")
    if not bundle.promotable:
        typer.echo("  note      its gates do not hold: it may be tried, not promoted")
    if ready_file is not None:
        partial = ready_file.with_name(ready_file.name + ".partial")
        partial.write_text(json.dumps({"url": listening.url, "model": bundle.name, "base": bundle.base.id}), "utf-8")
        os.replace(partial, ready_file)
