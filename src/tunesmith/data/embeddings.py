"""Static embeddings: a vector for each token out of a folder, and the mean of a text's vectors.

What lives here: folders of model2vec (`embeddings` in a safetensors file, and `tokenizer.json`) and of language models,
whose input embedding is read and nothing else. What does not: which texts are compared (`data.semantic`).

A text's vector is the mean of its tokens' vectors, frequent tokens counting less, without the direction that all texts
share: Arora, Liang and Ma, "A simple but tough-to-beat baseline for sentence embeddings" (ICLR 2017).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.errors import DataError

FloatMatrix = npt.NDArray[np.float32]

SIF = 1e-3
"""Frequency at which a token counts half (the paper's a)."""
_TABLES = ("embeddings", "embed_tokens.weight", "word_embeddings.weight", "wte.weight", "tok_embeddings.weight")
"""Names of the table, alone or behind a prefix: model2vec's, then those of language models."""
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "<i1"}
_TEXTS_A_TIME = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticEmbeddings:
    """A folder's table, of which only the rows that texts use are read."""

    table: Any
    """Memory map (tokens, dimensions) as the file stores it."""
    bf16: bool
    weights: npt.NDArray[np.float32] | None
    """model2vec's weight of each token, where the file has one."""
    rows: npt.NDArray[np.int64] | None
    """model2vec's row of each token, where several tokens share one."""
    tokenizer: Any

    def vectors(self, token_ids: npt.NDArray[np.int64]) -> FloatMatrix:
        """Return the weighted vectors of tokens."""
        stored = self.table[token_ids if self.rows is None else self.rows[token_ids]]
        found: FloatMatrix = (
            (stored.astype(np.uint32) << 16).view(np.float32) if self.bf16 else stored.astype(np.float32)
        )
        return found if self.weights is None else found * self.weights[token_ids, None]


def load_embeddings(folder: Path) -> StaticEmbeddings:
    """Open a folder of static embeddings. Raises `DataError` where it holds none."""
    tensors = find_tensors(folder)
    table = next(tensors[name] for known in _TABLES for name in tensors if _is_table(name, known))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    own = table.name == "embeddings"
    opened = StaticEmbeddings(
        table=table.open(),
        bf16=table.dtype == "BF16",
        weights=tensors["weights"].open().astype(np.float32) if own and "weights" in tensors else None,
        rows=tensors["mapping"].open().astype(np.int64) if own and "mapping" in tensors else None,
        tokenizer=tokenizer,
    )
    reach = len(opened.table) if opened.rows is None else len(opened.rows)
    if tokenizer.get_vocab_size() > reach:
        raise DataError(
            "the tokenizer does not belong to the embeddings",
            where=str(folder),
            expected=f"a vector for each of {tokenizer.get_vocab_size():,} tokens",
            found=f"{reach:,} vectors in {table.path.name}",
        )
    return opened


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def open(self) -> npt.NDArray[Any]:
        kind = _TYPES.get(self.dtype) or {"I32": "<i4", "I64": "<i8"}[self.dtype]
        return np.memmap(self.path, dtype=kind, mode="r", offset=self.start, shape=self.shape)


def find_tensors(folder: Path) -> dict[str, _Tensor]:
    """Return the tensors of a folder of embeddings, by name. Raises `DataError` where it is none."""
    expected = "tokenizer.json, and a .safetensors file with `embeddings` (model2vec) or a model's input embedding"
    hint = "a folder that model2vec's save_pretrained wrote, or the folder of a language model"
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(
            "there is no folder of embeddings", where=str(folder), expected=expected, found=found, hint=hint
        )
    tensors: dict[str, _Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(_header(path))
    usable = [t for name, t in tensors.items() if any(_is_table(name, known) for known in _TABLES)]
    if not (folder / "tokenizer.json").is_file() or not any(t.dtype in _TYPES and len(t.shape) == 2 for t in usable):
        raise DataError(
            "a folder holds no static embeddings",
            where=str(folder),
            expected=expected,
            found=", ".join(sorted(os.listdir(folder))[:8]) or "an empty folder",
            hint=hint,
        )
    return tensors


def _is_table(name: str, known: str) -> bool:
    return name == known or (known != "embeddings" and name.endswith(f".{known}"))


def _header(path: Path) -> dict[str, _Tensor]:
    """Read what a safetensors file says of its tensors: eight bytes of length, then JSON."""
    try:
        with path.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
        return {
            name: _Tensor(
                name=name,
                path=path,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=8 + size + entry["data_offsets"][0],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise DataError("cannot read a safetensors file", where=str(path), found=str(error)[:120]) from error


def embed(texts: Sequence[str], embeddings: StaticEmbeddings) -> FloatMatrix:
    """Return a unit vector a text; zeros for a text without tokens.

    The frequencies and the shared direction are those of `texts`: sort these by content where results must not depend
    on their order to the last bit.
    """
    from scipy.sparse import csr_matrix

    ids: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(texts), _TEXTS_A_TIME):
        chunk = list(texts[start : start + _TEXTS_A_TIME])
        encoded = embeddings.tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        ids += [np.array(item.ids, dtype=np.int64) for item in encoded]
    flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)
    used, place, counts = np.unique(flat, return_inverse=True, return_counts=True)
    if not len(used):
        return np.zeros((len(texts), embeddings.table.shape[1]), dtype=np.float32)
    weight = SIF / (SIF + counts / len(flat))
    starts = np.r_[0, np.cumsum([len(row) for row in ids])]
    matrix = csr_matrix((weight[place].astype(np.float32), place, starts), shape=(len(texts), len(used)))
    return _unit(_without_shared(_unit(np.asarray(matrix @ embeddings.vectors(used), dtype=np.float32))))


MIN_TEXTS = 50
"""Of fewer texts the shared direction is that of their subject."""


def _without_shared(vectors: FloatMatrix) -> FloatMatrix:
    if len(vectors) < MIN_TEXTS:
        return vectors
    together = (
        vectors.T.astype(np.float64) @ vectors.astype(np.float64) if len(vectors) < 50_000 else vectors.T @ vectors
    )
    shared = np.linalg.eigh(together)[1][:, -1].astype(np.float32)
    return vectors - np.outer(vectors @ shared, shared)


def _unit(vectors: FloatMatrix) -> FloatMatrix:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: FloatMatrix = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-6)
    return out
