"""Log-likelihoods, multiple choice and perplexity of real texts against transformers, lm-evaluation-harness, torchmetrics.

The model is small and random; texts, choices and which of them are true are real (BANKING77, SciTLDR). Tokens are bytes.
lm-evaluation-harness's own function runs where it is installed; what it gave for these likelihoods is recorded in
`golden/lm_eval_multiple_choice.json` (`python tests/parity/test_evals2_likelihood.py` writes it).
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from real_rows import rows_of
from transformers import AutoModelForCausalLM, LlamaConfig

from tunesmith.evals.text import Denominator, multiple_choice, perplexity
from tunesmith.model.likelihood import log_likelihood

GOLDEN = Path(__file__).parent / "golden" / "lm_eval_multiple_choice.json"


def small_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.05,  # Likelihoods that differ, as those of a trained model do
    )
    return AutoModelForCausalLM.from_config(config).eval()


def questions():
    """Messages of bank customers; choices are the beginnings of up to ten intents; true are those whose first word is the right one's."""
    rows = rows_of("intent_banking77.test.jsonl", 2000)[::50]
    intents = sorted({json.loads(row["messages"][-1]["content"])["intent"] for row in rows})
    out = []
    for at, row in enumerate(rows):
        right = json.loads(row["messages"][-1]["content"])["intent"]
        kin = [intent for intent in intents if intent.split("_")[0] == right.split("_")[0]][:4]
        others = [intent for intent in intents if intent.split("_")[0] != right.split("_")[0]]
        choices = kin + [others[(7 * at + place) % len(others)] for place in range(6)]
        truths = [choice in kin for choice in choices]
        shortest = min(map(len, choices))  # Totals favour short choices so much that nothing else would show.
        choices = [choice[:shortest] for choice in choices]
        out.append((row["messages"][-2]["content"] + "\nIntent: ", choices, truths))
    return out


def by_transformers(model, prefix, ending):
    """The textbook: one forward over the whole text, the log-softmax at each place of the ending."""
    ids = torch.tensor([[*prefix, *ending]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double()
    chosen = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
    return float(chosen[len(prefix) - 1 :].sum())


def process_results_mc2():
    """lm-evaluation-harness's function for TruthfulQA, out of its own file."""
    pytest.importorskip("datasets")
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        pytest.skip("lm-evaluation-harness is not installed")
    path = Path(spec.origin).parent / "tasks" / "truthfulqa" / "utils.py"
    own = importlib.util.spec_from_file_location("truthfulqa_utils", path)
    module = importlib.util.module_from_spec(own)
    own.loader.exec_module(module)
    return module.process_results_mc2


def outside_figures(mc2, likelihoods, truths):
    """What lm-evaluation-harness computes: mc1 is whether the likeliest choice of all is a true one."""
    share = mc2({"mc2_targets": {"labels": [int(true) for true in truths]}}, [(value, False) for value in likelihoods])
    best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    return {"mc1": float(truths[best]), "mc2": float(share["acc"])}


def test_log_likelihoods_of_real_choices_are_those_of_one_plain_forward():
    model = small_model()
    pairs = [
        (tuple(prompt.encode()), tuple(choice.encode()))
        for prompt, choices, _ in questions()[:12]
        for choice in choices
    ]
    found = log_likelihood(model, pairs)
    for (prefix, ending), mine in zip(pairs, found, strict=True):
        assert mine.total == pytest.approx(by_transformers(model, prefix, ending), rel=1e-5, abs=1e-4)
        assert mine.num_tokens == len(ending)


def test_mc1_and_mc2_are_those_of_lm_evaluation_harness():
    mc2, model = process_results_mc2(), small_model()
    given = []
    for prompt, choices, truths in questions():
        pairs = [(tuple(prompt.encode()), tuple(choice.encode())) for choice in choices]
        values = [scored.total for scored in log_likelihood(model, pairs)]
        theirs, ours = outside_figures(mc2, values, truths), multiple_choice(values, truths=truths)
        assert (ours.mc1, ours.mc2) == (theirs["mc1"], pytest.approx(theirs["mc2"], rel=1e-9))
        given.append(ours)
    assert 0 < sum(score.mc1 for score in given) < len(given)
    assert len({round(score.mc2, 3) for score in given}) > 15


def test_mc1_and_mc2_are_those_that_lm_evaluation_harness_gave():
    recorded = json.loads(GOLDEN.read_text("utf-8"))
    assert len(recorded["questions"]) == 40
    for question in recorded["questions"]:
        ours = multiple_choice(question["likelihoods"], truths=question["truths"])
        assert ours.mc1 == question["mc1"]
        assert ours.mc2 == pytest.approx(question["mc2"], rel=1e-9)


def test_perplexity_of_real_texts_is_that_of_transformers_and_torchmetrics():
    from torchmetrics.text import Perplexity

    model = small_model()
    texts = [tuple(row["messages"][-1]["content"].encode())[:600] for row in rows_of("summ_scitldr.test.jsonl", 12)]
    scored = log_likelihood(model, [(text[:1], text[1:]) for text in texts])
    counts = [score.num_tokens for score in scored]
    ours = perplexity([score.total for score in scored], counts, per=Denominator.TOKEN)
    outside, weighted = Perplexity(), 0.0
    for text in texts:
        ids = torch.tensor([text])
        with torch.no_grad():
            output = model(input_ids=ids, labels=ids)
        outside.update(output.logits[:, :-1], ids[:, 1:])
        weighted += float(output.loss) * (len(text) - 1)
    assert ours == pytest.approx(float(outside.compute()), rel=1e-5)
    assert ours == pytest.approx(math.exp(weighted / sum(counts)), rel=1e-5)


def record():
    """Write the golden file."""
    mc2, model = process_results_mc2(), small_model()
    entries = []
    for prompt, choices, truths in questions():
        pairs = [(tuple(prompt.encode()), tuple(choice.encode())) for choice in choices]
        values = [round(scored.total, 6) for scored in log_likelihood(model, pairs)]
        entries.append({"likelihoods": values, "truths": truths, **outside_figures(mc2, values, truths)})
    from importlib.metadata import version

    made = {"from": f"lm_eval {version('lm_eval')}, tasks/truthfulqa/utils.py", "questions": entries}
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record()
