import numpy as np
import pytest

from tunesmith.monitor import drift
from tunesmith.monitor.drift import categorical_drift, judge, numeric_drift, word_drift

WORDS = tuple(
    [
        "order",
        "refund",
        "invoice",
        "login",
        "password",
        "reset",
        "account",
        "charge",
        "delay",
        "parcel",
        "return",
        "box",
        "label",
        "code",
    ]
)
OTHER = tuple(
    [
        "football",
        "goal",
        "league",
        "coach",
        "penalty",
        "stadium",
        "referee",
        "striker",
        "cup",
        "match",
        "team",
        "player",
        "ball",
        "score",
    ]
)


def texts(random, count, words=WORDS, length=12):
    return [" ".join(random.choice(words, length)) for _ in range(count)]


def only(test):
    return judge([test])[0]


def test_a_shift_of_length_is_drift():
    random = np.random.default_rng(1)
    found = only(numeric_drift("x", reference=random.normal(100, 20, 300), current=random.normal(160, 20, 200)))
    assert found.verdict == "drift"
    assert found.psi > 0.25 > found.psi_by_chance


def test_the_same_distribution_is_not_drift_and_with_few_values_nothing_is_said():
    random = np.random.default_rng(2)
    large = only(numeric_drift("x", reference=random.normal(size=800), current=random.normal(size=800)))
    small = only(numeric_drift("x", reference=random.normal(size=800), current=random.normal(size=20)))
    assert large.verdict == "none"
    assert small.verdict == "not_resolvable"
    assert "not resolvable with n = 20" in small.explanation
    assert small.detectable > small.matters > large.detectable


def test_a_tiny_shift_over_many_values_is_small_and_not_drift():
    random = np.random.default_rng(3)
    found = only(numeric_drift("x", reference=random.normal(0, 1, 20_000), current=random.normal(0.1, 1, 20_000)))
    assert found.verdict == "small"


def test_under_five_values_nothing_is_computed():
    for found in (
        numeric_drift("x", reference=[1.0] * 100, current=[5.0] * 4),
        categorical_drift("x", reference=["a"] * 100, current=["b"] * 4),
        word_drift("x", reference=["a b"] * 100, current=["c"] * 4),
    ):
        assert found.effect is None
        assert only(found).verdict == "not_resolvable"


def test_labels_that_change_are_drift_and_labels_that_do_not_are_none():
    random = np.random.default_rng(4)
    reference = random.choice(["refund", "login", "other"], 400, p=[0.5, 0.3, 0.2]).tolist()
    same = random.choice(["refund", "login", "other"], 400, p=[0.5, 0.3, 0.2]).tolist()
    other = random.choice(["refund", "login", "new"], 300, p=[0.1, 0.2, 0.7]).tolist()
    assert only(categorical_drift("x", reference=reference, current=same)).verdict == "none"
    found = only(categorical_drift("x", reference=reference, current=other))
    assert found.verdict == "drift"
    assert np.isfinite(found.psi)


def test_another_topic_is_drift_in_words_and_the_same_topic_is_none():
    random = np.random.default_rng(5)
    reference = texts(random, 150)
    assert only(word_drift("x", reference=reference, current=texts(random, 120))).verdict == "none"
    mixed = texts(random, 60) + texts(random, 60, OTHER)
    assert only(word_drift("x", reference=reference, current=mixed)).verdict == "drift"


@pytest.mark.parametrize("kind", ["numeric", "categorical", "words"])
def test_without_drift_the_alarm_is_rare(kind, monkeypatch):
    monkeypatch.setattr(drift, "PERMUTATIONS", 199)
    random = np.random.default_rng(6)
    alarms = 0
    for _ in range(60):
        if kind == "numeric":
            test = numeric_drift("x", reference=random.exponential(size=150), current=random.exponential(size=60))
        elif kind == "categorical":
            draw = lambda size: random.choice(list("abcdef"), size).tolist()  # noqa: E731
            test = categorical_drift("x", reference=draw(150), current=draw(60))
        else:
            test = word_drift("x", reference=texts(random, 60), current=texts(random, 40))
        alarms += only(test).verdict in ("drift", "small")
    assert alarms <= 3, "at a level of one in a hundred, four of sixty would be a defect"


def test_what_is_called_detectable_is_found_four_times_in_five():
    random = np.random.default_rng(8)
    n, m = 200, 100
    probe = numeric_drift("x", reference=random.uniform(size=n), current=random.uniform(size=m))
    found = 0
    for _ in range(200):
        # Shifted by d, uniform values have distribution functions that are d apart
        reference, current = random.uniform(0, 1, n), random.uniform(0, 1, m) + probe.detectable
        found += only(numeric_drift("x", reference=reference, current=current)).p_value <= drift.ALPHA
    assert 0.7 <= found / 200 <= 1.0


def test_many_tests_at_once_are_adjusted():
    random = np.random.default_rng(9)
    tests = [
        numeric_drift(str(i), reference=random.normal(size=200), current=random.normal(0.3, 1, 120)) for i in range(8)
    ]
    judged = judge(tests)
    assert all(test.p_holm >= test.p_value for test in judged)
    assert [test.name for test in judged] == [test.name for test in tests]
    assert min(test.p_holm for test in judged) == pytest.approx(min(1.0, 8 * min(test.p_value for test in tests)))


def test_large_sides_are_sampled_so_that_permutations_stay_cheap(monkeypatch):
    monkeypatch.setattr(drift, "MAX_TEXTS", 50)
    random = np.random.default_rng(10)
    found = word_drift("x", reference=texts(random, 200), current=texts(random, 30))
    assert (found.n_reference, found.n_current) == (50, 30)
