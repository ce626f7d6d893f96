from hypothesis import given
from hypothesis import strategies as st

from tunesmith.monitor.candidates import Fate, Overlap, Why, find_candidates, settle
from tunesmith.types import Feedback, Trace


def trace(name, **changes):
    values = dict(
        id=name,
        time=float(len(name)),
        model="m",
        contract_sha256="c",
        adapter_sha256="a",
        status=200,
        messages=({"role": "user", "content": f"about {name}"},),
        completion="{}",
        finish_reason="stop",
        schema_ok=True,
        consent=True,
    )
    return Trace(**{**values, **changes})


def sort(traces, feedback=(), overlaps=None):
    settled = settle(
        find_candidates(traces, feedback),
        overlaps=lambda usable: {k: v for k, v in (overlaps or {}).items() if k in {c.trace.id for c in usable}},
        key=lambda candidate: candidate.prompt.messages[0].content.casefold(),
    )
    return {candidate.trace.id: candidate for candidate in settled}


def fix(name, correction="{}", rating=None):
    return Feedback(trace_id=name, time=1.0, rating=rating, correction=correction)


def test_a_good_answer_is_no_candidate_and_neither_is_a_refused_request():
    assert sort([trace("a"), trace("b", status=400, schema_ok=None)], [Feedback(trace_id="a", time=0, rating=1)]) == {}


def test_every_sign_of_failure_makes_a_candidate_and_is_named():
    traces = [
        trace("schema", schema_ok=False, guard_flags=("output:schema",)),
        trace("empty", guard_flags=("output:empty",)),
        trace("cut", finish_reason="length"),
        trace("refused", finish_reason="content_filter", completion=None, guard_flags=("output:canary",)),
        trace("rated"),
        trace("corrected"),
    ]
    feedback = [Feedback(trace_id="rated", time=0, rating=-0.5), fix("corrected")]
    found = {name: candidate.why for name, candidate in sort(traces, feedback).items()}
    assert found == {
        "schema": (Why.SCHEMA_BROKEN,),
        "empty": (Why.FLAGGED,),
        "cut": (Why.CUT,),
        "refused": (Why.FLAGGED, Why.REFUSED),
        "rated": (Why.BAD_RATING,),
        "corrected": (Why.CORRECTED,),
    }


def test_only_a_correction_makes_a_row_to_train_on():
    found = sort([trace("a", schema_ok=False), trace("b", schema_ok=False)], [fix("b")])
    assert (found["a"].fate, found["a"].reason) == (Fate.REVIEW, "needs_label")
    assert found["b"].fate is Fate.TRAIN


def test_without_consent_or_content_nothing_is_used_even_with_a_correction():
    traces = [trace("a", consent=None), trace("b", consent=False, messages=None), trace("c", messages=None)]
    found = sort(traces, [fix("a"), fix("b"), fix("c")])
    assert {name: (c.fate, c.reason) for name, c in found.items()} == {
        "a": (Fate.EXCLUDED, "no_consent"),
        "b": (Fate.EXCLUDED, "no_consent"),
        "c": (Fate.EXCLUDED, "not_kept"),
    }


def test_what_repeats_a_held_out_row_stays_out_and_names_it():
    overlap = Overlap(side="test", row_id="r1", score=0.9)
    found = sort([trace("a")], [fix("a")], {"a": overlap})
    assert (found["a"].fate, found["a"].reason, found["a"].overlap) == (Fate.EXCLUDED, "overlaps_test", overlap)


def test_of_one_prompt_asked_twice_the_corrected_one_is_taken():
    same = ({"role": "user", "content": "SAME"},)
    found = sort([trace("a", messages=same, schema_ok=False), trace("bb", messages=same)], [fix("bb")])
    assert found["bb"].fate is Fate.TRAIN
    assert (found["a"].reason, found["a"].repeats) == ("repeated", "bb")


def test_a_repeated_prompt_is_not_lost_with_a_held_out_one():
    same = ({"role": "user", "content": "same"},)
    found = sort(
        [trace("a", messages=same, schema_ok=False), trace("bb", messages=same, schema_ok=False)],
        overlaps={"a": Overlap(side="test", row_id="r", score=1.0)},
    )
    assert found["bb"].fate is Fate.REVIEW


def test_the_last_word_of_feedback_counts():
    feedback = [
        Feedback(trace_id="a", time=2.0, rating=1, correction="new"),
        Feedback(trace_id="a", time=1.0, rating=-1, correction="old"),
    ]
    found = sort([trace("a")], feedback)
    assert (found["a"].correction, found["a"].rating) == ("new", 1)
    assert Why.BAD_RATING not in found["a"].why


flags = st.sampled_from([(), ("output:schema",), ("output:empty", "input:pii")])


@given(
    st.lists(
        st.tuples(
            st.sampled_from("xyz"),
            st.booleans(),
            st.sampled_from([None, True, False]),
            st.booleans(),
            st.booleans(),
            flags,
        ),
        max_size=12,
    )
)
def test_every_candidate_has_exactly_one_fate_and_none_breaks_a_rule(drawn):
    traces, feedback, overlaps = [], [], {}
    for number, (prompt, ok, consent, corrected, held_out, flag) in enumerate(drawn):
        name = f"t{number}"
        messages = ({"role": "user", "content": prompt},)
        traces.append(
            trace(name, messages=messages, schema_ok=ok, consent=consent, guard_flags=flag, time=float(number))
        )
        if corrected:
            feedback.append(fix(name))
        if held_out:
            overlaps[name] = Overlap(side="test", row_id="r", score=1.0)
    found = sort(traces, feedback, overlaps)
    trained = [candidate for candidate in found.values() if candidate.fate is Fate.TRAIN]
    for candidate in found.values():
        assert (candidate.fate is Fate.TRAIN) == (candidate.reason == "")
    for candidate in trained:
        assert candidate.correction is not None
        assert candidate.trace.consent is True
        assert candidate.trace.id not in overlaps
    prompts = [
        candidate.prompt.messages[0].content for candidate in found.values() if candidate.fate is not Fate.EXCLUDED
    ]
    assert len(prompts) == len(set(prompts))
