"""The scale of the loss in float16 follows the rule of torch's own GradScaler."""

import random

import pytest
import torch

from tunesmith.errors import TrainingError
from tunesmith.train import scaling
from tunesmith.train.scaling import LossScale


def test_the_scale_goes_where_torchs_grad_scaler_goes(monkeypatch):
    monkeypatch.setattr(scaling, "GROWTH_STEPS", 5)
    theirs = torch.amp.GradScaler("cpu", growth_interval=5)
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    ours = LossScale.of(torch.float16)
    rng = random.Random(0)
    for _ in range(80):
        finite = rng.random() > 0.15
        theirs.scale((parameter * 1.0).sum()).backward()
        if not finite:
            parameter.grad[1] = float("inf")
        scaled = parameter.grad.clone()
        theirs.unscale_(optimizer)
        mine = torch.nn.Parameter(torch.zeros(3))
        mine.grad = scaled
        ours.unscale_([mine])
        assert torch.equal(mine.grad, parameter.grad)
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours = ours.after(finite=finite)
        assert ours.value == theirs.get_scale()
        assert ours.clean_steps == theirs.state_dict()["_growth_tracker"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_number_formats_have_no_scale(dtype):
    scale = LossScale.of(dtype)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    scale.unscale_([parameter])
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert scale.after(finite=False) == scale


def test_gradients_that_overflow_at_every_scale_stop_the_run():
    scale = LossScale.of(torch.float16)
    for _ in range(16):
        scale = scale.after(finite=False)
    assert scale.value == 1.0
    with pytest.raises(TrainingError, match="at every scale"):
        scale.after(finite=False)
