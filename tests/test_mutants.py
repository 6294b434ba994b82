"""The faults of `mutants.py` can still be put into the code, so that a run of it says something."""

from __future__ import annotations

import pytest
from mutants import MUTANTS, ROOT, occurrences


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_replaces_a_text_that_occurs_once(mutant):
    assert occurrences(mutant) == 1
    assert mutant.old != mutant.new
    assert (ROOT / mutant.tests[0]).is_file()


def test_every_fault_has_a_name_of_its_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
