import json
import random

import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tunesmith.errors import ServeError
from tunesmith.serve.constrain import ANY_OBJECT, JsonGrammar

SCHEMA = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["refund", "other"]},
        "n": {"type": "integer", "maximum": 99},
        "ok": {"type": "boolean"},
    },
    "required": ["intent", "n", "ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


@pytest.fixture(scope="module")
def grammar(byte_tokenizer):
    return JsonGrammar(byte_tokenizer.to_str(), vocab_size=300, stop_ids=(256,))


def accepts(grammar, tokenizer, schema, text):
    constraint = grammar.compile(schema)()
    for token in [*tokenizer.encode(text).ids, 256]:
        if not constraint.allowed()[token]:
            return False
        constraint.consume(token)
    return True


def test_any_walk_that_ends_is_an_answer_that_the_schema_accepts(grammar, byte_tokenizer):
    for seed in range(20):
        choice, constraint, ids = random.Random(seed), grammar.compile(SCHEMA)(), []
        while len(ids) < 300:
            allowed = [token for token, ok in enumerate(constraint.allowed()) if ok]
            assert allowed
            token = 256 if 256 in allowed else choice.choice(allowed)
            if token == 256:
                break
            constraint.consume(token)
            ids.append(token)
        Draft202012Validator(SCHEMA).validate(json.loads(byte_tokenizer.decode(ids)))


def test_every_usual_spelling_of_json_is_allowed_and_endless_space_is_not(grammar, byte_tokenizer):
    value = {"intent": "refund", "n": 2, "ok": True}
    for text in (json.dumps(value), json.dumps(value, indent=2), json.dumps(value, separators=(",", ":"))):
        assert accepts(grammar, byte_tokenizer, SCHEMA, text)
    assert not accepts(grammar, byte_tokenizer, SCHEMA, json.dumps(value).replace(" ", "   "))
    assert not accepts(grammar, byte_tokenizer, SCHEMA, json.dumps({**value, "n": 100}))
    assert not accepts(grammar, byte_tokenizer, SCHEMA, json.dumps(value)[:-1])


def test_any_object_takes_objects_alone(grammar, byte_tokenizer):
    assert accepts(grammar, byte_tokenizer, ANY_OBJECT, '{"a": [1, null]}')
    assert not accepts(grammar, byte_tokenizer, ANY_OBJECT, "[1]")


@pytest.mark.parametrize("schema", [{"type": "array", "uniqueItems": True}, {"not": {}}, {"type": "nonsense"}])
def test_a_schema_that_cannot_be_enforced_in_full_is_refused(grammar, schema):
    with pytest.raises(ServeError, match="cannot be enforced"):
        grammar.compile(schema)


def test_rows_of_logits_beyond_the_vocabulary_are_never_allowed(grammar):
    assert not grammar.compile(SCHEMA)().allowed()[257:].any()
