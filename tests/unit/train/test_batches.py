import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.train.batches import (
    MIN_SHARED_TOKENS,
    StepPlan,
    _prefix_groups,
    count_steps,
    divide,
    flatten,
    idle_batch,
    micro_batches,
    shared_tokens,
)
from tunesmith.train.examples import table_of
from tunesmith.types import Example

PREFIXES = [tuple(range(10, 10 + length)) for length in (0, 5, 9, 14)] + [tuple(range(40, 52))]


@st.composite
def tables(draw):
    count = draw(st.integers(1, 9))
    examples = []
    for index in range(count):
        prefix = draw(st.sampled_from(PREFIXES))
        own = draw(st.lists(st.integers(0, 3), min_size=2, max_size=7))
        ids = (*prefix, *own)
        weights = [0.0, *draw(st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=len(ids) - 1, max_size=len(ids) - 1))]
        weights[-1] = 1.0
        examples.append(Example(row_id=f"r{index}", ids=ids, weights=tuple(weights)))
    return table_of(examples)


def predictions_of(table, indices):
    """(whole context, label) -> weight, from the examples themselves."""
    out = {}
    for index in indices:
        ids, weights = table.example(index)
        for at in np.nonzero(weights)[0]:
            key = (tuple(ids[:at].tolist()), int(ids[at]))
            out[key] = out.get(key, 0.0) + float(weights[at])
    return out


def predictions_in(batch):
    """The same, from the flat layout: what each scored row can see."""
    out = {}
    for row, label, weight in zip(batch.rows.tolist(), batch.labels.tolist(), batch.weights.tolist(), strict=True):
        (segment,) = [part for part in batch.segments if part.start <= row < part.stop]
        seen = [*range(segment.prefix_start, segment.prefix_stop), *range(segment.start, row + 1)]
        key = (tuple(batch.ids[seen].tolist()), label)
        assert batch.positions[seen].tolist() == list(range(len(seen)))
        out[key] = out.get(key, 0.0) + weight
    return out


@given(tables(), st.booleans())
@settings(deadline=None)
def test_a_flat_batch_scores_every_token_after_exactly_its_own_context(table, share):
    batch = flatten(table, range(len(table)), share_prefixes=share)
    assert predictions_in(batch) == predictions_of(table, range(len(table)))
    assert batch.num_supervised == table.num_supervised
    assert batch.num_tokens == table.num_tokens
    assert float(batch.weights.sum()) == table.weight_of(range(len(table)))


@given(tables())
@settings(deadline=None)
def test_sharing_never_computes_more_rows(table):
    shared = flatten(table, range(len(table)), share_prefixes=True)
    alone = flatten(table, range(len(table)), share_prefixes=False)
    assert shared.num_rows <= alone.num_rows == table.num_tokens


@given(tables(), st.integers(1, 60), st.booleans())
@settings(deadline=None)
def test_passes_hold_every_example_once_and_fit_unless_one_row_alone_does_not(table, max_tokens, share):
    groups = micro_batches(table, range(len(table)), max_tokens=max_tokens, share_prefixes=share)
    assert sorted(index for group in groups for index in group) == list(range(len(table)))
    for group in groups:
        rows = flatten(table, group, share_prefixes=share).num_rows
        # What is shared between neighbours is at least what one prefix of the whole pass shares.
        assert len(group) == 1 or share or rows <= max_tokens


def test_rows_under_one_system_prompt_compute_it_once():
    system = tuple(range(100, 180))
    table = table_of(
        Example(row_id=str(at), ids=(*system, at, 1, 2), weights=(0.0,) * 81 + (1.0, 1.0)) for at in range(16)
    )
    assert flatten(table, range(16), share_prefixes=True).num_rows == 80 + 16 * 3
    assert shared_tokens(table) == 80


def test_two_system_prompts_in_one_pass_are_two_prefixes():
    documents = sorted(
        [np.array([7, *([1] * 20), at]) for at in range(4)] + [np.array([7, *([2] * 30), at]) for at in range(3)],
        key=lambda ids: ids.tolist(),
    )
    assert _prefix_groups(documents) == [(0, 4, 21), (4, 7, 31)]


def test_a_prefix_shorter_than_its_bookkeeping_is_not_shared():
    documents = [np.array([1] * (MIN_SHARED_TOKENS - 1) + [at]) for at in range(4)]
    assert all(prefix == 0 for _, _, prefix in _prefix_groups(documents))


def test_rows_that_are_equal_train_with_their_summed_weight():
    table = table_of(Example(row_id=str(at), ids=tuple(range(20)), weights=(0.0,) * 19 + (0.5,)) for at in range(3))
    batch = flatten(table, range(3), share_prefixes=True)
    assert (batch.num_rows, batch.weights.tolist(), batch.num_supervised) == (20, [1.5], 3)


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own():
    plan = StepPlan(num_examples=10, batch_size=4, total_steps=6, seed=3)
    first = [index for step in range(3) for index in plan.examples_of(step)]
    second = [index for step in range(3, 6) for index in plan.examples_of(step)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert len(plan.examples_of(2)) == 2
    assert plan.examples_of(4) == StepPlan(num_examples=10, batch_size=4, total_steps=6, seed=3).examples_of(4)
    assert plan.examples_of(0) != StepPlan(num_examples=10, batch_size=4, total_steps=6, seed=4).examples_of(0)


def test_steps_count_the_ragged_one_and_a_fraction_of_an_epoch():
    assert count_steps(10, batch_size=4, num_epochs=2, max_steps=None) == 6
    assert count_steps(10, batch_size=4, num_epochs=0.5, max_steps=None) == 2
    assert count_steps(10, batch_size=4, num_epochs=2, max_steps=5) == 5


@given(tables(), st.integers(1, 5))
def test_processes_divide_a_step_without_losing_or_doubling_an_example(table, parts):
    shares = divide(table, range(len(table)), parts=parts)
    assert len(shares) == parts
    assert sorted(index for share in shares for index in share) == list(range(len(table)))
    tokens = [sum(table.length(index) for index in share) for share in shares]
    # Any share's last example went to the process that had least: none is ahead of another by more than one example.
    assert max(tokens) - min(tokens) <= table.lengths.max()


def test_a_step_with_fewer_examples_than_processes_leaves_the_last_without():
    table = table_of([Example(row_id=name, ids=(1, 2), weights=(0.0, 1.0)) for name in "ab"])
    assert divide(table, [0, 1], parts=4) == [[0], [1], [], []]


def test_an_idle_pass_scores_nothing_and_counts_nothing():
    rows = [("long", (1, 2, 3, 4), (0.0, 1.0, 1.0, 1.0)), ("short", (5, 6), (0.0, 1.0))]
    batch = idle_batch(table_of([Example(row_id=name, ids=ids, weights=weights) for name, ids, weights in rows]))
    assert batch.ids.tolist() == [5, 6]
    assert batch.weights.tolist() == [0.0]
    assert (batch.num_tokens, batch.num_supervised, batch.row_ids) == (0, 0, ())
