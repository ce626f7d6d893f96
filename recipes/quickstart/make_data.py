"""Write the data of the quickstart: tickets of a made-up support desk, with planted defects.

    python recipes/quickstart/make_data.py            # rewrites the files beside this script
    python recipes/quickstart/make_data.py --out DIR  # writes them elsewhere

Standard library only, seeded: the same code writes the same bytes. The words are in `generator/`, the labelling rules
in `POLICY.md`, what is planted where in `planted.json`. Fernwick, its products and its customers do not exist.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from random import Random

from generator import defects, made_up
from generator.compose import CHAT, DESK, MAIL, Distinct, Labels, Ticket, tickets
from generator.defects import Entry
from generator.grammar import HARDWARE, Library, expand, slot

HERE = Path(__file__).parent
SEED = "quickstart 1"

SYSTEM_PROMPT = (
    "Label the support message as JSON with exactly these keys.\n"
    "intent: refund, billing, login, bug, cancel, shipping, feature, account, other\n"
    "priority: low, normal, high, urgent\n"
    "product: quillo, prismat, stashly, hublet, pacelet, none\n"
    "needs_human: true, false"
)
"""The same text stands in `../quickstart.yaml`; some chat rows carry it, as exports often do."""

ALPACA, CHATS, MAILS = "tickets_alpaca.jsonl", "tickets_chat.jsonl", "tickets_mail.csv"
FORUM, CANARY = "tickets_forum.jsonl", "tickets_canary.jsonl"
HOLDOUT, RECENT = "tickets_holdout.jsonl", "tickets_recent.jsonl"
FRESH = "tickets_fresh.jsonl"
"""New traffic for the rehearsal of the server; no split holds it."""
FILE_OF_MANNER = {"desk": ALPACA, "chat": CHATS, "mail": MAILS}

NUM_EXACT, NUM_NEAR, NUM_LEAKED, NUM_TEMPLATED = 25, 30, 12, 40
NUM_PII, NUM_UNLICENSED, NUM_OPTED_OUT = 40, 15, 20
NUM_RECENT = 120
"""Composed tickets of the last days, kept back as a test by time."""
NEAR_MIN_WORDS = 38
"""A near-duplicate is planted only of tickets this long: in a short one, one other word makes another ticket."""
OPTED_OUT_SUBJECT = "C-20777"
MAX_DISTINCT = 0.4
"""Word 3-gram Jaccard from which a composed ticket is thrown away as too close to an earlier one."""


class Desk:
    """Hands out customers and dates."""

    def __init__(self, rng: Random, *, first: int = 20100) -> None:
        self._rng = rng
        self._regulars: list[str] = []
        self._next = first

    def customer(self, *, new: bool = False) -> str:
        """Return a new customer, or now and then one who wrote before."""
        if not new and self._regulars and self._rng.random() < 0.1:
            return self._regulars.pop(self._rng.randrange(len(self._regulars)))
        self._next += self._rng.randrange(1, 7)
        name = f"C-{self._next}" if f"C-{self._next}" != OPTED_OUT_SUBJECT else f"C-{self._next}0"
        if not new and self._rng.random() < 0.3:
            self._regulars.append(name)
        return name

    def date(self) -> str:
        """Return a day of the first half of 2026."""
        return (date(2026, 1, 5) + timedelta(days=self._rng.randrange(170))).isoformat()

    def entry(self, ticket: Ticket, *, file: str, new: bool = False) -> Entry:
        """Return a clean record of a ticket."""
        answer = ticket.labels.answer()
        return Entry(ticket=ticket, file=file, answer=answer, customer=self.customer(new=new), date=self.date())


def build() -> dict[str, list[Entry]]:
    """Return the entries of every file, in order."""
    rng, library, distinct = Random(SEED), Library.load(), Distinct(limit=MAX_DISTINCT)
    desk = Desk(Random(f"{SEED} desk"))
    holdout = [desk.entry(ticket, file=HOLDOUT, new=True) for ticket in read_tickets("holdout.txt")]
    assert all(distinct.add(entry.ticket.text) for entry in holdout)
    canaries = canary_entries(desk, rng)
    assert all(distinct.add(entry.ticket.text) for entry in canaries)
    composed = tickets(library, rng, distinct, manners={CHAT: 0.38, DESK: 0.45, MAIL: 0.17})
    clean = [desk.entry(ticket, file=FILE_OF_MANNER[ticket.manner]) for ticket in composed]
    recent = keep_back(clean, desk, rng)
    add_form_fields(clean, rng)
    set_aside(clean, rng)
    ordinary = [entry for entry in clean if entry.defect is None and entry.file != RECENT]
    add_pii(ordinary, rng)
    ordinary = [entry for entry in ordinary if entry.defect is None]
    for entry in rng.sample([entry for entry in ordinary if entry.file == CHATS], 60):
        entry.system = True
    ordinary = [entry for entry in ordinary if not entry.system]
    planted = repeats(ordinary, desk, rng)
    planted += leaks([*holdout, *recent], desk, rng)
    planted += templated(desk, rng)
    planted += unreadable(desk)
    later = Desk(Random(f"{SEED} later"), first=40100)
    fresh = [later.entry(ticket, file=FRESH, new=True) for ticket in read_tickets("fresh.txt")]
    for number, entry in enumerate(fresh):
        assert distinct.add(entry.ticket.text)
        entry.date = (date(2026, 7, 13) + timedelta(days=number // 4)).isoformat()
    files: dict[str, list[Entry]] = {name: [] for name in (ALPACA, CHATS, MAILS, FORUM, CANARY, HOLDOUT, RECENT, FRESH)}
    for entry in [*holdout, *canaries, *clean, *planted, *fresh]:
        files[entry.file].append(entry)
    for entries in files.values():
        rng.shuffle(entries)
    return files


def read_blocks(name: str) -> list[tuple[str, str]]:
    """Return (heading, text) of the blocks of a generator file that start with `= `."""
    text = (HERE / "generator" / name).read_text(encoding="utf-8")
    blocks = re.split(r"^= ", text, flags=re.MULTILINE)[1:]
    return [(head.strip(), body.strip()) for head, _, body in (block.partition("\n") for block in blocks)]


def labels_of(words: str) -> Labels:
    """Read `intent priority product needs_human`."""
    intent, priority, product, human = words.split()
    return Labels(intent=intent, priority=priority, product=product, needs_human={"true": True, "false": False}[human])


def read_tickets(name: str) -> list[Ticket]:
    """Return the tickets that were written by hand in a generator file."""
    return [Ticket(text=text, labels=labels_of(head), manner="hand") for head, text in read_blocks(name)]


def canary_lines() -> list[tuple[str, str]]:
    """Return (type and labels, wording) of the tickets that carry canaries."""
    heads = [head.partition(" | ") for head, _ in read_blocks("canaries.txt")]
    return [(words, text) for words, _, text in heads]


def canary_entries(desk: Desk, rng: Random) -> list[Entry]:
    """Return the tickets that carry the canaries, two for each."""
    values = [canary for canary in made_up.canaries() for _ in range(2)]
    out = []
    for (words, text), secret in zip(canary_lines(), values, strict=True):
        named, _, labels = words.partition(" ")
        assert named == secret.kind, f"canaries.txt lists {named} where {secret.kind} is due"
        text = expand(text.replace("<canary>", "\0"), rng, product=None).replace("\0", secret.value)
        entry = desk.entry(Ticket(text=text, labels=labels_of(labels), manner="hand"), file=CANARY, new=True)
        entry.defect, entry.types = "canary", (secret.kind,)
        entry.secrets = (secret.value,) if secret.kind == "key" else ()
        out.append(entry)
    return out


def keep_back(clean: list[Entry], desk: Desk, rng: Random) -> list[Entry]:
    """Move some composed tickets to the file of the last days, each of a customer who never wrote before."""
    recent = rng.sample(clean, NUM_RECENT)
    for entry in recent:
        entry.file, entry.customer = RECENT, desk.customer(new=True)
        entry.date = (date(2026, 7, 1) + timedelta(days=rng.randrange(10))).isoformat()
    return recent


def add_form_fields(entries: list[Entry], rng: Random) -> None:
    """Give some tickets of the desk the fields of the web form, as the `input` column of Alpaca rows has them."""
    for entry in entries:
        product = entry.ticket.labels.product
        if entry.file != ALPACA or product == "none" or rng.random() >= 0.2:
            continue
        fields = [f"Product: {product.capitalize()}"]
        if product in HARDWARE and rng.random() < 0.6 and not re.search(r"\d{5}", entry.ticket.text):
            fields.append(f"Order: FW-{rng.randrange(20000, 99999)}")
        elif product not in HARDWARE:
            fields.append(f"Version: {slot('version', rng, product=None)}")
        entry.context = "\n".join(fields)


def set_aside(clean: list[Entry], rng: Random) -> None:
    """Turn some composed tickets into rows without licence, of opted-out origin, or with a broken answer."""
    for entry in rng.sample([e for e in clean if e.file == ALPACA], NUM_UNLICENSED):
        entry.defect, entry.license = "no_license", rng.choice((None, ""))
    for entry in rng.sample([e for e in clean if e.file == CHATS and e.defect is None], NUM_OPTED_OUT):
        entry.defect, entry.file = "opted_out_source", FORUM
    for entry in rng.sample([e for e in clean if e.file == CHATS and e.defect is None], 3):
        entry.defect, entry.customer = "opted_out_subject", OPTED_OUT_SUBJECT
    free = [e for e in clean if e.defect is None and e.file != RECENT]
    for entry, way in zip(rng.sample(free, len(defects.BREAKS)), defects.BREAKS, strict=True):
        entry.defect = "broken_answer"
        entry.answer = defects.broken_answer(entry.ticket.labels, rng, way=way)
        entry.extra = {"how": way}


def add_pii(entries: list[Entry], rng: Random) -> None:
    """Let some customers give personal data or a secret away."""
    sections: dict[str, list[str]] = {}
    section = ""
    for line in (HERE / "generator" / "pii.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            sections.setdefault(section, []).append(line)
    kinds = [*["email"] * 11, *["phone"] * 9, *["card"] * 6, *["iban"] * 4, *["ip"] * 3, *["key"] * 4, *["person"] * 3]
    assert len(kinds) == NUM_PII
    free = [e for e in entries if e.ticket.labels.intent != "other" and not e.ticket.text.isupper() and not e.context]
    for kind in kinds:
        fits = [e for e in free if (e.file != MAILS) or kind in ("email", "phone", "person")]
        entry = fits[rng.randrange(len(fits))]
        free.remove(entry)
        kept = re.sub(r"<(email|phone|card|iban|ip|key)>", "\0\\1\0", rng.choice(sections[kind]))
        sentence, found, keys = expand(kept, rng, product=None), [], []
        while match := re.search("\0(.*?)\0", sentence):
            made = made_up.value(match[1], rng)
            found.append(match[1])
            keys += [made] if match[1] == "key" else []
            sentence = sentence.replace(match[0], made, 1)
        text = f"{entry.ticket.text}{rng.choice((' ', chr(10)))}{sentence}"
        entry.ticket = Ticket(text=text, labels=entry.ticket.labels, manner=entry.ticket.manner)
        entry.defect, entry.types, entry.secrets = "pii", tuple(found), tuple(keys)


def repeats(entries: list[Entry], desk: Desk, rng: Random) -> list[Entry]:
    """Return exact and near-duplicates of clean tickets, each of another one."""
    pool = [entry for entry in entries if not entry.context]
    rng.shuffle(pool)
    out = []
    for number in range(NUM_EXACT):
        base = pool.pop()
        text = defects.same_text(base.ticket.text, rng, loose=number >= 15)
        out.append(_repeat(base, text, "exact_duplicate", desk, rng))
    long = [
        entry
        for entry in pool
        if len(set(re.findall(r"\w+", entry.ticket.text.lower()))) >= NEAR_MIN_WORDS
        and len(re.split(r"(?<=[.!?]) +", entry.ticket.text)) >= 3
    ]
    for number in range(NUM_NEAR):
        base = long.pop()
        way = ("words", "frame", "order", "typos")[number % 4]
        for _ in range(20):
            text = defects.near_text(base.ticket.text, rng, way=way)
            if text != base.ticket.text:
                break
            base = long.pop()
        entry = _repeat(base, text, "near_duplicate", desk, rng)
        entry.extra = {"how": way}
        out.append(entry)
    return out


def _repeat(base: Entry, text: str, defect: str, desk: Desk, rng: Random) -> Entry:
    ticket = Ticket(text=text, labels=base.ticket.labels, manner=base.ticket.manner)
    entry = desk.entry(ticket, file=rng.choice((ALPACA, CHATS)), new=True)
    if rng.random() < 0.6:
        entry.customer = base.customer
    entry.defect, entry.of = defect, base
    return entry


def leaks(holdout: list[Entry], desk: Desk, rng: Random) -> list[Entry]:
    """Return held-out tickets as they turned up again in the training sources."""
    long = [entry for entry in holdout if len(entry.ticket.text.split()) >= 18]
    out = []
    for number, base in enumerate(rng.sample(long, NUM_LEAKED)):
        way = ("same", "case", "tail", "typo")[number % 4]
        entry = _repeat(base, defects.leaked_text(base.ticket.text, rng, way=way), "leaked_test", desk, rng)
        entry.customer, entry.extra = desk.customer(new=True), {"how": way}
        out.append(entry)
    return out


def templated(desk: Desk, rng: Random) -> list[Entry]:
    """Return tickets that a form or a machine wrote: much the same words, other numbers, other matters."""
    out = []
    for number in range(NUM_TEMPLATED):

        def fill(text: str, product: str) -> str:
            return expand(text, rng, product=product)

        match number % 4:
            case 0:
                product = rng.choice(HARDWARE)
                text, file = "Contact form, topic delivery: my order has not arrived.", ALPACA
                labels = "shipping normal"
                context = fill(
                    f"Order: FW-{rng.randrange(20000, 99999)}\nProduct: <product>\nOrdered on: <date>\nPaid: <amount>",
                    product,
                )
            case 1:
                product = rng.choice(("quillo", "prismat", "stashly"))
                text = fill("Invoice <invoice> over <amount> for <product>: please send me the PDF again.", product)
                file, labels, context = CHATS, "billing normal", ""
            case 2:
                product = rng.choice(("quillo", "prismat", "stashly"))
                text = fill("Crash report from <product> <version> on <os>: error <err> while saving.", product)
                file, labels, context = CHATS, "bug normal", ""
            case _:
                product = rng.choice(("quillo", "prismat", "stashly", "pacelet"))
                text = fill(
                    "Notice from the <product> settings page: customer C-<num5> chose 'do not renew', the plan ends on "
                    "<date>. Comment of the customer: none.",
                    product,
                )
                file, labels, context = MAILS, "cancel normal", ""
        ticket = Ticket(text=text, labels=labels_of(f"{labels} {product} false"), manner="form")
        entry = desk.entry(ticket, file=file, new=True)
        entry.defect, entry.context = "templated_keep", context
        out.append(entry)
    return out


def unreadable(desk: Desk) -> list[Entry]:
    """Return two records that cannot be rows: a line cut in half, and a chat that nobody answered."""
    labels = labels_of("bug normal prismat false")
    cut = desk.entry(Ticket(text="The gallery of Prismat scrolls backwards.", labels=labels, manner="hand"), file=CHATS)
    cut.defect, cut.cut = "unreadable", True
    text = "Prismat forgets which printer I chose."
    silent = desk.entry(Ticket(text=text, labels=labels, manner="hand"), file=CHATS)
    silent.defect, silent.answer = "no_answer", None
    return [cut, silent]


def record(entry: Entry, number: int) -> dict[str, object]:
    """Return an entry in the columns of its file."""
    text, answer = entry.ticket.text, entry.answer
    about = {"ticket": f"T-{number}", "customer": entry.customer, "date": entry.date}
    if entry.file == ALPACA:
        out: dict[str, object] = {"instruction": text, "input": entry.context, "output": answer, **about}
        return out if entry.license == "" else {**out, "license": entry.license}
    if entry.file == MAILS:
        return {**about, "prompt": text, "completion": answer}
    if entry.file == FORUM:
        return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}], **about}
    messages = [{"role": "system", "content": SYSTEM_PROMPT}] if entry.system else []
    messages.append({"role": "user", "content": text})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, **about}


def render(files: dict[str, list[Entry]]) -> dict[str, str]:
    """Return the text of every data file, and note in each entry the line where it starts."""
    out, number = {}, 30000
    for name, entries in files.items():
        buffer = io.StringIO()
        if name == MAILS:
            fields = ["ticket", "customer", "date", "prompt", "completion"]
            writer = csv.DictWriter(buffer, fieldnames=fields, lineterminator="\n")
            writer.writeheader()
        for entry in entries:
            number += 1
            entry.line = buffer.getvalue().count("\n") + 1
            row = record(entry, number)
            if name == MAILS:
                writer.writerow(row)
                continue
            line = made_up.veil(json.dumps(row, ensure_ascii=False), entry.secrets)
            buffer.write((line[: len(line) // 2] if entry.cut else line) + "\n")
        out[name] = buffer.getvalue()
    return out


def planted_list(files: dict[str, list[Entry]]) -> list[dict[str, object]]:
    """Return what is planted where, in file order."""
    out = []
    for name, entries in files.items():
        for entry in entries:
            if entry.defect is None:
                continue
            item: dict[str, object] = {"file": name, "line": entry.line, "defect": entry.defect}
            if entry.of is not None:
                item["of"] = f"{entry.of.file}:{entry.of.line}"
            if entry.types:
                item["types"] = list(entry.types)
            out.append({**item, **entry.extra})
    return out


def canary_list(files: dict[str, list[Entry]]) -> str:
    """Return the canaries, where they are planted, and their controls, as JSON text."""
    wordings = [text for _, text in canary_lines()][::2]
    items: list[dict[str, object]] = []
    keys: list[str] = []
    for secret, wording in zip(made_up.canaries(), wordings, strict=True):
        places = [f"{CANARY}:{entry.line}" for entry in files[CANARY] if secret.value in entry.ticket.text]
        for number, value in enumerate((secret.value, *secret.controls)):
            item: dict[str, object] = {"id": f"{secret.type}-{number:02}", "type": secret.type, "value": value}
            item |= {"planted": places if number == 0 else False, "prefix": wording.partition("<canary>")[0]}
            items.append(item)
            keys += [value] if secret.kind == "key" else []
    lines = ",\n".join(json.dumps(item) for item in items)
    return made_up.veil(f"[\n{lines}\n]\n", tuple(keys))


def main() -> None:
    """Write all files and say what is in them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    files = build()
    texts = render(files)
    planted = planted_list(files)
    lines = ",\n".join(json.dumps(item) for item in planted)
    texts["planted.json"] = f"[\n{lines}\n]\n"
    texts["canaries.json"] = canary_list(files)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    for name, entries in files.items():
        print(f"{name}: {len(entries)} records")
    print(dict(Counter(str(item["defect"]) for item in planted)))


if __name__ == "__main__":
    main()
