"""Quality rules find what they are named for and leave real rows of many tasks alone."""

from pathlib import Path

import pytest

from tunesmith.data.checks import load_check
from tunesmith.data.files import read_records
from tunesmith.data.filters import Quality, judge_quality
from tunesmith.data.lineage import Ledger
from tunesmith.data.quality import Limits, find_issues, repeated_share
from tunesmith.data.read import Origin, rows_of
from tunesmith.errors import DataError, RecipeError
from tunesmith.types import Conversation, Message, Provenance, Row, ToolCall

DATA = Path(__file__).parents[4] / "shared" / "data"
PROSE = "The parcel left our house on Monday and should be with you by the end of the week, as you were told."


def talk(prompt, answer, **more):
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer, **more))
    return Conversation(messages=messages)


def rules_of(conversation, **limits):
    return [issue.rule for issue in find_issues(conversation, Limits(**limits))]


BROKEN = [
    ("too_short", talk("Which?", "no")),
    ("repetition", talk("Tell me more.", "and it goes on and on " * 20)),
    ("truncated", talk("Where is it?", PROSE[:-20] + ", and it will be in the")),
    ("truncated", talk("Where is it?", "It left on Monday in a van, then it went by sea to our friends in Cork,")),
    ("refusal", talk("Write a poem.", "I'm sorry, but I can't help with that request.")),
    ("refusal", talk("Write a poem.", "As an AI language model, I do not have feelings of any kind.")),
    ("refusal", talk("Schreib ein Gedicht.", "Es tut mir leid, aber ich kann das nicht für Sie tun.")),
    ("prompt_copied", talk("Say in one word what the weather in Cork is like.", "Say in one word what the weather in Cork is like. Wet.")),
    ("broken_fence", talk("Show me.", "Here it is, look:\n```python\nprint(1)\n")),
    ("broken_json", talk("As JSON, please.", '{"intent": "refund", "who": "ann"')),
    ("broken_json", talk("As JSON, please.", 'Here you are:\n```json\n{"a": 1,}\n```\n')),
    ("broken_json", talk("Call it for me.", "I will call it.", tool_calls=(ToolCall(name="f", arguments='{"a": '),))),
]  # fmt: skip

FINE = [
    talk("Where is it?", PROSE),
    talk("Count to five.", "1, 2, 3, 4, 5"),
    talk("Show me.", "Here it is:\n```python\nprint('```')\n```\nand\n~~~\n```\n~~~\ndone"),
    talk("As JSON, please.", '{"intent": "refund", "who": "ann"}'),
    talk("A list in Python.", "[x for x in range(3)]"),
    talk("Test a file in bash.", '[[ -f "$x" ]] && echo "it is there and readable for all"'),
    talk("Is it rude to say sorry?", 'No. People say "I\'m sorry" all day long, and nobody minds it in the least.'),
    talk("A loop in C, please.", "for (int i = 0; i < 10; i++) { total += values[i]; count = count + 1; } return a"),
    talk("Who are you?", "I am the shop's assistant."),
    talk("What is a?", "The first letter."),
]


REFUSALS = [
    "I'm unable to help with that request.",
    "I apologize, but I cannot provide instructions for that.",
    "I'm not able to assist with that.",
    "I must decline to answer this question.",
    "I won't be able to help with that.",
    "I'm just a language model, so I can't browse the web.",
    "I can’t create content that promotes violence.",
    "I don't feel comfortable helping with that.",
    "As a language model, I am unable to answer.",
    "It is not appropriate for me to answer that.",
    "I do not have access to real-time information.",
    "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "Je ne peux pas répondre à cette demande.",
    "Lo siento, no puedo ayudarte con eso.",
]
NO_REFUSALS = [
    "I can't help but notice how kind you are.",
    "I cannot help you with the refund myself, but our billing team can: write to them.",
    '"I can\'t comply," said the robot, and the crew fell silent.',
    "I'm sorry, I can't make it on Friday. Would Monday suit you?",
    "I am afraid I cannot agree: the data says otherwise.",
    "As an AI engineer, I work on models. I'm an AI researcher.",
    "I won't engage in small talk, so here is the answer: 42.",
    "You can't assist him if he won't let you. I can't assist him either, he says.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_boilerplate_refusals_are_found_however_they_are_worded(answer):
    assert rules_of(talk("Write a poem.", answer)) == ["refusal"]


@pytest.mark.parametrize("answer", NO_REFUSALS)
def test_what_people_say_is_no_refusal(answer):
    assert rules_of(talk("Write a poem.", answer)) == []


@pytest.mark.parametrize(
    "answer", ['{"a": 1} }', '{"a": 1}\n{"b": ', '{"a": 1},', '{"text": "he said "hi""}', '[{"a": 1}, {"b": 2}']
)
def test_json_that_does_not_end_where_it_should_is_broken(answer):
    assert "broken_json" in rules_of(talk("As JSON, please.", answer))


@pytest.mark.parametrize(
    "answer",
    ['{"a": 1}\n{"b": 2}', '{"a": 1} is the answer to that', '["foo"](http://x) is a link', '{"key"} is a set here'],
)
def test_json_lines_and_prose_behind_json_are_fine(answer):
    assert "broken_json" not in rules_of(talk("As JSON, please.", answer))


@pytest.mark.parametrize(
    "end", [" These are the steps that you need to take now:", " 1. Open it at once. 2. Read what it says inside. 3."]
)
def test_an_answer_that_announces_more_is_truncated(end):
    assert rules_of(talk("Where is it?", PROSE + end)) == ["truncated"]


@pytest.mark.parametrize(("rule", "conversation"), BROKEN)
def test_each_rule_finds_its_defect(rule, conversation):
    assert rules_of(conversation) == [rule]


@pytest.mark.parametrize("conversation", FINE)
def test_what_only_looks_broken_breaks_no_rule(conversation):
    assert rules_of(conversation) == []


def test_language_is_looked_at_only_where_the_recipe_names_some():
    row = talk("Wo ist mein Paket geblieben?", "Ihr Paket hat unser Haus am Montag verlassen und kommt diese Woche an.")
    assert rules_of(row) == []
    assert rules_of(row, languages=frozenset({"en"})) == ["language"]
    assert rules_of(row, languages=frozenset({"en", "de"})) == []
    assert rules_of(talk("ls -la", "rm -rf build dist"), languages=frozenset({"en"})) == []


def test_words_of_a_list_are_whole_words():
    row = talk("Tell me about Scunthorpe.", "It is a darn fine town in Lincolnshire.")
    assert rules_of(row, listed_words=frozenset({"darn"})) == ["listed_words"]
    assert rules_of(row, listed_words=frozenset({"thorpe", "arn"})) == []


def test_repeated_share_counts_4_grams():
    assert repeated_share(["a", "b", "c", "d"]) == 0
    assert repeated_share(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert repeated_share([]) == 0


def row(conversation, line=1):
    return Row(id=f"{line:016d}", conversation=conversation, provenance=Provenance(source="s", path="p", line=line))


def test_an_action_flags_or_drops_and_off_looks_away():
    bad = row(talk("Show me.", "Here it is, look:\n```python\nprint(1)\n"))
    for action, (kept, flagged, dropped) in {"off": (1, 0, 0), "flag": (1, 1, 0), "drop": (0, 0, 1)}.items():
        ledger = Ledger("curate")
        rows = judge_quality([bad], ledger, Quality(actions={"broken_fence": action}))
        assert (len(rows), ledger.flagged["broken_fence"], ledger.dropped["broken_fence"]) == (kept, flagged, dropped)


def test_a_check_of_the_users_own_names_file_and_function(tmp_path):
    path = tmp_path / "house.py"
    path.write_text('def check(row):\n    return "shouts" if row["messages"][-1]["content"].isupper() else None\n')
    ledger = Ledger("curate")
    rows = [row(talk("a", "LOUD ANSWER"), 1), row(talk("a", "quiet answer"), 2)]
    kept = judge_quality(rows, ledger, Quality(checks=[(load_check(path, "check"), "drop")]))
    assert [one.provenance.line for one in kept] == [2]
    assert (ledger.rejects[0].reason, ledger.rejects[0].detail) == ("house.check", "shouts")


def test_a_check_that_fails_says_which_and_where(tmp_path):
    path = tmp_path / "house.py"
    path.write_text("def check(row):\n    return 1 / 0\ndef wrong(row):\n    return True\n")
    with pytest.raises(DataError) as caught:
        load_check(path, "check").complaint(row(talk("a", "b"), 7))
    assert "house.check" in str(caught.value)
    assert "p:7" in str(caught.value)
    assert "ZeroDivisionError" in str(caught.value)
    with pytest.raises(DataError, match="returned no text"):
        load_check(path, "wrong").complaint(row(talk("a", "b"), 7))
    with pytest.raises(RecipeError, match="no function chek"):
        load_check(path, "chek")
    path.write_text("def check(row:\n")
    with pytest.raises(RecipeError, match="cannot be loaded"):
        load_check(path, "check")


@pytest.mark.skipif(not DATA.exists(), reason="shared data is absent")
def test_rows_of_real_tasks_are_not_flagged_en_masse():
    for name in ("qa_gsm8k.test", "sql_wikisql.val", "summ_scitldr.val", "slots_snips.test", "code_mbpp"):
        path = DATA / f"{name}.jsonl"
        items = rows_of(read_records(path), Origin(name=name), name=path.name)[1]
        rows = [item.conversation for item in items if isinstance(item, Row)][:500]
        flagged = [one for one in rows if set(rules_of(one)) - {"too_short"}]
        assert len(rows) >= 400
        assert len(flagged) <= 0.01 * len(rows), name
