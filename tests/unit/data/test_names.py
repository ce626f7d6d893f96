"""Names: found once, replaced wherever the conversation writes them, behind the patterns; no model is ever downloaded."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.data import ner
from tunesmith.data.names import Names, with_finders
from tunesmith.data.patterns import Span
from tunesmith.data.redact import redact_row
from tunesmith.errors import MissingExtra, PlanError
from tunesmith.stages.curating import CurateSpec, check_curate
from tunesmith.types import Conversation, Message, Provenance, Row, ToolCall

SRC = Path(ner.__file__).parents[1]
PERSON = frozenset({"PERSON"})


def row(*contents, **more):
    messages = tuple(
        Message(role="user" if place % 2 == 0 else "assistant", content=content, **(more if place else {}))
        for place, content in enumerate(contents)
    )
    return Row(
        id="r", conversation=Conversation(messages=messages), provenance=Provenance(source="s", path="p", line=1)
    )


def tagger(**kinds):
    """A tagger that sees these words, in the first text that holds them only: `Ann_Lee="PERSON"`."""
    left = {name.replace("_", " "): kind for name, kind in kinds.items()}

    def tag(texts):
        found = []
        for text in texts:
            spans = []
            for name in [name for name in left if name in text]:
                start = text.index(name)
                spans.append(Span(start=start, end=start + len(name), kind=left.pop(name)))
            found.append(spans)
        return found

    return tag


def redacted(case, tag, *, kinds=PERSON, spare=(), redact=None):
    names = Names(tag=tag, kinds=kinds, spare=frozenset(spare))
    ((same, find_spans),) = with_finders([case], names)
    assert same is case
    return redact_row(case, kinds=redact, find_spans=find_spans)


def contents(result):
    return [message.content for message in result.row.conversation.messages]


def test_a_name_seen_once_is_gone_from_the_whole_conversation():
    case = row("I am Ann Lee.", "Hello Ann\nLee, hello Ann Leeds!", reasoning="Ann Lee asks")
    result = redacted(case, tagger(Ann_Lee="PERSON"))
    assert contents(result) == ["I am <PERSON_1>.", "Hello <PERSON_1>, hello Ann Leeds!"]
    assert result.row.conversation.messages[1].reasoning == "<PERSON_1> asks"
    assert result.counts == {"PERSON": 3}


def test_arguments_of_calls_lose_the_name_as_well():
    calls = (ToolCall(name="find", arguments={"who": ["Ann Lee"], "n": 1}, id="1"),)
    result = redacted(row("Find Ann Lee", "", tool_calls=calls), tagger(Ann_Lee="PERSON"))
    assert result.row.conversation.messages[1].tool_calls[0].arguments == {"who": ["<PERSON_1>"], "n": 1}


def test_patterns_come_first_and_are_never_split():
    def greedy(texts):
        return [[Span(start=0, end=len(text), kind="PERSON")] for text in texts]

    assert contents(redacted(row("Ann Lee ann.lee@example.org"), greedy)) == ["<PERSON_1> <EMAIL_1>"]
    case = row("Lee writes from Lee@example.org")
    assert contents(redacted(case, tagger(Lee="PERSON"))) == ["<PERSON_1> writes from <EMAIL_1>"]


def test_two_people_are_told_apart_and_one_is_one():
    result = redacted(row("Ann met Bob. Ann left."), tagger(Ann="PERSON", Bob="PERSON"))
    assert contents(result) == ["<PERSON_1> met <PERSON_2>. <PERSON_1> left."]


@pytest.mark.parametrize(
    ("text", "tagged", "left"),
    [
        ("From: Ann Lee\nPhone", "Ann Lee\nPhone", "From: <PERSON_1>\nPhone"),
        ("This is Ann Lee's car", "Ann Lee's", "This is <PERSON_1>'s car"),
        ('He said "Ann Lee."', '"Ann Lee."', 'He said "<PERSON_1>."'),
        ("see `Ann` there", "Ann", "see `Ann` there"),
        ("```\nAnn = 1\n```\nFor Ann", "Ann", "```\nAnn = 1\n```\nFor Ann"),
        ("hello <PERSON_1> again", "PERSON_1", "hello <PERSON_1> again"),
        ("call x2 now", "x2", "call x2 now"),
        ("the landlord came", "landlord", "the landlord came"),
    ],
)
def test_only_what_can_be_a_name_is_replaced(text, tagged, left):
    def tag(texts):
        return [[Span(start=t.index(tagged), end=t.index(tagged) + len(tagged), kind="PERSON")] for t in texts]

    assert contents(redacted(row(text), tag)) == [left]


def test_a_name_that_is_also_a_word_goes_only_where_it_was_seen():
    def tag(texts):
        return [[Span(start=t.index("Will"), end=t.index("Will") + 4, kind="PERSON")] for t in texts if "am" in t] + [
            [] for t in texts if "am" not in t
        ]

    assert contents(redacted(row("I am Will.", "Will you come?"), tag)) == ["I am <PERSON_1>.", "Will you come?"]


def test_spared_names_and_other_kinds_stay():
    tag = tagger(Marie_Curie="PERSON", Oslo="LOCATION", Ann="PERSON")
    result = redacted(row("Marie Curie met Ann in Oslo"), tag, spare=("marie  curie",))
    assert contents(result) == ["Marie Curie met <PERSON_1> in Oslo"]


def test_names_are_asked_for_in_batches_and_each_text_once():
    asked = []

    def tag(texts):
        asked.append(list(texts))
        return [[] for _ in texts]

    rows = [row("same prompt", f"answer {number}") for number in range(300)]
    assert [case for case, _ in with_finders(rows, Names(tag=tag, kinds=PERSON))] == rows
    assert [len(texts) for texts in asked] == [257, 45]


def test_long_texts_are_tagged_in_pieces_that_lose_nothing():
    text = "word and word\n" * 3000 + "x" * 50_000
    pieces = ner._pieces(text)
    assert "".join(piece for _, piece in pieces) == text
    assert all(text.startswith(piece, at) and len(piece) <= 20_000 for at, piece in pieces)


# ------------------------------------------------------------------------------------------------ package and model


def model_package(folder, name="tiny_names", version="1.2.3", labels=("PERSON",)):
    """The files that make a package look like a model, without spaCy."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('plan must not import the model')\n")
    meta = {"lang": "en", "name": name, "version": version, "labels": {"ner": list(labels)}}
    (package / "meta.json").write_text(json.dumps(meta))


@pytest.fixture
def both_packages(monkeypatch, tmp_path):
    """Presidio and spaCy, as far as plan looks: installed, and never imported."""
    for name in ("presidio_analyzer", "spacy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('plan must not import this')\n")
    # found here first where the real ones are not loaded yet
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def check(model="tiny_names", version="1.2.3", kinds=PERSON):
    ner.check_model(model, version=version, kinds=kinds)


@pytest.mark.parametrize("package", ["presidio_analyzer", "spacy"])
def test_a_missing_package_names_the_extra(monkeypatch, both_packages, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(ner.importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(MissingExtra, match=rf"{package}(.|\n)*tunesmith\[pii\]"):
        check()


def test_a_missing_model_is_named_and_never_downloaded(monkeypatch, both_packages):
    def refuse(*_, **__):
        raise AssertionError("something was started to fetch a model")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(PlanError, match=r"'no_such_model' is not installed(.|\n)*none is downloaded"):
        ner.load_tagger("no_such_model", version="1.0", kinds=PERSON)


def test_another_package_is_no_model(both_packages):
    with pytest.raises(PlanError, match="a package that is no model"):
        check(model="json")


def test_another_version_is_refused(both_packages):
    model_package(both_packages)
    check()
    with pytest.raises(PlanError, match=r"9\.9\.9(.|\n)*1\.2\.3"):
        check(version="9.9.9")


def test_a_model_that_knows_no_such_names_is_refused(both_packages):
    model_package(both_packages, labels=("PER", "DATE"))
    check()
    with pytest.raises(PlanError, match="LOCATION"):
        check(kinds=frozenset({"PERSON", "LOCATION"}))


def test_one_file_knows_presidio_and_spacy():
    named = re.compile(r"""(?:^\s*(?:import|from) |["'])(?:spacy|presidio_\w+)\b""", re.MULTILINE)
    holders = {path.relative_to(SRC).as_posix() for path in SRC.rglob("*.py") if named.search(path.read_text())}
    assert holders == {"data/ner.py"}


def test_plan_refuses_a_model_that_is_not_here(both_packages):
    spec = CurateSpec.model_validate({"names": {"model": "tiny_names", "version": "1.2.3"}})
    with pytest.raises(PlanError, match="tiny_names"):
        check_curate(spec, {})
    model_package(both_packages)
    assert check_curate(spec, {}) == []


# ---------------------------------------------------------------------------------------------------- the real thing

WITH_PRESIDIO = """
import json, pathlib, sys
import spacy, spacy.cli
from tunesmith.data.names import Names, with_finders
from tunesmith.data.ner import load_tagger
from tunesmith.data.redact import redact_row
from tunesmith.stages.curating import CurateSpec, check_curate
from tunesmith.types import Conversation, Message, Provenance, Row

def refuse(*_, **__):
    raise AssertionError("a model was to be downloaded")

spacy.cli.download = refuse
folder = pathlib.Path(sys.argv[1])
pipeline = spacy.blank("en")
ruler = pipeline.add_pipe("entity_ruler")
ruler.add_patterns([
    {"label": "PER", "pattern": "Ann Lee"}, {"label": "GPE", "pattern": "Oslo"}, {"label": "DATE", "pattern": "Monday"}
])
pipeline.meta.update(name="names_tiny", version="1.2.3")
package = folder / "en_names_tiny"
package.mkdir()
pipeline.to_disk(package / "en_names_tiny-1.2.3")
meta = (package / "en_names_tiny-1.2.3" / "meta.json").read_text()
(package / "meta.json").write_text(meta)
(package / "__init__.py").write_text(
    "from spacy.util import load_model_from_init_py\\n"
    "def load(**overrides):\\n    return load_model_from_init_py(__file__, **overrides)\\n"
)
sys.path.insert(0, str(folder))
kinds = frozenset({"PERSON", "LOCATION"})
tag = load_tagger("en_names_tiny", version="1.2.3", kinds=kinds)
text = "On Monday Ann Lee (ann.lee@example.org) came to Oslo. Visit www.example.org!"
message = Message(role="user", content=text)
row = Row(id="r", conversation=Conversation(messages=(message,)), provenance=Provenance(source="s", path="p", line=1))
((_, find_spans),) = with_finders([row], Names(tag=tag, kinds=kinds))
print(redact_row(row, find_spans=find_spans).row.conversation.messages[0].content)
print(json.dumps([[s.start, s.end, s.kind] for s in tag(["x" * 25_000 + " Ann Lee"])[0]]))
"""


def test_presidio_over_a_local_model_finds_names_offline(tmp_path):
    for package in ("presidio_analyzer", "spacy"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (tunesmith[pii])")
    done = subprocess.run(
        [sys.executable, "-c", WITH_PRESIDIO, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text, spans = done.stdout.splitlines()[-2:]
    assert text == "On Monday <PERSON_1> (<EMAIL_1>) came to <LOCATION_1>. Visit www.example.org!"
    assert json.loads(spans) == [[25_001, 25_008, "PERSON"]]
