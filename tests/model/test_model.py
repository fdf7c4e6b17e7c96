"""The protocol, explored exhaustively: right in every scenario, and wrong as soon as one of its rules is left out."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore
from tests.model.report import history, summary
from tests.model.scenarios import HARMLESS, LIMITS, SCENARIOS, WRONG, Scenario, Variant
from tests.model.state import Flaw


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda s: s.name)
def test_the_protocol_is_right(scenario: Scenario) -> None:
    found = explore(scenario.system())
    print(f"{scenario.name}: {summary(found)}")
    assert found.violation is None, history(found.violation)
    assert found.states >= scenario.at_least
    assert found.rests > 0


@pytest.mark.parametrize("variant", WRONG, ids=lambda v: v.name)
def test_without_a_rule_it_is_wrong(variant: Variant) -> None:
    found = explore(variant.system())
    assert found.violation is not None
    print(history(found.violation))
    assert variant.shows in found.violation.what
    assert len(found.violation.history) > 0


@pytest.mark.parametrize("variant", HARMLESS, ids=lambda v: f"{v.name}, {v.scenario}")
def test_what_has_a_second_line_of_defence(variant: Variant) -> None:
    found = explore(variant.system())
    assert found.violation is None, history(found.violation)


def test_every_rule_is_left_out_once() -> None:
    assert set().union(*(v.flaws for v in WRONG)) == set(Flaw)


@pytest.mark.parametrize(("limit", "shows"), LIMITS, ids=lambda part: getattr(part, "name", ""))
def test_the_known_limits_are_some(limit: Scenario, shows: str) -> None:
    """If this fails, the protocol has learned something: move the scenario to the others."""
    found = explore(limit.system())
    assert found.violation is not None
    assert shows in found.violation.what
