"""Made-up personal data and secrets in the forms of many countries and vendors, their check digits computed.

What lives here: a seeded generator, written from the formats' own specifications (ISO 13616, ISO/IEC 7812, ITU-T E.164,
each country's rule for its check digits, each vendor's documentation of its keys) and without a look at the patterns
that are measured with it. What does not: the sentences around the values (`planted_texts`).
"""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable, Mapping, Sequence

UPPER, LOWER, DIGITS = string.ascii_uppercase, string.ascii_lowercase, string.digits
ALNUM = UPPER + LOWER + DIGITS
HEX = "0123456789abcdef"
URL_SAFE = ALNUM + "-_"
B64 = ALNUM + "+/"


Make = Callable[[random.Random], str]


def some(rng: random.Random, alphabet: str, count: int) -> str:
    """Return some signs of an alphabet."""
    return "".join(rng.choice(alphabet) for _ in range(count))


def _digits(rng: random.Random, count: int, *, first: str = DIGITS) -> str:
    return rng.choice(first) + some(rng, DIGITS, count - 1)


def grouped(text: str, sizes: Sequence[int], separator: str) -> str:
    """Return a text in groups of these sizes, and what is left."""
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return separator.join(part for part in [*parts, text[at:]] if part)


# --- e-mail, phone -----------------------------------------------------------------------------------------------

FIRST = [
    "maria",
    "john",
    "li",
    "priya",
    "ahmed",
    "olga",
    "sean",
    "ana",
    "tomasz",
    "yuki",
    "fatima",
    "lars",
    "ines",
    "kofi",
    "emma",
    "noah",
    "chloe",
    "diego",
]
_LAST = [
    "keller",
    "smith",
    "wang",
    "sharma",
    "hassan",
    "ivanova",
    "murphy",
    "silva",
    "nowak",
    "tanaka",
    "diallo",
    "berg",
    "costa",
    "mensah",
    "jones",
    "roy",
]
_DOMAINS = [
    "gmail.com",
    "web.de",
    "proton.me",
    "mail.ru",
    "qq.com",
    "outlook.co.uk",
    "nordwind-logistik.de",
    "kaffee.berlin",
    "uni-bonn.de",
    "health.gov.au",
    "firma.com.br",
    "bücher.de",
    "例え.jp",
    "museum.technology",
    "mail.sub.acme-corp.io",
    "x.ai",
]


def _email(rng: random.Random) -> str:
    first, last = rng.choice(FIRST), rng.choice(_LAST)
    local = rng.choice(
        [
            f"{first}.{last}",
            f"{first[0]}{last}{rng.randrange(10, 99)}",
            f"{first}+shop{rng.randrange(99)}",
            f"{first}_{last}",
            f"{first}-{last}",
            f"{first.title()}.{last.upper()}",
            f"{last}%{first}",
            f"o'{last}",
            f"{first}.{last}.{rng.randrange(1950, 2009)}",
        ]
    )
    return f"{local}@{rng.choice(_DOMAINS)}"


_PHONES: tuple[str, ...] = (
    "+49 171 #######", "+49 (0)30 ########", "0171/#######", "030 ########", "+4915#########",
    "+1 (415) 2##-####", "415-2##-####", "(212) 7##-####", "+1-617-5##-####", "1-800-4##-####", "646.3##.####",
    "+1 415 2## #### ext. 42", "(212) 7##-#### x318",
    "+44 20 7### ####", "+44 7700 9#####", "07700 9#####", "020 7### ####", "+44 (0)161 4## ####",
    "+33 6 ## ## ## ##", "06 ## ## ## ##", "01.4#.##.##.##", "+33 1 4# ## ## ##",
    "+34 6## ### ###", "6## ## ## ##", "+39 06 #### ####", "+39 3## ### ####", "333 #######",
    "+31 6 ########", "06-########", "020-#######", "+48 6## ### ###", "6##-###-###", "+46 70 ### ## ##", "070-### ## ##",
    "+55 11 9####-####", "(11) 9####-####", "+91 98### #####", "98########", "+86 138 #### ####", "138########",
    "+81 90-####-####", "090-####-####", "03-####-####", "+61 4## ### ###", "04## ### ###", "(02) 9### ####",
    "+41 79 ### ## ##", "044 ### ## ##", "+43 664 #######", "+32 47# ## ## ##", "0470 ## ## ##",
    "+7 (916) ###-##-##", "8 (495) ###-##-##", "+351 91# ### ###", "+420 60# ### ###", "+30 69# ### ####",
    "+972 50-###-####", "+971 50 ### ####", "+27 82 ### ####", "082 ### ####", "+234 803 ### ####",
    "+52 55 #### ####", "+54 9 11 ####-####", "+82 10-####-####", "010-####-####", "+65 9### ####", "+358 40 #######",
    "+47 9## ## ###", "+45 ## ## ## ##", "+353 86 ### ####", "+90 532 ### ## ##", "+62 812-####-####", "00 49 171 #######",
    "0041 79 ### ## ##",
)  # fmt: skip


def _phone(rng: random.Random) -> str:
    return "".join(rng.choice("23456789") if c == "#" else c for c in rng.choice(_PHONES))


# --- numbers with check digits -------------------------------------------------------------------------------------


def _luhn_digit(body: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(body)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def _card(rng: random.Random) -> str:
    prefix, length, sizes = rng.choice(
        [
            ("4", 16, (4, 4, 4)),
            (str(rng.randrange(51, 56)), 16, (4, 4, 4)),
            (str(rng.randrange(2221, 2721)), 16, (4, 4, 4)),
            (rng.choice(["34", "37"]), 15, (4, 6)),
            ("6011", 16, (4, 4, 4)),
            (rng.choice(["36", "38"]), 14, (4, 6)),
            (str(rng.randrange(3528, 3590)), 16, (4, 4, 4)),
            ("62", 16, (4, 4, 4)),
        ]
    )
    body = prefix + some(rng, DIGITS, length - 1 - len(prefix))
    number = body + _luhn_digit(body)
    return grouped(number, sizes, rng.choice([" ", "-", ""]))


_IBAN_FORMS: Mapping[str, str] = {
    "DE": "n18", "GB": "a4n14", "FR": "n10c11n2", "ES": "n20", "IT": "a1n10c12", "NL": "a4n10", "PL": "n24", "CH": "n5c12",
    "AT": "n16", "BE": "n12", "SE": "n20", "NO": "n11", "DK": "n14", "FI": "n14", "PT": "n21", "IE": "a4n14",
    "TR": "n5n1c16", "SA": "n2c18", "AE": "n19", "BR": "n23a1c1",
}  # fmt: skip
"""ISO 13616 registry: n digits, a capital letters, c digits or capital letters."""


def _iban(rng: random.Random) -> str:
    country = rng.choice(list(_IBAN_FORMS))
    form, body, at = _IBAN_FORMS[country], "", 0
    while at < len(form):
        end = at + 1
        while end < len(form) and form[end].isdigit():
            end += 1
        alphabet = {"n": DIGITS, "a": UPPER, "c": UPPER + DIGITS}[form[at]]
        body += some(rng, alphabet, int(form[at + 1 : end]))
        at = end
    check = 98 - int("".join(str(int(c, 36)) for c in body + country + "00")) % 97
    iban = f"{country}{check:02d}{body}"
    return rng.choice([iban, grouped(iban, [4] * 9, " "), grouped(iban, [4] * 9, " "), grouped(iban, [4] * 9, "-")])


def _ssn(rng: random.Random) -> str:
    area = rng.choice([n for n in range(1, 900) if n != 666])
    return f"{area:03d}-{rng.randrange(1, 100):02d}-{rng.randrange(1, 10000):04d}"


def _nino(rng: random.Random) -> str:
    prefix = rng.choice("ABCEGHJKLMNPRSTWXYZ") + rng.choice("ABCEGHJKLMNPRSTWXYZ")
    if prefix in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ"):
        prefix = "AB"
    number = prefix + some(rng, DIGITS, 6) + rng.choice("ABCD")
    return rng.choice([number, grouped(number, (2, 2, 2, 2), " ")])


def _de_tax(rng: random.Random) -> str:
    while True:  # exactly one digit twice among the first ten, none of them leading zero
        digits = rng.sample(DIGITS, 9)
        digits.insert(rng.randrange(10), rng.choice(digits))
        if digits[0] != "0":
            break
    product = 10
    for digit in digits:
        product = (int(digit) + product) % 10 or 10
        product = product * 2 % 11
    number = "".join(digits) + str((11 - product) % 10)
    return rng.choice([number, grouped(number, (2, 3, 3), " ")])


def _fr_nir(rng: random.Random) -> str:
    body = f"{rng.choice('12')}{rng.randrange(40, 100):02d}{rng.randrange(1, 13):02d}{rng.randrange(1, 96):02d}"
    body += some(rng, DIGITS, 6)
    number = f"{body}{97 - int(body) % 97:02d}"
    return rng.choice([number, grouped(number, (1, 2, 2, 2, 3, 3), " ")])


_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"


def _dni(rng: random.Random) -> str:
    number = rng.randrange(1_000_000, 99_999_999)
    if rng.random() < 0.5:
        return f"{number:08d}{rng.choice(['', '-'])}{_DNI[number % 23]}"
    first, rest = rng.randrange(3), rng.randrange(10_000_000)
    return (
        f"{'XYZ'[first]}{rng.choice(['', '-'])}{rest:07d}{rng.choice(['', '-'])}{_DNI[int(f'{first}{rest:07d}') % 23]}"
    )


_CF_ODD = dict(
    zip(
        DIGITS + UPPER,
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16]
        + [10, 22, 25, 24, 23],
        strict=True,
    )
)


def _codice_fiscale(rng: random.Random) -> str:
    consonants = "BCDFGLMNPRSTVZ"
    body = some(rng, consonants, 6) + f"{rng.randrange(100):02d}{rng.choice('ABCDEHLMPRST')}"
    body += f"{rng.choice([0, 40]) + rng.randrange(1, 29):02d}{rng.choice('ABCDFGHL')}{rng.randrange(1, 1000):03d}"
    total = sum(
        _CF_ODD[c] if place % 2 == 0 else int(c, 36) - (0 if c.isdigit() else 10) for place, c in enumerate(body)
    )
    return body + UPPER[total % 26]


def _weighted(rng: random.Random, weights: Sequence[int], finish: Callable[[int], int | None]) -> str:
    while True:
        body = _digits(rng, len(weights), first="123456789")
        check = finish(sum(int(d) * w for d, w in zip(body, weights, strict=True)))
        if check is not None:
            return body + str(check)


def _bsn(rng: random.Random) -> str:
    return _weighted(rng, (9, 8, 7, 6, 5, 4, 3, 2), lambda total: total % 11 if total % 11 < 10 else None)


def _pesel(rng: random.Random) -> str:
    body = f"{rng.randrange(40, 100):02d}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}{some(rng, DIGITS, 4)}"
    total = sum(int(d) * w for d, w in zip(body, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3), strict=True))
    return body + str(-total % 10)


def _personnummer(rng: random.Random) -> str:
    body = f"{rng.randrange(40, 100):02d}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}{some(rng, DIGITS, 3)}"
    check = _luhn_digit(body)
    return f"{rng.choice(['', '19'])}{body[:6]}-{body[6:]}{check}"


def _cpf(rng: random.Random) -> str:
    body = _digits(rng, 9)
    for _ in range(2):
        rest = sum(int(d) * w for d, w in zip(body, range(len(body) + 1, 1, -1), strict=True)) % 11
        body += str(0 if rest < 2 else 11 - rest)
    return f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}" if rng.random() < 0.7 else body


_VERHOEFF_D = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 0, 6, 7, 8, 9, 5], [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
    [3, 4, 0, 1, 2, 8, 9, 5, 6, 7], [4, 0, 1, 2, 3, 9, 5, 6, 7, 8], [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
    [6, 5, 9, 8, 7, 1, 0, 4, 3, 2], [7, 6, 5, 9, 8, 2, 1, 0, 4, 3], [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
]  # fmt: skip
_VERHOEFF_P = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
for _ in range(6):
    _VERHOEFF_P.append([_VERHOEFF_P[1][place] for place in _VERHOEFF_P[-1]])


def _aadhaar(rng: random.Random) -> str:
    body = _digits(rng, 11, first="23456789")
    check = 0
    for place, digit in enumerate(reversed(body)):
        check = _VERHOEFF_D[check][_VERHOEFF_P[(place + 1) % 8][int(digit)]]
    number = body + str(_VERHOEFF_D[check].index(0))
    return rng.choice([number, grouped(number, (4, 4), " "), grouped(number, (4, 4), " ")])


def _pan(rng: random.Random) -> str:
    return some(rng, UPPER, 3) + rng.choice("PCHF") + rng.choice(UPPER) + some(rng, DIGITS, 4) + rng.choice(UPPER)


def _sin(rng: random.Random) -> str:
    body = _digits(rng, 8, first="1234567")
    return grouped(body + _luhn_digit(body), (3, 3), rng.choice([" ", "-"]))


def _tfn(rng: random.Random) -> str:
    while True:
        number = _digits(rng, 9, first="123456789")
        if sum(int(d) * w for d, w in zip(number, (1, 4, 3, 7, 5, 8, 6, 9, 10), strict=True)) % 11 == 0:
            return rng.choice([number, grouped(number, (3, 3), " ")])


def _ahv(rng: random.Random) -> str:
    body = "756" + some(rng, DIGITS, 9)
    total = sum(int(d) * (3 if place % 2 else 1) for place, d in enumerate(body))
    return grouped(body + str(-total % 10), (3, 4, 4), ".")


def _hetu(rng: random.Random) -> str:
    day = f"{rng.randrange(1, 29):02d}{rng.randrange(1, 13):02d}{rng.randrange(40, 100):02d}"
    number = f"{rng.randrange(2, 900):03d}"
    return f"{day}-{number}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(day + number) % 31]}"


def _cn_id(rng: random.Random) -> str:
    body = rng.choice(["110101", "310104", "440305", "510107"])
    body += f"{rng.randrange(1950, 2005)}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}{some(rng, DIGITS, 3)}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]


# --- network, places -----------------------------------------------------------------------------------------------


def _ipv4(rng: random.Random) -> str:
    first = rng.choice([5, 31, 46, 62, 77, 81, 93, 104, 134, 151, 178, 185, 212, 217])
    return f"{first}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"


def _ipv6(rng: random.Random) -> str:
    groups = [some(rng, HEX, 4) for _ in range(8)]
    start = rng.choice(["2a01", "2003", "2607", "2400", "2a02"])
    full = ":".join([start, *groups[1:]])
    return rng.choice(
        [
            full,
            full.upper(),
            f"{start}:{groups[1]}:{groups[2]}::{rng.randrange(1, 99)}",
            f"{start}:{groups[1]}::{groups[6]}:{groups[7]}",
        ]
    )


def _mac(rng: random.Random) -> str:
    pairs = [some(rng, HEX, 2) for _ in range(6)]
    pairs[0] = rng.choice(["3c", "a4", "f0", "00", "b8"])
    return rng.choice([":".join(pairs), ":".join(pairs).upper(), "-".join(pairs).upper()])


_STREETS = (
    "{n} {w} Street", "{n} {w} St.", "{n} {w} Avenue, Apt {m}", "{n} {w} Road", "{n} {w} Lane", "{n}B {w} Drive",
    "{n} North {w} Blvd, Suite {m}", "Flat {m}, {n} {w} Close", "{w}straße {n}", "{w}str. {n}a", "{w}weg {m}", "Am {w}platz {m}",
    "{n} rue {w}", "{n} bis, avenue {w}", "{n}, boulevard {w}", "Calle {w} {n}", "Calle {w}, {n}, 3º B", "Via {w} {n}",
    "Piazza {w}, {m}", "Rua {w}, {n}", "Avenida {w} {n}", "ul. {w} {n}/{m}", "{w}laan {n}", "{w}straat {n}", "{w}gatan {m}",
    "P.O. Box {n}{m}", "{n} {w} Court, Unit {m}",
)  # fmt: skip
_STREET_WORDS = [
    "Maple",
    "Linden",
    "Garibaldi",
    "Victoria",
    "Haupt",
    "Garten",
    "Mozart",
    "Lincoln",
    "Pasteur",
    "Colón",
    "Moravia",
    "Rossini",
    "Oak",
    "King",
    "Kungs",
]


def address(rng: random.Random) -> str:
    """Return a street with its number, as eight countries write it."""
    return rng.choice(_STREETS).format(n=rng.randrange(2, 999), m=rng.randrange(2, 60), w=rng.choice(_STREET_WORDS))


# --- keys ----------------------------------------------------------------------------------------------------------


def _b64(rng: random.Random, count: int) -> str:
    return base64.b64encode(rng.randbytes(count)).decode()


def _jwt(rng: random.Random) -> str:
    def part(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    header, issued = part('{"alg":"HS256","typ":"JWT"}'), f"17{some(rng, DIGITS, 8)}"
    body = part(f'{{"sub":"{rng.randrange(10**9)}","iat":{issued}}}')
    return f"{header}.{body}.{some(rng, URL_SAFE, 43)}"


def _pem(rng: random.Random) -> str:
    kind = rng.choice(
        ["RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY"]
    )
    body = _b64(rng, 240)
    newline = rng.choice(["\n", "\n", "\\n"])
    lines = newline.join(body[at : at + 64] for at in range(0, len(body), 64))
    return f"-----BEGIN {kind}-----{newline}{lines}{newline}-----END {kind}-----"


_PASSWORD_WORDS = ["Tiger", "Falcon", "Harbor", "Winter", "Copper", "Rocket", "Meadow", "Saturn", "Pepper", "Castle"]


def password(rng: random.Random) -> str:
    """Return a password as people choose or programs make them."""
    word = rng.choice(_PASSWORD_WORDS)
    return rng.choice(
        [
            f"{word}{rng.randrange(100, 9999)}!",
            f"{word.lower()}-{rng.choice(_PASSWORD_WORDS).lower()}-{rng.randrange(10, 99)}",
            some(rng, ALNUM, 14) + rng.choice("!$%#"),
            f"{some(rng, LOWER, 5)}{rng.choice('!@#')}{some(rng, DIGITS, 4)}{some(rng, UPPER, 2)}",
            f"p@ss{word}{rng.randrange(99)}",
        ]
    )


SECRETS: Mapping[str, Make] = {
    "aws_access_key": lambda r: rng_choice(r, ["AKIA", "ASIA"]) + some(r, UPPER + "234567", 16),
    "aws_secret": lambda r: some(r, B64, 40),
    "gcp_api_key": lambda r: "AIza" + some(r, URL_SAFE, 35),
    "gcp_oauth": lambda r: "GOCSPX-" + some(r, URL_SAFE, 28),
    "azure_storage": lambda r: _b64(r, 64),
    "github_classic": lambda r: rng_choice(r, ["ghp_", "gho_", "ghs_", "ghu_"]) + some(r, ALNUM, 36),
    "github_fine": lambda r: f"github_pat_{some(r, ALNUM, 22)}_{some(r, ALNUM, 59)}",
    "gitlab": lambda r: "glpat-" + some(r, URL_SAFE, 20),
    "slack_token": lambda r: f"xox{r.choice('bp')}-{_digits(r, 12)}-{_digits(r, 12)}-{some(r, ALNUM, 24)}",
    "slack_hook": lambda r: (
        f"https://hooks.slack.com/services/T{some(r, UPPER + DIGITS, 8)}/B{some(r, UPPER + DIGITS, 8)}/{some(r, ALNUM, 24)}"
    ),
    "stripe": lambda r: rng_choice(r, ["sk_live_", "rk_live_"]) + some(r, ALNUM, r.choice([24, 99])),
    "openai": lambda r: rng_choice(r, ["sk-", "sk-proj-", "sk-svcacct-"]) + some(r, ALNUM, 48),
    "anthropic": lambda r: f"sk-ant-api03-{some(r, URL_SAFE, 93)}AA",
    "huggingface": lambda r: "hf_" + some(r, UPPER + LOWER, 34),
    "npm": lambda r: "npm_" + some(r, ALNUM, 36),
    "pypi": lambda r: "pypi-AgEIcHlwaS5vcmc" + some(r, URL_SAFE, 150),
    "twilio": lambda r: rng_choice(r, ["AC", "SK"]) + some(r, HEX, 32),
    "sendgrid": lambda r: f"SG.{some(r, URL_SAFE, 22)}.{some(r, URL_SAFE, 43)}",
    "telegram": lambda r: f"{_digits(r, 10, first='123456789')}:AA{some(r, URL_SAFE, 33)}",
    "discord": lambda r: f"M{some(r, ALNUM, 23)}.{some(r, URL_SAFE, 6)}.{some(r, URL_SAFE, 27)}",
    "mailgun": lambda r: "key-" + some(r, HEX, 32),
    "digitalocean": lambda r: "dop_v1_" + some(r, HEX, 64),
    "shopify": lambda r: "shpat_" + some(r, HEX, 32),
    "jwt": _jwt,
    "private_key": _pem,
}


def rng_choice(rng: random.Random, values: Sequence[str]) -> str:
    """Return one of some values."""
    return rng.choice(values)


STRUCTURED: Mapping[str, Make] = {
    "email": _email, "phone": _phone, "iban": _iban, "card": _card, "ipv4": _ipv4, "ipv6": _ipv6, "mac": _mac,
    "us_ssn": _ssn, "uk_nino": _nino, "de_tax_id": _de_tax, "fr_nir": _fr_nir, "es_dni_nie": _dni,
    "it_codice_fiscale": _codice_fiscale, "nl_bsn": _bsn, "pl_pesel": _pesel, "se_personnummer": _personnummer,
    "br_cpf": _cpf, "in_aadhaar": _aadhaar, "in_pan": _pan, "ca_sin": _sin, "au_tfn": _tfn, "ch_ahv": _ahv, "fi_hetu": _hetu,
    "cn_resident_id": _cn_id,
}  # fmt: skip
