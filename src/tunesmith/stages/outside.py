"""Programs of other projects, run in a Python of their own: never imported, stopped when their time is up.

    python = find_program("lm_eval", python="/opt/lm-eval/bin/python", where="lm_eval.python", install="lm-eval[hf]")
    run_program([python.executable, "-m", "lm_eval", ...], name="lm-eval", cwd=..., log=..., max_seconds=600, ctx=ctx)

What lives here: finding the package in the other interpreter, starting, waiting, stopping, and the errors of all three;
running it over base and tuned model, and an answer as such a program tells it. What does not: what a program is asked,
and how its files are read (the stage that uses it).

Evaluation tools pin versions that contradict each other and this package, so each lives in an environment of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tunesmith.core.artifact import Artifact
from tunesmith.core.stage import Context
from tunesmith.errors import PlanError, TunesmithError
from tunesmith.types import JSON

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.evals.run import Answer

_Run = TypeVar("_Run")

_LOOK_SECONDS = 60.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.5
_TAIL_LINES = 8
_OWN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TUNESMITH_API_KEY")
"""Variables of this process that another interpreter must not see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A package that an interpreter has."""

    executable: str
    version: str


def find_program(package: str, *, python: str | None, where: str, install: str) -> Program:
    """Return the interpreter and the version of `package` (a distribution's name) that it has.

    `python` is a path or a name on the search path; `None` is the interpreter of this process. Raises `PlanError` where
    there is no such interpreter, or it lacks the package.
    """
    executable = sys.executable if python is None else shutil.which(python)
    if executable is None:
        raise PlanError(
            "there is no such Python", where=where, found=python, hint="name the python of an environment of its own"
        )
    look = f"import importlib.metadata as m; print(m.version({package!r}))"
    try:
        found = subprocess.run(
            [executable, "-c", look],
            capture_output=True,
            text=True,
            timeout=_LOOK_SECONDS,
            env=_environment(),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlanError("this Python does not answer", where=where, found=f"{executable}: {error}") from error
    if found.returncode != 0:
        raise PlanError(
            f"this Python has no {package}",
            where=where,
            found=executable,
            hint=f"python -m venv ENV; ENV/bin/pip install '{install}'; then set {where} to ENV/bin/python",
        )
    return Program(executable=executable, version=found.stdout.strip())


def run_program(
    argv: Sequence[str],
    *,
    name: str,
    cwd: Path,
    log: Path,
    max_seconds: float,
    ctx: Context,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Run a program to its end, its output in `log`, and return the seconds it took.

    `environment` adds variables to this process's.

    It and all that it started are stopped after `max_seconds`, or where this process is interrupted. Raises
    `TunesmithError` with the end of its output where it ran out of time or ended with another status than 0.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            seconds = time.monotonic() - started
            if seconds > max_seconds:
                raise TunesmithError(
                    f"{name} was not done after {max_seconds:g} s and was stopped",
                    where=str(log),
                    found=_tail(log),
                    hint="ask fewer items, or allow it more time",
                )
            ctx.progress(0, None, f"{name}: {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)
    finally:
        _stop(process)
    if process.returncode != 0:
        raise TunesmithError(
            f"{name} ended with status {process.returncode}",
            where=str(log),
            found=_tail(log),
            hint="its whole output stands in that file",
        )
    return time.monotonic() - started


def run_systems(
    run: Callable[[str, Artifact | None], tuple[_Run, float]],
    *,
    adapter: Artifact | None,
    engine: str,
    log: Callable[[str, dict[str, JSON], _Run], None],
) -> tuple[dict[str, _Run], dict[str, dict[str, JSON]]]:
    """Run a program over the base and, where there is an adapter, the tuned model; return runs and timing by system."""
    runs: dict[str, _Run] = {}
    timing: dict[str, dict[str, JSON]] = {}
    for name, tuned in (("base", None), ("tuned", adapter)):
        if name == "tuned" and tuned is None:
            continue
        runs[name], seconds = run(name, tuned)
        timing[name] = {"seconds": round(seconds, 3), "engine": engine}
        log(name, timing[name], runs[name])
    return runs, timing


def run_once(work: Path, run: Callable[[], float]) -> float:
    """Run in an empty `work` and return the seconds: 0 where an attempt that was cut short had finished there."""
    done = work / "done"
    if done.exists():
        return 0.0
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    seconds = run()
    done.touch()
    return seconds


def keep_files(files: Iterable[Path], folder: Path) -> None:
    """Copy a program's own files beside the results."""
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def told_answer(
    item_id: str, system: str, *, prompt: str, output: str, scores: Mapping[str, float], contract: Contract
) -> Answer:
    """Return an answer as another program tells it, which knows neither why it ended nor what it took."""
    from tunesmith.evals.run import Answer

    return Answer(
        row_id=item_id,
        system=system,
        output=output,
        finish_reason=None,
        prompt_tokens=len(contract.tokenizer.encode(prompt).ids),
        output_tokens=len(contract.tokenizer.encode(output).ids),
        seconds=None,
        scores=scores,
    )


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _OWN_VARIABLES}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the program and all that it started, first by asking."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _tail(log: Path) -> str:
    # A progress bar rewrites its line after a carriage return: what it last said is enough
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    shown = [line.rpartition("\r")[2].strip() for line in lines]
    return " | ".join([line for line in shown if line][-_TAIL_LINES:]) or "no output"
