"""Croissant 1.1: a data version described for programs, with its files' checksums, fields, licences and RAI facts.

What lives here: `croissant.json` as plain values. What does not: the facts (`data.datasheet`); checking the result,
which tests do with mlcroissant. What nobody said is left out, as the vocabulary has no word for unknown.

Source: Croissant format specification 1.1 and Croissant RAI 1.0, mlcommons.org.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.data.datasheet import DataFacts
from tunesmith.data.licenses import PERMISSIVE
from tunesmith.types import JSON

CONFORMS_TO = ("http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0")
PARQUET = "application/x-parquet"
_CONTEXT: dict[str, JSON] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_FILES = {
    "rows.parquet": "Rows that may train. messages, tools, labels and rejected hold JSON text.",
    "rejects.parquet": "Rows that were dropped, with stage, reason and the row that they were dropped for.",
    "lineage.parquet": "One record for each row that came in: what was done to it, and hashes before and after.",
}
_TYPES = ((pa.types.is_integer, "sc:Integer"), (pa.types.is_floating, "sc:Float"), (pa.types.is_boolean, "sc:Boolean"))


def croissant(folder: Path, facts: DataFacts) -> dict[str, JSON]:
    """Return the description of the data version whose files stand in `folder`."""
    about = facts.about
    files = {name: _sha256(folder / name) for name in _FILES}
    out: dict[str, JSON] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS_TO),
        "name": about.name or "curated-rows",
        "description": about.description or "Conversations for supervised fine-tuning, curated by tunesmith.",
        "version": f"0.0.0+{files['rows.parquet'][:12]}",
        "license": [_license(name) for name in facts.licenses if name != "unknown"],
        "distribution": [_file(name, words, files[name]) for name, words in _FILES.items()],
        "recordSet": [_record_set(folder / name) for name in _FILES],
        **_rai(facts),
    }
    if about.url:
        out["url"] = about.url
    if about.creators:
        out["creator"] = [{"@type": "sc:Organization", "name": name} for name in about.creators]
    return out


def _license(name: str) -> str:
    return f"https://spdx.org/licenses/{name}.html" if name in PERMISSIVE else name


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _file(name: str, words: str, sha256: str) -> dict[str, JSON]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "description": words,
        "contentUrl": name,
        "encodingFormat": PARQUET,
        "sha256": sha256,
    }


def _record_set(path: Path) -> dict[str, JSON]:
    stem = path.stem
    schema = pq.read_schema(path)
    flat = [column for column in schema if not pa.types.is_nested(column.type)]
    key = next(name for name in ("row_id", "id") if name in schema.names)
    return {
        "@type": "cr:RecordSet",
        "@id": stem,
        "name": stem,
        "key": {"@id": f"{stem}/{key}"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{stem}/{column.name}",
                "name": column.name,
                "dataType": _data_type(column.type),
                "source": {"fileObject": {"@id": path.name}, "extract": {"column": column.name}},
            }
            for column in flat
        ],
    }


def _data_type(kind: pa.DataType) -> str:
    return next((name for fits, name in _TYPES if fits(kind)), "sc:Text")


def _rai(facts: DataFacts) -> dict[str, JSON]:
    """Return what the RAI vocabulary has a place for and the rows or the recipe say."""
    steps = [f"{step.reason}: {step.rows} rows dropped" for step in facts.funnel.steps]
    changed: Mapping[str, int] = facts.summary["changed"]
    steps += [f"{reason}: {count} rows changed" for reason, count in changed.items()]
    found: Mapping[str, int] = facts.summary["pii"]
    made_by = sorted({maker for source in facts.sources.values() for maker in source.makers})
    given: dict[str, JSON] = {
        "rai:dataCollection": _collection(facts),
        "rai:dataCollectionTimeFrame": None if facts.dates is None else list(facts.dates),
        "rai:dataPreprocessingProtocol": steps,
        "rai:personalSensitiveInformation": [
            f"{kind}: {count} replaced by placeholders" for kind, count in found.items()
        ],
        "rai:machineAnnotationTools": made_by,
        "rai:dataUseCases": facts.about.purpose,
        "rai:dataLimitations": facts.about.limitations,
        "rai:dataReleaseMaintenancePlan": facts.about.maintenance,
    }
    return {name: value for name, value in given.items() if value}


def _collection(facts: DataFacts) -> str:
    def words(counts: Mapping[str, int]) -> str:
        return " and ".join(counts)

    return "; ".join(f"{name}: {part.rows} rows, {words(part.kinds)}" for name, part in facts.sources.items())
