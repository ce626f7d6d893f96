"""The tagger of names: Presidio over a spaCy model that is installed here. Nothing is ever downloaded.

What lives here: whether package and model are there, and texts in, spans out; the only file that imports Presidio and
spaCy (the extra `pii`). What does not: which of the spans are names and where they are replaced (`data.names`).

Presidio downloads a model that it misses, and dials out for e-mail addresses; here it gets a model that is loaded
already, and the one recogniser that reads what the model tagged.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from tunesmith.data.names import Tag
from tunesmith.data.patterns import Span
from tunesmith.errors import MissingExtra, PlanError
from tunesmith.types import JSON

LABELS = {
    "PERSON": "PERSON",
    "PER": "PERSON",
    "GPE": "LOCATION",
    "LOC": "LOCATION",
    "FAC": "LOCATION",
    "ORG": "ORGANIZATION",
}
"""What spaCy's models call names -> what Presidio calls them."""
_NOT_NEEDED = ["tagger", "parser", "senter", "attribute_ruler", "lemmatizer", "morphologizer", "textcat"]
_TEXTS_AT_ONCE = 128
_MAX_CHARS = 20_000
"""Longest piece that is tagged at once: spaCy's memory grows with it."""


def check_model(model: str, *, version: str, kinds: frozenset[str]) -> None:
    """Refuse what cannot tag, without importing it. Raises `MissingExtra`, or `PlanError` that says what to install."""
    for package in ("presidio_analyzer", "spacy"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, extra="pii", needed_for="curate.names")
    meta = _meta(model)
    if meta is None:
        raise PlanError(
            f"the spaCy model {model!r} is not installed",
            where="curate.names.model",
            expected="the import name of an installed spaCy model package with a meta.json",
            found="no such package" if importlib.util.find_spec(model) is None else "a package that is no model",
            hint=f"install the model's package (version {version}) beside tunesmith[pii]; none is downloaded here",
        )
    if meta["version"] != version:
        raise PlanError(
            f"the spaCy model {model!r} has another version than the recipe says",
            where="curate.names.version",
            expected=version,
            found=str(meta["version"]),
            hint="install that version, or name the installed one: another model finds other names",
        )
    tagged = {
        LABELS[label] for labels in dict(meta.get("labels") or {}).values() for label in labels if label in LABELS
    }
    if kinds - tagged:
        raise PlanError(
            f"the spaCy model {model!r} does not find {', '.join(sorted(kinds - tagged))}",
            where="curate.names.find",
            expected="types that the model was trained for",
            found=", ".join(sorted(tagged)) or "a model without named entities",
        )


def _meta(model: str) -> dict[str, JSON] | None:
    found = importlib.util.find_spec(model)
    path = None if found is None or found.origin is None else Path(found.origin).parent / "meta.json"
    if path is None or not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return meta if isinstance(meta, dict) and "version" in meta and "lang" in meta else None


def load_tagger(model: str, *, version: str, kinds: frozenset[str]) -> Tag:
    """Return a tagger of these kinds. Raises what `check_model` raises."""
    check_model(model, version=version, kinds=kinds)
    presidio = importlib.import_module("presidio_analyzer")
    engines = importlib.import_module("presidio_analyzer.nlp_engine")
    recognizers = importlib.import_module("presidio_analyzer.predefined_recognizers")
    pipeline = importlib.import_module(model).load(exclude=_NOT_NEEDED)
    language: str = pipeline.lang
    others = {label for name in pipeline.pipe_names for label in pipeline.pipe_labels.get(name, ())} - set(LABELS)
    engine = engines.SpacyNlpEngine(
        models=[{"lang_code": language, "model_name": model}],
        ner_model_configuration=engines.NerModelConfiguration(
            model_to_presidio_entity_mapping=LABELS, labels_to_ignore=sorted(others), low_score_entity_names=[]
        ),
    )
    engine.nlp = {language: pipeline}
    assert engine.is_loaded(), "Presidio would load a model of its own"
    reader = recognizers.SpacyRecognizer(supported_language=language, supported_entities=sorted(kinds))
    registry = presidio.RecognizerRegistry(recognizers=[reader], supported_languages=[language])
    analyzer = presidio.AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])
    batches = presidio.BatchAnalyzerEngine(analyzer)

    def tag(texts: Sequence[str]) -> list[list[Span]]:
        pieces = [(number, *piece) for number, text in enumerate(texts) for piece in _pieces(text)]
        results = batches.analyze_iterator(
            [piece for _, _, piece in pieces], language, batch_size=_TEXTS_AT_ONCE, entities=sorted(kinds)
        )
        tagged: list[list[Span]] = [[] for _ in texts]
        for (number, at, _), found in zip(pieces, results, strict=True):
            tagged[number] += [Span(start=at + r.start, end=at + r.end, kind=r.entity_type) for r in found]
        return [sorted(spans, key=lambda span: span.start) for spans in tagged]

    return tag


def _pieces(text: str) -> list[tuple[int, str]]:
    """A text in pieces, each with its place, cut behind a line or else a word."""
    pieces = []
    at = 0
    while len(text) - at > _MAX_CHARS:
        end = max(text.rfind("\n", at, at + _MAX_CHARS), text.rfind(" ", at + _MAX_CHARS // 2, at + _MAX_CHARS)) + 1
        end = end if end > at else at + _MAX_CHARS
        pieces.append((at, text[at:end]))
        at = end
    return [*pieces, (at, text[at:])]
