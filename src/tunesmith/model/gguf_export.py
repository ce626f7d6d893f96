"""Hugging Face folder -> GGUF file, for the Llama family with a byte-level BPE tokenizer.

What lives here: names, row order, metadata and tokenizer as llama.cpp reads them. What does not: reading GGUF
(`model.gguf_import`, its mirror image, which reads every file back before an export is done), K-quants, which need
llama.cpp itself.

    write_gguf(Path("merged/"), Path("model.gguf"), quantisation="Q8_0", contract=..., stop_ids=(2,), name="desk")

Source: gguf-py 0.19 `GGUFWriter`, llama.cpp `convert_hf_to_gguf.py` (row order of q and k, float32 norms), and
`llama-vocab.cpp` (token types, `add_bos_token`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
import tokenizers
import torch
from safetensors import safe_open

from tunesmith.errors import DataError
from tunesmith.model.gguf_import import (
    CONTROL_TOKEN,
    LAYER_TENSOR_NAMES,
    PRE_TOKENIZERS,
    TENSOR_NAMES,
    USER_DEFINED_TOKEN,
)

Quantisation = Literal["F32", "F16", "BF16", "Q8_0"]
QUANTISATIONS: tuple[str, ...] = get_args(Quantisation)
CONTRACT_KEY, CONTRACT_HASH_KEY, STOPS_KEY = "tunesmith.contract", "tunesmith.contract_sha256", "tunesmith.stop_ids"
"""Metadata that llama.cpp keeps and does not read."""

_NORMAL_TOKEN, _UNUSED_TOKEN = 1, 5
_STOP_FIELDS = ("eos", "eot", "eom")
"""llama.cpp ends an answer at any of these tokens."""
_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def write_gguf(
    model_dir: Path,
    out: Path,
    *,
    quantisation: Quantisation,
    name: str,
    stop_ids: Sequence[int],
    contract: str,
    contract_sha256: str,
) -> dict[str, int]:
    """Write `model_dir` (weights, config, tokenizer, template) to one file; return tensor type -> number of tensors.

    `contract` is the contract's canonical JSON; `stop_ids` end an answer, the trained one first. Raises `DataError`
    for an architecture, tokenizer or setting that has no exact counterpart.
    """
    config = json.loads((model_dir / "config.json").read_text("utf-8"))
    _check_config(config, where=model_dir / "config.json")
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[quantisation])
    if quantisation == "Q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    _add_tokenizer(writer, model_dir, vocab_size=int(config["vocab_size"]), stop_ids=stop_ids)
    writer.add_string(CONTRACT_KEY, contract)
    writer.add_string(CONTRACT_HASH_KEY, contract_sha256)
    writer.add_array(STOPS_KEY, list(stop_ids))
    types = _add_tensors(writer, model_dir, config, quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return types


def read_contract(path: Path) -> tuple[str, str]:
    """Return (canonical JSON, sha256) of the contract in a file. Raises `DataError` where it has none."""
    try:
        fields = gguf.GGUFReader(str(path)).fields
    except (ValueError, OSError, IndexError) as error:
        raise DataError("cannot read the GGUF file", where=str(path), found=str(error)) from error
    if CONTRACT_KEY not in fields or CONTRACT_HASH_KEY not in fields:
        raise DataError("the GGUF file carries no contract", where=str(path), expected=CONTRACT_KEY)
    return str(fields[CONTRACT_KEY].contents()), str(fields[CONTRACT_HASH_KEY].contents())


def _check_config(config: Mapping[str, Any], *, where: Path) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for holds, what, found in (
        ((config.get("architectures") or [None])[0] in _ARCHITECTURES, "architecture", config.get("architectures")),
        (rope.get("rope_type", rope.get("type", "default")) == "default", "rope scaling", rope),
        (not config.get("attention_bias") and not config.get("mlp_bias"), "bias", "biases in linear layers"),
        (config.get("sliding_window") is None, "sliding window", config.get("sliding_window")),
        (config.get("hidden_act", "silu") == "silu", "activation", config.get("hidden_act")),
    ):
        if not holds:
            raise DataError(
                f"this model's {what} has no GGUF writer here",
                where=str(where),
                expected="the Llama family: rotary positions as they are, no biases, SiLU",
                found=str(found)[:120],
                hint="export --to merged, and convert the folder with llama.cpp's convert_hf_to_gguf.py",
            )


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return (query heads, key heads, dimensions of a head)."""
    heads = int(config["num_attention_heads"])
    return (
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or config["hidden_size"] // heads),
    )


def _add_shape(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    heads, key_heads, head_dim = _heads(config)
    rope = config.get("rope_parameters") or {}
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10000.0))))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, *, vocab_size: int, stop_ids: Sequence[int]) -> None:
    where = folder / "tokenizer.json"
    spec = json.loads(where.read_text("utf-8"))
    splitter = _splitter(spec, where=where)
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]  # embedding rows that no token has
    types = [_UNUSED_TOKEN] * vocab_size
    for token, index in spec["model"]["vocab"].items():
        tokens[index], types[index] = token, _NORMAL_TOKEN
    for added in spec.get("added_tokens") or ():
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            raise DataError(
                "an added token strips its surroundings, which GGUF cannot say", found=str(added["content"])
            )
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL_TOKEN if added.get("special") else USER_DEFINED_TOKEN
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]])
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    ids = {token: index for index, token in enumerate(tokens)}
    for field, add in (
        ("bos_token", writer.add_bos_token_id),
        ("unk_token", writer.add_unk_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        named = config.get(field)
        text = named.get("content") if isinstance(named, dict) else named
        if text in ids:
            add(ids[text])
    if len(stop_ids) > len(_STOP_FIELDS):
        raise DataError(
            "GGUF names three tokens that end an answer, and this contract has more", found=str(list(stop_ids))
        )
    for field, token in zip(_STOP_FIELDS, stop_ids, strict=False):
        getattr(writer, f"add_{field}_token_id")(token)
    writer.add_add_bos_token(False)  # the chat template writes it, as everywhere here: at most one
    writer.add_chat_template((folder / "chat_template.jinja").read_text("utf-8"))


def _splitter(spec: Mapping[str, Any], *, where: Path) -> str:
    """Return llama.cpp's name of the tokenizer's way to split text; only one that is known exactly is written."""
    model = spec["model"]
    plain = (
        model.get("type") == "BPE"
        and not model.get("ignore_merges")
        and not model.get("byte_fallback")
        and not model.get("dropout")
        and spec.get("normalizer") is None
    )
    for name, make in PRE_TOKENIZERS.items():
        bare = tokenizers.Tokenizer(tokenizers.models.BPE())
        bare.pre_tokenizer = make()
        if plain and json.loads(bare.to_str())["pre_tokenizer"] == spec.get("pre_tokenizer"):
            return name
    raise DataError(
        "this tokenizer has no exact counterpart in GGUF here: ids would shift silently",
        where=str(where),
        expected=f"byte-level BPE that splits as {' or '.join(sorted(PRE_TOKENIZERS))} does",
        found=json.dumps({"model": model.get("type"), "pre_tokenizer": spec.get("pre_tokenizer")})[:160],
        hint="export --to merged, and convert the folder with llama.cpp's convert_hf_to_gguf.py",
    )


def _add_tensors(
    writer: gguf.GGUFWriter, folder: Path, config: Mapping[str, Any], quantisation: Quantisation
) -> dict[str, int]:
    heads, key_heads, _ = _heads(config)
    names = {theirs: ours for ours, theirs in TENSOR_NAMES.items()}
    layer_names = {theirs: ours for ours, theirs in LAYER_TENSOR_NAMES.items()}
    types: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                values = weights.get_tensor(name).to(torch.float32).numpy()
                if name.endswith("q_proj.weight"):
                    values = _permute(values, num_heads=heads)
                elif name.endswith("k_proj.weight"):
                    values = _permute(values, num_heads=key_heads)
                kind = gguf.GGMLQuantizationType[_type_of(values, quantisation)]
                types[kind.name] = types.get(kind.name, 0) + 1
                writer.add_tensor(_gguf_name(name, names, layer_names), gguf.quantize(values, kind), raw_dtype=kind)
    return types


def _type_of(values: np.ndarray[Any, Any], quantisation: Quantisation) -> str:
    """Norms stay float32, as llama.cpp wants them; so do rows that no whole number of Q8_0's blocks of 32 fills."""
    if values.ndim == 1 or (quantisation == "Q8_0" and values.shape[-1] % 32):
        return "F32"
    return quantisation


def _gguf_name(name: str, names: Mapping[str, str], layer_names: Mapping[str, str]) -> str:
    if name in names:
        return names[name]
    _, _, rest = name.partition("model.layers.")
    index, _, leaf = rest.partition(".")
    if leaf not in layer_names:
        raise DataError(f"the tensor {name!r} has no counterpart in a GGUF file of the Llama family")
    return f"blk.{index}.{layer_names[leaf]}"


def _permute(weight: np.ndarray[Any, Any], *, num_heads: int) -> np.ndarray[Any, Any]:
    """Interleave the two halves of each head's rotary dimensions, as llama.cpp stores them."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
