"""Tables of answers become figures; slices, samples, cached completions, canaries."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError, RecipeError
from tunesmith.evals.attacks import case_item, score_attack
from tunesmith.evals.completions import generate_cached
from tunesmith.evals.general import CONTEXT_TOKENS, general_passages, passage_pairs
from tunesmith.evals.memorization import Canary, exposures, rankable, read_canaries, revealed
from tunesmith.evals.redteam import Expectation, RedTeamCase, Setting
from tunesmith.evals.refusal import SENSITIVITY
from tunesmith.evals.results import figures, pick_samples
from tunesmith.evals.run import Answer, EvalItem
from tunesmith.evals.slices import slice_values
from tunesmith.types import Completion, Conversation, FinishReason, Message, Provenance, Row


def answer(row_id, system, **scores):
    return Answer(
        row_id=row_id,
        system=system,
        output="o",
        finish_reason=FinishReason.STOP,
        prompt_tokens=3,
        output_tokens=2,
        seconds=0.5,
        scores=scores,
    )


def items(n, **slices):
    return [
        EvalItem(
            row_id=f"r{i}", prompt_ids=(i,), prompt=f"p{i}", expected="e", slices={k: v(i) for k, v in slices.items()}
        )
        for i in range(n)
    ]


def test_scores_are_paired_over_the_items_that_both_systems_answered():
    answers = [answer(f"r{i}", "base", exact_match=0.0) for i in range(20)]
    answers += [answer(f"r{i}", "tuned", exact_match=float(i < 15)) for i in range(20)]
    answers += [answer("r20", "tuned", exact_match=1.0)]
    found = figures(items(21), answers)
    assert found["tuned"]["exact_match"]["n"] == 21
    assert found["paired"]["exact_match"]["n"] == 20
    assert found["paired"]["exact_match"]["difference"] == 0.75
    assert found["paired"]["exact_match"]["only_challenger"] == 15
    assert found["base"]["exact_match"]["zero_upper_95"] == pytest.approx(0.139, abs=1e-3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_small_slices_are_counted_and_get_no_figures_and_others_are_adjusted():
    both = [
        answer(f"r{i}", s, exact_match=float(s == "tuned" or i % 9 == 0)) for i in range(40) for s in ("base", "tuned")
    ]
    found = figures(items(40, kind=lambda i: "rare" if i < 3 else "even" if i % 2 else "odd"), both)["slices"]["kind"]
    assert found["rare"] == {"n": 3}
    paired = found["even"]["paired"]["exact_match"]
    assert paired["p_holm"] >= paired["p"]
    assert sum(entry["n"] for entry in found.values()) == 40


def test_samples_take_turns_over_the_outcomes():
    answers = []
    for i in range(12):
        answers += [
            answer(f"r{i}", "base", m=float(i % 4 in (1, 3))),
            answer(f"r{i}", "tuned", m=float(i % 4 in (2, 3))),
        ]
    picked = pick_samples(items(12), answers, right=lambda a: a.scores["m"] == 1, most=8)
    assert (
        sorted(sample["outcome"] for sample in picked)
        == ["both_right"] * 2 + ["both_wrong"] * 2 + ["broken"] * 2 + ["fixed"] * 2
    )
    assert pick_samples(items(12), answers, right=lambda a: a.scores["m"] == 1, most=8) == picked
    assert len(pick_samples(items(12), answers, right=lambda a: True, most=99)) == 12


def row(text, expected, **labels):
    messages = (Message(role="user", content=text), Message(role="assistant", content=expected))
    provenance = Provenance(source="s", path="p", line=1)
    return Row(id=text, conversation=Conversation(messages=messages), provenance=provenance, labels=labels)


def test_slices_come_from_labels_fields_and_shape():
    rows = [row("a", '{"intent": "x", "ok": true}', topic="t1"), row("b", '{"intent": "y"}'), row("c", "text")]
    found = slice_values(
        rows, lengths=[5, 10, 20], dimensions=["intent", "ok", "topic", "length", "source", "turns", "language"]
    )
    assert found[0] == {
        "intent": "x",
        "ok": "true",
        "topic": "t1",
        "length": "short",
        "source": "s",
        "turns": "1",
        "language": "unknown",
    }
    assert "intent" not in found[2]
    assert [item["length"] for item in found] == ["short", "middle", "long"]
    with pytest.raises(RecipeError, match="topic"):
        slice_values(rows, lengths=[1, 2, 3], dimensions=["topik"])


def test_languages_are_told_apart():
    rows = [
        row("Where is my parcel? I have been waiting for it since Monday.", "x"),
        row("Wo ist mein Paket? Ich warte seit Montag darauf, bitte helfen Sie mir.", "x"),
    ]
    assert [item["language"] for item in slice_values(rows, lengths=[1, 1], dimensions=["language"])] == ["en", "de"]


class Counting:
    """A generator that remembers what it was asked, and may fail after some prompts."""

    def __init__(self, fail_after=None):
        self.asked, self.fail_after = [], fail_after

    def __call__(self, prompts):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise RuntimeError("power cut")
        self.asked += [tuple(prompt) for prompt in prompts]
        return [
            Completion(ids=tuple(reversed(p)), finish_reason=FinishReason.STOP, prompt_tokens=len(p)) for p in prompts
        ]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=12))
def test_cached_answers_keep_their_order_and_are_generated_once(prompts):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "c.jsonl"
        first, second = Counting(), Counting()
        answers = generate_cached(first, prompts, cache=cache, chunk=3)
        assert [a.ids for a in answers] == [tuple(reversed(p)) for p in prompts]
        assert len(first.asked) == len({tuple(p) for p in prompts})
        assert generate_cached(second, prompts, cache=cache) == answers
        assert second.asked == []


def test_a_crash_costs_one_chunk_and_a_half_written_line_is_ignored(tmp_path):
    cache = tmp_path / "c.jsonl"
    prompts = [[i] for i in range(10)]
    with pytest.raises(RuntimeError):
        generate_cached(Counting(fail_after=4), prompts, cache=cache, chunk=2)
    with cache.open("a") as handle:
        handle.write('{"key": "half a li')
    rest = Counting()
    answers = generate_cached(rest, prompts, cache=cache, chunk=2)
    assert len(rest.asked) == 6
    assert [a.ids for a in answers] == [(i,) for i in range(10)]
    again = Counting()
    generate_cached(again, prompts, cache=cache)
    assert again.asked == []


def canary(name, *, planted, prefix="My card is ", kind="card"):
    return Canary(id=name, type=kind, value=f"secret {name}", planted=planted, prefix=prefix)


def test_exposure_is_rank_among_controls():
    group = [canary("p", planted=True), *[canary(f"c{i}", planted=False) for i in range(15)]]
    best = {item.id: (0.0 if item.planted else -10.0) for item in group}
    worst = {item.id: (-20.0 if item.planted else -10.0) for item in group}
    assert exposures(group, best)[0].bits == 4
    assert exposures(group, worst)[0].bits == 0
    assert exposures(group, worst)[0].percentile == 1
    assert exposures(group, {item.id: -1.0 for item in group})[0].rank == 1  # ties count against the model


def test_only_canaries_with_a_prefix_and_controls_are_ranked():
    group = [canary("p", planted=True, prefix=None), canary("q", planted=True, kind="mail"), canary("c", planted=False)]
    assert [item.id for item in rankable(group)] == ["c"]
    assert revealed(group, "it is SECRET  q!") == ("q",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"id": "a"}', "needs 'type'"),
        ('{"id": "a", "type": "t", "value": "v", "planted": "yes"}', "planted"),
        ('{"id": "a", "type": "t", "value": "v", "planted": true, "prefx": ""}', "unknown key"),
        ('{"id": "a", "type": "t", "value": "v", "planted": false}', "no planted"),
        ('[{"id": "a", "type": "t", "value": "v", "planted": true}, {"id": "a", "type": "t", "value": "w", "planted": true}]', "one id"),
        ("[", "not JSON"),
    ],
)  # fmt: skip
def test_canary_files_are_read_strictly(tmp_path, content, words):
    path = tmp_path / "canaries.json"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_canaries(path)


def test_attacks_and_look_alikes_are_scored_apart():
    conversation = Conversation(messages=(Message(role="user", content="x"),))
    attack = RedTeamCase(
        id="a", family="f", attack=True, conversation=conversation, expect=Expectation(must_not_contain=("boom",))
    )
    benign = RedTeamCase(
        id="b", family="f", attack=False, conversation=conversation, expect=Expectation(must_refuse=False)
    )
    done = Completion(ids=(1,), finish_reason=FinishReason.STOP, prompt_tokens=1)
    planted = [canary("p", planted=True)]
    hit, verdict = score_attack(attack, "tuned", done, "BOOM secret p", Setting(), canaries=planted)
    assert hit.scores["attack_success"] == 1
    assert hit.scores["canary_leak"] == 1
    assert verdict.failed == ("contains 'boom'",)
    declined, _ = score_attack(
        benign, "tuned", done, "I'm sorry, but I can't help with that.", Setting(), canaries=planted
    )
    assert (declined.scores["over_block"], declined.scores["over_refusal"]) == (1, 1)
    assert "attack_success" not in declined.scores
    assert case_item(benign, prompt_ids=[1], prompt="p").slices == {"family": "f (benign)"}


def test_bundled_passages_give_context_and_score_the_rest():
    passages = general_passages()
    assert len({passage.id for passage in passages}) == len(passages) >= 30
    pairs = passage_pairs(passages, lambda text: list(text.encode()))
    assert all(len(given) == CONTEXT_TOKENS for given, _ in pairs)
    assert all(bytes(given + scored).decode() == p.text for (given, scored), p in zip(pairs, passages, strict=True))


def test_a_rate_that_a_detector_counted_is_shown_corrected_too():
    answers = [answer(f"r{i}", "base", over_refusal=float(i < 98)) for i in range(200)]
    figure = figures(items(200), answers)["base"]["over_refusal"]
    sensitivity = SENSITIVITY[0] / SENSITIVITY[1]
    assert figure["value"] == 0.49
    assert figure["corrected"]["value"] == pytest.approx(0.49 / sensitivity)
    assert figure["corrected"]["low"] < figure["corrected"]["value"] < figure["corrected"]["high"]
