"""Blind comparison: sides shuffled and balanced, votes only added, work resumed, nothing told about the systems."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import typer
from typer.testing import CliRunner

from tunesmith.cli import compare as compare_verb
from tunesmith.errors import DataError
from tunesmith.evals.compare_page import render_page
from tunesmith.evals.preference import Choice, Side, preference
from tunesmith.evals.votes import (
    VoteBook,
    import_page_votes,
    pair_answers,
    plan_showings,
    rater_agreement,
    read_answers,
)


def write(path, answers):
    path.write_text(
        "".join(json.dumps({"id": i, "prompt": f"ask {i}", "answer": a}) + "\n" for i, a in answers.items())
    )
    return str(path)


@pytest.fixture
def files(tmp_path):
    a = write(tmp_path / "a.jsonl", {f"q{i}": f"plain answer {i}" for i in range(9)} | {"same": "equal", "gone": "x"})
    b = write(tmp_path / "b.jsonl", {f"q{i}": f"a much better answer {i}" for i in range(9)} | {"same": "equal"})
    return a, b


@pytest.fixture
def comparison(files):
    return pair_answers(*map(read_answers, files))


def test_answers_are_joined_by_id_and_what_has_no_partner_is_counted(comparison):
    assert len(comparison.items) == 10
    assert (comparison.only_a, comparison.only_b) == (1, 0)
    assert comparison.equal == ["same"]


def test_sides_are_shuffled_balanced_and_the_same_again_but_not_for_another_rater(comparison):
    plan = plan_showings(comparison, rater="ada", seed=0)
    assert plan == plan_showings(comparison, rater="ada", seed=0)
    assert "same" not in {showing.item for showing in plan}
    sides = [showing.shown_first for showing in plan]
    assert abs(sides.count(Side.CANDIDATE) - sides.count(Side.BASELINE)) <= 1
    assert [s.item for s in plan] != [s.item for s in plan_showings(comparison, rater="bob", seed=0)]
    assert sides != [s.shown_first for s in plan_showings(comparison, rater="ada", seed=1)]
    for showing in plan:
        assert ("better" in showing.first) == (showing.shown_first is Side.CANDIDATE)


def test_votes_are_only_added_and_a_reopened_book_knows_them(tmp_path, comparison):
    path, plan = tmp_path / "votes.jsonl", plan_showings(comparison, rater="ada", seed=0)
    book = VoteBook.open(path, comparison, seed=0)
    sizes = []
    for showing, choice in zip(plan, [Choice.FIRST, Choice.TIE, "skip", Choice.SECOND], strict=False):
        before = path.read_bytes()
        book.add(showing, choice=choice, rater="ada")
        assert path.read_bytes().startswith(before)
        sizes.append(len(path.read_bytes()))
    book.add(plan[0], choice="undo", rater="ada")
    again = VoteBook.open(path, comparison, seed=0)
    assert set(again.standing("ada")) == {showing.item for showing in plan[1:4]}
    votes = [vote for vote in again.votes(comparison) if vote.item != "same"]
    assert {vote.item: vote.choice for vote in votes} == {plan[1].item: Choice.TIE, plan[3].item: Choice.SECOND}
    assert again.standing("bob") == {}


def test_a_line_cut_short_by_a_crash_is_left_out_and_counted(tmp_path, comparison):
    path, plan = tmp_path / "votes.jsonl", plan_showings(comparison, rater="ada", seed=0)
    VoteBook.open(path, comparison, seed=0).add(plan[0], choice=Choice.FIRST, rater="ada")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"item": "q1", "ra')
    book = VoteBook.open(path, comparison, seed=0)
    assert (book.num_cut_short, len(book.records)) == (1, 1)
    book.add(plan[1], choice=Choice.TIE, rater="ada")
    again = VoteBook.open(path, comparison, seed=0)
    assert (again.num_cut_short, len(again.records)) == (1, 2)
    assert path.read_bytes().startswith(whole)


def test_a_book_about_other_answers_or_of_another_shape_is_refused(tmp_path, files, comparison):
    path = tmp_path / "votes.jsonl"
    VoteBook.open(path, comparison, seed=0)
    with pytest.raises(DataError, match="something else"):
        VoteBook.open(path, comparison, seed=1)
    other = pair_answers(read_answers(files[0]), read_answers(files[0]))
    with pytest.raises(DataError, match="something else"):
        VoteBook.open(path, other, seed=0)
    with path.open("a") as file:
        file.write('{"item": "q1"}\n')
    with pytest.raises(DataError, match="line 2"):
        VoteBook.open(path, comparison, seed=0)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"id": 1, "prompt": "p"}',
        '{"prompt": "p", "answer": "a"}',
        '{"id": "q0", "prompt": "p", "answer": "a"}\n' * 2,
    ],
)
def test_files_that_hold_no_answers_name_the_line(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"line \d"):
        read_answers(str(path))


def test_different_prompts_or_no_shared_item_are_refused(tmp_path, files):
    a = read_answers(files[0])
    with pytest.raises(DataError, match="share no item"):
        pair_answers(a, {})
    other = write(tmp_path / "c.jsonl", {"q0": "x"}).replace("ask", "ask")
    text = (tmp_path / "c.jsonl").read_text().replace("ask q0", "something else")
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(DataError, match="different things"):
        pair_answers(a, read_answers(other))


def test_the_files_of_evaluate_can_be_compared(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"row_id": str(i), "system": s, "prompt": f"p{i}", "output": f"{s} {i}"}
        for i in range(3)
        for s in ("base", "tuned")
    ]
    path = tmp_path / "items.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = pair_answers(read_answers(f"{path}:base"), read_answers(f"{path}:tuned"))
    assert found.items["1"][1].text == "tuned 1"
    with pytest.raises(DataError, match="base, tuned"):
        read_answers(f"{path}:prod")
    with pytest.raises(DataError, match="which system"):
        read_answers(str(path))


# ----------------------------------------------------------------------------------------------------- the verb


@pytest.fixture
def run(tmp_path, files):
    app = typer.Typer()
    compare_verb.register(app)
    app.callback()(lambda: None)

    def call(*options, keys="", rater="ada"):
        arguments = ["compare", *files, "--votes", str(tmp_path / "votes.jsonl"), "--rater", rater, *map(str, options)]
        return CliRunner().invoke(app, arguments, input=keys)

    return call


def test_a_rater_can_stop_undo_and_resume_and_sees_no_system(run, comparison, tmp_path):
    plan = plan_showings(comparison, rater="ada", seed=0)
    best = {showing.item: "1" if showing.shown_first is Side.CANDIDATE else "2" for showing in plan}
    first = run(keys=f"{best[plan[0].item]}\nx\nt\nu\nq\n")
    assert first.exit_code == 0, first.output
    assert "1, 2, t, s, u or q" in first.output
    assert not re.search("a.jsonl|b.jsonl|baseline|candidate|base|tuned", first.output.split("what the votes say")[0])
    second = run(keys="".join(f"{best[showing.item]}\n" for showing in plan[1:]))
    assert second.exit_code == 0, second.output
    assert plan[1].prompt in second.output
    assert plan[0].prompt not in second.output
    book = VoteBook.open(tmp_path / "votes.jsonl", comparison, seed=0)
    report = preference(book.votes(comparison))
    assert report.win_rate.value == pytest.approx(9.5 / 10)
    assert report.num_items == 10
    shown = run("--report", "--json")
    assert json.loads(shown.stdout)["win_rate"]["value"] == pytest.approx(0.95)
    assert json.loads(shown.stdout)["only_a"] == 1
    done = run()
    assert "ask" not in done.output


def test_raters_are_compared_with_each_other(run, comparison, tmp_path):
    for rater, wrong in (("ada", 0), ("bob", 1)):
        plan = plan_showings(comparison, rater=rater, seed=0)
        keys = ["1" if (s.shown_first is Side.CANDIDATE) != (i < wrong) else "2" for i, s in enumerate(plan)]
        assert run(keys="\n".join(keys) + "\n", rater=rater).exit_code == 0
    book = VoteBook.open(tmp_path / "votes.jsonl", comparison, seed=0)
    assert book.raters == ["ada", "bob"]
    found = rater_agreement(book.votes(comparison), comparison)
    assert found is not None
    assert found.n == 9
    assert found.value < 1


# ----------------------------------------------------------------------------------------------------- the page


def page_data(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL).group(1))


def test_the_page_holds_the_texts_in_the_raters_order_and_no_side(comparison):
    html = render_page(comparison, rater="ada", seed=0)
    data = page_data(html)
    plan = plan_showings(comparison, rater="ada", seed=0)
    assert [(i["item"], i["first"], i["second"]) for i in data["items"]] == [(s.item, s.first, s.second) for s in plan]
    assert not re.search("baseline|candidate|shown_first", html)
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", html.replace("link.href =", ""))


def test_an_answer_cannot_leave_its_place_in_the_page(tmp_path):
    nasty = '</script><script>alert(1)</script><!-- \u2028 "quoted" \\'
    a, b = write(tmp_path / "a.jsonl", {"q": nasty}), write(tmp_path / "b.jsonl", {"q": "b"})
    html = render_page(pair_answers(read_answers(a), read_answers(b)), rater="r", seed=0)
    assert html.count("</script>") == 2
    assert nasty in (page_data(html)["items"][0]["first"], page_data(html)["items"][0]["second"])
    same = pair_answers(read_answers(a), read_answers(a))
    with pytest.raises(DataError, match="nothing to compare"):
        render_page(same, rater="r", seed=0)


def downloaded(comparison, choices):
    whole = {"kind": "tunesmith-votes-page", "answers_sha256": comparison.digest, "seed": 0, "rater": "eve"}
    return {**whole, "choices": choices}


def test_a_download_is_added_once_and_sides_come_from_the_plan(tmp_path, comparison):
    book = VoteBook.open(tmp_path / "v.jsonl", comparison, seed=0)
    plan = plan_showings(comparison, rater="eve", seed=0)
    choices = {s.item: "first" if s.shown_first is Side.CANDIDATE else "second" for s in plan}
    assert import_page_votes(book, comparison, downloaded(comparison, choices), seed=0) == 9
    assert import_page_votes(book, comparison, downloaded(comparison, choices), seed=0) == 0
    assert preference(book.votes(comparison)).win_rate.value == pytest.approx(0.95)


@pytest.mark.parametrize(
    "change",
    [{"kind": "x"}, {"answers_sha256": "0"}, {"seed": 5}, {"rater": ""}, {"choices": []}, {"choices": {"q0": "third"}},
     {"choices": {"q0": "undo"}}, {"choices": {"q1": "first", "nobody": "first"}}],
)  # fmt: skip
def test_a_download_from_elsewhere_is_refused_and_nothing_is_added(tmp_path, comparison, change):
    book = VoteBook.open(tmp_path / "v.jsonl", comparison, seed=0)
    with pytest.raises(DataError):
        import_page_votes(book, comparison, {**downloaded(comparison, {"q0": "first"}), **change}, seed=0)
    assert book.records == []


CLICK = """<script>
let kept;
URL.createObjectURL = (blob) => { kept = blob; return "#"; };
document.querySelector('[data-choice="first"]').click();
document.dispatchEvent(new KeyboardEvent("keydown", { key: "2" }));
document.dispatchEvent(new KeyboardEvent("keydown", { key: "t" }));
document.getElementById("back").click();
document.querySelector('[data-choice="skip"]').click();
const shown = [document.getElementById("count").textContent, document.getElementById("first").textContent];
document.getElementById("download").click();
kept.text().then((text) => { document.body.textContent = "RESULT" + JSON.stringify([shown, JSON.parse(text)]) + "END"; });
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to open the page in")
def test_in_a_browser_clicks_and_keys_become_a_download_that_can_be_imported(tmp_path, run, comparison):
    page = tmp_path / "eve.html"
    assert run("--page", page, rater="eve").exit_code == 0
    tried = tmp_path / "tried.html"
    tried.write_text(page.read_text().replace("</body>", CLICK))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=3000", "--dump-dom", tried.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search("RESULT(.*)END", done.stdout, re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-2000:]
    (count, first), download = json.loads(found.group(1))
    plan = plan_showings(comparison, rater="eve", seed=0)
    assert count == "item 4 of 9, 3 answered"
    assert first == plan[3].first
    assert download["choices"] == {plan[0].item: "first", plan[1].item: "second", plan[2].item: "skip"}
    (tmp_path / "d.json").write_text(json.dumps(download))
    imported = run("--import", tmp_path / "d.json")
    assert imported.exit_code == 0, imported.output
    assert "3 new votes" in " ".join(imported.output.split())
    assert set(VoteBook.open(tmp_path / "votes.jsonl", comparison, seed=0).standing("eve")) == set(download["choices"])
