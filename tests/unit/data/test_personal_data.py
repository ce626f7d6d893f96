"""Personal data and secrets are found by type and replaced consistently; what only looks like them is left alone."""

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import checksums
from tunesmith.data.canaries import canaries, measured_recall
from tunesmith.data.patterns import all_patterns, find
from tunesmith.data.redact import masked, redact_row
from tunesmith.types import Conversation, Message, Provenance, Row, ToolCall

FOUND = [
    ("EMAIL", "write to {} please", ["ann@example.org", "j.o'neil+shop@mail.example.co.uk", "müller@bücher.example.de"]),
    ("EMAIL", "write to {} please", ["ann (at) example (dot) org", "ann[at]example[dot]org"]),
    ("PHONE", "call {} today", ["+44 20 7946 0958", "(555) 867-5309", "555-867-5309", "0800 123 4567", "06 12 34 56 78"]),
    ("PHONE", "the number of the account is {}", ["+1 202-555-0166", "+442079460958"]),
    ("PHONE", "my phone: {}", ["867 5309", "0171 1234567", "5558675309"]),
    ("CARD", "card {} was charged", ["4111 1111 1111 1111", "378282246310005", "5555-5555-5555-4444", "6011111111111117"]),
    ("IBAN", "send it to {} now", ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "fr14 2004 1010 0505 0001 3m02 606"]),
    ("NATIONAL_ID", "it is {}", ["078-05-1120", "AB 12 34 56 C", "12345678Z", "X1234567L", "RSSMRA85T10A562S", "529.982.247-25"]),
    ("NATIONAL_ID", "my tax id {} is new", ["86095742719"]),
    ("NATIONAL_ID", "driver's license number is {}", ["A56319335"]),
    ("IP_ADDRESS", "I log in from {} at home", ["203.0.113.77", "2001:db8:0:0:8:800:200c:417a", "fe80::1ff:fe23:4567:890a"]),
    ("ADDRESS", "ship to {} soon", ["12 Harbour Street", "221B Baker Street, London NW1 6XE", "Hauptstraße 5, 10115 Berlin"]),
    ("ADDRESS", "ship to {} soon", ["12 rue de la Paix, 75002 Paris", "Calle Mayor 10", "P.O. Box 1234"]),
    ("BANK_ACCOUNT", "bank account number {}", ["12345678", "0012 3456 7890"]),
    ("CRYPTO_WALLET", "pay {} in full", ["1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"]),
    ("DATE_OF_BIRTH", "date of birth: {}", ["12/03/1980", "1980-03-12", "March 12, 1980"]),
    ("PASSWORD", "my password is {}", ["hunter2!x", "Tr0ub4dor&3"]),
    ("URL_PASSWORD", "postgres://admin:{}@db.internal/x", ["s3cr3tpw"]),
]  # fmt: skip

CLEAN = [
    "Order 4711-0815 arrived on 2026-03-04 at 14:32:07, thanks!",
    "Where is order #88231764? Tracking says 1Z999AA10123456784 since Monday.",
    "Ticket 100234567 and invoice INV-2026-000123 are about the same thing.",
    "Since version 3.10.1.2 of the app the sync is slow; 3.9.12 was fine.",
    "The update to 10.15.7.1 fails with error 0x80070057 after 99% of 1,234,567,890 bytes.",
    "It cost $1,299.00, then 1.299,00 € and now 5,000 - 1,234.56 = 3,765.44.",
    "ISBN 978-3-16-148410-0 and ISSN 2049-3630 are in the catalogue, see pages 1203-1299.",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8 broke the build",
    "id 550e8400-e29b-41d4-a716-446655440000 was not found",
    "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "The years 1914-1918 and 1939-1945; a score of 21-19, 15-21, 21-18.",
    "Meet at 10:30-11:45 on 12/03/2026 or 13.03.2026, room 4.12.",
    "pi is 3.14159265358979 and e is 2.718281828459045",
    "for i in range(0, 1000000): x[i] = 123456789 * i",
    "SELECT * FROM t WHERE id IN (1000001, 1000002, 1000003) AND qty > 12;",
    "ping 127.0.0.1 and 8.8.8.8, the mask is 255.255.255.0 and the net 192.168.0.0/16",
    "EC 3.1.1.11 is an enzyme; chapter 1.2.3.4 explains it.",
    "My password is not accepted and the password reset mail never comes.",
    "The password must contain letters; the passcode is wrong, it says.",
    "Use your API key as the token, see the docs for the secret settings.",
    "api_key = os.environ['API_KEY'] and token = get_token_from_vault(session_name)",
    'headers = {"Authorization": "Bearer <YOUR_API_KEY>"}',
    "The serial number is 1234 5678 9012 and the part number 0045-0067-8891.",
    "Customer 20455731 has 3 licences, client number 004 512 998.",
    "std::vector<int> and a::b::c are C++, 12:34:56 is a time, aa:bb is a ratio.",
    "I live on a street near a square; the drive to the place takes 20 minutes.",
    "In the 1929 Wall Street crash many lost everything.",
    "The card has 16 digits, like 1234 5678 9012 3456, and a code of 3.",
    "GB82 is not an account, and DE00 1234 5678 9012 3456 78 has a wrong check digit.",
    "The bank account is closed, my account number is on file.",
    "She was born on 5 May in Rome and lives there.",
    "We sold 12,345,678 units in Q3 2026, up 12.5% from 10,987,654.",
    "temperature 36.6, pressure 120/80, pulse 72, BMI 24.12345678",
    "coordinates 48.858370, 2.294481 and 40.689247, -74.044502",
    "@decorator\ndef f(a, b=2): return a @ b  # matrix product",
    "user@host is no address without a domain, neither is @ann or a@b",
    "The patient was given 500 mg twice a day for 10 days in trial NCT04280705.",
    "doi:10.1038/s41586-021-03819-2 and arXiv 2106.09685",
    "tail -n +347340107 filename | head -c 100",
    "0123456789 are the digits, abcdefghijklmnopqrstuvwxyz the letters.",
    "<EMAIL_1> wrote to <PHONE_1> from <IP_ADDRESS_2>.",
]


@pytest.mark.parametrize(("kind", "carrier", "values"), FOUND)
def test_each_type_is_found_whole(kind, carrier, values):
    for value in values:
        text = carrier.format(value)
        assert [(text[span.start : span.end], span.kind) for span in find(text)] == [(value, kind)], text


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_like_personal_data_is_left_alone(text):
    assert [text[span.start : span.end] for span in find(text)] == []


def test_every_canary_is_found_and_every_type_of_pattern_has_one():
    missed = [
        canary
        for canary in canaries(seed=7, per_kind=40)
        if not any(canary.value in canary.sentence[span.start : span.end] for span in find(canary.sentence))
    ]
    assert missed == []
    types = {canary.kind for canary in canaries()}
    assert types <= {pattern.kind for pattern in all_patterns()}
    assert len(types) == 12


def test_vendor_keys_are_found():
    chance = random.Random(1)
    letters = "".join(chance.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=100))
    for start, count in [
        ("sk-", 40), ("sk-ant-" + "api03-", 90), ("AK" + "IA", 0), ("gh" + "p_", 36), ("github" + "_pat_", 60),
        ("xo" + "xb-", 40), ("AI" + "za", 35), ("hf" + "_", 34), ("npm" + "_", 36), ("sk_" + "live_", 24),
        ("gl" + "pat-", 20), ("whsec" + "_", 32), ("dckr" + "_pat_", 27),
    ]:  # fmt: skip
        key = start + (letters[:count] if count else "ABCDEFGHIJ234567")
        text = f"I pasted {key} into the form"
        assert [text[span.start : span.end] for span in find(text)] == [key]


def conversation(*texts, **more):
    roles = ["user", "assistant"] * len(texts)
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))
    return Row(
        id="0" * 16,
        conversation=Conversation(messages=messages),
        provenance=Provenance(source="s", path="p", line=1),
        **more,
    )


def test_one_value_has_one_placeholder_in_all_turns_calls_and_the_rejected_answer():
    row = conversation("I am ann@example.org and bob@example.org", "Hello ANN@example.org")
    call = ToolCall(name="mail", arguments={"to": ["ann@example.org"], "text": "ask bob@example.org"})
    answer = Message(role="assistant", content="done", reasoning="bob@example.org asked", tool_calls=(call,))
    row = conversation("I am ann@example.org and bob@example.org", "Hello ANN@example.org", rejected=(answer,))
    redacted = redact_row(row)
    texts = [message.content for message in redacted.row.conversation.messages]
    assert texts == ["I am <EMAIL_1> and <EMAIL_2>", "Hello <EMAIL_1>"]
    assert redacted.row.rejected[0].reasoning == "<EMAIL_2> asked"
    assert redacted.row.rejected[0].tool_calls[0].arguments == {"to": ["<EMAIL_1>"], "text": "ask <EMAIL_2>"}
    assert redacted.counts == {"EMAIL": 6}
    assert redacted.row.id == row.id


def test_weighted_parts_move_with_the_text():
    text = "ann@example.org: yes, 4111 1111 1111 1111 is mine"
    places = [text.index("yes"), text.index("is mine")]
    spans = ((places[0], places[0] + 3, 2.0), (places[1] - 5, places[1] + 7, 0.5), (0, 3, 0.0))
    message = Message(role="assistant", content=text, spans=spans)
    row = Row(
        id="0" * 16, conversation=Conversation(messages=(message,)), provenance=Provenance(source="s", path="p", line=1)
    )
    (after,) = redact_row(row).row.conversation.messages
    parts = [(after.content[start:end], factor) for start, end, factor in after.spans]
    assert parts == [("yes", 2.0), ("<CARD_1> is mine", 0.5), ("<EMAIL_1>", 0.0)]


def test_json_answers_stay_json():
    row = conversation("who?", json.dumps({"mail": "ann@example.org", "card": "4111 1111 1111 1111"}))
    answer = redact_row(row).row.conversation.answer
    assert json.loads(answer) == {"mail": "<EMAIL_1>", "card": "<CARD_1>"}


@given(
    st.lists(
        st.sampled_from([canary.sentence for canary in canaries(seed=3, per_kind=4)] + CLEAN), min_size=1, max_size=6
    )
)
def test_redacting_twice_changes_nothing_more(parts):
    once = redact_row(conversation(" ".join(parts), parts[0])).row
    again = redact_row(once)
    assert again.row == once
    assert again.counts == {}


@given(st.text())
def test_any_text_is_searched_without_a_crash_and_spans_do_not_overlap(text):
    spans = find(text)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))


def test_only_the_wanted_types_are_replaced():
    row = conversation("ann@example.org, 4111 1111 1111 1111", "ok")
    assert (
        redact_row(row, kinds=frozenset({"CARD"})).row.conversation.messages[0].content == "ann@example.org, <CARD_1>"
    )
    assert redact_row(row, kinds=frozenset()).row == row


def test_samples_do_not_show_the_value():
    assert masked("ann@example.org") == "axx@xxxxxxx.xxg"
    assert masked("4111 1111 1111 1111") == "4999 9999 9999 9991"
    assert masked("abc") == "xxx"
    assert len(masked("x" * 500)) <= 49


def test_measured_recall_falls_where_a_type_is_not_replaced():
    rows = [conversation("The parcel is late. Where is it?", "It comes on Monday.")]
    recall = measured_recall(rows)
    assert set(recall.values()) == {1.0}
    assert measured_recall(rows, kinds=frozenset({"EMAIL"})) == {"EMAIL": 1.0}
    assert measured_recall([]) == {}


@pytest.mark.parametrize(
    ("holds", "good"),
    [
        (checksums.luhn_holds, "4111111111111111"),
        (checksums.iban_holds, "DE89370400440532013000"),
        (checksums.ssn_holds, "078051120"),
        (checksums.nhs_holds, "9434765919"),
        (checksums.dni_holds, "12345678Z"),
        (checksums.codice_fiscale_holds, "RSSMRA85T10A562S"),
        (checksums.nir_holds, "255081416802538"),
        (checksums.steuer_id_holds, "86095742719"),
        (checksums.bsn_holds, "111222333"),
        (checksums.rijksregister_holds, "85073003328"),
        (checksums.pesel_holds, "44051401359"),
        (checksums.cpf_holds, "52998224725"),
        (checksums.verhoeff_holds, "2363"),
        (checksums.hetu_holds, "131052-308T"),
        (checksums.nric_holds, "S1234567D"),
        (checksums.china_id_holds, "11010519491231002X"),
        (checksums.routing_holds, "021000021"),
        (checksums.base58check_holds, "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"),
    ],
)
def test_check_digits_hold_for_published_examples_and_for_few_others(holds, good):
    assert holds(good)
    place = next(i for i in range(len(good) - 1, -1, -1) if good[i].isdigit())
    wrong = [good[:place] + digit + good[place + 1 :] for digit in "0123456789" if digit != good[place]]
    if holds is not checksums.ssn_holds:
        assert sum(map(holds, wrong)) <= 1
    else:
        assert not holds("000051120")
        assert not holds("900051120")
