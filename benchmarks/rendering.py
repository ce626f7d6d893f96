"""Rendering and masking: conversations a CPU-second, and the law of masks over random conversations.

    python benchmarks/rendering.py FOLDER                     a Hugging Face folder with tokenizer and template
    python benchmarks/rendering.py FOLDER --law 100000        that many random conversations over all families

Short conversations are one user message of 4 to 14 words and one answer of a few: what intent and support data looks
like. Figures are per CPU-second of this process, all threads counted; other work on the machine still lowers them, so
the load is printed. The law needs the tokenizers of the tests (`tests/unit/chat/chat_world.py`).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

from tunesmith.chat.build import build_contract
from tunesmith.chat.contract import Contract
from tunesmith.chat.law import check_law
from tunesmith.chat.mask import train
from tunesmith.chat.parse import Parser
from tunesmith.chat.parts import Decoding, LossPolicy, System, SystemRule
from tunesmith.chat.refusal import Refused
from tunesmith.chat.template import ChatTemplate, find_templates
from tunesmith.types import Conversation

TEXT = """
please my order has not arrived yet and the tracking page says delivered can you check why card was charged twice refund
parcel broken screen invoice address change password login error update account cancel subscription
"""
WORDS = TEXT.split()
LABELS = ("refund", "delivery", "billing", "account", "other")
ROWS = 20_000
BATCH = 512
TESTS = Path(__file__).parents[1] / "tests" / "unit" / "chat"


def main() -> None:
    """Print speeds, or run the law."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--law", type=int, metavar="N", help="random conversations over all families")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.law:
        run_law(args.law, args.seed)
    else:
        run_speed(args.folder, args.seed)


def short_conversations(count: int, seed: int) -> list[Conversation]:
    """Return random short conversations."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 14)))
        answer = f'{{"intent": "{rng.choice(LABELS)}", "priority": {rng.randint(1, 3)}}}'
        messages = [{"role": "user", "content": f"{text}?"}, {"role": "assistant", "content": answer}]
        rows.append(Conversation.from_json({"messages": messages}))
    return rows


def make_contract(folder: Path, out: Path) -> Contract:
    """Build a contract with a system prompt on a base's own template."""
    return build_contract(
        out,
        base=folder,
        template=ChatTemplate(find_templates(folder)["default"]),
        template_arguments={},
        template_date=None,
        system=System(rule=SystemRule.TEXT, text="Reply with JSON."),
        tools=[],
        input_schema=None,
        input_render=None,
        output_schema=None,
        extra_stops=[],
        decoding=Decoding(),
        guardrails={},
        loss=LossPolicy(),
        criteria=[],
    )


def run_speed(folder: Path, seed: int) -> None:
    """Print conversations a CPU-second for the quick way, the general way and the tokenizer alone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rows = short_conversations(ROWS, seed)
    with tempfile.TemporaryDirectory() as scratch:
        contract = make_contract(folder, Path(scratch))
        started = time.process_time()
        made = []
        for start in range(0, len(rows), BATCH):
            made += contract.encode_many([(str(i), row) for i, row in enumerate(rows[start : start + BATCH], start)])
        quick = len(rows) / (time.process_time() - started)
        few = rows[:2000]
        started = time.process_time()
        general = [contract.encode(row, row_id=str(index)) for index, row in enumerate(few)]
        slow = len(few) / (time.process_time() - started)
        texts = [contract.renderer.full(contract.messages(row)).text for row in few]
        started = time.process_time()
        contract.tokenizer.encode_batch(texts)
        alone = len(few) / (time.process_time() - started)
    assert made[: len(few)] == general, "the quick way differs from the general way"
    tokens = statistics.mean(len(examples[0].ids) for examples in general)
    print(f"{len(rows)} conversations of {tokens:.0f} tokens, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"render and mask, quick way   {quick:8.0f} conversations a CPU-second")
    print(f"render and mask, general way {slow:8.0f}")
    print(f"the tokenizer alone          {alone:8.0f}   (no rendering, no mask)")


def run_law(count: int, seed: int) -> None:
    """Check the law on `count` random conversations, spread over all families."""
    world, conversations = _test_module("chat_world"), _test_module("chat_conversations")
    names = sorted(world.FAMILIES)
    outcomes: Counter[str] = Counter()
    started = time.process_time()
    for index, name in enumerate(names):
        renderer = world.family_renderer(name)
        reader = Parser.of(renderer)
        rng = random.Random(f"{seed}/{name}")
        here: Counter[str] = Counter()
        for _ in range(count // len(names) + (index < count % len(names))):
            messages, tools, turns = conversations.random_conversation(renderer, rng)
            if not turns:
                here["nothing to train"] += 1
                continue
            try:
                sequences = train(renderer, messages, tools)
            except Refused as refusal:
                here[f"refused: {refusal.kind.value}"] += 1
                continue
            check_law(renderer, messages, tools, sequences, turns=turns, parser=reader)
            here["held"] += 1
            here["trained turns"] += len(turns)
        print(f"{name:18} {dict(sorted(here.items()))}", flush=True)
        outcomes += here
    print(f"all {dict(sorted(outcomes.items()))}, {time.process_time() - started:.0f} CPU-seconds")


def _test_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
