"""The server as a process: open everything, prove it, listen, close in order.

What lives here: `run_server`, which returns when it is told to stop. What does not: finding a bundle in a store
(`api.deployment`), options (`cli.serve`).

    run_server(bundle_dir, base_dir, host="127.0.0.1", port=8000, ...)      # Ctrl-C or SIGTERM ends it

The port is taken before the model is loaded, so that a port in use is known at once; nobody can connect until the
proofs hold.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import uvicorn

from tunesmith.errors import ServeError
from tunesmith.serve.app import Server, Settings, create_app
from tunesmith.serve.bundle import Bundle, Dtype, check_base, load_bundle
from tunesmith.serve.record import Redact
from tunesmith.serve.startup import Proof, bind, is_loopback
from tunesmith.serve.traces import TraceStore
from tunesmith.types import Log

SHUTDOWN_SECONDS = 10
"""How long running answers may take to end once the server is told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """What a server that is ready says of itself."""

    url: str
    bundle: Bundle
    proof: Proof
    dtype: Dtype


OnReady = Callable[[Listening], None]


class _Uvicorn(uvicorn.Server):
    """uvicorn that says when it accepts connections."""

    def __init__(self, config: uvicorn.Config, *, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()


def run_server(
    bundle_dir: Path,
    base_dir: Path,
    *,
    host: str,
    port: int,
    traces_url: str,
    settings: Settings,
    redact: Redact,
    dtype: Dtype | Literal["bundle"],
    device: str,
    on_ready: OnReady,
    log: Log,
) -> None:
    """Serve a bundle until SIGINT or SIGTERM.

    `base_dir` is the Hugging Face folder of the base. Raises `ServeError` or `ContractError` where anything that must
    hold does not; a host that other machines reach needs an API key.
    """
    if not is_loopback(host) and settings.api_key is None:
        raise ServeError(
            "other machines could reach this server, and anybody could use it",
            where=f"--host {host}",
            expected="an API key, or a loopback address",
            hint="give --api-key KEY, or set TUNESMITH_API_KEY; put TLS in front of it",
        )
    bound = bind(host, port)
    bundle = load_bundle(bundle_dir)
    check_base(bundle, base_dir)
    traces = TraceStore(traces_url)
    # Imported here: torch and transformers take seconds, and what was refused above needs neither
    from tunesmith.model.rows import shared_prefix_length
    from tunesmith.serve.batching import open_engine

    prompts = [golden.ids for golden in bundle.golden]
    used: Dtype = bundle.dtype if dtype == "bundle" else dtype
    engine = open_engine(
        base_dir,
        adapter_dir=bundle.root / "adapter",
        dtype=used,
        device=device,
        max_batch=settings.limits.max_running,
        prefix=prompts[0][: shared_prefix_length(prompts)],
        log=log,
    )
    server = Server(bundle, engine, traces, redact=redact, settings=settings, log=log)
    logging.getLogger("uvicorn.access").disabled = True
    config = uvicorn.Config(
        create_app(server), log_config=None, access_log=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    shown = f"[{host}]" if ":" in host else host
    listening = Listening(url=f"http://{shown}:{bound.getsockname()[1]}", bundle=bundle, proof=server.proof, dtype=used)
    # uvicorn raises the signal again once it has closed; without this, SIGTERM would skip the lines below
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        _run(_Uvicorn(config, on_ready=lambda: on_ready(listening)), [bound])
    finally:
        engine.close()
        traces.close()
        bound.close()
        signal.signal(signal.SIGTERM, previous)


def _run(server: uvicorn.Server, sockets: Sequence[socket.socket]) -> None:
    try:
        server.run(sockets=list(sockets))
    except (KeyboardInterrupt, _Left):
        return


class _Left(BaseException):
    """SIGTERM came."""


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Left
