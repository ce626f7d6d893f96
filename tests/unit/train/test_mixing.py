"""Mixing: shares are hit in trained tokens, whole passes come out exactly, and nothing but data and settings decides."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tunesmith.errors import DataError, PlanError
from tunesmith.train.mixing import MixedPlan, Origins, Part, account, mixed_order, read_origins, share_of_general

ROLES = {"desk": "task", "chat": "task", "json": "task", "talk": "general", "facts": "general"}


def world(counts, seed=0):
    """Examples of some sources, shuffled, with 5 to 60 trained tokens each."""
    rng = np.random.default_rng(seed)
    sources = [name for name, count in counts.items() for _ in range(count)]
    rng.shuffle(sources)
    trained = rng.integers(5, 61, len(sources))
    return trained, Origins(sources=tuple(sources), roles=tuple(ROLES[name] for name in sources))


def constant(**shares):
    return [Part(name="all", length=1, shares=shares)]


def by_source(order, trained, origins):
    return {item.source: item for item in account(order, trained, origins)}


MANY = {"desk": 300, "chat": 150, "talk": 90, "facts": 40}


@pytest.mark.parametrize("share", [0.1, 0.15, 0.3, 0.9])
def test_the_share_of_general_tokens_is_hit_within_a_row_at_every_point_of_the_run(share):
    trained, origins = world(MANY)
    order = mixed_order(constant(general=share), trained, origins, num_epochs=1.5, seed=0).order
    general = np.array([role == "general" for role in origins.roles])[order]
    drawn = trained[order]
    off = np.cumsum(drawn * general) - share * np.cumsum(drawn)
    assert np.abs(off).max() <= 2 * trained.max()
    assert share_of_general(account(order, trained, origins)) == pytest.approx(share, abs=0.005)


@given(
    st.dictionaries(st.sampled_from(sorted(ROLES)), st.integers(1, 40), min_size=2),
    st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    st.integers(1, 3),
    st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_whole_passes_see_every_task_row_that_often_and_general_rows_evenly(counts, share, passes, seed):
    assume(any(ROLES[name] == "task" for name in counts))
    assume(share == 0 or any(ROLES[name] == "general" for name in counts))
    trained, origins = world(counts, seed)
    order = mixed_order(constant(general=share), trained, origins, num_epochs=passes, seed=seed).order
    times = Counter(order.tolist())
    for index, (source, role) in enumerate(zip(origins.sources, origins.roles, strict=True)):
        if role == "task":
            assert times[index] == passes, source
    for source in counts:
        seen = [times[index] for index, its in enumerate(origins.sources) if its == source]
        assert max(seen) - min(seen) <= 1


def test_a_source_of_one_row_and_a_small_one_are_repeated_as_their_share_asks():
    trained, origins = world({"desk": 200, "talk": 1})
    found = by_source(
        mixed_order(constant(general=0.1), trained, origins, num_epochs=1, seed=0).order, trained, origins
    )
    expected = found["desk"].trained_tokens * 0.1 / 0.9 / trained[origins.sources.index("talk")]
    assert found["talk"].epochs == pytest.approx(expected, abs=1)
    assert found["desk"].never_seen == found["talk"].never_seen == 0


def test_the_account_counts_passes_and_rows_never_seen():
    trained = np.array([10, 20, 30, 40])
    origins = Origins(sources=("desk", "talk", "desk", "talk"), roles=("task", "general", "task", "general"))
    desk, talk = account(np.array([0, 0, 0, 2, 3]), trained, origins)
    assert (desk.source, desk.role, desk.seen, desk.never_seen, desk.epochs) == ("desk", "task", 4, 0, 2.0)
    assert (talk.seen, talk.never_seen, talk.epochs, talk.trained_tokens) == (1, 1, 0.5, 40)
    assert share_of_general((desk, talk)) == 40 / 100


def test_a_fraction_of_a_pass_leaves_rows_unseen_and_says_how_many():
    trained, origins = world(MANY)
    order = mixed_order(constant(general=0.15), trained, origins, num_epochs=0.5, seed=0).order
    found = by_source(order, trained, origins)
    for source in ("desk", "chat"):
        assert found[source].epochs == pytest.approx(0.5, abs=0.03)
        assert found[source].never_seen == found[source].examples - found[source].seen


CURRICULUM = [
    Part(name="general", length=1, shares={"general": 0.6}),
    Part(name="domain", length=3, shares={"general": 0.15}),
    Part(name="format", length=1, shares={"general": 0.1, "json": 0.7}),
]


def test_stages_come_in_order_with_their_lengths_and_shares():
    trained, origins = world({**MANY, "json": 80})
    mixed = mixed_order(CURRICULUM, trained, origins, num_epochs=2, seed=0)
    pieces = np.split(mixed.order, mixed.begins[1:])
    tokens = [int(trained[piece].sum()) for piece in pieces]
    assert [count / sum(tokens) for count in tokens] == pytest.approx([0.2, 0.6, 0.2], abs=0.01)
    accounts = [account(piece, trained, origins) for piece in pieces]
    assert [share_of_general(items) for items in accounts] == pytest.approx([0.6, 0.15, 0.1], abs=0.01)
    json_share = {item.source: item.trained_tokens for item in accounts[2]}["json"] / tokens[2]
    assert json_share == pytest.approx(0.7, abs=0.01)
    whole = account(mixed.order, trained, origins)
    task = sum(item.trained_tokens for item in whole if item.role == "task")
    assert task / sum(trained[i] for i, role in enumerate(origins.roles) if role == "task") == pytest.approx(
        2, abs=0.01
    )


def test_a_later_stage_goes_on_where_an_earlier_one_left_a_source():
    trained, origins = world({"desk": 100, "talk": 60})
    parts = [Part(name=str(n), length=1, shares={"general": 0.3}) for n in range(4)]
    order = mixed_order(parts, trained, origins, num_epochs=1, seed=0).order
    assert Counter(index for index in order.tolist() if origins.roles[index] == "task").most_common(1)[0][1] == 1


def test_a_named_source_leaves_the_share_of_its_role():
    trained, origins = world({**MANY, "json": 80})
    order = mixed_order(constant(general=0.2, json=0.0, chat=0.5), trained, origins, num_epochs=1, seed=0).order
    found = by_source(order, trained, origins)
    total = sum(item.trained_tokens for item in found.values())
    assert found["chat"].trained_tokens / total == pytest.approx(0.5, abs=0.01)
    assert found["json"].seen == 0
    assert found["json"].never_seen == 80


@pytest.mark.parametrize(
    ("shares", "counts", "words"),
    [
        ({"general": 0.2}, {"desk": 5}, "no training example is of it"),
        ({"deks": 0.2}, {"desk": 5, "talk": 5}, "chat|desk, talk"),
        ({"general": 1.0}, {"desk": 5, "talk": 5}, "trains no row of the task"),
    ],
)
def test_what_cannot_be_mixed_is_refused(shares, counts, words):
    trained, origins = world(counts)
    with pytest.raises(PlanError, match=words):
        mixed_order(constant(**shares), trained, origins, num_epochs=1, seed=0)


def test_data_and_seed_decide_the_order_and_nothing_else_does():
    trained, origins = world({**MANY, "json": 80})

    def order(seed):
        return mixed_order(CURRICULUM, trained, origins, num_epochs=1.5, seed=seed).order.tolist()

    assert order(3) == order(3)
    assert order(3) != order(4)


def plan_of(order, batch_size, max_steps=None):
    return MixedPlan(order=order, parts=(("all", 0),), batch_size=batch_size, num_epochs=1.5, max_steps=max_steps)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_processes_that_divide_the_steps_see_the_one_order_together(ranks):
    trained, origins = world(MANY)
    order = mixed_order(constant(general=0.15), trained, origins, num_epochs=1.5, seed=0).order
    plan = plan_of(order, 8)
    together = []
    for step in range(plan.total_steps):
        shares = [plan_of(order, 8).examples_of(step)[rank::ranks] for rank in range(ranks)]
        together += [one for turn in itertools.zip_longest(*shares) for one in turn if one is not None]
    assert together == order.tolist()


def test_a_step_is_known_without_the_steps_before_it_and_the_last_may_be_ragged():
    order = np.arange(21)
    plan = plan_of(order, 8)
    assert plan.total_steps == 3
    assert plan.examples_of(2) == [16, 17, 18, 19, 20]
    assert plan.steps_per_epoch == 2
    assert plan_of(order, 8, max_steps=2).total_steps == 2


def test_examples_that_do_not_say_their_source_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"row_id": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="which source"):
        read_origins(tmp_path / "train.parquet")


def test_a_stage_begins_with_the_step_that_holds_its_first_example():
    plan = MixedPlan(
        order=np.arange(20), parts=(("one", 0), ("two", 9), ("three", 12)), batch_size=4, num_epochs=1.0, max_steps=None
    )
    assert [step for step in range(plan.total_steps) if plan.begins_stage(step)] == [0, 2, 3]
