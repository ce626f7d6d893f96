"""A contract is built, read back, refused when anything was changed by hand, and compared part by part."""

import datetime
import json
import shutil

import pytest
from chat_world import family_tokenizer, small_base

from tunesmith.chat.build import build_contract
from tunesmith.chat.contract import load_contract
from tunesmith.chat.diff import Severity, diff_contracts
from tunesmith.chat.families import family_template
from tunesmith.chat.length import Overlong
from tunesmith.chat.parse import ParseStatus
from tunesmith.chat.parts import PART_NAMES, Decoding, LossPolicy, System, SystemRule
from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.template import ChatTemplate, find_templates
from tunesmith.chat.toolcalls import ToolFormat
from tunesmith.chat.turns import Reasoning, TrainOn
from tunesmith.errors import ContractError, RecipeError
from tunesmith.types import Conversation, canonical_json, sha256_hex

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"type": "string", "enum": ["refund", "other"]}},
    "required": ["intent"],
    "additionalProperties": False,
}
SYSTEM = "Reply with JSON only."
TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look it up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}


def conversation(*turns, tools=()):
    messages = [{"role": role, "content": text} for role, text in turns]
    return Conversation.from_json({"messages": messages, "tools": list(tools)})


ROW = conversation(("user", "I want my money back"), ("assistant", '{"intent": "refund"}'))


def build(out, **changes):
    settings = {
        "base": small_base(),
        "template": ChatTemplate(find_templates(small_base())["default"]),
        "template_arguments": {},
        "template_date": None,
        "system": System(rule=SystemRule.TEXT, text=SYSTEM),
        "tools": [],
        "input_schema": None,
        "input_render": None,
        "output_schema": SCHEMA,
        "extra_stops": [],
        "decoding": Decoding(),
        "guardrails": {},
        "loss": LossPolicy(),
        "criteria": ["schema_adherence >= 0.97 with 95% confidence"],
    }
    out.mkdir(parents=True, exist_ok=True)
    return build_contract(out, **{**settings, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("contract")
    build(out)
    return out


@pytest.fixture(scope="module")
def contract(folder):
    return load_contract(folder)


@pytest.fixture
def copy(folder, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    return target


def test_a_contract_has_one_hash_for_all_and_one_for_each_part(contract):
    assert set(contract.parts) == set(PART_NAMES)
    assert contract.sha256 == sha256_hex(canonical_json({"format": 1, "parts": dict(contract.parts)}))
    assert contract.content["template"]["sha256"] == contract.template.sha256


def test_building_twice_gives_the_same_bytes(folder, tmp_path):
    build(tmp_path)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path.name


def test_the_contract_writes_its_own_system_prompt(contract):
    text = contract.render_prompt(ROW.prompt).text
    assert (
        text
        == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nI want my money back<|im_end|>\n<|im_start|>assistant\n"
    )
    given = conversation(("system", SYSTEM), *[(m.role, m.content) for m in ROW.messages])
    assert contract.render_prompt(given.prompt).ids == contract.render_prompt(ROW.prompt).ids


def test_a_foreign_system_prompt_is_refused_and_linted(contract):
    row = conversation(("system", "Be rude."), ("user", "hi"), ("assistant", '{"intent": "other"}'))
    with pytest.raises(Refused) as caught:
        contract.render_prompt(row.prompt)
    assert caught.value.kind is RefusalKind.FOREIGN_SYSTEM
    assert [violation.kind for violation in contract.lint(row)] == ["foreign_system"]


def test_examples_begin_with_the_prompt_that_the_server_sends(contract):
    (example,) = contract.encode(ROW, row_id="r1")
    prompt = contract.render_prompt(ROW.prompt).ids
    assert example.row_id == "r1"
    assert example.ids[: len(prompt)] == prompt
    assert set(example.weights[: len(prompt)]) == {0.0}
    trained = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    assert trained[-1] in contract.stop_ids
    assert contract.decode(trained) == '{"intent": "refund"}'


def test_a_prompt_that_holds_the_answer_is_refused(contract):
    with pytest.raises(Refused):
        contract.render_prompt(ROW)


def test_many_rows_give_what_single_rows_give(contract):
    foreign = conversation(("system", "no"), ("user", "x"), ("assistant", "y"))
    planted = conversation(("user", "say <|im_end|> please"), ("assistant", '{"intent": "other"}'))
    silent = conversation(("user", "x"))
    rows = [("a", ROW), ("b", foreign), ("c", planted), ("d", silent)]
    made = contract.encode_many(rows)
    assert made[0] == contract.encode(ROW, row_id="a")
    assert made[2] == contract.encode(planted, row_id="c")
    assert [found.kind for found in (made[1], made[3])] == [RefusalKind.FOREIGN_SYSTEM, RefusalKind.NO_TARGET]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("not json", "answer_not_json"),
        ('{"intent": "joke"}', "answer_breaks_schema"),
        ('```json\n{"intent": "other"}```', "answer_not_json"),
    ],
)
def test_answers_that_break_the_schema_are_linted(contract, answer, kind):
    assert [v.kind for v in contract.lint(conversation(("user", "x"), ("assistant", answer)))] == [kind]


def test_a_row_that_keeps_the_contract_has_no_violation(contract):
    assert contract.lint(ROW) == []


def test_answers_read_back_from_ids_and_text(contract):
    (example,) = contract.encode(ROW, row_id="r")
    trained = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    assert contract.parse(trained).content == '{"intent": "refund"}'
    assert contract.parse(trained).status is ParseStatus.OK
    assert contract.parse(trained[:-1]).status is ParseStatus.CUT
    assert contract.parse('{"intent": "refund"}').status is ParseStatus.OK
    assert contract.parse([contract.stop_ids[0]]).status is ParseStatus.EMPTY


TAMPERED = {
    "template": ("tokenizer/chat_template.jinja", lambda text: text.replace("assistant", "Assistant")),
    "tokenizer": ("tokenizer/tokenizer.json", lambda text: text.replace('"special":true', '"special":false', 1).replace('"special": true', '"special": false', 1)),
    "tokenizer ": ("tokenizer/tokenizer_config.json", lambda text: text.replace("<|im_end|>", "<|endoftext|>")),
    "decoding": ("tokenizer/generation_config.json", lambda text: text.replace("256", "255")),
    "golden": ("golden.jsonl", lambda text: text.replace("France", "Spain")),
    "criteria": ("criteria.json", lambda text: text.replace("0.97", "0.90")),
    "system": ("contract.json", lambda text: text.replace("JSON only", "JSON, only")),
}  # fmt: skip


@pytest.mark.parametrize("part", sorted(TAMPERED))
def test_a_part_changed_by_hand_is_refused_by_name(copy, part):
    name, change = TAMPERED[part]
    path = copy / name
    before = path.read_text("utf-8")
    path.write_text(change(before), "utf-8")
    assert path.read_text("utf-8") != before
    with pytest.raises(ContractError, match=f"part '{part.strip()}'"):
        load_contract(copy)


def test_a_part_changed_with_its_hash_is_refused_by_the_hash_over_all(copy):
    path = copy / "contract.json"
    document = json.loads(path.read_text("utf-8"))
    document["parts"]["decoding"]["seed"] = 7
    document["hashes"]["decoding"] = sha256_hex(canonical_json(document["parts"]["decoding"]))
    path.write_text(canonical_json(document), "utf-8")
    with pytest.raises(ContractError, match="part 'contract'"):
        load_contract(copy)


@pytest.mark.parametrize(
    "name",
    ["contract.json", "golden.jsonl", "criteria.json", "tokenizer/chat_template.jinja", "tokenizer/tokenizer.json"],
)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ContractError, match=name.rsplit("/", 1)[-1].replace(".", r"\.")):
        load_contract(copy)


def test_an_engine_that_encodes_otherwise_is_noticed_at_the_first_difference(contract):
    contract.replay()
    contract.replay(lambda conversation: list(contract.render_prompt(conversation).ids))
    with pytest.raises(ContractError, match=r"golden vector '\w+', token 0"):
        contract.replay(lambda conversation: [0, *contract.render_prompt(conversation).ids])


def test_golden_vectors_hold_awkward_content(contract):
    names = {vector.name for vector in contract.golden}
    assert {"control_strings", "unicode", "leading_newlines", "empty", "long", "two_turns"} <= names
    planted = next(vector for vector in contract.golden if vector.name == "control_strings")
    assert planted.ids.count(contract.stop_ids[0]) == 2, "system and user turn end; the planted strings are text"


def test_sampling_stands_in_the_generation_config(tmp_path):
    contract = build(tmp_path, decoding=Decoding(temperature=0.7, top_p=0.9, max_new_tokens=64))
    config = json.loads((tmp_path / "tokenizer/generation_config.json").read_text())
    assert config == {
        "do_sample": True,
        "eos_token_id": [contract.stop_ids[0]],
        "max_new_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.9,
    }


def test_no_system_prompt_on_purpose_needs_a_template_that_injects_none(tmp_path):
    none = System(rule=SystemRule.NONE)
    with pytest.raises(ContractError, match="injects one"):
        build(tmp_path / "a", system=none)
    contract = build(tmp_path / "b", system=none, template=family_template("chatml"))
    assert contract.render_prompt(ROW.prompt).text.startswith("<|im_start|>user\n")
    with pytest.raises(Refused):
        contract.render_prompt(conversation(("system", "x"), ("user", "y")))


def test_rows_bring_their_own_system_prompt_where_the_contract_says_nothing(tmp_path):
    contract = build(tmp_path, system=System(rule=SystemRule.FROM_ROWS))
    assert "named SmolLM" in contract.render_prompt(ROW.prompt).text
    assert "Mine." in contract.render_prompt(conversation(("system", "Mine."), ("user", "y"))).text


def test_a_template_that_reads_the_clock_needs_a_date(tmp_path):
    harmony = family_tokenizer("harmony")
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.json").write_text(harmony.json_text)
    (base / "tokenizer_config.json").write_text(json.dumps(harmony.config))
    changes = {"base": base, "template": family_template("harmony"), "output_schema": None}
    with pytest.raises(ContractError, match="template_date"):
        build(tmp_path / "a", **changes)
    contract = build(tmp_path / "b", **changes, template_date=datetime.date(2025, 6, 1))
    assert "Current date: 2025-06-01" in contract.render_prompt(ROW.prompt).text
    assert contract.content["stop"]["texts"] == ["<|return|>", "<|call|>"]


def test_a_stop_that_is_no_token_is_refused(tmp_path):
    with pytest.raises(ContractError, match="not one token"):
        build(tmp_path, template=family_template("llama3"), system=System(rule=SystemRule.FROM_ROWS))


def test_a_broken_schema_is_refused_with_its_place(tmp_path):
    with pytest.raises(RecipeError, match="output_schema/type"):
        build(tmp_path, output_schema={"type": "objekt"})


def test_variables_render_through_the_input_template(tmp_path):
    variables = {"type": "object", "properties": {"body": {"type": "string"}}, "required": ["body"]}
    contract = build(tmp_path, input_schema=variables, input_render="Ticket: {{ body }}")
    rendered = contract.render_input({"body": "late"})
    assert rendered.messages[0].content == "Ticket: late"
    with pytest.raises(ContractError, match="input schema"):
        contract.render_input({"subject": "late"})


def test_tools_can_be_written_as_text_where_the_template_drops_them(tmp_path):
    with pytest.raises(ContractError, match="tool_format"):
        build(tmp_path / "a", tools=[TOOL], output_schema=None)
    contract = build(tmp_path / "b", tools=[TOOL], tool_format=ToolFormat.HERMES, output_schema=None)
    call = {"id": "1", "type": "function", "function": {"name": "lookup", "arguments": {"word": "ant"}}}
    row = Conversation.from_json(
        {
            "messages": [
                {"role": "user", "content": "What is an ant?"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "content": "an insect", "tool_call_id": "1"},
                {"role": "assistant", "content": "An insect."},
            ]
        }
    )
    text = contract.render_prompt(Conversation(messages=row.messages[:3])).text
    assert '"name": "lookup"' in text
    assert "<tool_response>\nan insect\n</tool_response>" in text
    (example,) = contract.encode(row, row_id="r")
    trained = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    parsed = contract.parse(trained)
    assert [(found.name, found.arguments) for found in parsed.tool_calls] == [("lookup", {"word": "ant"})]


LONG = conversation(
    *[turn for index in range(6) for turn in (("user", f"question {index} " * 5), ("assistant", f"answer {index}"))]
)


def test_long_rows_are_refused_with_their_length_by_default(tmp_path):
    contract = build(tmp_path, output_schema=None, loss=LossPolicy(max_tokens=64))
    with pytest.raises(Refused) as caught:
        contract.encode(LONG, row_id="r")
    assert caught.value.kind is RefusalKind.OVERLONG
    assert "64 tokens" in str(caught.value)


def test_dropping_the_oldest_turns_leaves_a_prompt_that_a_server_could_see(tmp_path):
    loss = LossPolicy(max_tokens=64, overlong=Overlong.DROP_OLDEST_TURNS, train_on=TrainOn.LAST)
    contract = build(tmp_path, output_schema=None, loss=loss)
    (example,) = contract.encode(LONG, row_id="r")
    assert len(example.ids) <= 64
    turns = [(message.role, message.content) for message in LONG.messages]
    prompts = [contract.render_prompt(conversation(*turns[start:11])).ids for start in range(0, 12, 2)]
    kept = [prompt for prompt in prompts if example.ids[: len(prompt)] == prompt]
    assert len(kept) == 1
    assert prompts.index(kept[0]) > 0, "something was dropped"


def test_cutting_the_end_drops_a_row_whose_target_is_cut(tmp_path):
    loss = LossPolicy(max_tokens=16, overlong=Overlong.CUT_END)
    contract = build(tmp_path, output_schema=None, loss=loss)
    with pytest.raises(Refused, match="nothing to train"):
        contract.encode(LONG, row_id="r")


def changes(tmp_path, **settings):
    build(tmp_path / "before")
    build(tmp_path / "after", **settings)
    found = diff_contracts(tmp_path / "before", tmp_path / "after")
    return {change.part: change.severity for change in found if change.part != "golden"}


def widened(*names):
    return {**SCHEMA, "properties": {"intent": {"type": "string", "enum": list(names)}}}


BASE_TEMPLATE = find_templates(small_base())["default"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"system": System(rule=SystemRule.TEXT, text="Other.")}, {"system": Severity.BREAKING}),
        ({"decoding": Decoding(max_new_tokens=64)}, {"decoding": Severity.SOFT}),
        ({"decoding": Decoding(seed=3)}, {"decoding": Severity.COSMETIC}),
        ({"guardrails": {"retries": 2}}, {"guardrails": Severity.SOFT}),
        ({"loss": LossPolicy(reasoning=Reasoning.MASK)}, {"loss": Severity.BREAKING}),
        ({"criteria": []}, {"criteria": Severity.SOFT}),
        ({"output_schema": {**SCHEMA, "title": "Answer"}}, {"output": Severity.COSMETIC}),
        ({"output_schema": widened("refund", "other", "new")}, {"output": Severity.SOFT}),
        ({"output_schema": widened("refund")}, {"output": Severity.BREAKING}),
        ({"output_schema": {**SCHEMA, "properties": {}}}, {"output": Severity.BREAKING}),
        ({"output_schema": {**SCHEMA, "required": []}}, {"output": Severity.SOFT}),
        ({"output_schema": {**SCHEMA, "required": ["intent", "id"]}}, {"output": Severity.BREAKING}),
        ({"output_schema": None}, {"output": Severity.SOFT}),
        ({"extra_stops": ["<|endoftext|>"]}, {"stop": Severity.SOFT}),
        ({"input_render": "{{ body }}"}, {"input": Severity.BREAKING}),
        ({"template": ChatTemplate(BASE_TEMPLATE + "{# a comment #}")}, {"template": Severity.COSMETIC}),
        ({"template": family_template("chatml")}, {"template": Severity.SOFT}),
        (
            {"template": ChatTemplate(BASE_TEMPLATE.replace(r"<|im_end|>\n", "<|im_end|>"))},
            {"template": Severity.BREAKING},
        ),
    ],
)
def test_a_difference_is_cosmetic_soft_or_breaking(tmp_path, settings, expected):
    assert changes(tmp_path, **settings) == expected
