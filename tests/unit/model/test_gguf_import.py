import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tunesmith.errors import DataError
from tunesmith.model.gguf_import import convert_gguf
from tunesmith.model.load import load_model

HIDDEN, HEADS, KEY_HEADS, FEED_FORWARD, LAYERS = 64, 4, 2, 96, 2


def byte_tokens():
    """The 256 printable stand-ins of byte-level BPE."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def write_tiny_gguf(path, *, architecture="llama", splitter="smollm", tied=True):
    rng = np.random.default_rng(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_tokens(), "he", "ll"]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")

    def tensor(name, *shape, quantized=None):
        values = rng.standard_normal(shape).astype(np.float32) * 0.1
        if quantized is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, quantized), raw_dtype=quantized)

    kind = gguf.GGMLQuantizationType
    tensor("token_embd.weight", len(tokens), HIDDEN, quantized=kind.Q8_0)
    tensor("output_norm.weight", HIDDEN)
    if not tied:
        tensor("output.weight", len(tokens), HIDDEN, quantized=kind.Q8_0)
    head = HIDDEN // HEADS
    for layer in range(LAYERS):
        tensor(f"blk.{layer}.attn_norm.weight", HIDDEN)
        tensor(f"blk.{layer}.ffn_norm.weight", HIDDEN)
        tensor(f"blk.{layer}.attn_q.weight", HEADS * head, HIDDEN, quantized=kind.Q4_1)
        tensor(f"blk.{layer}.attn_k.weight", KEY_HEADS * head, HIDDEN, quantized=kind.Q4_1)
        tensor(f"blk.{layer}.attn_v.weight", KEY_HEADS * head, HIDDEN, quantized=kind.Q4_1)
        tensor(f"blk.{layer}.attn_output.weight", HIDDEN, HEADS * head, quantized=kind.Q4_1)
        tensor(f"blk.{layer}.ffn_gate.weight", FEED_FORWARD, HIDDEN, quantized=kind.Q4_0)
        tensor(f"blk.{layer}.ffn_up.weight", FEED_FORWARD, HIDDEN, quantized=kind.Q8_0)
        tensor(f"blk.{layer}.ffn_down.weight", HIDDEN, FEED_FORWARD, quantized=kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_what_transformers_reads_from_the_same_file(tmp_path, tied):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tied=tied)
    facts = convert_gguf(path, tmp_path / "model", dtype=torch.float32)
    ours = load_model(tmp_path / "model", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=path.name, dtype=torch.float32)
    assert ours.config.tie_word_embeddings == tied
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6, msg=name)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(ours(ids).logits, theirs.eval()(ids).logits)
    assert facts.tensor_types == {
        "Q8_0": 2 * LAYERS + (1 if tied else 2),
        "Q4_1": 4 * LAYERS,
        "Q4_0": LAYERS,
        "F32": 2 * LAYERS + 1,
    }
    assert facts.license == "apache-2.0"


def test_the_config_is_complete_and_reads_round_numbers_back(tmp_path):
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"]["rope_theta"] == 100000.0
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 2)


def test_the_tokenizer_splits_merges_and_keeps_control_tokens_whole(tmp_path):
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>hello<|im_end|>").tokens == ["<|im_start|>", "he", "ll", "o", "<|im_end|>"]
    text = "naïve 12 🙂\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("change", "said"), [({"architecture": "gemma"}, "no converter"), ({"splitter": "qwen2"}, "not known exactly")]
)
def test_what_has_no_exact_counterpart_is_refused(tmp_path, change, said):
    with pytest.raises(DataError, match=said):
        convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", **change), tmp_path / "model")


def test_a_file_that_is_no_gguf_is_a_users_error(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model at all, just bytes" * 10)
    with pytest.raises(DataError, match="cannot read the GGUF file"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "model")
