"""GGUF file -> Hugging Face folder, for the Llama family with a byte-level BPE tokenizer.

What lives here: reading a GGUF file's metadata, tokenizer and (quantised) tensors, and writing them as a folder that
transformers, PEFT and vLLM load. What does not: where the file comes from (`model.fetch`), writing GGUF
(`model.export`).

    convert_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"), Path("model/"))

Why not `from_pretrained(gguf_file=...)`: it sets `architectures` to None and marks the model as quantised, so that
`save_pretrained` refuses (transformers 5.23). The tests hold this conversion equal to it, tensor by tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig

from tunesmith.errors import DataError
from tunesmith.types import JSON

CONTROL_TOKEN = 3
USER_DEFINED_TOKEN = 4
"""`gguf.TokenType` values of tokens that are matched before the text is split."""

TENSOR_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_TENSOR_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}

PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    # llama.cpp `llama-vocab.cpp`: every digit alone, then the GPT-2 pattern.
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}
"""GGUF `tokenizer.ggml.pre` -> splitter. A name that is not here is refused: a near miss shifts ids silently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """What a conversion found in the file."""

    name: str
    license: str | None
    num_parameters: int
    tensor_types: dict[str, int]
    """Quantisation type -> number of tensors, for example `{"Q4_1": 210, "F32": 61, "Q8_0": 1}`."""


def convert_gguf(path: Path, out: Path, *, dtype: torch.dtype = torch.bfloat16) -> GgufFacts:
    """Write the model of `path` into `out` as config, safetensors weights in `dtype`, tokenizer and chat template.

    Quantised tensors are dequantised to float32 and rounded once. Raises `DataError` for an architecture, tokenizer
    or tensor that has no exact counterpart.
    """
    try:
        reader = gguf.GGUFReader(str(path))
    except (ValueError, OSError, IndexError) as error:
        raise DataError("cannot read the GGUF file", where=str(path), found=str(error)) from error
    meta = {name: field.contents() for name, field in reader.fields.items()}
    architecture = meta.get("general.architecture")
    if architecture != "llama":
        raise DataError(
            f"the GGUF architecture {architecture!r} has no converter here",
            where=str(path),
            expected="llama",
            hint="name a Hugging Face folder of the same model instead",
        )
    out.mkdir(parents=True, exist_ok=True)
    tensors, types = _tensors(reader, meta, dtype=dtype)
    config = _config(meta, tied="lm_head.weight" not in tensors, dtype=dtype)
    config.save_pretrained(out)
    weights = out / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it readable by its owner only
    write_tokenizer(meta, out)
    generation = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    generation.save_pretrained(out)
    return GgufFacts(
        name=str(meta.get("general.name", path.stem)),
        license=meta.get("general.license"),
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        tensor_types=types,
    )


def _config(meta: dict[str, Any], *, tied: bool, dtype: torch.dtype) -> LlamaConfig:
    hidden, heads = int(meta["llama.embedding_length"]), int(meta["llama.attention.head_count"])
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        hidden_size=hidden,
        intermediate_size=int(meta["llama.feed_forward_length"]),
        num_hidden_layers=int(meta["llama.block_count"]),
        num_attention_heads=heads,
        num_key_value_heads=int(meta.get("llama.attention.head_count_kv", heads)),
        head_dim=int(meta.get("llama.rope.dimension_count", hidden // heads)),
        max_position_embeddings=int(meta["llama.context_length"]),
        # Stored as float32: 1e-5 reads back as 9.9999997e-06, and would differ from the published config.
        rms_norm_eps=_shortest(meta["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={"rope_type": "default", "rope_theta": _shortest(meta.get("llama.rope.freq_base", 10000.0))},
        bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=meta.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=meta.get("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=tied,
        dtype=str(dtype).removeprefix("torch."),
    )


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32."""
    return float(str(np.float32(value)))


def _tensors(
    reader: gguf.GGUFReader, meta: dict[str, Any], *, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    heads = int(meta["llama.attention.head_count"])
    kv_heads = int(meta.get("llama.attention.head_count_kv", heads))
    tensors: dict[str, torch.Tensor] = {}
    types: dict[str, int] = {}
    for tensor in reader.tensors:
        name = _hugging_face_name(tensor.name)
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            values = _unpermute(values, num_heads=heads)
        elif name.endswith("k_proj.weight"):
            values = _unpermute(values, num_heads=kv_heads)
        tensors[name] = torch.from_numpy(np.array(values, dtype=np.float32, order="C")).to(dtype)
    return tensors, types


def _hugging_face_name(name: str) -> str:
    if name in TENSOR_NAMES:
        return TENSOR_NAMES[name]
    prefix, _, rest = name.partition(".")
    index, _, leaf = rest.partition(".")
    if prefix != "blk" or leaf not in LAYER_TENSOR_NAMES:
        raise DataError(f"the GGUF tensor {name!r} has no counterpart in a Llama model")
    return f"model.layers.{index}.{LAYER_TENSOR_NAMES[leaf]}"


def _unpermute(weight: np.ndarray[Any, Any], *, num_heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's row order: it interleaves the two halves of each head's rotary dimensions."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_tokenizer(meta: dict[str, Any], out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja from GGUF metadata.

    Raises `DataError` for a tokenizer model or splitter that is not known exactly.
    """
    if meta["tokenizer.ggml.model"] != "gpt2":
        raise DataError("the GGUF tokenizer is not byte-level BPE", found=str(meta["tokenizer.ggml.model"]))
    splitter = meta.get("tokenizer.ggml.pre", "gpt-2")
    if splitter not in PRE_TOKENIZERS:
        raise DataError(
            f"the GGUF pre-tokenizer {splitter!r} is not known exactly",
            expected=" or ".join(sorted(PRE_TOKENIZERS)),
            hint="name a Hugging Face folder of the same model: it carries its own tokenizer.json",
        )
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    types: list[int] = meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta.get("tokenizer.ggml.merges", ())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[splitter]()
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind == CONTROL_TOKEN:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED_TOKEN:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    tokenizer.save(str(out / "tokenizer.json"))
    named = {
        "bos_token": "tokenizer.ggml.bos_token_id",
        "eos_token": "tokenizer.ggml.eos_token_id",
        "unk_token": "tokenizer.ggml.unknown_token_id",
        "pad_token": "tokenizer.ggml.padding_token_id",
    }
    config: dict[str, JSON] = {key: tokens[meta[field]] for key, field in named.items() if field in meta}
    # Not a model's own class: transformers 5 rebuilds the splitter of e.g. GPT2Tokenizer and ignores tokenizer.json's.
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(meta["llama.context_length"]),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if template := meta.get("tokenizer.chat_template"):
        (out / "chat_template.jinja").write_text(template, "utf-8")
