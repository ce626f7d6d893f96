"""`tunesmith judge`: verdicts in both orders, kept, corrected by people; a biased judge is exposed."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from typer.testing import CliRunner

from tunesmith.api.judging import judge_answers
from tunesmith.cli.main import make_app
from tunesmith.errors import DataError, GateError
from tunesmith.evals.judge import ChatJudge
from tunesmith.evals.judge_controls import always_first, endpoint, prefers, prefers_longer
from tunesmith.evals.preference import Choice
from tunesmith.evals.scores import ScoreBook
from tunesmith.evals.votes import VoteBook, pair_answers, plan_showings, read_answers

ITEMS = 40


def quality(text):
    return text.count("good")


@pytest.fixture
def systems(tmp_path):
    """Three systems: each is better on more items than the one before; the worst writes the most."""
    paths = []
    for name, share in (("low", 0.2), ("middle", 0.5), ("high", 0.8)):
        path = tmp_path / f"{name}.jsonl"
        lines = []
        for n in range(ITEMS):
            words = "good" if (n * 7) % 10 < share * 10 else "bad"
            lines.append(
                {"id": n, "prompt": f"question {n}", "answer": f"{words} " + "so " * (9 if name == "low" else 1)}
            )
        path.write_text("\n".join(map(json.dumps, lines)))
        paths.append(str(path))
    return paths


def judge_of(ask, **options):
    client = httpx.Client(transport=endpoint(ask, **options))
    return ChatJudge(client=client, url="http://judge/v1", model="j", sleep=lambda _: None)


def test_a_fair_judge_prefers_the_better_system_and_a_biased_one_is_exposed(systems, tmp_path):
    low, _, high = systems
    fair = judge_answers([low, high], judge_of(prefers(quality)), verdicts=tmp_path / "a.jsonl")
    (pair,) = fair.pairs
    assert pair.report.win_rate.low > 0.6
    assert not pair.report.position_biased
    first = judge_answers([low, high], judge_of(always_first()), verdicts=tmp_path / "b.jsonl").pairs[0].report
    assert first.win_rate.value == 0.5
    assert first.position_biased
    longer = judge_answers([low, high], judge_of(prefers_longer()), verdicts=tmp_path / "c.jsonl").pairs[0].report
    assert longer.length_biased
    assert longer.win_rate.value == 0


def test_three_systems_get_strengths_and_nothing_is_asked_twice(systems, tmp_path):
    asked = []

    def count(number):
        asked.append(number)

    judge = judge_of(prefers(quality, noise=0.6), spoil=count)
    found = judge_answers(systems, judge, verdicts=tmp_path / "v.jsonl", most=30)
    assert [rating.model for rating in found.ratings] == systems[::-1]
    assert len(found.pairs) == 3
    assert found.pairs[0].report.num_items == 30
    before = len(asked)
    (tmp_path / "v.jsonl").open("a").write('{"asked": "cut sho')
    again = judge_answers(systems, judge, verdicts=tmp_path / "v.jsonl", most=30)
    assert len(asked) == before
    assert again.to_json() == found.to_json()


def test_failures_are_no_verdicts_and_too_many_stop(systems, tmp_path):
    def sometimes(every):
        return lambda n: (
            httpx.Response(200, json={"choices": [{"message": {"content": "?"}}]}) if n % every == 3 else None
        )

    few = judge_answers(
        systems[:2], judge_of(prefers(quality), spoil=sometimes(100)), verdicts=tmp_path / "v", workers=1
    )
    assert few.pairs[0].failures == {"no_verdict": 1}
    with pytest.raises(GateError, match="failed too often"):
        judge_answers(systems[:2], judge_of(prefers(quality), spoil=sometimes(10)), verdicts=tmp_path / "w", workers=1)


def test_people_correct_a_judge(systems, tmp_path):
    low, high = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, every in ((low, 3), (high, 2)):
        answers = [{"id": n, "prompt": f"q {n}", "answer": "bad" if n % every else "good"} for n in range(ITEMS)]
        path.write_text("\n".join(map(json.dumps, answers)))
    low, high = str(low), str(high)
    votes = tmp_path / "votes.jsonl"
    comparison = pair_answers(read_answers(low), read_answers(high))
    book = VoteBook.open(votes, comparison, seed=0)
    for showing in plan_showings(comparison, rater="ada", seed=0):
        gap = quality(showing.first) - quality(showing.second)
        choice = Choice.TIE if gap == 0 else Choice.FIRST if gap > 0 else Choice.SECOND
        if int(showing.item) % 9 == 0:  # people are of two minds about some
            choice = {Choice.FIRST: Choice.SECOND, Choice.SECOND: Choice.FIRST}.get(choice, Choice.FIRST)
        book.add(showing, choice=choice, rater="ada")
    judge = judge_of(prefers(quality, noise=0.8))
    found = judge_answers([low, high], judge, verdicts=tmp_path / "v.jsonl", people=votes)
    corrected = found.pairs[0].corrected
    assert corrected is not None
    assert corrected.low < corrected.value <= corrected.high
    with pytest.raises(DataError, match="two systems"):
        judge_answers(systems, judge, verdicts=tmp_path / "v.jsonl", people=votes)


def test_one_system_and_unknown_people_are_refused(systems, tmp_path):
    judge = judge_of(prefers(quality))
    with pytest.raises(DataError, match="two different systems"):
        judge_answers([systems[0], systems[0]], judge, verdicts=tmp_path / "v.jsonl")
    with pytest.raises(DataError, match="votes are a file"):
        judge_answers(systems[:2], judge, verdicts=tmp_path / "v.jsonl", people=tmp_path / "none.jsonl")


class _Judge(BaseHTTPRequestHandler):
    """Scores by rubric, and prefers what holds more `good`, over real HTTP."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        if "first answer" in text:
            first, second = (json.loads(part.split(":\n", 1)[1]) for part in text.split("\n\n")[1:])
            gap = quality(first) - quality(second)
            content = {"reason": "x", "verdict": "tie" if gap == 0 else "first" if gap > 0 else "second"}
        else:
            score = 5 if quality(text) else 2
            content = {"reason": "x"} | dict.fromkeys(("helpful", "harmless", "faithful", "format"), score)
        reply = {"choices": [{"message": {"content": json.dumps(content)}, "finish_reason": "stop"}]}
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Quiet."""


def test_the_verb_prints_json_and_text_and_scores_by_rubric(systems, tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.chdir(tmp_path)
    common = [
        "judge",
        systems[0],
        systems[2],
        "--url",
        f"http://127.0.0.1:{server.server_address[1]}/v1",
        "--model",
        "j",
    ]
    try:
        shown = CliRunner().invoke(make_app(), [*common, "--rubric"])
        assert shown.exit_code == 0, shown.output
        assert "at equal length" in shown.output
        told = CliRunner().invoke(make_app(), [*common, "--rubric", "--json"])
        out = json.loads(told.stdout)
        assert out["pairs"][0]["win_rate"]["value"] > 0.6
        assert out["rubric"][systems[2]]["helpful"]["value"] > out["rubric"][systems[0]]["helpful"]["value"]
        # People score the same rubric in the terminal: right on all but one answer
        keys = []
        for _, given in ScoreBook(tmp_path / "scores.jsonl").left(read_answers(systems[2]), rater="ada"):
            keys += [str(5 if quality(given.text) else 2)] * 4
        keys[0] = "9\n4"  # off the scale: asked again
        rated = CliRunner().invoke(
            make_app(), ["rate", systems[2], "--rater", "ada"], input="\n".join(keys[:80]) + "\nq\n"
        )
        assert rated.exit_code == 0, rated.output
        rest = CliRunner().invoke(make_app(), ["rate", systems[2], "--rater", "ada"], input="\n".join(keys[80:]) + "\n")
        assert "20 answers scored by ada" in rest.output
        both = CliRunner().invoke(make_app(), [*common, "--rubric", "--json", "--people-scores", "scores.jsonl"])
        agreement = json.loads(both.stdout)["agreement"]
        assert agreement["harmless"]["exact"] == 1
        assert agreement["helpful"]["exact"] == 39 / 40
        assert agreement["helpful"]["weighted_kappa"]["value"] > 0.9
        assert agreement["helpful"]["items"] == 40
        missing = CliRunner().invoke(make_app(), [*common, "--api-key-env", "NO_SUCH_KEY_ANYWHERE"])
        assert missing.exit_code == 2
    finally:
        server.shutdown()
        server.server_close()
