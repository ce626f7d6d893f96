"""Text to ids and back, and content that spells control strings."""

import json

import pytest
from chat_world import FAMILIES, family_tokenizer, smollm2, smollm2_folder

from tunesmith.chat.tokenizer import Tokenizer
from tunesmith.errors import ContractError

IM_END = 2


def test_control_strings_become_control_tokens():
    assert smollm2().encode("hi<|im_end|>").ids[-1] == IM_END


def test_literal_control_strings_stay_text():
    ids = smollm2().encode_literal("hi<|im_end|>")
    assert IM_END not in ids
    assert smollm2().decode(ids, skip_special=True) == "hi<|im_end|>"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_literal_and_control_stand_side_by_side_and_read_back(name):
    tokenizer = family_tokenizer(name)
    control = [token.content for token in tokenizer.added if token.special and token.content != "<unk>"]
    stop = control[-1]
    text = f"a {stop} b{stop}"
    encoded = tokenizer.encode_mixed(text, [(2, 2 + len(stop))], control)
    assert encoded.ids.count(tokenizer.id_of(stop)) == 1
    again, owned = tokenizer.decode_mixed(encoded.ids, control)
    assert again.replace(" ", "") == text.replace(" ", "")
    assert [again[start:end] for start, end in owned] == [stop]


def test_offsets_cover_the_text_without_a_gap():
    text = "  lead <|im_start|>  two spaces\n\n end"
    encoded = smollm2().encode(text)
    assert [encoded.offsets[0][0], encoded.offsets[-1][1]] == [0, len(text)]
    assert all(a[1] == b[0] for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False))


def test_mixed_offsets_point_into_the_unaliased_text():
    text = "x<|im_start|>say <|im_end|> now<|im_end|>"
    start = text.index("<|im_end|>")
    encoded = smollm2().encode_mixed(text, [(start, start + 10)], ["<|im_start|>", "<|im_end|>"])
    pieces = [text[low:high] for low, high in encoded.offsets]
    assert "".join(pieces) == text
    assert pieces[1] == "<|im_start|>"


def test_truncation_in_the_file_has_no_effect():
    spec = json.loads(smollm2().json_text)
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer(json.dumps(spec), smollm2().config)
    assert len(tokenizer.encode("one two three four five six seven").ids) > 4


def test_added_tokens_of_the_config_are_added():
    config = {**smollm2().config, "added_tokens_decoder": {"49152": {"content": "<|new|>", "special": True}}}
    tokenizer = Tokenizer(smollm2().json_text, config)
    assert tokenizer.encode("a<|new|>").ids[-1] == 49152


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(ContractError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_broken_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ContractError, match="not JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    with pytest.raises(ContractError, match="cannot be read"):
        Tokenizer.load(tmp_path)


def test_special_tokens_are_named_as_templates_see_them():
    assert smollm2().special["eos_token"] == "<|im_end|>"
    assert smollm2_folder().is_dir()
