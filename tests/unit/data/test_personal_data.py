"""Personal data and secrets are found by type and replaced consistently; what only looks like them is left alone."""

import itertools
import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunesmith.data import checksums
from tunesmith.data.canaries import canaries, measured_recall
from tunesmith.data.patterns import PATTERNS, find, longest_chain
from tunesmith.data.redact import masked, redact_row
from tunesmith.types import Conversation, Message, Provenance, Row, ToolCall

FOUND = [
    ("EMAIL", "write to {} please", ["ann@example.org", "j.o'neil+shop@mail.example.co.uk", "müller@bücher.example.de"]),
    ("EMAIL", "write to {} please", ["ann (at) example (dot) org", "ann[at]example[dot]org"]),
    ("PHONE", "call {} today", ["+44 20 7946 0958", "(555) 867-5309", "555-867-5309", "0800 123 4567", "06 12 34 56 78"]),
    ("PHONE", "the number of the account is {}", ["+1 202-555-0166", "+442079460958"]),
    ("PHONE", "my phone: {}", ["867 5309", "0171 1234567", "5558675309"]),
    ("PHONE", "it is {} now", ["0151-23456789", "07911 123456", "06.12.34.56.78", "(11) 91234-5678", "415-555-2671 ext 12"]),
    ("PHONE", "llámame al {}", ["612 345 678"]),
    ("CARD", "card {} was charged", ["4111 1111 1111 1111", "378282246310005", "5555-5555-5555-4444", "6011111111111117"]),
    ("IBAN", "send it to {} now", ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "fr14 2004 1010 0505 0001 3m02 606"]),
    ("NATIONAL_ID", "it is {}", ["078-05-1120", "AB 12 34 56 C", "12345678Z", "X1234567L", "RSSMRA85T10A562S", "529.982.247-25"]),
    ("NATIONAL_ID", "it is {}", ["756.9217.0769.85", "736028/5163", "HEGG560427MVZRRL04", "12.345.678-5", "A123456(3)"]),
    ("NATIONAL_ID", "it is {}", ["20-12345678-6", "19811228-9874", "ABCPE1234F", "2341 2341 2346", "12.345.678-Z"]),
    ("NATIONAL_ID", "ID number {} on file", ["1234567T", "A123456789", "123 456 782", "10000000146", "8001015009087"]),
    ("NATIONAL_ID", "ID number {} on file", ["15 070649 C 103", "7523169263", "33392005961", "1237 010180"]),
    ("NATIONAL_ID", "my tax id {} is new", ["86095742719"]),
    ("NATIONAL_ID", "driver's license number is {}", ["A56319335"]),
    ("IP_ADDRESS", "I log in from {} at home", ["203.0.113.77", "2001:db8:0:0:8:800:200c:417a", "fe80::1ff:fe23:4567:890a"]),
    ("ADDRESS", "ship to {} soon", ["12 Harbour Street", "221B Baker Street, London NW1 6XE", "Hauptstraße 5, 10115 Berlin"]),
    ("ADDRESS", "ship to {} soon", ["12 rue de la Paix, 75002 Paris", "Calle Mayor 10", "P.O. Box 1234"]),
    ("ADDRESS", "I live at {} now", ["Flat 4, 12 High Street, Leeds LS1 4AB", "12 W 42nd St Apt 5B", "Dalmatinova 43"]),
    ("ADDRESS", "send it to {}", ["6750 Koskikatu 25 Apt. 864\nArtilleros\n, CO\n Uruguay 64677", "PSC 6293, Box 8158\nAPO AP 04336"]),
    ("ADDRESS", "we are at {}", ["the corner of Dalbraut 99 and Frederikke Coves"]),
    ("MAC_ADDRESS", "the card {} is new", ["00:1A:2B:3C:4D:5E", "001a.2b3c.4d5e"]),
    ("IP_ADDRESS", "it is {} here", ["fe80::1"]),
    ("BANK_ACCOUNT", "bank account number {}", ["12345678", "0012 3456 7890"]),
    ("CRYPTO_WALLET", "pay {} in full", ["1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"]),
    ("DATE_OF_BIRTH", "date of birth: {}", ["12/03/1980", "1980-03-12", "March 12, 1980"]),
    ("PASSWORD", "my password is {}", ["hunter2!x", "Tr0ub4dor&3"]),
    ("PASSWORD", "PGPASSWORD={} psql", ["Tr0ub4dor3"]),
    ("PASSWORD", "mot de passe : {}", ["Tr0ub4dor3"]),
    ("PASSWORD", "sshpass -p {} ssh ann@host", ["Tr0ub4dor3"]),
    ("PASSWORD", "curl -u ann:{} https://x.example", ["Tr0ub4dor3"]),
    ("SECRET", "Authorization: Basic {}", ["YW5uOlRyMHViNGRvcjM="]),
    ("SECRET", "our key is {}", ["6DtWpAgo9MGPPGwjbhzaPuot"]),
    ("IBAN", "the debit from {} pay for the plan", ["GB16 TEST 2153 6001 9241 17"]),
    ("PASSWORD", "<db.password>{}</db.password>", ["Tr0ub4dor3"]),
    ("PASSWORD", "CREATE USER jo IDENTIFIED BY '{}';", ["Tr0ub4dor3"]),
    ("PASSWORD", "the password for the admin account is {}", ["Tr0ub4dor3"]),
    ("PASSWORD", "docker login -u jo -p {} reg.example", ["Tr0ub4dor3"]),
    ("PASSWORD", "redis-cli -h x -a {} ping", ["Tr0ub4dor3"]),
    ("PASSWORD", 'client_secret: "{}"', ["Tr0ub4dor3"]),
    ("SECRET", 'secretAccessKey: "{}"', ["AgMgnUvGMrrT0LjL4MPGGJESZ1mckKJhn5/i32fD"]),
    ("SECRET", "Cookie: sessionid={}", ["38afes7a8wq9zk2m4n6b8v0c1x3z5l7k"]),
    ("API_KEY", "https://api.telegram.org/bot{}/getMe", ["7200210579:AAd6kSE6gK0VOs_XGjB4Q5tQP5kB6JnlbHZ"]),
    ("NATIONAL_ID", "IdNr. {} is new", ["86095742719"]),
    ("NATIONAL_ID", "my S.I.N. is {} here", ["046 454 286"]),
    ("CARD", "card_number: {}", ["4222222222222"]),
    ("URL_PASSWORD", "redis://:{}@cache:6379/0", ["hunter22"]),
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
    "Order 1002345678 was placed on 03/14/2026 and shipped with tracking number 9400 1118 9956 1234 5678 90.",
    "Your order number is 114-3941689-8772232; keep it for returns.",
    "Python 3.11.7 and numpy 2.4.6 work, torch 2.13.0+cu126 does not; see PEP 484.",
    "def sha(x): return hashlib.sha256(x).hexdigest()  # 'da39a3ee5e6b4b0d3255bfef95601890afd80709'",
    "docker pull nginx@sha256:4c0fdaa8b6341bfdeca5f18f7837462c80cff90527ee35ef185571e1c327beac",
    '"integrity": "sha512-v2kDEe57lecTulaDIuNTPy3Ry4gLGJ6Z1O3vE1krgXZNrsQ+LFTGHVxVjcXPs17LhbZVGedAJv8XZ1tvj5FvSg=="',
    "The ISBN-13 is 9780306406157, the ISBN-10 0-306-40615-2 and the EAN 4006381333931.",
    'uuid = "123e4567-e89b-12d3-a456-426614174000"',
    'token = tokenizer.encode("hello world 123")[0]; secret_santa = random.choice(names)',
    "The primary key is (user_id, created_at) and the foreign key references orders2024_archive_table.",
    'key = f"{prefix}_{user_id}_{timestamp:%Y%m%d}"',
    'cache_key = "user_profile_v2_settings_2024_01"',
    "SELECT token, password FROM users WHERE password = crypt('x', password);",
    "To reset your password, click Forgot password? and follow the link; the new password must be 8 characters.",
    "password: str = Field(..., min_length=8)",
    "My password doesn't work. The password is incorrect even though I copied it.",
    "The secret ingredient is a teaspoon of smoked paprika and 250 g of flour at 180 degrees for 45 minutes.",
    "It is 12:30:45 on 2026-11-22T12:30:45.123Z, epoch 1700000000, or 1700000000000 ms.",
    "The match ended 6-4 3-6 7-6 (7-5), 5-7 10-8.",
    "Chapter 12 Section 4 Line 17: see Table 3.2.1.4 for 1.2.3.4-beta",
    "192.168.1.0/24 is a private network and 255.255.255.0 the mask; localhost is 127.0.0.1:8080.",
    "The drug has CAS number 50-78-2 and the patent US 10,123,456 B2; PMID 12345678.",
    "Flight LH 454 leaves at 10:55 from gate 22; seat 14C; booking X7K9QP.",
    "Route 66 and Highway 101; Area 51; Boeing 737 and Airbus 320; Windows 98, Office 2003.",
    "A vector (0.1, 0.2, 0.3) and 3.141592653589793238462643383279.",
    "The population was 1 234 567 890 in 1999 and 331 002 651 in 2020.",
    "GDP grew from 12 345 678 to 23 456 789 thousand; see rows 100-200-300.",
    "Serial number: C02XL0THJGH5; model number A1234-5678; part no. 1234567890.",
    "Model SM-G991B firmware G991BXXU3AUE6 build 20210515.",
    "VIN 1HGBH41JXMN109186 belongs to a car in a textbook.",
    "MD5 of the empty string is d41d8cd98f00b204e9800998ecf8427e.",
    "git checkout 3f786850e387550fdab836ed7e6dc881de23001b && git push origin main",
    "The invoice 2026-0001234 of 12.03.2026 over 1.234,56 EUR is due in 30 days.",
    "Call the function foo(1, 2, 3) with 1234567 iterations, then call bar 10 times.",
    "Mobile phones sold 1,200,000 units; call volume was 345678 last year.",
    "The phone has 6000 mAh, 128 GB and a 120 Hz screen; it cost 699 dollars in 2024.",
    "ring buffer of 1048576 entries; dial size 36 mm; fax machines from 1985 1990 1995",
    "Reach us between 9:00 and 17:00, Monday 12 to Friday 16 March 2026.",
    "The card game has 52 cards; card 13 is a king. Deck id 4000-0012-3456.",
    "Lottery numbers: 04 08 15 16 23 42. Next draw: 07 12 19 27 33 45.",
    "0x7fff5fbff8c0 is the stack pointer, 0xDEADBEEF the magic, 0b10101010 a mask.",
    "Color #ff8800 and rgba(12, 34, 56, 0.7); unicode U+1F600; &#128512;",
    "IPv6 uses 128 bits: eight groups, for example written aaaa:bbbb:: in theory. 10::20 is odd.",
    "The ratio is 16:9:4 and the duration 01:02:03:04 (frames). Chapter and verse: John 3:16-17.",
    "at com.example.Foo.bar(Foo.java:123) at line 45 in module 2",
    "ssh user@server.example.com -p 2222 && scp a.txt user@server.example.com:/tmp/",
    "git clone git@github.com:torvalds/linux.git",
    "npm install @types/node@20.11.5 react@18.2.0 lodash@4.17.21",
    "Email me later. My e-mail does not work @ home, see @username and #hashtag.",
    'import pandas as pd; df = pd.read_csv("s3://bucket/data_2024_01_01.csv")',
    "Add 415 and 555 and 2671. Sum 100 200 3000. 250 300 4500 kcal",
    "The recipe needs 2 cups, 3 eggs; bake in 9 inch pan. Serves 4 Place in oven.",
    "Move 3 files to Room 101. Send this to Team 12, deliver to Gate 7, posted to Group 5.",
    "He lived at the time of Napoleon; the office is at Level 9; she is staying at Hotel 11.",
    "I was born in 1990. She was born on a Monday. Founded 12/03/1980.",
    "Insurance policy 123456789 covers 500000 dollars; the patient is 45, heart rate 72.",
    "National debt is 34000000000000; the national average was 123456789 in 2019.",
    "The identity matrix is 100010001; identify 111222333 as a palindrome? No.",
    "Passport control took 2 hours; driver license rules changed in 2015.",
    "tax 2023 was 12345.67; the tax identifier field is optional; ID number field is required.",
    "account number is required; Account #: field; account balance 1234567 points.",
    "Authorization: Basic <credentials>; basic understanding; basic authentication uses base64encoding",
    "Bearer of bad news; the bearer token must be sent in the header.",
    "export API_KEY=your-api-key-here; OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxx",
    "api_key: ${API_KEY}  secret: {{ secrets.TOKEN }} password: ${DB_PASSWORD}",
    "postgres://user:password@localhost:5432/db and redis://localhost:6379/0",
    "mysql -u root -p mydb < dump.sql; curl -u user:password https://x; curl -u $USER:$PASS x",
    "The key is understandingTheProblem2solve and patience.",
    'Session id is stored in a cookie. session_id = request.cookies["session_id"]',
    "a = [1000000007, 998244353]; MOD = 10**9+7; n = 6469693230",
    "GSM8K: 4 * 12 = 48; 48 + 24 = 72. #### 72",
    "Temperature was -12.5 to 30.2; wind 5-10-15 km/h; 1-2-3-4-5.",
    "1/2 3/4 5/8 of 1200/2400; 24/7 support; 2024/2025 season; 120/80",
    "Press 00 44 for exit. Code 007 123 456. 0800 hours, 2100 hours.",
    "+1 for this idea! +100 points, +5% to +10%, C++11 and +3.5V -12 V",
    "Lat/long: 52.5200 N 13.4050 E; zip 90210; 1600 students; area 51 000 km2",
    "ID: 00000000-0000-0000-0000-000000000000 and MAC ff:ff:ff:ff:ff:ff means broadcast",
    "bond CUSIP 037833100, ISIN US0378331005, SEDOL 2046251, LEI 5493001KJTIIGC8Y1R12",
    "Trial NCT01234567, EudraCT 2004-000446-20, gene rs12345678, chr7:117559590-117559600",
    "protein P04637 MEEPQSDPSVEPPLSQETFSDLWKLLPENNVLSPLPSQAMDDLMLSPDDIEQWFTEDPGP",
    "base64: iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    'class Foo(Base): id: int = 1; street: str; city: str; address: str = "unknown"',
    "Address: to be confirmed. Address: see page 12. The address is 0x1F4.",
    "The address of node 12 is stored at offset 16; live at 8 pm; lives on 5 continents",
    "The Twitter account @jack has 6500000 followers; follow at https://x.com/jack/status/20",
    "https://www.amazon.com/dp/B08N5WRWNW?ref=12345678901&qid=1612345678&sr=8-1",
    "https://example.com/2024/03/14/article-1234567890.html#section-12",
    "Windows error 0x80070005, HTTP 404, SQLSTATE 42P01, ORA-00942, CVE-2024-12345",
    "RFC 2616 and RFC 7231; ISO 27001:2022; IEC 61508; DIN EN 1992-1-1",
    "3 Samsung Galaxy 10, Black; 2 iPhone 15, white; 4 Nokia 3310, blue",
    "221 students, 12 Road trips, 3 Court cases, 4 Way stops, 2 Drive shafts, 5 Hill climbs",
    "Via 3 Roma stops; Via Roma tours 15 percent; rue the day 12 times; Place 3 tiles; Plaza 2",
    "batch 667-18-8148 and part no. 6186-6029-1094, case 355607/0342, reference DHDPW9376L",
    "Order 7790 8123 8955 and tracking 25 1988 1607 9464 9569 5189; membership 526 62 8510.",
    "Write to user@example.com, name@domain.com or your.name@company.com, says the manual.",
    "The router answers at 192.168.0.1 or 192.168.1.1, the key AKIAIOSFODNN7EXAMPLE is AWS's own example.",
    'publicKey: "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA1" and ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC7',
    "The password for the account is incorrect; the password on file was wrong.",
    "password = getpass_from(prompt) and c->password = g_strdup(value); password=auth[1], pw = line[2:].strip()",
    'https://<username>:<password>@proxy-host", and scheme://[user:passwd@]proxy.server:port',
    "v8: upgrade to 3.11.10.22, then upgraded libfoo to 4.2.10.1",
    "Copyright (C) 2008-2019, 2022 Anthony Green; Copyright 1991-1997, Thomas G. Lane.",
    "Prints: <Buffer 66 00 68 00 71 00 77 00 68 00 67 00 61 00>",
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
    assert types <= {pattern.kind for pattern in PATTERNS}
    assert len(types) == 12


def test_vendor_keys_are_found():
    chance = random.Random(1)
    letters = "".join(chance.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=100))
    for start, count in [
        ("sk-", 40), ("sk-ant-" + "api03-", 90), ("AK" + "IA", 0), ("gh" + "p_", 36), ("github" + "_pat_", 60),
        ("xo" + "xb-", 40), ("AI" + "za", 35), ("hf" + "_", 34), ("npm" + "_", 36), ("sk_" + "live_", 24),
        ("sk_" + "test_", 24), ("pk_" + "test_", 24), ("abc8Q~", 34),
        ("gl" + "pat-", 20), ("whsec" + "_", 32), ("dckr" + "_pat_", 27),
    ]:  # fmt: skip
        key = start + (letters[:count] if count else "ABCDEFGHIJ234567")
        text = f"I pasted {key} into the form"
        assert [text[span.start : span.end] for span in find(text)] == [key]


def test_a_key_without_digits_is_found_in_a_text_without_digits():
    key = "sk" + "_test_" + "qWeRtYuIoPaSdFgHjKlZxC"
    assert [span.kind for span in find(f"The key {key} is refused")] == ["API_KEY"]


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


def test_a_number_grouped_in_another_way_is_the_same_value():
    row = redact_row(conversation("call +44 20 7946 0958", "I called +442079460958 and +44 20 7946 0959")).row
    assert [message.content for message in row.conversation.messages] == [
        "call <PHONE_1>",
        "I called <PHONE_1> and <PHONE_2>",
    ]


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
@example(["password: LqCgoZS1k!57", "5233 5337 0573 2822", "Visa 3598-2679-4233-7939"])
@example(["313-15-7301", "bond CUSIP 037833100, ISIN US0378331005, SEDOL 2046251, LEI 5493001KJTIIGC8Y1R12"])
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
        (checksums.ean13_holds, "7569217076985"),
        (checksums.rodne_cislo_holds, "7360285163"),
        (checksums.rut_holds, "123456785"),
        (checksums.cuit_holds, "20123456786"),
        (checksums.taiwan_id_holds, "A123456789"),
        (checksums.pps_holds, "1234567T"),
        (checksums.german_pension_holds, "15070649C103"),
        (checksums.tfn_holds, "123456782"),
        (checksums.svnr_holds, "1237010180"),
        (checksums.egn_holds, "7523169263"),
        (checksums.kimlik_holds, "10000000146"),
        (checksums.fodselsnummer_holds, "15108695088"),
        (checksums.my_number_holds, "123456789018"),
        (checksums.thai_id_holds, "1101700207030"),
        (checksums.oib_holds, "33392005961"),
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


def test_the_cheap_tests_before_a_pattern_hide_no_match():
    for canary in canaries():
        chain, lower = longest_chain(canary.sentence), canary.sentence.lower()
        for pattern in PATTERNS:
            if any(pattern.fit(match) is not None for match in pattern.regex.finditer(canary.sentence)):
                assert chain >= pattern.digits
                assert not pattern.hints or any(hint in lower for hint in pattern.hints)
