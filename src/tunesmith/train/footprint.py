"""What training a model of a given shape takes, by arithmetic alone: parameters, bytes, and the card that they fit on.

    shape = Shape.of(config)                                  # the mapping of a config.json
    shape.parameters                                          # 6,738,415,616 for Llama-2-7B
    footprint(shape, LORA_NF4, tokens=4096, rank=16).total    # bytes
    fitting(shape, card_bytes=24e9, tokens=4096, rank=16)     # the lightest hand first that fits

What lives here: counts of the Llama family of shapes and what the fused pass keeps for the backward. What does not:
measuring (`stages.training_probe`), which `plan` believes where it can. No torch: it is read before there is any.

    bytes = weights + trained x (master, gradient, optimizer) + activations x tokens + one chunk of logits + overhead
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.types import JSON

NF4_BITS, INT8_BITS, HALF_BITS = 4.127, 8.0, 16.0
"""Bits a weight: NF4 in blocks of 64 with its scales in 8 bits (`model.quantised`), int8, bfloat16."""
ADAM_BYTES = 8.0
"""Two float32 states a trained parameter."""
CHUNK_ROWS, CHUNK_LOGITS = 128, 2**25
"""Predictions whose logits are held at a time, at least, and logits (`train.loss`)."""
CONTEXT_BYTES = 0.8e9
"""CUDA's own, and torch's kernels."""
SPARE_SHARE = 0.08
"""Of a card, for pieces that the allocator cannot use."""
CARDS = {"8 GB": 8e9, "12 GB": 12e9, "16 GB": 16e9, "24 GB": 24e9, "48 GB": 48e9, "80 GB": 80e9}
"""What is common: RTX 4060, RTX 4070, T4 and RTX 4080, RTX 4090 and L4, L40S and A6000, A100 and H100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder of the Llama family: gated feed-forward, grouped heads, root-mean-square norms."""

    hidden: int
    layers: int
    queries: int
    """Width of all query heads together."""
    keys: int
    """Width of all key heads together; values are as wide."""
    feed_forward: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    head_norm: int
    """Width of the norms of query and key heads; 0 where there are none."""

    @classmethod
    def of(cls, config: Mapping[str, JSON]) -> Shape | None:
        """Return the shape of a `config.json`, or `None` for one of another family."""
        config = config.get("text_config") or config
        if config.get("model_type") not in ("llama", "mistral", "qwen2", "qwen3"):
            return None
        heads = int(config["num_attention_heads"])
        head = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        return cls(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            queries=heads * head,
            keys=int(config.get("num_key_value_heads") or heads) * head,
            feed_forward=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=config["model_type"] == "qwen2" or bool(config.get("attention_bias", False)),
            head_norm=head if config["model_type"] == "qwen3" else 0,
        )

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers but the head: what is adapted, and what is stored in fewer bits."""
        attention = 2 * self.hidden * self.queries + 2 * self.hidden * self.keys
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All weights."""
        biases = self.queries + 2 * self.keys if self.qkv_bias else 0
        norms = 2 * self.hidden + 2 * self.head_norm
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.linear_parameters + self.layers * (biases + norms) + self.hidden + tables

    def adapter_parameters(self, rank: int) -> int:
        """Weights of low-rank adapters on all linear layers but the head."""
        attention = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys)
        return self.layers * rank * (attention + 3 * (self.hidden + self.feed_forward))

    def kept_a_token(self, *, checkpointing: bool) -> int:
        """Numbers that each token of a pass keeps in all layers until the backward.

        Both halves of a layer keep their normed input, the products of it, and attention what it mixed; with
        checkpointing only the normed inputs, and one layer's all while it is computed again.
        """
        normed = 2 * self.hidden
        layer = normed + (self.queries + 2 * self.keys) + self.queries + 2 * self.feed_forward
        return normed * self.layers + layer if checkpointing else layer * self.layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to train."""

    name: str
    trained: Literal["adapter", "all"]
    base_bits: float
    checkpointing: bool = False


WAYS = (
    Way(name="full fine-tuning", trained="all", base_bits=HALF_BITS),
    Way(name="full fine-tuning with gradient checkpointing", trained="all", base_bits=HALF_BITS, checkpointing=True),
    Way(name="LoRA", trained="adapter", base_bits=HALF_BITS),
    Way(name="LoRA with gradient checkpointing", trained="adapter", base_bits=HALF_BITS, checkpointing=True),
    Way(name="LoRA on int8", trained="adapter", base_bits=INT8_BITS),
    Way(name="LoRA on int8 with gradient checkpointing", trained="adapter", base_bits=INT8_BITS, checkpointing=True),
    Way(name="QLoRA (nf4)", trained="adapter", base_bits=NF4_BITS),
    Way(name="QLoRA (nf4) with gradient checkpointing", trained="adapter", base_bits=NF4_BITS, checkpointing=True),
)
"""From what asks most of a card to what asks least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of a run on one card."""

    weights: float
    trained: float
    """Masters, gradients and optimizer states, and the rounded copy that adapters have beside their masters."""
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it, CUDA's own part included."""
        return self.weights + self.trained + self.activations + self.logits + CONTEXT_BYTES


def footprint(shape: Shape, way: Way, *, tokens: int, rank: int, optimizer_bytes: float = ADAM_BYTES) -> Footprint:
    """Return what a run takes in bfloat16 where one pass computes `tokens` tokens.

    `optimizer_bytes` are those of a trained parameter: 8 for AdamW, 2 for AdamW in 8 bits.
    """
    rest = shape.parameters - shape.linear_parameters
    count = shape.parameters if way.trained == "all" else shape.adapter_parameters(rank)
    copy = 0.0 if way.trained == "all" else 2.0
    # A quantised layer's weight is spread out for one product at a time: the widest group of a layer, twice over.
    spread = 2 * 2 * shape.hidden * 2 * shape.feed_forward if way.base_bits != HALF_BITS else 0
    return Footprint(
        weights=shape.linear_parameters * way.base_bits / 8 + 2.0 * rest + spread,
        trained=count * (4.0 + 4.0 + optimizer_bytes + copy),
        activations=2.0 * tokens * shape.kept_a_token(checkpointing=way.checkpointing),
        logits=8.0 * max(CHUNK_ROWS * shape.vocabulary, CHUNK_LOGITS),
    )


def fitting(
    shape: Shape, *, card_bytes: float, tokens: int, rank: int, ways: Sequence[Way] = WAYS
) -> tuple[Way, Footprint] | None:
    """Return the first of `ways` that fits on a card, and what it takes; `None` where none does."""
    for way in ways:
        needed = footprint(shape, way, tokens=tokens, rank=rank)
        if needed.total <= card_bytes * (1 - SPARE_SHARE):
            return way, needed
    return None


def advice(shape: Shape, *, tokens: int, rank: int) -> list[str]:
    """Return one line for each kind of training: on which common card each begins to fit, with passes of `tokens`."""
    lines = []
    for kind, ways in (("full fine-tuning", WAYS[:2]), ("LoRA", WAYS[2:4]), ("QLoRA", WAYS[6:])):
        for card, card_bytes in CARDS.items():
            found = fitting(shape, card_bytes=card_bytes, tokens=tokens, rank=rank, ways=ways)
            if found is not None:
                way, needed = found
                how = "with gradient checkpointing" if way.checkpointing else "without gradient checkpointing"
                lines.append(f"{kind} fits on {card} {how}, about {needed.total / 1e9:.1f} GB")
                break
        else:
            lines.append(f"{kind} fits on none of the common cards alone")
    return lines
