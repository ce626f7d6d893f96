"""A whole bundle in miniature: a byte-level tokenizer, a contract, a two-layer model and an adapter that changes it."""

import contextlib
import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.chat.build import build_contract
from tunesmith.chat.families import family_template
from tunesmith.chat.parts import Decoding, LossPolicy, System, SystemRule
from tunesmith.model.load import load_model
from tunesmith.serve.app import Server, Settings, create_app
from tunesmith.serve.bundle import (
    Golden,
    base_sums,
    file_sums,
    folder_sha256,
    load_bundle,
    write_checksums,
    write_golden,
)
from tunesmith.serve.engines import ScriptedEngine
from tunesmith.serve.limits import Limits
from tunesmith.serve.traces import TraceStore

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["refund", "other"]}, "needs_human": {"type": "boolean"}},
    "required": ["intent", "needs_human"],
    "additionalProperties": False,
}
SYSTEM = "Answer with JSON."
GOOD = '{"intent":"refund","needs_human":false}'
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


@dataclass(frozen=True)
class Made:
    """Paths of what a test serves."""

    root: Path
    base: Path


def write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROL)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_base(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=257,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)


def write_adapter(base: Path, folder: Path) -> None:
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)


def write_contract(out: Path, base: Path, **changes):
    values = dict(
        base=base,
        template=family_template("chatml"),
        template_arguments={},
        template_date=None,
        system=System(rule=SystemRule.TEXT, text=SYSTEM),
        tools=[],
        input_schema=None,
        input_render=None,
        output_schema=SCHEMA,
        extra_stops=[],
        decoding=Decoding(max_new_tokens=48),
        guardrails={},
        loss=LossPolicy(),
        criteria=["schema_adherence >= 0.9"],
    )
    return build_contract(out, **{**values, **changes})


def next_tokens(base: Path, adapter: Path, ids):
    model = load_model(base, dtype="float32", adapter_dir=adapter)
    with torch.inference_mode():
        tuned = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        with model.disable_adapter():
            bare = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    best = tuned.topk(5)
    return tuple(best.indices.tolist()), tuple(best.values.tolist()), tuple(bare[best.indices].tolist())


def assemble(root: Path, base: Path, adapter: Path, *, promotable=True, **changes) -> Made:
    """Write a bundle as the stage does, with the contract's settings changed as asked."""
    root.mkdir(parents=True)
    contract = write_contract(root / "contract", base, **changes)
    shutil.copytree(adapter, root / "adapter")
    golden = []
    for vector in contract.golden:
        tokens, tuned, bare = next_tokens(base, adapter, vector.ids) if len(golden) < 2 else ((), (), ())
        golden.append(
            Golden(
                conversation=vector.conversation,
                ids=vector.ids,
                next_tokens=tokens,
                tuned_logprobs=tuned,
                base_logprobs=bare,
            )
        )
    write_golden(root / "golden.jsonl", golden)
    (root / "README.md").write_text("a card")
    (root / "gates.json").write_text(json.dumps({"promotable": promotable, "verdicts": []}))
    (root / "base.json").write_text(json.dumps({"id": "tiny/base", "fingerprint": "f" * 64, "files": base_sums(base)}))
    meta = {
        "format": 1,
        "name": "tiny-tuned",
        "dtype": "float32",
        "adapter_sha256": folder_sha256(file_sums(root / "adapter")),
        "contract_sha256": contract.sha256,
    }
    (root / "bundle.json").write_text(json.dumps(meta))
    write_checksums(root)
    return Made(root=root, base=base)


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> tuple[Path, Path]:
    """(base folder, adapter folder)"""
    folder = tmp_path_factory.mktemp("parts")
    write_base(folder / "base")
    write_adapter(folder / "base", folder / "adapter")
    return folder / "base", folder / "adapter"


@pytest.fixture(scope="session")
def made(parts, tmp_path_factory) -> Made:
    return assemble(tmp_path_factory.mktemp("bundle") / "b", *parts)


@pytest.fixture
def copy(made, tmp_path) -> Made:
    """A bundle that the test may damage."""
    shutil.copytree(made.root, tmp_path / "b")
    return Made(root=tmp_path / "b", base=made.base)


@pytest.fixture
def assemble_bundle(parts, tmp_path):
    """Make a bundle with other contract settings: `assemble_bundle(guardrails={...})`."""
    count = 0

    def make(**changes) -> Made:
        nonlocal count
        count += 1
        return assemble(tmp_path / f"bundle{count}", *parts, **changes)

    return make


@dataclass
class Running:
    """A server over a bundle with a scripted engine, and what a test may look at."""

    client: TestClient
    server: Server
    engine: ScriptedEngine
    traces: TraceStore
    says: dict[str, str]
    """`answer` is what the model says next; `stop` whether it ends by itself."""
    events: list

    def ask(self, content="Where is my refund?", **body):
        return self.client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **body}
        )

    def stream(self, content="Where is my refund?", **body):
        """Return the parsed chunks, and whether [DONE] came."""
        response = self.ask(content, stream=True, **body)
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        return [json.loads(line) for line in lines if line != "[DONE]"], lines[-1:] == ["[DONE]"]


def redact_mail(messages):
    """A stand-in for the redaction that the command line passes in."""
    return tuple(
        dataclasses.replace(message, content=re.sub(r"[\w.]+@[\w.]+", "<EMAIL_1>", message.content))
        if message.content
        else message
        for message in messages
    )


@pytest.fixture
def serve(made, tmp_path):
    """Start a server: `serve(made, limits=Limits(...))`; all are stopped after the test."""
    with contextlib.ExitStack() as stack:

        def start(which=made, *, limits=None, api_key=None, consent=None):
            bundle = load_bundle(which.root)
            says = {"answer": GOOD, "stop": True}

            def answer(prompt):
                bare = next((golden for golden in bundle.golden if golden.ids == prompt), None)
                if bare is not None and bare.next_tokens:
                    return (bare.next_tokens[0], bundle.contract.stop_ids[0])
                spoken = says["answer"].pop(0) if isinstance(says["answer"], list) else says["answer"]
                ids = bundle.contract.tokenizer.encode_literal(spoken)
                return (*ids, bundle.contract.stop_ids[0]) if says["stop"] else ids

            engine = ProvedEngine(answer, vocab_size=264, context_length=1024)
            engine.golden = bundle.golden
            traces = TraceStore(f"sqlite:///{tmp_path}/traces{len(list(tmp_path.glob('*.sqlite')))}.sqlite")
            stack.callback(traces.close)
            events = []
            server = Server(
                bundle,
                engine,
                traces,
                redact=redact_mail,
                settings=Settings(limits=limits or Limits(), api_key=api_key, consent=consent),
                log=lambda name, fields: events.append((name, fields)),
            )
            client = stack.enter_context(TestClient(create_app(server), raise_server_exceptions=False))
            stack.callback(engine.gate.set)  # a test that failed with the gate closed must not hold the server open
            return Running(client=client, server=server, engine=engine, traces=traces, says=says, events=events)

        yield start


class ProvedEngine(ScriptedEngine):
    """A scripted engine that knows the bundle's recorded probabilities, so that a server starts on it."""

    golden = ()

    def next_token_logprobs(self, prompt, weights, *, tokens):
        known = {golden.ids: golden.tuned_logprobs for golden in self.golden}
        return known.get(tuple(prompt)) or super().next_token_logprobs(prompt, weights, tokens=tokens)
