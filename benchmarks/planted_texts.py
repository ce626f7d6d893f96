"""Values of `planted_values` in ordinary sentences, code and configuration, and texts that only look like them.

    planted(seed=1)      ->  [Planted(kind="iban", value="DE89 3704 ...", text="Please pay to DE89 3704 ... by Friday.")]
    clean_texts(seed=1)  ->  ["The build 10.0.19045.3693 fails on ARM.", ...]

What lives here: sentences. What does not: the values (`planted_values`), the measurement (`benchmarks/pii.py`).
"""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from planted_values import ALNUM, B64, DIGITS, FIRST, HEX, SECRETS, STRUCTURED, UPPER, address, grouped, password, some

PER_KIND = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One value in its text."""

    kind: str
    group: str
    """`secret`, `structured` (a checksum or a fixed form) or `free` (an address)."""
    value: str
    text: str


_SAID: Mapping[str, Sequence[str]] = {
    "email": ("my e-mail is {}", "Write to {} please", "From: Mia <{}>", "contact={}", '{{"email": "{}"}}', "cc {} and me",
              "mailto:{}", "(reach me at {})", "User {} has signed in from a new device."),
    "phone": ("call me at {}", "Tel. {}", "phone: {}", "My number is {}, after six.", "Mobile {}", "WhatsApp {}",
              "Ring {} and ask for Jo", "You can reach me on {} any time.", "cell {}", "Telefon: {}"),
    "iban": ("IBAN: {}", "Please pay to {} by Friday.", "my account {} was charged", "Konto {} bei der Sparkasse",
             "transfer it to {} please", "IBAN {} BIC COBADEFFXXX", "Refund goes to {} as agreed, thanks."),
    "card": ("card {} exp 04/29", "My card number is {}.", "charge {} instead", "Visa ending soon: {}, cvv 123",
             "I paid with {} yesterday", "card_number: {}", "CC# {}"),
    "ipv4": ("login from {}", "client {} sent 400 requests", "Block {} at the firewall", "[error] {} - - GET /admin",
             "the attacker's address was {}", "X-Forwarded-For: {}", "ssh root@{}"),
    "ipv6": ("login from {}", "client [{}]:443 connected", "my address is {}", "AAAA {}", "peer {} timed out"),
    "mac": ("MAC {}", "device {} joined the network", "my laptop's MAC address is {}", "ether {}  txqueuelen 1000"),
    "us_ssn": ("SSN {}", "my social security number is {}", "social: {}", "Applicant SSN: {}, DOB 1980-02-01", "ssn={}"),
    "uk_nino": ("NI number {}", "my National Insurance number is {}", "NINO: {}", "Employee {} started in May."),
    "de_tax_id": ("Steuer-ID {}", "Meine Steueridentifikationsnummer lautet {}.", "IdNr. {}", "tax ID {}", "Steuer-IdNr: {}"),
    "fr_nir": ("numéro de sécurité sociale {}", "NIR {}", "Mon numéro de sécu est le {}.", "sécurité sociale : {}"),
    "es_dni_nie": ("DNI {}", "mi NIE es {}", "NIF: {}", "con DNI número {}", "El titular {} firmó ayer."),
    "it_codice_fiscale": ("codice fiscale {}", "C.F. {}", "Il mio codice fiscale è {}", "CF: {}", "paziente {} ricoverato"),
    "nl_bsn": ("BSN {}", "mijn burgerservicenummer is {}", "BSN: {}", "bsn-nummer {}"),
    "pl_pesel": ("PESEL {}", "mój PESEL to {}", "PESEL: {}", "nr PESEL {}"),
    "se_personnummer": ("personnummer {}", "mitt personnummer är {}", "Pnr: {}", "personal number {}"),
    "br_cpf": ("CPF {}", "meu CPF é {}", "CPF: {}", "CPF nº {}", "cpf={}"),
    "in_aadhaar": ("Aadhaar {}", "my aadhaar number is {}", "Aadhaar No. {}", "UID {}", "aadhar card {}"),
    "in_pan": ("PAN {}", "my PAN card number is {}", "PAN: {}", "Permanent Account Number {}"),
    "ca_sin": ("SIN {}", "my social insurance number is {}", "SIN: {}", "S.I.N. {}"),
    "au_tfn": ("TFN {}", "my tax file number is {}", "TFN: {}", "tax file no. {}"),
    "ch_ahv": ("AHV-Nr. {}", "AHV {}", "meine AHV-Nummer ist {}", "numéro AVS {}", "Versicherte {} zog um."),
    "fi_hetu": ("henkilötunnus {}", "HETU {}", "henkilötunnukseni on {}", "hetu: {}"),
    "cn_resident_id": ("身份证号 {}", "身份证号码：{}", "resident ID {}", "ID card number {}", "我的身份证是 {} 。"),
    "address": ("Ship it to {}, please.", "I live at {}.", "Address: {}", "Meine Adresse: {}", "delivered to {} yesterday",
                "Our new office is at {}.", "adresse : {}", "Please send the parcel to {}"),
}  # fmt: skip
_KEY_SAID: Mapping[str, Sequence[str]] = {
    "aws_secret": ("aws_secret_access_key = {}", "AWS_SECRET_ACCESS_KEY={}", 'secretAccessKey: "{}",', "the AWS secret key is {}"),
    "azure_storage": (
        "DefaultEndpointsProtocol=https;AccountName=shop;AccountKey={};EndpointSuffix=core.windows.net", "AccountKey={}",
        "AZURE_STORAGE_KEY={}",
    ),
    "twilio": ("TWILIO_ACCOUNT_SID={}", 'client = Client("{}", token)', "twilio sid {}"),
    "telegram": ("bot token {}", "https://api.telegram.org/bot{}/getMe", "TELEGRAM_TOKEN={}"),
    "private_key": ("{}", "this is my key:\n{}\nwhy is it refused?", 'PRIVATE_KEY="{}"'),
}  # fmt: skip
_KEY_PLACES = (
    "my key is {}, why does it fail?", "export API_KEY={}", 'token = "{}"', "Authorization: Bearer {}", "curl -H 'X-Key: {}' host",
    '{{"api_key": "{}"}}', "{}", "I pushed {} to git by mistake", "?key={}&v=2", "key: {}\n",
)  # fmt: skip
_PASSWORD_PLACES = (
    'password = "{}"', "PASSWORD={}", "DB_PASSWORD={}\n", 'db_password: "{}"', "  password: '{}'", '{{"user": "jo", "password": "{}"}}',
    "my password is {}", "spring.datasource.password={}", 'conn = connect(user="sa", passwd="{}")', "mysql -u root -p'{}' shop",
    'client_secret: "{}"', "const dbPassword = '{}';", "<password>{}</password>", "curl -u admin:{} https://intranet.corp/x",
    "the wifi passphrase: {}", "Passwort: {}", "mot de passe : {}", "contraseña: {}",
)  # fmt: skip
_URLS = (
    "postgres://app:{}@db.corp.net:5432/shop", "mysql://root:{}@10.0.0.5/crm", "mongodb+srv://svc:{}@cluster0.ab1cd.mongodb.net/x",
    "redis://:{}@cache.corp.net:6379/0", "amqp://guest2:{}@mq.corp.net", "https://deploy:{}@git.corp.net/repo.git",
    "jdbc:postgresql://db.corp.net/shop?user=app&password={}",
)  # fmt: skip
_AROUND = (
    "{}", "Hi, {} Thanks!", "{} Can you check?", "Customer wrote: {}", "{}\nRegards, Jo", "- {}", "Ticket 4411. {} It is urgent.",
)  # fmt: skip


def _place(rng: random.Random, sentence: str, value: str) -> str:
    said = sentence.format(value)
    return rng.choice(_AROUND).format(said) if "{" not in said and "\n" not in said else said


def planted(seed: int, per_kind: int = PER_KIND) -> list[Planted]:
    """Return `per_kind` values of each kind, each in a text of its own; the same seed gives the same ones."""
    rng = random.Random(seed)
    out = []
    for kind, make in {**STRUCTURED, "address": address, **SECRETS}.items():
        places = _SAID.get(kind) or _KEY_SAID.get(kind) or _KEY_PLACES
        group = "secret" if kind in SECRETS else "free" if kind == "address" else "structured"
        for _ in range(per_kind):
            value = make(rng)
            out.append(Planted(kind=kind, group=group, value=value, text=_place(rng, rng.choice(places), value)))
    for kind, places in (("password", _PASSWORD_PLACES), ("url_password", _URLS)):
        for _ in range(per_kind):
            value = password(rng) if kind == "password" else some(rng, ALNUM, rng.choice([8, 16]))
            out.append(Planted(kind=kind, group="secret", value=value, text=_place(rng, rng.choice(places), value)))
    for _ in range(per_kind):
        value = base64.b64encode(f"{rng.choice(FIRST)}:{some(rng, ALNUM, 12)}".encode()).decode()
        out.append(Planted(kind="basic_auth", group="secret", value=value, text=f"Authorization: Basic {value}"))
    return out


# --- ordinary texts that look like them ----------------------------------------------------------------------------


def _isbn(rng: random.Random) -> str:
    body = "978" + some(rng, DIGITS, 9)
    total = sum(int(d) * (3 if place % 2 else 1) for place, d in enumerate(body))
    return grouped(body + str(-total % 10), (3, 1, 4, 4), "-")


_SIGNS: Mapping[str, Callable[[random.Random, int], str]] = {
    "n": lambda rng, _: str(rng.randrange(2, 999)),
    "d": lambda rng, count: rng.choice("123456789") + some(rng, DIGITS, count - 1),
    "x": lambda rng, count: some(rng, HEX, count),
    "A": lambda rng, count: some(rng, UPPER, count),
    "G": lambda rng, count: some(rng, "ACGT", count),
    "b": lambda rng, count: some(rng, B64, count),
    "y": lambda rng, _: str(rng.randrange(1850, 2027)),
    "u": lambda rng, _: grouped(some(rng, HEX, 32), (8, 4, 4, 4), "-"),
    "i": lambda rng, _: _isbn(rng),
}
"""Sign behind `%` and a count in a look-alike -> what stands there: n a number, d digits, x hexadecimal, A capitals, ..."""
_LOOKALIKES = r"""
The build 10.0.%5d.%4d fails on ARM.
Upgrade numpy from 1.%n.%1d to 2.%1d.%1d.
Chrome/%3d.0.%4d.%n is the user agent.
git checkout %40x
sha256:%64x is the digest of the image.
md5 %32x  rows.csv
request_id=%u took %n ms
{"id": "%u", "order": %8d}
ISBN %i, second edition.
Order %3d-%7d-%7d has shipped.
My order number is %9d and it is late.
Invoice INV-%y-%5d is still open.
Tracking number 1Z%6A%10d shows no movement.
Compute %3d * %4d + %5d.
pi is about 3.14159265358979 and e^%1d is %2d.%10d.
The sum of 1 to %n is %7d.
f(x) = %1dx^2 - %2dx + %3d has roots 0.%6d, 0.%6d
timestamp 16%8d is in seconds
at 16%11d the job was queued
2025-0%1d-11T12:3%1d:07.%6dZ INFO start
Berlin is at 52.%6d, 13.%6d.
Meet at %2d°%2d'%2d"N %2d°%2d'E.
1. e4 e5 2. Nf3 Nc6 3. Bb5 a6 %1d. Ba4 Nf6 9. O-O Be7
The read %48G maps to chromosome %1d.
Write to user%1d@example.com, as the manual says.
git clone git@github.com:org/repo-%n.git
pip install torch==%1d.%1d.%1d+cu12%1d
docker run -p 80%2d:80 -e TZ=UTC nginx:1.2%1d.%1d
The server listens on 127.0.0.1:%4d by default.
Colour #%6x on #%6x reads badly.
Call the function phone_format(number, %1d) twice.
Between %y and %y the town grew to %3d %3d people.
Chapter %2d, pages %3d-%3d, doi:10.1%3d/s%5d-0%2d-%5d-x
arXiv:2310.%5d shows the same.
Resistor R%2d is %n kOhm, part no. %3A-%4d-%2d.
password = os.environ['DB_PASSWORD_%1d']
password: str = Field(min_length=%2d)
Choose a password of at least %2d characters, with a digit.
def check_password(password, hashed): return verify(password, hashed, rounds=%2d)
API_KEY=<your-api-key-%1d>
api_key = get_secret('prod/service-%2d')
token_count = %4d; max_tokens = %4d
secret = "${SECRET_%1d}"
I forgot my password %1d times this month.
Authorization: Bearer $TOKEN_%1d
SELECT card, iban FROM payments WHERE id = %6d
The IBAN of a German account has 22 characters; a card number has %2d.
The recipe needs %3d g flour, %1d eggs and %3d ml milk at %3d degrees.
Score: %1d-%1d, %1d-%1d, %2d-%2d after %3d minutes
Room %3d, third floor, at 1%1d:30.
The street was long and the road narrow; %2d people walked the lane.
for i in range(%7d): total += i  # %10d
0x%8x 0x%8x mov eax, [rbp-0x%2x]
std::vector<int>::iterator it%1d; a::b::c%1d();
Matrix [[%2d, %2d], [%2d, %2d]] has determinant -%3d.
The model has %3d,%3d,%3d parameters.
GPU %1d: %5dMiB / 81920MiB, %2dC, P%1d
data:image/png;base64,iVBORw0KGgo%60b
EAN 4%12d was out of stock.
Flight LH%3d leaves gate B%2d at 1%1d:05, PNR %6A.
ssh user@host-%2d and then tail -n %3d /var/log/syslog
@media (max-width: %3dpx) { margin: 0 %2dpx }
Ticket #%6d was merged into #%6d.
VIN WVWZZZ1JZ%1dW%6d belongs to a blue car.
Population %2d %3d %3d in %y.
Bitcoin closed at %5d.%2d on block 8%5d.
""".strip().splitlines()
_SIGN = re.compile(rf"%(\d*)([{''.join(_SIGNS)}])")
PER_LOOKALIKE = 8


def clean_texts(seed: int, per_family: int = PER_LOOKALIKE) -> list[str]:
    """Return texts without a value of anybody: versions, hashes, order numbers, maths, code, manuals' placeholders."""
    rng = random.Random(seed)

    def filled(text: str) -> str:
        return _SIGN.sub(lambda sign: _SIGNS[sign.group(2)](rng, int(sign.group(1) or 1)), text)

    return [filled(text) for text in _LOOKALIKES for _ in range(per_family)]
