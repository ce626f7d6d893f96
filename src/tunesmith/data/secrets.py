"""Patterns of secrets: keys of vendors, private keys, tokens, passwords.

What lives here: one pattern a kind. What does not: personal data (`data.personal`).

Vendor keys are told by their fixed prefix and length, as the vendors publish them for secret scanning. A value without
a prefix is a secret only behind a word that says so, and only where it looks random.
"""

from __future__ import annotations

import base64
import math
import re
from collections import Counter

from tunesmith.data.matching import Pattern, where, whole

MIN_ENTROPY = 3.0
"""Bits a character of a value that counts as random: English words of 20 letters and more stay below it."""

_VENDOR_KEYS = "|".join(
    (
        r"sk-(?:proj-|ant-(?:api\d\d-|admin\d\d-)?|or-v1-|live-|test-|svcacct-)?[A-Za-z0-9_-]{16,}",  # model vendors
        r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|pk_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9]{24,}",  # Stripe
        r"(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{16}",  # AWS
        r"AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}",  # Google
        r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}",  # GitHub
        r"gl(?:pat|dt|rt|cbt|ptt|soat)-[A-Za-z0-9_-]{20,}",  # GitLab
        r"https://hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}|xoxe\.xox[bp]-\d-[A-Za-z0-9-]{20,}",
        r"https://discord(?:app)?\.com/api/webhooks/\d{16,20}/[A-Za-z0-9_-]{40,}",
        r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}",  # Slack
        r"hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|rubygems_[a-f0-9]{48}",  # package hubs
        r"dop_v1_[a-f0-9]{64}|doo_v1_[a-f0-9]{64}",  # DigitalOcean
        r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|key-[a-f0-9]{32}|(?:SK|AC)[a-f0-9]{32}",  # SendGrid, Twilio
        r"[a-f0-9]{32}-us\d{1,2}",  # Mailchimp
        r"sq0(?:atp|csp)-[A-Za-z0-9_-]{22,}|EAAA[A-Za-z0-9_-]{60}",  # Square
        r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|EAA[A-Za-z0-9]{80,}|EAAC[A-Za-z0-9]{20,}",  # Shopify, Meta
        r"\d{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram
        r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}",  # Discord
        r"AGE-SECRET-KEY-1[A-Z0-9]{58}|dckr_pat_[A-Za-z0-9_-]{27,}|hvs\.[A-Za-z0-9_-]{24,}",  # age, Docker, Vault
        r"nvapi-[A-Za-z0-9_-]{40,}|gsk_[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{37}|pplx-[A-Za-z0-9]{40,}",  # model hosts
        r"xai-[A-Za-z0-9]{60,}|tvly-[A-Za-z0-9-]{20,}|sntrys_[A-Za-z0-9_=]{40,}|dapi[a-f0-9]{32}",
        r"lin_api_[A-Za-z0-9]{40}|ntn_[A-Za-z0-9]{40,}|secret_[A-Za-z0-9]{40,}|figd_[A-Za-z0-9_-]{40,}",
        r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}|NRAK-[A-Z0-9]{27}|phc_[A-Za-z0-9]{40,}|glsa_[A-Za-z0-9]{32}_[a-f0-9]{8}",
        r"AKCp[A-Za-z0-9]{60,}|sbp_[a-f0-9]{40}|pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_-]{32,}|CFPAT-[A-Za-z0-9_-]{43}",
        r"fo1_[A-Za-z0-9_-]{43}|[A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{31,34}",  # Fly, Azure
        r"tskey-[a-z]+-[A-Za-z0-9]+-[A-Za-z0-9]{20,}|ATATT3[A-Za-z0-9_=-]{60,}|pat[A-Za-z0-9]{14}\.[a-f0-9]{64}",
    )
)


def _entropy(text: str) -> float:
    """Shannon entropy in bits a character."""
    counts = Counter(text)
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())


def _value(match: re.Match[str]) -> str:
    start, end = whole(match)
    return match.string[start:end]


def _is_random(match: re.Match[str]) -> bool:
    value = _value(match)
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    if match.string[match.end() : match.end() + 1] in ("(", "["):
        return False  # a call, as in `key = base64.b64encode(...)`
    return mixed and _entropy(value) >= MIN_ENTROPY and not _is_placeholder(value) and not _NAME.fullmatch(value)


_NAME = re.compile(r"(?:[a-z]{2,}|[A-Z]{2,}|v?\d{1,4})(?:[_./-](?:[a-z]+|[A-Z]+|v?\d{1,4}))+")
"""Words and short numbers joined by strokes: a name in a program, as `user_profile_v2_2024`."""


def _is_key(match: re.Match[str]) -> bool:
    """A vendor's key: no stand-in of one sign, no words joined by strokes behind a short prefix."""
    value = _value(match)
    body = value[8:]
    return (
        len(set(body.lower())) >= 4
        and not any(word in value.lower() for word in ("your", "example"))
        and any(c.isdigit() or c.isupper() for c in value[3:])
    )


def _is_placeholder(value: str) -> bool:
    """Whether a value stands for a secret instead of being one: `<TOKEN>`, `$TOKEN`, `your-api-key-here`, `xxxx`."""
    lower = value.lower()
    return value[0] in "<{$%[*(" or len(set(lower)) < 5 or any(word in lower for word in _STAND_INS)


_STAND_INS = (
    "your",
    "password",
    "passwd",
    "example",
    "placeholder",
    "changeme",
    "redacted",
    "xxxx",
    "getenv",
    "environ",
    "****",
    "....",
)


def _password(match: re.Match[str]) -> tuple[int, int] | None:
    """A password holds something besides letters, or letters of both cases within the word; no full stop after it."""
    value = _value(match).rstrip(".!?:)]}")
    start = whole(match)[0]
    if match.string[start - 1 : start] not in ('"', "'", "`") and _EXPRESSION.match(value):
        return None
    return (start, start + len(value)) if _is_password(value) else None


_EXPRESSION = re.compile(r"[A-Za-z_][\w.]*(?:->\w+)*[(\[]")
"""A call or an element, as `password = prompt(text)` has it: not what it gives."""


def _is_password(value: str) -> bool:
    if len(value) < 6 or _is_placeholder(value) or "'" in value or value.lower() in _PASSWORD_WORDS:
        return False
    strange = any(c.isdigit() or c in "!@#$%^&*_+=~?" for c in value)
    return strange or (value[1:] != value[1:].lower() and value != value.upper())


def _strange_password(match: re.Match[str]) -> tuple[int, int] | None:
    """A password that holds a digit: the words before it are those of commands, which take other values as well."""
    return _password(match) if any(c.isdigit() for c in _value(match)) else None


def _has_all_letters(match: re.Match[str]) -> bool:
    """A value of digits and letters of both cases that looks random."""
    value = _value(match)
    return value != value.lower() and value != value.upper() and sum(map(str.isdigit, value)) > 1 and _is_random(match)


def _is_basic_auth(match: re.Match[str]) -> bool:
    """Base64 of `user:password` (RFC 7617)."""
    try:
        pair = base64.b64decode(_value(match), validate=True).decode("ascii")
    except ValueError:
        return False
    return ":" in pair and pair.isprintable()


_FOREIGN_PASSWORDS = ("senha", "wachtwoord", "senord", "hasło", "haslo", "парол", "密码")
_PASSWORD_WORDS = {"wi-fi", "e-mail", "re-entered", "log-in", "sign-in", "pop-up", "one-time", "case-sensitive"}

SECRETS: tuple[Pattern, ...] = (
    Pattern(
        kind="PRIVATE_KEY",
        regex=re.compile(
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
            r"(?:(?s:.){0,16384}?-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
            r"|(?:(?:\s|\\n)*[\w-]+: [^\n\\\"]*)*(?:[A-Za-z0-9+/=\s]|\\[nr])*)"
        ),
        fit=whole,
        hints=("private key",),
    ),
    Pattern(
        kind="JWT",
        regex=re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?![\w-])"),
        fit=whole,
        hints=("eyj",),
    ),
    Pattern(
        kind="API_KEY", regex=re.compile(rf"(?<![A-Za-z0-9_])(?:{_VENDOR_KEYS})(?![A-Za-z0-9])"), fit=where(_is_key)
    ),
    Pattern(
        kind="API_KEY",
        regex=re.compile(r"(?<=/bot)\d{8,10}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
        fit=whole,
        hints=("/bot",),
        digits=8,
    ),  # Telegram, in the address of its API
    Pattern(
        kind="URL_PASSWORD",
        regex=re.compile(
            r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"']{0,64}:(?P<value>[^\s/@\"'`<>{}\\]{3,64})@(?=[^\s/])", re.IGNORECASE
        ),
        fit=where(lambda match: not _is_placeholder(_value(match))),
        hints=("://",),
    ),
    Pattern(
        kind="SECRET",
        regex=re.compile(
            r"(?i:\b(?:api|access|auth|authorization|client|secret|private|encryption|signing|bearer|session|refresh"
            r"|account|storage|webhook|app)[ _-]?(?:key|token|secret)s?|\bsecret|\btoken|\bbearer"
            r"|(?<!public)(?:_key|_token|_secret|(?-i:(?<=[a-z])(?:Key|Token|Secret)))|\bsession[ _-]?id|[?&]sig)"
            r"[\"']?(?: is| was)?\s{0,2}(?:[:=]|=>|\s)\s{0,2}[\"'`]?(?P<value>[A-Za-z0-9+/_.~-]{16,}={0,2})"
        ),
        fit=where(_is_random),
        hints=("key", "token", "secret", "bearer", "session", "sig="),
        digits=1,
    ),
    Pattern(
        kind="SECRET",
        regex=re.compile(
            r"(?i:\b(?:key|secret|token|session[ _-]?id|credential)s?(?: (?:for|to|of) [\w-]{1,20})?"
            r"(?: is| was|\s?[:=])\s{0,2}[\"'`]?)(?P<value>[A-Za-z0-9+/]{20,}={0,2})(?![\w.(\[/-])"
        ),
        fit=where(_has_all_letters),
        hints=("key", "token", "secret", "session", "credential"),
        digits=1,
    ),
    Pattern(
        kind="SECRET",
        regex=re.compile(r"\bbasic (?P<value>[A-Za-z0-9+/]{8,}={0,2})(?![\w+/=])", re.IGNORECASE),
        fit=where(_is_basic_auth),
        hints=("basic ",),
    ),
    Pattern(
        kind="PASSWORD",
        regex=re.compile(
            r"(?i:(?:passwor[dt]|passwd|passphrase|pwd|passcode|kennwort|contrase(?:ñ|n)a|mot de passe|senha|wachtwoord"
            r"|l[öo]senord|has[łl]o|парол\w|密码|(?:client|app|consumer|shared)[ _-]?secret))[\"']?(?: \([^)]{1,20}\))?"
            r"(?: (?:for|on|of) [\w@.' -]{1,40}?(?= is | was |:))?"
            r"(?:(?: is| was| to| lautet| ist| est| es)\s{0,2}:?|\s{0,2}[:=：]|\s?=>|(?<=--password) )"
            r"\s{0,2}[\"'`]?(?P<value>[^\s\"'`,;<>]{6,64})"
        ),
        fit=_password,
        hints=(
            *("passw", "passphrase", "pwd", "passcode", "contrase", "kennwort", "passe", "secret", *_FOREIGN_PASSWORDS),
        ),
    ),
    Pattern(
        kind="PASSWORD",
        regex=re.compile(
            r"(?i:<(?:[\w.-]{1,40}[:.])?\w{0,20}(?:password|passwd|pwd|secret)>)(?P<value>[^\s<\"']{6,64})(?=</)"
        ),
        fit=_password,
        hints=("password>", "passwd>", "pwd>", "secret>"),
    ),
    Pattern(
        kind="PASSWORD",
        regex=re.compile(r"(?i:\bidentified by )[\"'](?P<value>[^\s\"']{6,64})(?=[\"'])"),
        fit=_password,
        hints=("identified by",),
    ),
    Pattern(
        kind="PASSWORD",
        regex=re.compile(
            r"(?i:\b(?:pw|pass)(?: is |\s?[:=] ?)|\bcurl\b[^\n]{0,80}? (?:-u|--user)[ =][\"']?[^\s:\"']{1,40}:"
            r"|\bsshpass -p ?|\bmysql(?:dump)?\b[^\n]{0,60}? -p|\bredis-cli\b[^\n]{0,60}? -a "
            r"|\blogin \S{1,40} password |\bdocker login\b[^\n]{0,60}? -p )[\"']?(?P<value>[^\s\"'`,;<>]{6,64})"
        ),
        fit=_strange_password,
        hints=("pw", "pass", "curl", "mysql", "redis-cli", "docker login"),
        digits=1,
    ),
)
"""Patterns of secrets, strongest first."""
