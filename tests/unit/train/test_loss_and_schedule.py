import pytest
import torch
from transformers import get_scheduler, get_wsd_schedule

from tunesmith.train import loss as loss_module
from tunesmith.train.loss import chunked_cross_entropy, logits_cross_entropy
from tunesmith.train.schedule import learning_rate_at


@pytest.mark.parametrize("chunk", [1, 3, 128])
def test_the_chunked_loss_and_its_gradients_are_torchs_own(monkeypatch, chunk):
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(10, 6, requires_grad=True)
    head = torch.randn(17, 6, requires_grad=True)
    labels, weights = torch.randint(17, (10,)), torch.rand(10)
    ours = chunked_cross_entropy(hidden, head, labels, weights, denominator=3.0)
    plain = (torch.nn.functional.cross_entropy(hidden @ head.T, labels, reduction="none") * weights).sum() / 3.0
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(logits_cross_entropy(hidden @ head.T, labels, weights, denominator=3.0), plain)
    for mine, theirs in zip(
        torch.autograd.grad(2 * ours, (hidden, head)), torch.autograd.grad(2 * plain, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_frozen_head_costs_no_gradient():
    hidden = torch.randn(3, 4, requires_grad=True)
    loss = chunked_cross_entropy(hidden, torch.randn(5, 4), torch.tensor([0, 1, 2]), torch.ones(3), denominator=1.0)
    loss.backward()
    assert hidden.grad is not None


def exact(hidden, head, labels):
    """Losses and their gradient by the hidden states, in float64 over the same rounded inputs."""
    wide = hidden.detach().double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(wide @ head.double().T, labels, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), wide)[0]


def test_large_logits_in_bfloat16_keep_the_loss_and_its_gradient_precise():
    torch.manual_seed(0)
    head = torch.randn(400, 64).bfloat16()
    labels = torch.arange(40) * 7
    hidden = (0.05 * head[labels].float() * torch.linspace(2, 8, 40)[:, None] + 0.6 * torch.randn(40, 64)).bfloat16()
    hidden += head.float().mean(0).bfloat16() * 3
    hidden.requires_grad_()
    losses, gradient = exact(hidden, head, labels)
    assert float((hidden.detach().float() @ head.detach().float().T).max()) > 16
    ours = chunked_cross_entropy(hidden, head, labels, torch.ones(40), denominator=1.0)
    rounded = torch.nn.functional.cross_entropy((hidden @ head.T).float(), labels, reduction="sum")
    total = float(losses.sum())
    error, plain_error = (abs(float(found.detach()) - total) for found in (ours, rounded))
    assert error < 1e-3 * total
    assert error < plain_error / 1.5
    (mine,), (plain,) = torch.autograd.grad(ours, hidden), torch.autograd.grad(rounded, hidden)
    assert float((mine.double() - gradient).norm()) < 0.6 * float((plain.double() - gradient).norm())


def test_a_head_that_changed_is_read_again():
    torch.manual_seed(0)
    head, hidden, labels = torch.randn(30, 16).bfloat16(), torch.randn(5, 16).bfloat16(), torch.arange(5)
    before = chunked_cross_entropy(hidden, head, labels, torch.ones(5), denominator=1.0)
    head.mul_(0.5)
    after = chunked_cross_entropy(hidden, head, labels, torch.ones(5), denominator=1.0)
    assert float(before) != float(after)
    assert float(after) == pytest.approx(float(exact(hidden, head, labels)[0].sum()), rel=2e-3)


def test_a_head_that_is_gone_leaves_no_copy_behind():
    head, hidden = torch.randn(30, 16).bfloat16(), torch.randn(5, 16).bfloat16()
    chunked_cross_entropy(hidden, head, torch.arange(5), torch.ones(5), denominator=1.0)
    assert loss_module._Head._last is not None
    del head
    assert loss_module._Head._last is None


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 0.25])
def test_schedules_are_those_of_transformers(name, warmup_ratio):
    total, peak = 40, 3e-4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    outside = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=round(warmup_ratio * total),
        num_training_steps=total,
    )
    for step in range(total):
        ours = learning_rate_at(step, total_steps=total, peak=peak, warmup_ratio=warmup_ratio, schedule=name)
        assert ours == pytest.approx(outside.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        outside.step()


def test_wsd_is_that_of_transformers_with_a_linear_decay_in_its_last_fifth():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    outside = get_wsd_schedule(
        optimizer, num_warmup_steps=10, num_decay_steps=18, num_training_steps=100, decay_type="linear"
    )
    for step in range(100):
        ours = learning_rate_at(step, total_steps=100, peak=1.0, warmup_ratio=0.1, schedule="wsd")
        assert ours == pytest.approx(outside.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimizer.step()
        outside.step()


def test_wsd_holds_its_peak_and_falls_in_the_last_fifth():
    rates = [learning_rate_at(step, total_steps=100, peak=1.0, warmup_ratio=0.0, schedule="wsd") for step in range(100)]
    assert rates[:81] == pytest.approx([1.0] * 81)
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)
