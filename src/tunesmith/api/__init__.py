"""The verbs as functions: the command line and the studio are skins over these.

    import tunesmith.api as tunesmith
    tunesmith.run("recipes/quickstart.yaml", overrides=["train.learning_rate=1e-4"])
    tunesmith.show().stages["evaluate"].summary

Every function takes `store`: a folder, else TUNESMITH_STORE, else `.tunesmith` in the current folder. They return plain
frozen values and print nothing; `run` tells a `Listener` what happens. Importing this loads no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.api.difference import Difference, Side, difference, side_of_recipe, side_of_run
from tunesmith.api.explanation import (
    Explanation,
    explain_key,
    explain_row,
    explain_stage,
    explain_threshold,
    looks_like_row,
)
from tunesmith.api.machine import chosen_engine, this_machine
from tunesmith.api.view import RunView, StageView, find_view, view_run
from tunesmith.core.events import Listener, Silent
from tunesmith.core.gc import Garbage, delete, find_garbage
from tunesmith.core.plan import Change, Plan, PlannedStage, make_plan, with_estimates
from tunesmith.core.recipe import Recipe, load_recipe, parse_recipe
from tunesmith.core.run import execute
from tunesmith.core.runs import RunRecord, artifact_of, find_run, run_names
from tunesmith.core.stage import Stage
from tunesmith.core.store import Store
from tunesmith.errors import DataError, PlanError, RecipeError, StoreError
from tunesmith.types import JSON

if TYPE_CHECKING:
    from tunesmith.api.config_import import ImportedConfig
    from tunesmith.api.data_difference import DataDifference
    from tunesmith.api.new_recipe import NewRecipe
    from tunesmith.api.opt_out import Takedown
    from tunesmith.core.marks import Mark
    from tunesmith.serve.exported import Export

__all__ = [
    "Change",
    "Difference",
    "Explanation",
    "Garbage",
    "Listener",
    "Plan",
    "PlannedStage",
    "Recipe",
    "RunView",
    "StageView",
    "Store",
    "collect",
    "content_hash",
    "diff",
    "explain",
    "export",
    "gc",
    "import_config",
    "init",
    "lift_takedown",
    "open_recipe",
    "open_store",
    "plan",
    "run",
    "runs",
    "show",
    "stages",
    "takedown",
    "takedowns",
]

PathLike = str | Path


def open_store(store: PathLike | None = None) -> Store:
    """Return the store at `store`, else at TUNESMITH_STORE, else at `.tunesmith` in the current folder."""
    return Store(Path(store or os.environ.get("TUNESMITH_STORE") or ".tunesmith").expanduser().absolute())


def stages() -> dict[str, Stage]:
    """Return all stages by name."""
    from tunesmith.stages import load_stages

    return load_stages()


def open_recipe(recipe: PathLike, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe. Raises `RecipeError`."""
    return load_recipe(Path(recipe), stages(), overrides=overrides)


def init(
    folder: PathLike,
    *,
    data: Sequence[PathLike] = (),
    base: str | None = None,
    license: str | None = None,
    encoding: str = "utf-8",
) -> NewRecipe:
    """Look at the data (that of the folder by default) and write a checked `recipe.yaml` for it into the folder.

    Raises `DataError` for data that cannot be used, `RecipeError` where a recipe stands there already.
    """
    from tunesmith.api.new_recipe import write_recipe

    paths = [Path(path) for path in data]
    return write_recipe(Path(folder), stages(), data=paths, base=base, license=license, encoding=encoding)


def content_hash(record: Mapping[str, JSON], *, columns: Mapping[str, str] | None = None) -> str:
    """Return the sha256 by which a record of any shape opts out (`curate.opt_out`): that of its conversation alone.

    `columns` maps fields as `ingest.sources[].columns` does. Raises `DataError` where the record is no row.
    """
    from tunesmith.data.shapes import RowProblem, convert, detect_shape, names_of
    from tunesmith.data.write import content_hash as hash_of

    shape = detect_shape(record, columns or {})
    if shape is None:
        raise DataError("the record has no known shape", found=names_of(record), hint="map its fields with columns")
    try:
        return hash_of(convert(record, shape, columns=columns or {}).conversation)
    except RowProblem as problem:
        raise DataError("the record is no row", found=problem.detail) from problem


def import_config(config: PathLike, recipe: PathLike | None = None) -> ImportedConfig:
    """Return the recipe that means what a config of LLaMA-Factory, axolotl or TRL means, and write it where asked.

    Raises `RecipeError` for a config that cannot be read, or where a recipe stands there already.
    """
    from tunesmith.api.config_import import import_config as convert

    target = None if recipe is None else Path(recipe)
    if target is not None and target.exists():
        raise RecipeError("there is a recipe already", where=str(target), hint="remove it, or name another file")
    made = convert(Path(config), stages(), folder=Path(config).parent if target is None else target.parent)
    if target is not None:
        target.write_text(made.text, "utf-8")
    return made


def plan(
    recipe: PathLike,
    *,
    overrides: Sequence[str] = (),
    until: str | None = None,
    only: str | None = None,
    store: PathLike | None = None,
    device: str = "auto",
    engine: str | None = None,
) -> Plan:
    """Return what a run would do, why, and what it would take. Raises what `run` would raise before it starts."""
    place = open_store(store)
    loaded = open_recipe(recipe, overrides=overrides)
    chosen_engine(loaded, engine)
    made = make_plan(loaded, place, until=until, only=only)
    return with_estimates(made, place, device=this_machine(device).device)


def run(
    recipe: PathLike,
    *,
    overrides: Sequence[str] = (),
    until: str | None = None,
    only: str | None = None,
    store: PathLike | None = None,
    device: str = "auto",
    workers: int | None = None,
    engine: str | None = None,
    argv: Sequence[str] = (),
    trackers: Sequence[str] = (),
    listener: Listener | None = None,
) -> RunView:
    """Run what is not cached and return the run. Raises `TunesmithError` for what a user can act on.

    `engine` is `local`, `ray` or `ray://HOST:PORT`, and wins over the recipe's. `trackers` are names of experiment
    trackers that follow each training: tensorboard, mlflow, wandb, trackio.
    """
    from tunesmith.api.tracking import TrackingListener

    place = open_store(store)
    loaded = open_recipe(recipe, overrides=overrides)
    chosen = chosen_engine(loaded, engine)
    made = make_plan(loaded, place, until=until, only=only)
    machine = this_machine(device, workers=workers, engine=chosen, argv=tuple(argv))
    settings = {planned.name: planned.settings for planned in made.stages}
    with TrackingListener(
        listener or Silent(), trackers, run=made.recipe.name, settings=settings, folder=place.root / "tracking"
    ) as followed:
        record = execute(made, place, listener=followed, machine=machine)
    return view_run(place, record)


def show(run: str | None = None, stage: str | None = None, *, store: PathLike | None = None) -> RunView:
    """Return a run (the newest by default), or one stage of it. Raises `StoreError` where there is none."""
    return find_view(open_store(store), run, stage=stage)


def runs(*, store: PathLike | None = None) -> list[str]:
    """Return the names of all runs, newest first."""
    return run_names(open_store(store))


def diff(before: str, after: str, *, store: PathLike | None = None) -> Difference | DataDifference:
    """Compare two runs, two recipe files, or one of each; two contracts; or two data versions (curated rows, splits).

    Contracts and data versions are folders or fingerprints of artifacts. Raises `StoreError` or `RecipeError` where one
    cannot be read.
    """
    from tunesmith.api.data_difference import data_difference, find_version

    place = open_store(store)
    versions = [find_version(place, name) for name in (before, after)]
    if versions[0] is not None and versions[1] is not None:
        if versions[0].kind != versions[1].kind:
            raise StoreError(
                "only data versions of one kind can be compared",
                expected="two artifacts of curated rows, or two of splits",
                found=f"{versions[0].kind} and {versions[1].kind}",
            )
        return data_difference(versions[0], versions[1], place)
    folders = [_contract_folder(place, name) for name in (before, after)]
    if folders[0] is not None and folders[1] is not None:
        return _contract_difference(before, after, folders[0], folders[1])
    return difference(_side(place, before), _side(place, after))


def _side(store: Store, name: str) -> Side:
    if Path(name).suffix in (".yaml", ".yml"):
        return side_of_recipe(open_recipe(name))
    return side_of_run(store, find_run(store, name))


def _contract_folder(store: Store, name: str) -> Path | None:
    """Return the folder with `contract.json` that `name` means: a folder, an artifact's folder or its fingerprint."""
    for folder in (Path(name), Path(name) / "data"):
        if (folder / "contract.json").is_file():
            return folder
    fitting = [artifact for artifact in store.all("contract") if artifact.fingerprint.startswith(name)]
    return fitting[0].path if len(fitting) == 1 and len(name) >= 6 else None


def _contract_difference(before: str, after: str, a: Path, b: Path) -> Difference:
    from tunesmith.chat.diff import diff_contracts

    parts = tuple(
        Change(key=f"{part.severity}: {part.part}", before=part.before, after=part.after)
        for part in diff_contracts(a, b)
    )
    return Difference(before=before, after=after, stages=(), contract=parts)


def export(
    target: PathLike | None,
    out: PathLike,
    *,
    to: str,
    dtype: str | None = None,
    base: PathLike | None = None,
    device: str = "auto",
    store: PathLike | None = None,
) -> Export:
    """Write a bundle's model and its contract to the new folder `out`: `to` is `merged` or `gguf`.

    See `api.exporting.export` for number formats and for what is raised.
    """
    from tunesmith.api.exporting import export as write

    return write(target, out, to=to, dtype=dtype, base=base, device=device, store=store)


def explain(
    what: str,
    *,
    run: str | None = None,
    recipe: PathLike | None = None,
    store: PathLike | None = None,
    near_threshold: float | None = None,
) -> Explanation:
    """Tell all that is known of a row id, a `SOURCE:LINE`, a stage of a run, or a recipe key.

    With `near_threshold`, `what` is a curation, and the answer is what that threshold would drop there. Raises
    `PlanError` where nothing is called that.
    """
    place = open_store(store)
    known = stages()
    record = find_run(place, run) if run is not None or run_names(place) else None
    if record is not None and what in record.stages:
        artifact = artifact_of(place, record.stages[what])
        if near_threshold is not None:
            return explain_threshold(artifact, near_threshold, table=what)
        return explain_stage(artifact, _planned(place, record, recipe=recipe, table=what), table=what)
    if near_threshold is not None:
        raise PlanError(
            f"{what!r} is no curation of a run",
            expected="the name of a curate stage that has run, as in: explain curate --near-threshold 0.7",
            hint="tunesmith show lists the stages of the newest run",
        )
    tables = {name: stage.stage for name, stage in record.stages.items()} if record else {}
    head = what.split(".", 1)[0]
    if looks_like_row(what) and head not in known and head not in tables:
        if record is None:
            raise StoreError("there are no runs yet", where=str(place.runs), hint="tunesmith run RECIPE")
        return explain_row(place, record, what=what)
    return explain_key(what, known, tables=tables)


def _planned(store: Store, record: RunRecord, *, recipe: PathLike | None, table: str) -> PlannedStage | None:
    """Return what a run would do with a stage now: by the recipe file, or by the run's copy where that is gone."""
    path = Path(recipe or record.recipe_path)
    if path.exists():
        loaded = open_recipe(path, overrides=record.overrides)
    else:
        text = (store.runs / record.run / "recipe.yaml").read_text(encoding="utf-8")
        loaded = parse_recipe(text, stages(), path=path, overrides=record.overrides)
    if table not in loaded.tables:
        return None
    return next(planned for planned in make_plan(loaded, store, until=table).stages if planned.name == table)


def gc(*, store: PathLike | None = None) -> tuple[Garbage, ...]:
    """Return what no run and no ref needs; nothing is deleted. `collect` deletes it."""
    return find_garbage(open_store(store))


def collect(garbage: Sequence[Garbage], *, store: PathLike | None = None) -> int:
    """Delete what `gc` returned and is still garbage; return the bytes freed. Raises `StoreError` while a run works."""
    return delete(open_store(store), garbage)


def takedown(
    *,
    sources: Sequence[str] = (),
    subjects: Sequence[str] = (),
    content_hashes: Sequence[str] = (),
    file: PathLike | None = None,
    note: str = "",
    dry_run: bool = False,
    store: PathLike | None = None,
) -> Takedown:
    """Find the rows, data versions, weights, bundles and refs that an opt-out touches and, unless dry, mark them.

    Raises `DataError` for an opt-out file that cannot be read, `PlanError` for an empty opt-out.
    """
    from tunesmith.api.opt_out import takedown as take
    from tunesmith.data.takedown import make_opt_out, read_opt_out

    given = make_opt_out(sources=sources, subjects=subjects, content_hashes=content_hashes, where="--content")
    return take(
        given if file is None else given | read_opt_out(Path(file)), store=open_store(store), note=note, dry_run=dry_run
    )


def takedowns(*, store: PathLike | None = None) -> list[Mark]:
    """Return the takedowns in force, oldest first."""
    from tunesmith.api.opt_out import takedowns as in_force

    return in_force(open_store(store))


def lift_takedown(mark_id: str, *, note: str, store: PathLike | None = None) -> Mark:
    """Take a takedown back, by its id or the end of it. Raises `StoreError` where none is called that."""
    from tunesmith.api.opt_out import lift

    return lift(mark_id, store=open_store(store), note=note)
