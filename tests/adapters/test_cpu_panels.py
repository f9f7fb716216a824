"""Products of packed weights and quantised inputs are those of float64, in every form and instruction set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_adapters.cpu.codegen.kernels import SIZES
from vmm_adapters.cpu.formats import FORMS, PANEL, Form

from .cpu_kernels import Panel, Subject, make_panel

quick = settings(max_examples=8, deadline=None, database=None)
# of those that a panel is made of: shape, numbers, and how extreme they are
LEVELS = ("any", "lowest", "highest", "ends")
INPUTS = ("any", "zero", "lowest", "highest", "ends")
STEPS = ((1e-3, 1.0), (0.0, 0.0), (1e-30, 1e-20), (1e10, 1e15))
FACTORS = ((1e-4, 1e-1), (6e-8, 6e-5), (1e3, 6.5e4), (0.0, 0.0))


def panels(form: Form) -> st.SearchStrategy[Panel]:
    """Of any shape and numbers."""
    return st.builds(
        make_panel,
        st.just(form),
        st.integers(0, 2**32),
        st.integers(1, 5),
        st.tuples(st.sampled_from(LEVELS), st.sampled_from(INPUTS)),
        st.sampled_from(STEPS),
        st.sampled_from((*FACTORS, (1e-12, 1e12)) if form.has_wide_factors else FACTORS),
    )


form_numbers = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))


@form_numbers
def test_products(cpu_subject: Subject, form: Form) -> None:
    @quick
    @given(panel=panels(form), at=st.sampled_from([0, 8]))
    def check(panel: Panel, at: int) -> None:
        expected, error = panel.expected()
        found = panel.multiply(cpu_subject, slice(8), at=at)
        assert (np.abs(found - expected) <= error).all()

    check()


@form_numbers
def test_a_row_is_the_same_however_many_are_multiplied(cpu_subject: Subject, form: Form) -> None:
    panel = make_panel(form, 3, 3, ("any", "any"), STEPS[0], FACTORS[0])
    whole = panel.multiply(cpu_subject, slice(8))
    for size in (*SIZES, 3, 7):
        for first in range(8 - size + 1):
            part = panel.multiply(cpu_subject, slice(first, first + size), at=first)
            assert part.tobytes() == whole[first : first + size].tobytes()


@form_numbers
def test_products_are_scaled_and_added_to_what_is_there(cpu_subject: Subject, form: Form) -> None:
    panel = make_panel(form, 5, 2, ("any", "any"), STEPS[0], FACTORS[0])
    before = np.random.default_rng(6).normal(0, 100, (8, PANEL)).astype(np.float32)
    expected, error = panel.expected()
    found = panel.multiply(cpu_subject, slice(8), scale=-0.3, before=before)
    exact = before + np.float32(-0.3) * expected
    assert (np.abs(found - exact) <= error + 2.0**-24 * np.abs(exact)).all()
