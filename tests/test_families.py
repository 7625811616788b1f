"""Every family of tests/families.py, under each attention: right or refused, as its row says; `make test-families`.

`make test` runs the rows that stand for a kind of model, under their first attention.
"""

from __future__ import annotations

import pytest

from tests.families import ALL
from tests.families_survey import outcome_of

EVERY = [
    pytest.param(name, attention, marks=[] if family.stands_for and not i else [pytest.mark.families])
    for name, family in ALL.items()
    for i, attention in enumerate(family.attentions)
]


@pytest.mark.parametrize(("name", "attention"), EVERY)
def test_a_family_is_right_or_refused_as_its_row_says(name: str, attention: str) -> None:
    # Oracle: the stock model and its layers called by hand; see tests/families_survey.py.
    outcome = outcome_of(name, attention)
    word, _, reason = ALL[name].expected.partition(": ")
    assert outcome.word == word, str(outcome)
    assert reason in str(outcome)
