"""Every family of tests/families.py, under each attention: right or refused, as its row says; `make test-families`."""

from __future__ import annotations

import pytest

from tests.families import ALL
from tests.families_survey import outcome_of

pytestmark = pytest.mark.families
EVERY = [(name, attention) for name, family in ALL.items() for attention in family.attentions]


@pytest.mark.parametrize(("name", "attention"), EVERY, ids="-".join)
def test_a_family_is_right_or_refused_as_its_row_says(name: str, attention: str) -> None:
    # Oracle: the stock model and its layers called by hand; see tests/families_survey.py.
    outcome = outcome_of(name, attention)
    word, _, reason = ALL[name].expected.partition(": ")
    assert outcome.word == word, str(outcome)
    assert reason in str(outcome)
