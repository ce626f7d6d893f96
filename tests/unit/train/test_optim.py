"""Optimizers and their groups against torch's and transformers' own."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
from transformers.trainer_pt_utils import get_parameter_names

from tunesmith.errors import PlanError
from tunesmith.train.optim import (
    PairedOptimizer,
    adafactor,
    adamw,
    adamw_8bit,
    make,
    muon,
    parameter_groups,
    sgd,
    try_out,
)


def problem(seed=0):
    torch.manual_seed(seed)
    return {
        "matrix": torch.nn.Parameter(torch.randn(96, 64)),
        "other.lora_B.weight": torch.nn.Parameter(torch.randn(64, 8)),
        "norm": torch.nn.Parameter(torch.ones(64)),
    }


def train(parameters, optimizer, steps, *, rate=1e-2):
    torch.manual_seed(1)
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        optimizer.zero_grad()
        loss = sum((parameter - torch.randn(parameter.shape)).square().mean() for parameter in parameters.values())
        loss.backward()
        optimizer.step()
    return parameters


REFERENCES = {
    "adamw": (
        lambda groups: adamw(groups, beta1=0.8, beta2=0.95, epsilon=1e-6),
        lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6, fused=False),
    ),
    "adafactor": (adafactor, torch.optim.Adafactor),
    "sgd": (lambda groups: sgd(groups, momentum=0.5), lambda groups: torch.optim.SGD(groups, momentum=0.5)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_an_optimizer_steps_as_torchs(name):
    ours, theirs = REFERENCES[name]
    mine, other = problem(), problem()
    train(mine, ours(parameter_groups(mine, weight_decay=0.1)), 6)
    train(other, theirs(parameter_groups(other, weight_decay=0.1)), 6)
    for key, parameter in mine.items():
        torch.testing.assert_close(parameter, other[key], rtol=1e-5, atol=1e-6)


def test_muon_steps_matrices_as_torchs_and_the_rest_as_adamw():
    mine, other = problem(), problem()
    train(mine, muon(parameter_groups(mine, weight_decay=0.1)), 5)
    groups = parameter_groups(other, weight_decay=0.1)
    matrices = [group for group in groups if group["weight_decay"]]
    vectors = [group for group in groups if not group["weight_decay"]]
    first = torch.optim.Muon(matrices, lr=0.0, adjust_lr_fn="match_rms_adamw")
    second = torch.optim.AdamW(vectors, lr=0.0)

    train(other, PairedOptimizer(first, second), 5)
    for key, parameter in mine.items():
        torch.testing.assert_close(parameter, other[key])


def test_adamw_in_eight_bits_follows_adamw_in_a_fraction_of_its_memory():
    start, exact, rough = problem(), problem(), problem()
    optimizers = adamw(parameter_groups(exact, weight_decay=0.1)), adamw_8bit(parameter_groups(rough, weight_decay=0.1))
    train(exact, optimizers[0], 20)
    train(rough, optimizers[1], 20)
    moved = exact["matrix"] - start["matrix"]
    assert (rough["matrix"] - exact["matrix"]).norm().item() < 0.05 * moved.norm().item()
    # Tensors below 4,096 elements keep 32 bits, as they cost nothing.
    torch.testing.assert_close(rough["norm"], exact["norm"], rtol=1e-4, atol=1e-5)

    def state_bytes(optimizer, parameter):
        held = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
        return sum(value.numel() * value.element_size() for value in held)

    tables = 2 * 256 * 4  # the two code books, which all tensors have in common
    assert state_bytes(optimizers[1], rough["matrix"]) - tables < 0.27 * state_bytes(optimizers[0], exact["matrix"])


def test_weight_decay_spares_what_transformers_spares():
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    parameters = dict(model.named_parameters())
    decaying = {
        name
        for name in get_parameter_names(model, ALL_LAYERNORM_LAYERS, ["bias", "layernorm", "rmsnorm", "norm"])
        if name in parameters
    }
    groups = parameter_groups(parameters, weight_decay=0.1)
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    ours = {name_of[id(part)] for group in groups if group["weight_decay"] for part in group["params"]}
    assert ours == decaying
    assert {name_of[id(part)] for group in groups for part in group["params"]} == set(parameters)


def test_lora_plus_lets_the_b_matrices_learn_faster():
    parameters = problem()
    groups = parameter_groups(parameters, weight_decay=0.0, lora_plus_ratio=16)
    scales = {id(part): group["lr_scale"] for group in groups for part in group["params"]}
    assert [scales[id(parameter)] for parameter in parameters.values()] == [1.0, 16, 1.0]


def test_any_optimizer_of_torch_is_made_by_its_name():
    mine, other = problem(), problem()
    train(mine, make("torch", parameter_groups(mine, weight_decay=0.1), name="RAdam", arguments={"eps": 1e-6}), 6)
    train(other, torch.optim.RAdam(parameter_groups(other, weight_decay=0.1), eps=1e-6), 6)
    for key, parameter in mine.items():
        assert torch.equal(parameter, other[key])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "Nadam", "arguments": {}}, "nearest: NAdam"),
        ({"name": "LBFGS", "arguments": {}}, "torch.optim has no optimizer 'LBFGS' for steps of one gradient"),
        ({"name": "NAdam", "arguments": {"beta": 1}}, "unexpected keyword argument 'beta'"),
        ({"name": "SparseAdam", "arguments": {}}, "cannot be made"),
    ],
)
def test_what_torch_cannot_make_or_step_is_refused_before_training(settings, says):
    with pytest.raises(PlanError) as caught:
        try_out("torch", **settings)
    assert says in str(caught.value)


FILES = {
    "raise ValueError('no')": "cannot be loaded",
    "x = 1": "has no function optimizer",
    "def optimizer(groups):\n    return 3": "returned no optimizer",
    "def optimizer(groups):\n    raise KeyError('x')": "cannot be made with these arguments",
    "import torch\ndef optimizer(groups):\n"
    "    return torch.optim.SGD([p for g in groups for p in g['params']], lr=0.0, maximize=False)": None,
    "import torch\ndef optimizer(groups):\n    made = torch.optim.SGD(groups, lr=0.1)\n"
    "    made.step = lambda: None\n    return made": "changes nothing",
}


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_makes_no_optimizer_is_refused_before_training(tmp_path, text):
    path = tmp_path / "own.py"
    path.write_text(text, "utf-8")
    if FILES[text] is None:
        try_out("file", path=str(path), arguments={})
        return
    with pytest.raises(PlanError) as caught:
        try_out("file", path=str(path), arguments={})
    assert FILES[text] in str(caught.value)
