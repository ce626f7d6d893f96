"""Redaction of JSON and code: an answer that was JSON stays JSON, and the name of a field tells what its value is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.canaries import canaries
from tunesmith.data.redact import redact_row
from tunesmith.types import Conversation, Message, Provenance, Row, ToolCall


def row_of(answer, *, calls=(), asked="who?"):
    messages = (Message(role="user", content=asked), Message(role="assistant", content=answer, tool_calls=tuple(calls)))
    where = Provenance(source="s", path="p", line=1)
    return Row(id="0" * 16, conversation=Conversation(messages=messages), provenance=where)


def redacted(answer):
    return redact_row(row_of(answer)).row.conversation.answer


@pytest.mark.parametrize(
    ("answer", "after"),
    [
        ('{"card": 4111111111111111}', {"card": "<CARD_1>"}),
        ('[4111111111111111, "ann@example.org"]', ["<CARD_1>", "<EMAIL_1>"]),
        ('{"text": "Hello\\nann@example.org"}', {"text": "Hello\n<EMAIL_1>"}),
        ('{"text": "m\\u00fcller@example.org \\"ok\\""}', {"text": '<EMAIL_1> "ok"'}),
        ('{"a": "http://x:80", "b": "ann@example.org"}', {"a": "http://x:80", "b": "<EMAIL_1>"}),
        ('{"k": "-----BEGIN PRIVATE KEY-----\\nMIIE", "b": 1}', {"k": "<PRIVATE_KEY_1>", "b": 1}),
        ('{"user_password": "Tr0ub4dor3", "n": 12}', {"user_password": "<PASSWORD_1>", "n": 12}),
        ('{"phoneNumber": "4155552671"}', {"phoneNumber": "<PHONE_1>"}),
        ('{"phone_number": 4155552671}', {"phone_number": "<PHONE_1>"}),
        ('{"orderNumber": "4155552671", "amount": 4155552671}', {"orderNumber": "4155552671", "amount": 4155552671}),
        ('{"ann@example.org": {"ssn": "536904399"}}', {"<EMAIL_1>": {"ssn": "<NATIONAL_ID_1>"}}),
    ],
)
def test_an_answer_that_is_json_stays_json(answer, after):
    assert json.loads(redacted(answer)) == after


def test_values_without_personal_data_keep_their_form_to_the_letter():
    answer = '{ "a" : 1.50,\n  "mail":"ann@example.org", "b":"\\u00fc\\/" }'
    assert redacted(answer) == '{ "a" : 1.50,\n  "mail":"<EMAIL_1>", "b":"\\u00fc\\/" }'


def test_json_inside_a_text_and_escapes_in_code_stay_whole():
    assert redacted('Here:\n```json\n{"card": 4111111111111111}\n```') == 'Here:\n```json\n{"card": "<CARD_1>"}\n```'
    assert redacted('print("Hi\\nann@example.org")') == 'print("Hi\\n<EMAIL_1>")'
    assert redacted('x = {"url": "https://h:8443","mail":"ann@example.org"}') == (
        'x = {"url": "https://h:8443","mail":"<EMAIL_1>"}'
    )


def test_an_argument_of_a_call_is_known_by_its_name():
    call = ToolCall(name="login", arguments={"password": "Tr0ub4dor3", "card": 4111111111111111, "n": 3, "x": None})
    (after,) = redact_row(row_of("", calls=[call])).row.conversation.messages[1].tool_calls
    assert after.arguments == {"password": "<PASSWORD_1>", "card": "<CARD_1>", "n": 3, "x": None}


def test_a_placeholder_that_was_there_before_is_not_given_to_another_value():
    row = row_of("ann@example.org wrote", asked="<EMAIL_1> and <EMAIL_3> are known")
    assert redact_row(row).row.conversation.answer == "<EMAIL_4> wrote"


_SENTENCES = [canary.sentence for canary in canaries(seed=5, per_kind=3)]
_VALUES = st.recursive(
    st.sampled_from(_SENTENCES) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.just("card"), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "token", "phone", "x\n"]), _VALUES), st.booleans())
def test_any_json_stays_json_and_redacting_again_changes_nothing(value, ascii_only):
    once = redact_row(row_of(json.dumps(value, ensure_ascii=ascii_only))).row
    json.loads(once.conversation.answer)
    assert redact_row(once).row == once
