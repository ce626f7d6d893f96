"""curate and split give the same files, byte for byte, on a local Ray of two processes and on the local engine."""

import importlib.util
import json
import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tunesmith.data import engines, wordtable
from tunesmith.data.curation import Rules, curate_rows
from tunesmith.data.filters import Quality
from tunesmith.data.split import SIDES, split_rows
from tunesmith.data.words import answer_text, normal_text, prompt_text
from tunesmith.data.write import read_rows
from tunesmith.types import EngineChoice

RAY = EngineChoice(kind="ray", num_workers=2)
SETTINGS = {
    "allow_unknown": True,
    "evaluations": {"held": "items.jsonl"},
    "quality": {"truncated": "drop", "word_list": "words.txt", "checks": [{"file": "house.py", "function": "check"}]},
}
_NOUNS = "parcel lamp chair table letter order invoice garden shop river window kettle bicycle museum".split()  # noqa: SIM905


def records(number, seed=3):
    """Rows of which some repeat others, hold personal data, an evaluation's item, a listed word, or end in a comma."""
    chance = random.Random(seed)
    made = []
    for line in range(number):
        kind = chance.random()
        nouns = chance.choices(_NOUNS, k=12)
        prompt = f"Tell me {line} things about the {' and the '.join(nouns)}, please"
        answer = f"There are {line} of them near the {' by the '.join(reversed(nouns))}."
        if kind < 0.15 and made:
            earlier = chance.choice(made)
            prompt, answer = (
                earlier["instruction"].upper() if kind < 0.05 else earlier["instruction"],
                earlier["output"],
            )
        elif kind < 0.25:
            prompt += f". Write to user{line}@example.org or call +49 30 {1_000_000 + line}."
        elif kind < 0.3:
            prompt = "Question: how many red lanterns hang in the old harbour when the ferry leaves at seven o'clock?"
        elif kind < 0.35:
            answer = answer[:-1] + ","
        elif kind < 0.4:
            answer += " Damnation!"
        elif kind < 0.45:
            prompt = f"A shop sells {line} lamps in spring and {line + 7} lamps in autumn. How many does it sell?"
        made.append({"instruction": prompt, "input": "", "output": answer})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("agree")
    (root / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(600)))
    item = "How many red lanterns hang in the old harbour when the ferry leaves at seven o'clock?"
    (root / "items.jsonl").write_text(json.dumps({"prompt": item}) + "\n")
    (root / "words.txt").write_text("damnation\n")
    (root / "house.py").write_text(
        "def check(row):\n    return 'kettle' if 'kettle' in str(row['messages']) else None\n"
    )
    return root


def made_with(run_stage, folder, work, **more):
    work.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (work / path.name).write_bytes(path.read_bytes())
    rows = run_stage("ingest", {}, {"sources": [{"path": "rows.jsonl"}]}, work)
    curated = run_stage("curate", {"rows": rows}, SETTINGS, work, **more)
    return curated, run_stage("split", {"rows": curated}, {}, work, **more)


def digests(artifact):
    return {file.path: file.sha256 for file in artifact.manifest.outputs}


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_local_ray_of_two_processes_gives_the_digests_of_the_local_engine(run_stage, folder, tmp_path):
    here = made_with(run_stage, folder, tmp_path / "local")
    there = made_with(run_stage, folder, tmp_path / "ray", engine=RAY)
    summary = here[0].summary
    assert all(summary["dropped"][reason] for reason in ("exact_duplicate", "truncated")), summary
    assert all(summary["flagged"][reason] for reason in ("contaminated", "listed_words", "house.check")), summary
    assert summary["pii_rows"]
    for local, ray in zip(here, there, strict=True):
        assert ray.manifest.provenance["engine"] == "ray"
        assert digests(ray) == digests(local)
        assert ray.manifest.digest == local.manifest.digest


@pytest.fixture(scope="module")
def rows(run_stage, folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("rows")
    (work / "rows.jsonl").write_bytes((folder / "rows.jsonl").read_bytes())
    return read_rows(run_stage("ingest", {}, {"sources": [{"path": "rows.jsonl"}]}, work).path / "rows.parquet")[:240]


RULES = Rules(
    unknown_license="keep",
    quality=Quality(actions={"truncated": "drop", "repetition": "flag"}),
    evaluations={"held": ["How many red lanterns hang in the old harbour when the ferry leaves at seven o'clock?"]},
)


def curated(rows):
    return curate_rows(rows, RULES, lint=None)


def everything(made):
    return made.rows, made.ledger.rejects, list(made.ledger.actions), made.duplicates, made.personal_data


def sides(rows):
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    return split_rows(rows, shares=shares, label=None, near_threshold=0.6).sides


@settings(max_examples=4, phases=[Phase.explicit, Phase.generate])
@given(part=st.integers(1, 300), chunk=st.integers(1, 300), of_texts=st.integers(1, 300))
def test_results_do_not_depend_on_the_size_of_parts(rows, part, chunk, of_texts):
    whole = everything(curated(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "ROWS_PER_PART", part)
        patch.setattr(wordtable, "_ROWS_PER_CHUNK", chunk)
        patch.setattr("tunesmith.data.decontam._CHUNK_TEXTS", of_texts)
        assert everything(curated(rows)) == whole


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_and_why_the_rest_goes_does_not_depend_on_the_order_of_the_rows(rows, seed):
    """Of equal rows (but for case) the first stays: which of them that is follows the order, and nothing else does."""
    chance = random.Random(seed)
    shuffled = chance.sample(rows, len(rows))
    before, after = curated(rows), curated(shuffled)
    assert contents(after.rows) == contents(before.rows)
    assert after.summary() == before.summary()
    assert near_pairs(after) == near_pairs(before)
    dealt, dealt_again = sides(before.rows), sides(chance.sample(before.rows, len(before.rows)))
    for side in SIDES:
        assert {row.id for row in dealt_again[side]} == {row.id for row in dealt[side]}


def contents(rows):
    said = ((prompt_text(row.conversation), answer_text(row.conversation)) for row in rows)
    return sorted((normal_text(prompt), normal_text(answer)) for prompt, answer in said)


def near_pairs(made):
    pairs, rows = made.compared.pairs, made.compared.rows
    return {
        (frozenset((rows[left].id, rows[right].id)), score)
        for left, right, score in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.same_at.tolist(), strict=True)
    }
