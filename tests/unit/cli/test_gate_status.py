"""`tunesmith run --gate`: the exit status follows the acceptance criteria."""

from types import SimpleNamespace

import pytest

from tunesmith.cli.run import gate_status, gate_verdicts
from tunesmith.errors import GateError


def view(*gates):
    stages = {
        f"s{number}": SimpleNamespace(summary={"gates": found} if found else {}) for number, found in enumerate(gates)
    }
    return SimpleNamespace(run="2026-01-01-x", stages=stages)


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([{"a >= 1": "pass"}], 0),
        ([{"a >= 1": "pass", "b >= 1": "not_resolvable"}], 4),
        ([{"a >= 1": "not_resolvable"}, {"b >= 1": "fail"}], 3),
        ([{}, {"a >= 1": "pass"}], 0),
    ],
)
def test_the_worst_verdict_decides(verdicts, status):
    assert gate_status(gate_verdicts(view(*verdicts)).values()) == status


def test_a_run_without_criteria_is_an_error_and_no_pass():
    with pytest.raises(GateError, match="no acceptance criterion"):
        gate_verdicts(view({}, {}))
