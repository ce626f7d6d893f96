"""The page, the groups of failures and the shape of lm-eval, from figures of known answers."""

import json
import statistics
from html.parser import HTMLParser

import pytest

from tunesmith.evals.failures import failure_kind, group_failures
from tunesmith.evals.lm_eval_shape import lm_eval_results, lm_eval_samples, standard_error
from tunesmith.evals.report import diff, evaluation_page
from tunesmith.evals.results import figures, pick_samples
from tunesmith.evals.run import EvalItem, answer_record, score_answer
from tunesmith.types import Completion, FinishReason, sha256_hex

ITEMS = [
    EvalItem(
        row_id=f"r{i}",
        prompt_ids=(i,),
        prompt=f"<user> {i} & <script>alert(1)</script>",
        expected=json.dumps({"intent": "a" if i % 2 else "b", "n": i}),
        slices={"intent": "a" if i % 2 else "b"},
    )
    for i in range(24)
]


def answers_of(system):
    out = []
    for i, item in enumerate(ITEMS):
        text = item.expected if system == "tuned" and i % 6 else '{"intent": "b", "n": 1}' if i % 3 else "no idea"
        done = Completion(
            ids=(1, 2, 3), finish_reason=FinishReason.LENGTH if i == 5 else FinishReason.STOP, prompt_tokens=1
        )
        out.append(score_answer(item, system, done, text, check_answer=lambda text: text.startswith("{")))
    return out


@pytest.fixture(scope="module")
def world():
    answers = answers_of("base") + answers_of("tuned")
    results = figures(ITEMS, answers)
    results |= {
        "format": 1,
        "contract_sha256": "c" * 64,
        "contract_parts": {"template": "t" * 64},
        "decoding": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 48, "seed": 0},
        "dtype": "float32",
        "dtype_reason": "the recipe asks for it",
        "leakage_proof": {"overlap": 0},
        "sample_prompt": ITEMS[0].prompt,
        "prompts_sha256": "p" * 64,
        "failures": {name: [g.to_json() for g in groups] for name, groups in group_failures(answers).items()},
    }
    samples = pick_samples(ITEMS, answers, right=lambda a: a.scores["exact_match"] == 1, most=6)
    return answers, results, samples


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_every_metric_and_runs_nothing(world):
    _, results, samples = world
    html = evaluation_page("Evaluation", results, samples)
    read = Text()
    read.feed(html)
    words = " ".join(read.words)
    assert all(metric in words for metric in results["tuned"])
    assert "script" not in read.tags
    assert "<script>alert(1)</script>" in words  # shown as text
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "not JSON" in words
    assert "overlap: 0" in words


def test_a_figure_that_cannot_be_resolved_is_not_called_better(world):
    _, results, samples = world
    entry = {**results["paired"]["cut"], "resolved": False}
    html = evaluation_page("E", {**results, "paired": {"cut": entry}}, samples)
    assert f"not resolvable with {entry['n']} items" in html
    assert 'good">better' not in html


def test_a_page_of_one_system_leaves_comparisons_out(world):
    answers, results, _ = world
    alone = [answer for answer in answers if answer.system == "base"]
    single = {**results, **figures(ITEMS, alone)}
    samples = pick_samples(ITEMS, alone, right=lambda a: False, most=2)
    html = evaluation_page("E", single, samples)
    assert "Tuned against base" not in html


def test_a_system_without_a_wrong_answer_says_so(world):
    _, results, samples = world
    html = evaluation_page("Evaluation", {**results, "failures": {"tuned": []}}, samples)
    assert "No wrong answer." in html


def test_failures_are_named_by_their_first_cause(world):
    answers, _, _ = world
    groups = group_failures(answers)
    assert sum(len(group.row_ids) for group in groups["tuned"]) == sum(
        a.scores["exact_match"] == 0 for a in answers if a.system == "tuned"
    )
    kinds = {group.kind for group in groups["base"]}
    assert {"not JSON", "cut by the token limit", "wrong intent, n", "wrong n"} <= kinds
    assert failure_kind({"exact_match": 1.0}) is None
    assert failure_kind({"json_parse": 1.0, "schema_adherence": 0.0, "exact_match": 0.0}) == "outside the schema"
    assert failure_kind({"empty": 1.0, "json_parse": 0.0}) == "empty"


def test_the_diff_loses_nothing_and_escapes():
    shown = str(diff('{"a": "<b>"}', '{"a": "<c>"}'))
    assert "<del>b</del>" in shown
    assert "<ins>c</ins>" in shown
    assert "&lt;" in shown
    assert str(diff(None, "<x>")) == "&lt;x&gt;"


def test_lm_eval_reads_the_same_figures(world):
    answers, results, _ = world
    by_id = {item.row_id: item for item in ITEMS}
    records = [answer_record(by_id[a.row_id], a) for a in answers if a.system == "tuned"]
    shaped = lm_eval_results(results, "tuned", records, task="held_out", chat_template="{{ x }}", system_prompt=None)
    row = shaped["results"]["held_out"]
    scores = [record["score.exact_match"] for record in records]
    assert row["exact_match,none"] == pytest.approx(statistics.mean(scores))
    assert row["exact_match_stderr,none"] == pytest.approx(statistics.stdev(scores) / len(scores) ** 0.5)
    assert shaped["chat_template_sha"] == sha256_hex("{{ x }}")
    assert shaped["higher_is_better"]["held_out"]["cut"] is False
    lines = lm_eval_samples(records, generation={"max_gen_toks": 48})
    assert [line["exact_match"] for line in lines] == scores
    assert lines[3]["arguments"]["gen_args_0"]["arg_0"] == ITEMS[3].prompt
    assert standard_error([1.0]) == "N/A"
