"""Attention over blocks is that of float64, whatever the rows see and in whatever order blocks lie."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_adapters.cpu.codegen.spans import NOTHING
from vmm_adapters.cpu.formats import BLOCK_SIZE, WIDTH

from .cpu_kernels import EPSILON, Subject
from .cpu_spans import EXPONENTIAL, NO_LIMIT, Cache, Result, Span, make_span

quick = settings(max_examples=12, deadline=None, database=None)
HEADS = (32, 64, 80, 96, 128, 256)
is_narrow = pytest.mark.parametrize("is_narrow", [False, True], ids=["f16", "u8"])
softcap = pytest.mark.parametrize("softcap", [0.0, 30.0], ids=["plain", "capped"])


@st.composite
def spans(draw: st.DrawFn, *, is_narrow: bool, softcap: float = 0.0) -> Span:
    """Rows whose positions are neighbours or far apart, with a window or without."""
    num_blocks = draw(st.integers(1, 5))
    return make_span(
        draw(st.integers(0, 2**32)),
        draw(st.integers(1, 8)),
        draw(st.sampled_from(HEADS)),
        (num_blocks - 1) * BLOCK_SIZE + draw(st.integers(1, BLOCK_SIZE)),
        is_narrow=is_narrow,
        softcap=softcap,
        position=512 * draw(st.integers(0, 3)),
        apart=draw(st.sampled_from([1, 4, 1000])),
        window=draw(st.sampled_from([None, 1, 20, 64])),
        size=draw(st.sampled_from([0.02, 0.2, 2.0])),
    )


def check_attended(span: Span, result: Result) -> None:
    """Within rounding, for every row that sees something."""
    expected, error = span.expected()
    assert span.is_seen().any(1).all()
    found = result.attended()[:, : span.queries.shape[1]]
    assert (np.abs(found - expected) <= error).all()
    scores, errors = span.scores()
    peaks = np.where(span.is_seen(), scores, -np.inf).max(1)
    assert (np.abs(result.peaks - peaks) <= errors.max(1) + EPSILON * np.abs(peaks)).all()


@is_narrow
@softcap
def test_spans(cpu_subject: Subject, is_narrow: bool, softcap: float) -> None:
    @quick
    @given(span=spans(is_narrow=is_narrow, softcap=softcap))
    def check(span: Span) -> None:
        check_attended(span, span.attend(cpu_subject))

    check()


@is_narrow
@softcap
def test_a_row_is_the_same_however_many_share_a_tile(cpu_subject: Subject, is_narrow: bool, softcap: float) -> None:
    @settings(quick, max_examples=3)
    @given(span=spans(is_narrow=is_narrow, softcap=softcap))
    def check(span: Span) -> None:
        whole = span.attend(cpu_subject)
        for row in range(len(span.queries)):
            only = slice(row, row + 1)
            part = replace(span, queries=span.queries[only], last=span.last[only], before=span.before[only])
            alone = part.attend(cpu_subject)
            head = span.queries.shape[1]
            assert alone.sums[:, :head].tobytes() == whole.sums[only, :head].tobytes()
            assert alone.peaks.tobytes() == whole.peaks[only].tobytes()
            assert alone.totals.tobytes() == whole.totals[only].tobytes()

    check()


def cut(span: Span, num_blocks: int) -> tuple[Span, Span]:
    """The first blocks, and the others."""
    positions = num_blocks * BLOCK_SIZE
    rest = replace(
        span,
        table=span.table[num_blocks:],
        position=span.position + positions,
        num_positions=span.num_positions - positions,
    )
    return replace(span, table=span.table[:num_blocks], num_positions=positions), rest


@is_narrow
def test_spans_are_folded_in_any_order(cpu_subject: Subject, is_narrow: bool) -> None:
    """Rows that see nothing of the first ones, or nothing of the last ones, among them."""

    @quick
    @given(span=spans(is_narrow=is_narrow).filter(lambda span: len(span.table) > 1), data=st.data())
    def check(span: Span, data: st.DataObject) -> None:
        parts = cut(span, data.draw(st.integers(1, len(span.table) - 1)))
        first, second = (part.attend(cpu_subject) for part in parts)
        check_attended(span, first.fold(cpu_subject, second))
        check_attended(span, second.fold(cpu_subject, first))

    check()


@is_narrow
def test_what_is_not_seen_adds_nothing(cpu_subject: Subject, is_narrow: bool) -> None:
    """Not a bit: a window that left a span behind is the same as no such span."""

    @quick
    @given(span=spans(is_narrow=is_narrow))
    def check(span: Span) -> None:
        whole = span.attend(cpu_subject)
        unseen = replace(span, last=np.full_like(span.last, span.position - 1)).attend(cpu_subject)
        assert (unseen.peaks == np.float32(NOTHING)).all()
        head = span.queries.shape[1]
        for folded in (whole.fold(cpu_subject, unseen), unseen.fold(cpu_subject, whole)):
            assert folded.sums[:, :head].tobytes() == whole.sums[:, :head].tobytes()
            assert folded.peaks.tobytes() == whole.peaks.tobytes()
            assert folded.totals.tobytes() == whole.totals.tobytes()

    check()


def test_a_fold_weighs_by_peaks(cpu_subject: Subject) -> None:
    rng = np.random.default_rng(8)
    first, second = (
        Result(*(rng.normal(0, 3, shape).astype(np.float32) for shape in ((5, 96), (5,), (5,)))) for _ in range(2)
    )
    peaks = np.maximum(first.peaks, second.peaks).astype(np.float64)
    factors = [np.exp(part.peaks.astype(np.float64) - peaks) for part in (first, second)]
    totals = factors[0] * first.totals + factors[1] * second.totals
    sums = factors[0][:, None] * first.sums + factors[1][:, None] * second.sums
    folded = first.fold(cpu_subject, second)
    assert (folded.peaks == peaks).all()
    # an exponential's error, that of its argument, and two roundings
    error = (2 * EXPONENTIAL + 16 * EPSILON) * 12
    assert np.allclose(folded.totals, totals, rtol=0, atol=error)
    assert np.allclose(folded.sums, sums, rtol=0, atol=error)


def test_the_greatest_scores_are_summed_up_without_overflow(cpu_subject: Subject) -> None:
    """Scores of ±1e4, and a peak that comes last: everything before it counts for nothing."""
    keys = np.zeros((2, 32, WIDTH), np.float16)
    keys[0, 0], keys[1, 0] = -100, 100
    values = np.random.default_rng(9).normal(0, 1, (2, WIDTH, 32)).astype(np.float16)
    queries = np.zeros((1, 32), np.float32)
    queries[0, 0] = 100
    factors = np.zeros((2, 2, WIDTH), np.float32)
    places = (np.array([0, 1], np.int32), 0, np.array([63]), np.array([NO_LIMIT]), 64)
    result = Span(queries, Cache(keys, factors), Cache(values, factors), *places).attend(cpu_subject)
    assert result.peaks == [10000]
    assert result.totals == [32]
    assert np.allclose(result.attended(), values[1].astype(np.float64).mean(0), rtol=0, atol=32 * EPSILON * 4)
