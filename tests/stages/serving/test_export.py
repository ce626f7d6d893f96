"""An export says what base and adapter say, carries its contract, and is refused once a file of it was changed."""

import dataclasses
import json
import shutil

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from tunesmith.api import export
from tunesmith.api.exporting import check_export
from tunesmith.cli.main import make_app
from tunesmith.errors import ContractError, DataError, PlanError, ServeError, StoreError, TrainingError
from tunesmith.model.export import Agreement, check_agreement, merged_model
from tunesmith.model.full import save_model
from tunesmith.model.gguf_export import read_contract
from tunesmith.model.gguf_import import convert_gguf
from tunesmith.serve.bundle import load_bundle


@pytest.fixture(scope="module")
def base(world):
    return world.base.path / "model"


@pytest.fixture(scope="module")
def merged(bundle, base, tmp_path_factory):
    return export(bundle.path, tmp_path_factory.mktemp("merged") / "out", to="merged", base=base)


@pytest.fixture(scope="module")
def quantised(bundle, base, tmp_path_factory):
    return export(bundle.path, tmp_path_factory.mktemp("gguf") / "out", to="gguf", dtype="Q8_0", base=base)


@pytest.fixture
def expected(bundle, base):
    """Base and adapter merged in float32."""
    return merged_model(base, bundle.path / "adapter").state_dict()


def logprobs(model, golden):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(golden.ids)])).logits[0, -1].float()
    return torch.log_softmax(logits, -1)[list(golden.next_tokens)].tolist()


def test_a_merged_folder_is_a_plain_model_that_says_what_the_adapter_says(bundle, merged):
    model = AutoModelForCausalLM.from_pretrained(merged.root).eval()
    assert model.dtype == torch.float32  # the base's own
    for golden in load_bundle(bundle.path).golden:
        if golden.next_tokens:
            assert logprobs(model, golden) == pytest.approx(golden.tuned_logprobs, abs=1e-4)
    agreement = merged.manifest["agreement"]
    assert agreement["mean_kl"] < 1e-6 < 1e-3 < agreement["mean_kl_of_base"]
    assert agreement["top1"] > 0.999


def test_transformers_renders_the_golden_vectors_to_the_same_ids(merged):
    tokenizer = AutoTokenizer.from_pretrained(merged.root)
    compared = 0
    for vector in merged.contract.golden:
        if "control" in vector.name or "injection" in vector.name:
            continue  # transformers lets content become control tokens; the contract does not
        messages = [{"role": "system", "content": merged.contract.system}, *map(dict, vector.messages)]
        if vector.messages[0]["role"] == "system":
            messages = messages[1:]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert tuple(ids) == vector.ids, vector.name
        compared += 1
    assert compared >= 8


def test_generation_follows_the_contract_in_other_engines(merged):
    config = AutoModelForCausalLM.from_pretrained(merged.root).generation_config
    assert config.eos_token_id == list(merged.contract.stop_ids)
    assert config.max_new_tokens == 32
    assert config.do_sample is False


def test_another_number_format_is_cast_last(bundle, base, expected, tmp_path):
    made = export(bundle.path, tmp_path / "out", to="merged", dtype="bfloat16", base=base)
    saved = load_file(made.root / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name].to(torch.bfloat16)) for name, tensor in saved.items())


@pytest.mark.parametrize(("dtype", "cast"), [("F32", None), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_a_gguf_file_holds_the_weights_to_the_last_bit_of_its_format(bundle, base, expected, tmp_path, dtype, cast):
    made = export(bundle.path, tmp_path / "out", to="gguf", dtype=dtype, base=base)
    convert_gguf(made.weights, tmp_path / "back", dtype=torch.float32)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == expected.keys()
    for name, tensor in back.items():
        rounded = expected[name] if cast is None or tensor.ndim == 1 else expected[name].to(cast).float()
        assert torch.equal(tensor, rounded), name


def test_eight_bits_are_within_half_a_step_of_each_block(quantised, expected, tmp_path):
    convert_gguf(quantised.weights, tmp_path / "back", dtype=torch.float32)
    for name, tensor in load_file(tmp_path / "back" / "model.safetensors").items():
        original = expected[name]
        if tensor.ndim == 1 or tensor.shape[-1] % 32:
            assert torch.equal(tensor, original), name
            continue
        blocks, found = original.reshape(-1, 32), tensor.reshape(-1, 32)
        step = blocks.abs().amax(1, keepdim=True) / 127
        assert ((found - blocks).abs() <= 0.51 * step + 127 * step / 1024).all(), name  # the step itself is float16


def test_transformers_reads_the_same_model_out_of_the_gguf_file(bundle, base, tmp_path):
    made = export(bundle.path, tmp_path / "out", to="gguf", dtype="F32", base=base)
    model = AutoModelForCausalLM.from_pretrained(made.root, gguf_file=made.weights.name, dtype=torch.float32).eval()
    for golden in load_bundle(bundle.path).golden:
        if golden.next_tokens:
            assert logprobs(model, golden) == pytest.approx(golden.tuned_logprobs, abs=1e-3)


def test_a_gguf_file_carries_template_stops_and_contract(quantised):
    contract = quantised.contract
    fields = gguf.GGUFReader(str(quantised.weights)).fields
    assert fields["tokenizer.chat_template"].contents() == contract.template.text
    assert fields["tokenizer.ggml.eos_token_id"].contents() == contract.stop_ids[0]
    assert list(fields["tunesmith.stop_ids"].contents()) == list(contract.stop_ids)
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    text, sha256 = read_contract(quantised.weights)
    assert sha256 == contract.sha256
    assert json.loads(text)["parts"] == json.loads(json.dumps(dict(contract.content)))


def test_a_fully_fine_tuned_model_is_bundled_and_exported(run, world, base, make_artifact, tmp_path):
    trained = make_artifact(tmp_path / "full", "adapter", fingerprint="full" * 3)
    model = LlamaForCausalLM.from_pretrained(base)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    save_model(model, trained.path / "adapter", base_dir=base)
    inputs = {"base": world.base, "contract": world.contract, "splits": world.splits, "adapter": trained}
    evaluation = run("evaluate", inputs, {"dtype": "float32"}, world.folder)
    bundle = run("bundle", {**inputs, "evaluation": evaluation}, {"name": "desk-full"}, world.folder)
    assert "fine-tuning of all weights" in (bundle.path / "README.md").read_text()
    made = export(bundle.path, tmp_path / "out", to="merged", base=base)
    saved, live = load_file(made.root / "model.safetensors"), model.state_dict()
    assert all(torch.equal(tensor, live[name]) for name, tensor in saved.items())
    assert made.manifest["trained"] == "all weights"
    export(bundle.path, tmp_path / "gguf", to="gguf", base=base)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("chat_template.jinja", "chat_template.jinja"),
        ("tokenizer.json", "tokenizer.json"),
        ("generation_config.json", "generation_config.json"),
        ("config.json", "config.json"),
        ("contract/contract.json", "contract.json"),
        ("export.json", "export.json"),
    ],
)
def test_a_changed_export_is_refused_and_the_part_is_named(merged, tmp_path, name, part):
    folder = tmp_path / "copy"
    shutil.copytree(merged.root, folder)
    check_export(folder)
    (folder / name).write_text((folder / name).read_text() + "\n")
    with pytest.raises((ServeError, ContractError), match=f"{part} was changed by hand"):
        check_export(folder)


def test_checksums_that_were_changed_too_do_not_help_a_foreign_template(merged, tmp_path):
    from tunesmith.serve.bundle import write_checksums

    folder = tmp_path / "copy"
    shutil.copytree(merged.root, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    write_checksums(folder)
    with pytest.raises(ServeError, match=r"chat_template\.jinja beside the weights"):
        check_export(folder)


def test_an_export_that_lost_the_tuning_is_refused(tmp_path):
    close = Agreement(
        prompts=1, positions=9, mean_kl=0.002, max_kl=0.1, top1=1.0, max_logit_difference=0.1, mean_kl_of_base=0.04
    )
    check_agreement(close, where=tmp_path)
    for bad in ({"mean_kl": 0.03}, {"mean_kl": 0.2, "mean_kl_of_base": 9.0}, {"mean_kl": float("nan")}):
        with pytest.raises(TrainingError, match="does not say what the tuned one says"):
            check_agreement(dataclasses.replace(close, **bad), where=tmp_path)


def test_what_cannot_be_asked_is_refused_and_nothing_is_left(bundle, base, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    with pytest.raises(StoreError, match="already"):
        export(copy, tmp_path, to="gguf", base=base)
    with pytest.raises(PlanError, match="merged or gguf"):
        export(copy, tmp_path / "out", to="onnx", base=base)
    with pytest.raises(PlanError, match="number format"):
        export(copy, tmp_path / "out", to="gguf", dtype="Q4_K_M", base=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_biases_scaled_rotations_and_foreign_splitters_have_no_silent_counterpart(merged, tmp_path):
    from tunesmith.model.gguf_export import write_gguf

    def attempt(file, **changes):
        folder = tmp_path / "model"
        shutil.copytree(merged.root, folder, dirs_exist_ok=True)
        value = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**value, **changes}))
        contract = {"contract": "{}", "contract_sha256": ""}
        with pytest.raises(DataError):
            write_gguf(folder, tmp_path / "x.gguf", quantisation="F16", name="x", stop_ids=(257,), **contract)

    attempt("config.json", attention_bias=True)
    attempt("config.json", rope_parameters={"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5})
    attempt("config.json", architectures=["Qwen2ForCausalLM"])
    attempt("tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    attempt("tokenizer.json", normalizer={"type": "NFC"})


def test_the_command_writes_checks_and_refuses(bundle, base, tmp_path):
    def invoke(*words):
        return CliRunner().invoke(make_app(), ["export", *map(str, words)])

    result = invoke(bundle.path, tmp_path / "out", "--to", "merged", "--base", base)
    assert result.exit_code == 0, result.output
    assert "mean KL" in result.output
    assert "golden vectors reproduced" in result.output
    assert invoke(tmp_path / "out", "--check").exit_code == 0
    (tmp_path / "out" / "extra.txt").write_text("x")
    assert invoke(tmp_path / "out", "--check").exit_code == 2
    assert invoke(bundle.path, "--to", "merged").exit_code == 2
