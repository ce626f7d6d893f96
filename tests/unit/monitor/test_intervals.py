import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunesmith.monitor.intervals import NOTHING, quantile, share


def test_nothing_measured_is_no_zero():
    assert share([]) == NOTHING == quantile([], 0.5)
    assert NOTHING.to_json() == {"value": None, "low": None, "high": None, "n": 0}


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_share_lies_in_its_interval_within_0_and_1(hits):
    found = share(hits)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n == len(hits)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_a_quantile_equals_numpys_and_lies_between_its_bounds(values, q):
    found = quantile(values, q)
    assert found.value == pytest.approx(float(np.quantile(values, q)), abs=1e-6)
    assert found.low is None or found.low <= found.value + 1e-6
    assert found.high is None or found.value <= found.high + 1e-6


@pytest.mark.parametrize(("q", "n"), [(0.5, 30), (0.5, 200), (0.95, 150), (0.95, 600)])
def test_quantile_intervals_cover_the_truth_as_often_as_they_say(q, n):
    random = np.random.default_rng(7)
    truth = float(stats.lognorm.ppf(q, 1.0))
    covered = 0
    for _ in range(2000):
        found = quantile(random.lognormal(0.0, 1.0, n).tolist(), q)
        covered += (found.low is None or found.low <= truth) and (found.high is None or truth <= found.high)
    assert 0.93 <= covered / 2000 <= 0.99


def test_too_few_values_leave_the_upper_bound_of_a_95th_percentile_open():
    assert quantile([float(value) for value in range(36)], 0.95).high is None
    assert quantile([float(value) for value in range(200)], 0.95).high is not None
