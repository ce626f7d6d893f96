import dataclasses
import json
import shutil
import socket

import pytest
from safetensors.torch import load_file, save_file

from tunesmith.errors import ContractError, ServeError
from tunesmith.serve.app import Server, Settings
from tunesmith.serve.batching import open_engine
from tunesmith.serve.bundle import load_bundle, write_checksums
from tunesmith.serve.engines import ScriptedEngine, Weights
from tunesmith.serve.limits import Limits
from tunesmith.serve.startup import bind, is_loopback, prove, replay_golden
from tunesmith.serve.traces import TraceStore
from tunesmith.types import ignore


def open_real(made, **changes):
    values = dict(adapter_dir=made.root / "adapter", dtype="float32", device="cpu", max_batch=4, prefix=(), log=ignore)
    return open_engine(made.base, **{**values, **changes})


def serve(bundle, engine, tmp_path, limits=None):
    traces = TraceStore(f"sqlite:///{tmp_path}/t.sqlite")
    try:
        return Server(bundle, engine, traces, redact=tuple, settings=Settings(limits=limits or Limits()), log=ignore)
    finally:
        traces.close()


def test_the_real_engine_proves_itself_and_answers_once(made, tmp_path):
    engine = open_real(made)
    server = serve(load_bundle(made.root), engine, tmp_path)
    assert server.proof.golden_vectors == len(server.bundle.golden)
    assert server.proof.golden_probabilities == 2
    assert server.proof.mean_logprob_error < 1e-4
    engine.close()


def test_bfloat16_is_within_the_tolerance(made, tmp_path):
    engine = open_real(made, dtype="bfloat16")
    server = serve(load_bundle(made.root), engine, tmp_path)
    assert 0 < server.proof.mean_logprob_error < 0.1
    engine.close()


def test_an_engine_that_ignores_the_adapter_is_refused_and_told_so(made, tmp_path):
    engine = open_real(made)
    engine.next_token_logprobs = lambda prompt, weights, *, tokens: type(engine).next_token_logprobs(
        engine, prompt, Weights.BASE, tokens=tokens
    )
    with pytest.raises(ServeError, match="the adapter is not applied"):
        serve(load_bundle(made.root), engine, tmp_path)


@pytest.mark.parametrize("factor", [-1.0, 0.5, 2.0])
def test_other_weights_or_another_scale_of_the_adapter_are_refused(made, tmp_path, factor):
    scaled = tmp_path / "adapter"
    shutil.copytree(made.root / "adapter", scaled)
    tensors = load_file(scaled / "adapter_model.safetensors")
    scaled_tensors = {name: tensor * (factor if "lora_B" in name else 1) for name, tensor in tensors.items()}
    save_file(scaled_tensors, scaled / "adapter_model.safetensors")
    engine = open_real(made, adapter_dir=scaled)
    with pytest.raises(ServeError, match="does not reproduce the model"):
        serve(load_bundle(made.root), engine, tmp_path)


def test_a_golden_vector_that_is_not_reproduced_names_its_position(made):
    bundle = load_bundle(made.root)
    changed = bundle.golden[1]
    for ids, position, found in (
        ((*changed.ids[:7], 5, *changed.ids[8:]), 7, "there"),
        (changed.ids[:9], 9, "expected: 9 ids, there nothing"),
        ((*changed.ids, 1), len(changed.ids), "there nothing"),
    ):
        broken = dataclasses.replace(bundle, golden=(bundle.golden[0], dataclasses.replace(changed, ids=ids)))
        with pytest.raises(ServeError, match=rf"golden vector 2 .* position {position}\n") as caught:
            replay_golden(broken, lambda conversation: bundle.contract.render_prompt(conversation).ids)
        assert found in str(caught.value) or position == len(changed.ids)


def test_golden_ids_changed_in_the_bundle_stop_the_server(copy, tmp_path):
    path = copy.root / "golden.jsonl"
    lines = path.read_text().splitlines()
    value = json.loads(lines[3])
    value["ids"][4] += 1
    lines[3] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")
    write_checksums(copy.root)
    with pytest.raises(ServeError, match=r"golden vector 4 .* position 4\n"):
        serve(load_bundle(copy.root), ScriptedEngine(lambda prompt: (1, 257), vocab_size=264), tmp_path)


@pytest.mark.parametrize(("answer", "match"), [((257,), "first answer is empty"), ((), "first answer is empty")])
def test_a_model_that_says_nothing_is_not_served(made, answer, match):
    bundle = load_bundle(made.root)
    quiet = dataclasses.replace(
        bundle, golden=tuple(dataclasses.replace(golden, next_tokens=()) for golden in bundle.golden)
    )
    engine = ScriptedEngine(lambda prompt: answer, vocab_size=264)
    with pytest.raises(ServeError, match=match):
        prove(quiet, engine, lambda conversation: bundle.contract.render_prompt(conversation).ids)
    assert not engine._thread.is_alive()


def test_a_policy_that_the_server_cannot_enforce_is_refused(assemble_bundle, tmp_path):
    made = assemble_bundle(guardrails={"on_fail": "retry", "blocklist": ["x"]})
    with pytest.raises(ContractError, match="blocklist"):
        serve(load_bundle(made.root), ScriptedEngine(lambda prompt: (1,), vocab_size=264), tmp_path)


def test_a_contract_whose_answers_are_longer_than_the_limit_is_refused(made, tmp_path):
    with pytest.raises(ServeError, match="longer than this server allows"):
        serve(
            load_bundle(made.root),
            ScriptedEngine(lambda prompt: (1,), vocab_size=264),
            tmp_path,
            limits=Limits(max_new_tokens=10),
        )


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port}") as caught:
            bind("127.0.0.1", port)
    assert "in use" in str(caught.value)
    with pytest.raises(ServeError, match="99999"):
        bind("127.0.0.1", 99999)


def test_loopback_is_what_only_this_machine_reaches():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "example.org", "::"))
