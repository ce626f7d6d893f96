"""Settings of the `curate` stage, and what is known to be wrong with them.

What lives here: `CurateSpec` and its checks before the run. What does not: the stage itself (`stages.curate`), the
rules (`data.curation`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.data.licenses import PERMISSIVE
from tunesmith.errors import PlanError

PersonalData = Literal[
    "EMAIL",
    "PHONE",
    "IBAN",
    "CARD",
    "BANK_ACCOUNT",
    "CRYPTO_WALLET",
    "NATIONAL_ID",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "ADDRESS",
    "DATE_OF_BIRTH",
    "API_KEY",
    "SECRET",
    "PASSWORD",
    "URL_PASSWORD",
    "PRIVATE_KEY",
    "JWT",
]


class OptOutSpec(Spec):
    """Who and what asked to leave."""

    sources: list[str] = Field(default_factory=list)
    """Names of sources."""
    subjects: list[str] = Field(default_factory=list)
    """Ids of persons, as the rows' subject field holds them."""
    content_hashes: list[str] = Field(default_factory=list)
    """sha256 of contents, as `lineage.parquet` and `api.content_hash(record)` give them."""
    file: ContentPath | None = None
    """YAML or JSON with the same three lists, added to them; `tunesmith takedown --file` reads it as well."""

    @field_validator("content_hashes")
    @classmethod
    def _are_sha256(cls, hashes: list[str]) -> list[str]:
        for text in hashes:
            if re.fullmatch(r"[0-9a-fA-F]{64}", text) is None:
                raise ValueError(f"expected a sha256 of 64 hex digits, found {text!r}")
        return [text.lower() for text in hashes]


class AboutSpec(Spec):
    """What only people know of the data, for datasheet and Croissant file; what nobody says is unknown there."""

    name: str | None = None
    """Name of the data set."""
    description: str | None = None
    """What a row is, and what the whole holds."""
    creators: tuple[str, ...] = ()
    """Who made it."""
    url: str | None = None
    """Where it can be had."""
    purpose: str | None = None
    """What it is for."""
    limitations: str | None = None
    """What it lacks, and what it must not be used for."""
    maintenance: str | None = None
    """Who keeps it up, and how."""


Action = Literal["off", "flag", "drop"]


class CheckSpec(Spec):
    """A check of your own: a Python function that gets a row and returns what is wrong with it, or nothing."""

    file: ContentPath
    """The Python file; its content is part of the data's identity."""
    function: str = "check"
    """Name of the function: `def check(row)`, where `row` is `{"messages": [...], "tools": [...]}`."""
    action: Literal["flag", "drop"] = "flag"
    """What is done with a row of which the function says something."""


class QualitySpec(Spec):
    """Quality rules: each is off, flags rows for a person to look at, or drops them. Docs: data.md."""

    too_short: Action = "off"
    """Answers of fewer than `min_answer_words` words; off by default, as labels are short."""
    min_answer_words: int = Field(default=3, ge=1)
    """Shortest answer in words, for `too_short`."""
    language: Action = "flag"
    """Rows in none of `languages`; nothing is looked at where that is empty."""
    languages: list[str] = Field(default_factory=list)
    """ISO 639-1 codes (`en`, `de`) of the languages that rows may be in; any for []."""
    repetition: Action = "flag"
    """Answers that repeat themselves."""
    max_repetition: float = Field(default=0.6, ge=0, le=1)
    """Share of an answer's 4-word runs that may stand in it before, for `repetition`."""
    truncated: Action = "flag"
    """Prose answers that end in a comma or in a word such as "the"."""
    refusal: Action = "flag"
    """Answers that open with a boilerplate refusal."""
    prompt_copied: Action = "flag"
    """Answers that begin with the whole prompt."""
    broken_fence: Action = "flag"
    """Answers with a code block that is never closed."""
    broken_json: Action = "flag"
    """Answers that begin as JSON, JSON blocks and arguments of calls that do not parse."""
    listed_words: Action = "flag"
    """Rows that hold a word of `word_list`."""
    word_list: ContentPath | None = None
    """Text file of words, one a line, for `listed_words`: profanity, names of competitors; none is bundled."""
    checks: list[CheckSpec] = Field(default_factory=list)
    """Checks of your own."""


class SemanticSpec(Spec):
    """Rows that may say the same in other words: flagged for a person, never dropped."""

    embeddings: ContentPath
    """Folder of static embeddings as model2vec writes it, or of a language model, whose input embedding is taken."""
    threshold: float = Field(0.85, gt=0, le=1)
    """Cosine from which two rows are told: of the prompts, and of the answers where these are long."""


class DifficultySpec(Spec):
    """Perplexity and instruction-following difficulty (IFD) of answers under the base model. Docs: data.md."""

    max_ifd: float | None = Field(1.0, gt=0)
    """Largest IFD: above 1 the prompt makes the answer less likely."""
    min_ifd: float | None = Field(None, gt=0)
    """Smallest IFD: below it the base model gives the answer anyway."""
    max_perplexity: float | None = Field(None, gt=1)
    """Largest perplexity of an answer behind its prompt."""
    action: Literal["flag", "drop"] = "flag"
    """What is done with rows outside the limits; a flag is for a person to look at."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the model; bfloat16 is faster where the processor has it, and moves scores a little."""


class NamesSpec(Spec):
    """Names, found by a spaCy model through Presidio (`tunesmith[pii]`). Docs: data.md."""

    model: str = Field(pattern=r"^[A-Za-z]\w*$")
    """Import name of the installed spaCy model package, such as `en_core_web_sm`; none is ever downloaded."""
    version: str
    """Version of that package: another one finds other names, so it is refused."""
    find: list[Literal["PERSON", "LOCATION", "ORGANIZATION"]] = Field(default=["PERSON"], min_length=1)
    """Types of names to replace."""
    spare: list[str] = Field(default_factory=list)
    """Names that stay, in any case: public figures, products, your own firm."""


class CurateSpec(Spec):
    """Settings of curate."""

    licenses: list[str] = Field(default_factory=lambda: list(PERMISSIVE))
    """SPDX identifiers that may be trained on."""
    allow_unknown: bool = False
    """Whether rows that say no licence may be trained on."""
    opt_out: OptOutSpec = OptOutSpec()
    """Sources, persons and contents that must not be trained on."""
    max_chars: int = Field(200_000, gt=0)
    """Longest row, in characters over all turns."""
    quality: QualitySpec = QualitySpec()
    """Quality rules over single rows, and what is done with rows that break them."""
    redact: list[PersonalData] | None = None
    """Types of personal data and secrets to replace by placeholders; all where nothing is said, none for []."""
    names: NamesSpec | None = None
    """Names to replace by placeholders as well; none are looked for where nothing is said."""
    near_duplicates: float = Field(0.6, gt=0, le=1)
    """IDF-weighted overlap of words from which two long texts are near-duplicates; short texts need more."""
    semantic: SemanticSpec | None = None
    """Looks for rows that may say the same in other words; off where nothing is said."""
    difficulty: DifficultySpec | None = None
    """Lets the base model score every answer; off where nothing is said, as it takes a model's time."""
    evaluations: dict[str, ContentPath] = Field(default_factory=dict)
    """Evaluation -> file of its items (any shape that ingest reads): training rows that hold one are contaminated."""
    contaminated: Literal["flag", "drop"] = "flag"
    """What is done with contaminated rows; a flag is for a person to look at."""
    about: AboutSpec = AboutSpec()
    """What only people know of the data."""
    decisions: ContentPath | None = None
    """File of reviewers' decisions (`tunesmith review`), applied before the rules that they overrule."""
    production: ContentPath | None = None
    """Prompts from production, a file or a `traces.sqlite`: the report says which of them no row is like."""

    @field_validator("licenses")
    @classmethod
    def _are_spdx(cls, licenses: list[str]) -> list[str]:
        from tunesmith.data.licenses import spdx_expression

        for license in licenses:
            spdx_expression(license)
        return licenses


def check_curate(spec: CurateSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Warn of settings that weaken the data's standing; refuse a model of names that is not here."""
    warnings = []
    if spec.allow_unknown:
        warnings.append("curate.allow_unknown: rows without a licence are trained on")
    if spec.redact == []:
        warnings.append("curate.redact is empty: personal data and secrets stay in the data")
    if spec.semantic is not None:
        from tunesmith.data.embeddings import find_tensors

        find_tensors(Path(spec.semantic.embeddings))

    if spec.difficulty is not None:
        missing = [table for table, fed in (("contract", "contract"), ("fetch", "base")) if fed not in inputs]
        if missing:
            raise PlanError(
                "curate.difficulty needs a contract and a base model",
                expected="tables `contract` and `fetch`",
                found=f"no table {' and none '.join(missing)}",
                hint="add them, or leave curate.difficulty out",
            )
    if spec.names is not None:
        from tunesmith.data.ner import check_model

        check_model(spec.names.model, version=spec.names.version, kinds=frozenset(spec.names.find))
    return warnings
