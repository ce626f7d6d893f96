"""The page over a run says what to type next, whatever the gates said."""

import pytest

from tunesmith.stages.road import Road, road_page, verdict_of

REASON = "Of 1 criteria 1 cannot be resolved."
VERDICT = {"criterion": "schema_adherence >= 0.9", "observed": 0.5, "explanation": "n = 10"}


def road(gates):
    return Road(
        summaries={}, results=None, attacks=None, tasks={}, samples=[], gates=gates, proof=None, contract=None, metrics=[],
        monitoring=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gates", "step"),
    [
        (
            {"promotable": True, "reason": REASON, "verdicts": [{**VERDICT, "verdict": "pass"}]},
            "tunesmith promote --to staging",
        ),
        (
            {"promotable": False, "reason": REASON, "verdicts": [{**VERDICT, "verdict": "fail"}]},
            "# not promotable yet: schema_adherence",
        ),
        (
            {"promotable": False, "reason": REASON, "verdicts": []},
            "# not promotable yet: the contract states no acceptance criteria",
        ),
        (None, "tunesmith show"),
    ],
)
def test_the_next_step_follows_from_the_gates(gates, step):
    assert verdict_of(road(gates))["next"][0].startswith(step)
    page = road_page("a run", road(gates))
    assert "Type next" in page
    assert (REASON in page) == (gates is not None)
