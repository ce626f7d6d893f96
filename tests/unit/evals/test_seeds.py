"""Several training seeds: their noise is told apart from that of items, and the joint interval holds both."""

import numpy as np
import pytest

from tunesmith.evals import stats
from tunesmith.evals.seeds import difference_over_seeds, over_seeds


def tables(values):
    """Scores (seeds, items) as one table a seed."""
    return [{f"i{n}": float(score) for n, score in enumerate(row)} for row in values]


def test_seeds_that_agree_leave_only_the_noise_of_items():
    scores = np.repeat([[1, 0, 1, 1, 0, 1, 1, 1, 0, 1]], 3, axis=0)
    figure = over_seeds(tables(scores))
    assert figure.seeds.values == (0.7, 0.7, 0.7)
    assert figure.seeds.deviation == 0
    assert figure.estimate.intervals == figure.items.intervals
    assert figure.items.method == "wilson"


def test_seeds_that_differ_widen_the_joint_interval_and_not_that_of_items():
    random = np.random.default_rng(0)
    calm = random.random((3, 200)) < 0.7
    shifted = random.random((3, 200)) < np.array([[0.5], [0.7], [0.9]])
    near, far = over_seeds(tables(calm)), over_seeds(tables(shifted))
    assert far.seeds.deviation > 3 * near.seeds.deviation
    for figure in (near, far):
        assert 0 <= figure.estimate.low < figure.items.low < figure.items.high < figure.estimate.high <= 1
    assert (far.estimate.low, far.estimate.high) == pytest.approx((0.25, 1), abs=0.01)  # t with two degrees of freedom
    assert far.items.high - far.items.low < 1.5 * (near.items.high - near.items.low)


def test_a_difference_that_one_seed_resolves_may_not_be_resolved_over_seeds():
    random = np.random.default_rng(1)
    base = {f"i{n}": float(score) for n, score in enumerate(random.random(300) < 0.5)}
    seeds = tables(random.random((3, 300)) < np.array([[0.5], [0.8], [0.7]]))
    found = difference_over_seeds(base, seeds)
    assert found.items.resolved
    assert not found.comparison.resolved
    assert found.comparison.p > found.items.p
    assert found.comparison.minimum_detectable > found.items.minimum_detectable
    shown = found.to_json()
    assert shown["difference"] == pytest.approx(np.mean(shown["seeds"]["values"]))
    assert shown["items"]["low"] > shown["low"]


def test_items_that_some_seed_lacks_do_not_count_and_one_seed_is_refused():
    figure = over_seeds([{"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 1.0}])
    assert figure.estimate.n == 2
    with pytest.raises(ValueError, match="several seeds"):
        over_seeds([{"a": 1.0}])
    with pytest.raises(ValueError, match="share no item"):
        over_seeds([{"a": 1.0}, {"b": 1.0}])


@pytest.mark.parametrize(("num_seeds", "seed_sd"), [(2, 0.05), (3, 0.02), (3, 0.1), (5, 0.05)])
def test_the_joint_interval_is_never_too_narrow_and_that_of_items_alone_is(num_seeds, seed_sd, monkeypatch):
    """Truth: the mean over all seeds and all items. Nominal 95%."""
    monkeypatch.setattr(stats, "RESAMPLES", 300)
    random = np.random.default_rng(2)
    joint, items = [], []
    for _ in range(300):
        difficulty = random.normal(0, 0.3, 120)
        seed = random.normal(0, seed_sd, (num_seeds, 1))
        values = 0.6 + difficulty + seed + random.normal(0, 0.2, (num_seeds, 120))
        figure = over_seeds(tables(values))
        joint.append(figure.estimate.low <= 0.6 <= figure.estimate.high)
        items.append(figure.items.low <= 0.6 <= figure.items.high)
    assert np.mean(joint) >= 0.93
    if seed_sd > 0.02:
        assert np.mean(items) < 0.9
