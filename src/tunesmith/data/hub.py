"""Data sets of the Hugging Face hub, read through `datasets` and one batch in memory at a time.

What lives here: one split of one data set at one commit becomes records. What does not: data sets that were saved to
disk, which are read without `datasets` (`data.files`).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from tunesmith.data.records import BadRecord, Record
from tunesmith.data.tables import table_records
from tunesmith.errors import DataError, MissingExtra

_BATCH_ROWS = 1024


def read_hub(name: str, *, subset: str | None, part: str, revision: str) -> Iterator[Record | BadRecord]:
    """Yield the rows of a split. Raises `MissingExtra` without `datasets`, `DataError` where it cannot be had."""
    import httpx

    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingExtra("datasets", extra="hub", needed_for=f"the hub source {name!r}") from error
    where = f"{name}@{revision}, split {part}" + (f", configuration {subset}" if subset else "")
    try:
        data = datasets.load_dataset(name, subset, split=part, revision=revision)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise _not_loaded(name, where, error) from error
    names = list(data.column_names)
    if len(data) == 0:
        raise DataError(
            f"{name} holds no records", where=where, expected="at least one record", found=f"columns {names}"
        )
    yield from table_records(
        batch for table in data.with_format("arrow").iter(batch_size=_BATCH_ROWS) for batch in table.to_batches()
    )


def _not_loaded(name: str, where: str, error: Exception) -> DataError:
    """Say why a data set cannot be had: the network, its name, its split, or its configuration."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    hint = (
        "check the name, the split and the configuration on the data set's page, and HF_TOKEN where access is limited"
    )
    text = str(error).lower()
    offline = ("offline", "connect", "resolve", "timed out", "couldn't reach", "network")
    if isinstance(error, ConnectionError) or any(word in text for word in offline):
        hint = (
            "the hub cannot be reached from here: fetch the data set where it can "
            "(datasets.load_dataset(...).save_to_disk(FOLDER)) and name the folder in ingest.sources"
        )
    return DataError(
        f"the hub data set {name!r} cannot be loaded", where=where, found=f"{type(error).__name__}: {first}", hint=hint
    )
