"""The sampler against a reference that sorts everything and says what each step does in the plainest way."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmm_adapters.types import SamplingParams
from vmm_server.engine.sampler import SamplingState, draw, logprobs_of, top_ids

Array = NDArray[np.float64]


def reference(logits: Array, params: SamplingParams, prompt: list[int], generated: list[int]) -> Array:
    """Probability of each token, float64."""
    row = logits.astype(np.float64).copy()
    seen = prompt + generated
    if params.repetition_window is not None:
        seen = seen[len(seen) - params.repetition_window :]
    for token in set(seen):
        row[token] = (
            row[token] / params.repetition_penalty if row[token] > 0 else row[token] * params.repetition_penalty
        )
    for token, count in Counter(generated).items():
        row[token] -= params.presence_penalty + count * params.frequency_penalty
    for token, bias in params.logit_bias.items():
        row[token] += bias
    if params.temperature == 0:
        return np.eye(len(row))[row.argmax()]
    row /= params.temperature
    order = np.argsort(-row, kind="stable")
    weights = np.exp(row[order] - row.max())
    weights /= weights.sum()
    keep = np.ones(len(row), bool)
    if params.top_k:
        keep[params.top_k :] = False
        weights = np.where(keep, weights, 0)
        weights /= weights.sum()
    if params.typical_p < 1:
        shares = weights[weights > 0]
        distance = np.abs(-np.log(shares) + (shares * np.log(shares)).sum())
        nearest = np.argsort(distance, kind="stable")
        count = next(n for n in range(1, len(nearest) + 1) if shares[nearest[:n]].sum() >= params.typical_p)
        keep[:] = False
        keep[nearest[:count]] = True
        weights = np.where(keep, weights, 0)
        weights /= weights.sum()
    if params.top_p < 1:
        keep &= np.cumsum(weights) - weights < params.top_p
    keep &= weights >= params.min_p * weights[keep][0]
    weights = np.where(keep, weights, 0)
    probabilities = np.empty(len(row))
    probabilities[order] = weights / weights.sum()
    return probabilities


def draws(logits: NDArray[np.float32], state: SamplingState, count: int) -> NDArray[np.int64]:
    tokens = [draw(logits, state) for _ in range(count)]
    return np.array([token.token_id for token in tokens if token is not None])


def chi_square_per_degree(observed: NDArray[np.int64], probabilities: Array) -> float:
    """Pearson's statistic over its degrees of freedom, cells with less than 5 expected draws thrown together."""
    expected = probabilities * len(observed)
    counts = np.bincount(observed, minlength=len(probabilities)).astype(float)
    assert not counts[probabilities == 0].any(), "an excluded token was drawn"
    big = expected >= 5
    cells = [*zip(counts[big], expected[big], strict=True)]
    if expected[~big].sum() > 1:
        cells.append((counts[~big].sum(), expected[~big].sum()))
    return sum((o - e) ** 2 / e for o, e in cells) / max(1, len(cells) - 1)


@pytest.mark.parametrize("vocab_size", [40, 1_000])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.1),
        SamplingParams(typical_p=0.6),
        SamplingParams(temperature=1.3, top_k=12, top_p=0.9, min_p=0.02),
        SamplingParams(temperature=1.5, top_k=20, typical_p=0.7, top_p=0.8, min_p=0.05),
        SamplingParams(presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.3),
        SamplingParams(repetition_penalty=1.5, repetition_window=3),
        SamplingParams(repetition_penalty=9.0, repetition_window=0),
        SamplingParams(logit_bias={1: 2.5, 3: -100.0}, top_k=8),
    ],
    ids=[
        "plain",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "all",
        "all and typical",
        "penalties",
        "window",
        "no window",
        "bias",
    ],
)
def test_draws_follow_the_reference(params: SamplingParams, vocab_size: int) -> None:
    logits = np.random.default_rng(7).normal(0, 2.5, vocab_size).astype(np.float32)
    prompt, generated = [1, 2, 2, 5], [3, 2, 3, 3]
    tokens = list(prompt)
    state = SamplingState(params, tokens)
    state.random = np.random.default_rng(11)
    tokens += generated
    expected = reference(logits, params, prompt, generated)
    assert chi_square_per_degree(draws(logits, state, 3_000), expected) < 1.8


@given(st.data())
def test_greedy_is_the_reference(data: st.DataObject) -> None:
    logits = np.array(data.draw(st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4)), np.float32)
    params = SamplingParams(
        temperature=0,
        repetition_penalty=data.draw(st.sampled_from([0.8, 1.0, 1.5])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 1.0])),
        logit_bias=data.draw(st.dictionaries(st.integers(0, 3), st.floats(-5, 5), max_size=2)),
    )
    tokens = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    state = SamplingState(params, tokens)
    prompt = list(tokens)
    generated = data.draw(st.lists(st.integers(0, 3), max_size=5))
    tokens += generated
    drawn = draw(logits, state)
    assert drawn is not None
    row = np.log(reference(logits, SamplingParams(**_no_draw(params)), prompt, generated))
    assert row[drawn.token_id] >= row.max() - 1e-4  # ties of float32


def _no_draw(params: SamplingParams) -> dict[str, object]:
    return {
        "repetition_penalty": params.repetition_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": params.logit_bias,
    }


def test_the_runners_array_is_never_written() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)
    before = logits.copy()
    every = SamplingParams(
        repetition_penalty=1.2, presence_penalty=1, logit_bias={3: 1}, top_k=3, min_tokens=5, logprobs=3
    )
    for row, params in zip(logits, (every, SamplingParams(), SamplingParams(temperature=0)), strict=True):
        draw(row, SamplingState(params, [1, 2], [0]))
    assert (logits == before).all()


@pytest.mark.parametrize("seed", [0, -1, 2**63])
def test_a_seed_repeats(seed: int) -> None:
    logits = np.random.default_rng(0).normal(size=5_000).astype(np.float32)
    one, other = (draws(logits, SamplingState(SamplingParams(seed=seed), [1]), 20) for _ in range(2))
    assert (one == other).all()
    assert (draws(logits, SamplingState(SamplingParams(seed=seed + 1), [1]), 20) != one).any()


def test_endings_are_forbidden_until_min_tokens() -> None:
    logits = np.array([9, 8, 7, 1], np.float32)
    tokens = [3]
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(1,))
    state = SamplingState(params, tokens, eos_token_ids=[0])
    chosen = []
    for _ in range(3):
        drawn = draw(logits, state)
        assert drawn is not None
        chosen.append(drawn.token_id)
        tokens.append(drawn.token_id)
    assert chosen == [2, 2, 0]


def test_ignore_eos_forbids_eos_but_not_stop_tokens() -> None:
    state = SamplingState(SamplingParams(temperature=0, ignore_eos=True, stop_token_ids=(1,)), [3], [0])
    drawn = draw(np.array([9, 8, 7, 1], np.float32), state)
    assert drawn is not None
    assert drawn.token_id == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-9])
@pytest.mark.parametrize("row", [[np.nan, 1, 2], [1, np.nan, 2], [-np.inf] * 3, [1, np.inf, 2]])
def test_what_is_not_a_number_draws_nothing(row: list[float], temperature: float) -> None:
    assert draw(np.array(row, np.float32), SamplingState(SamplingParams(temperature), [0])) is None


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(top_k=10**6),
        SamplingParams(top_k=0),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.5),
        SamplingParams(top_p=0.0),
        SamplingParams(min_p=1.0),
        SamplingParams(temperature=1e-9),
        SamplingParams(temperature=1e9),
    ],
)
@pytest.mark.parametrize("vocab_size", [1, 3, 700])
def test_odd_rows_draw_something_allowed(params: SamplingParams, vocab_size: int) -> None:
    equal = np.full(vocab_size, 3.5, np.float32)
    one_left = np.full(vocab_size, -np.inf, np.float32)
    one_left[vocab_size // 2] = -1e30
    huge = np.linspace(-1e30, 1e30, vocab_size, dtype=np.float32)
    state = SamplingState(params, [0])
    assert (((tokens := draws(equal, state, 20)) >= 0) & (tokens < vocab_size)).all()
    assert (draws(one_left, state, 20) == vocab_size // 2).all()
    assert (draws(huge, state, 20) == vocab_size - 1).all()


def test_a_wide_nucleus_is_followed_to_its_end() -> None:
    flat = np.linspace(0, 0.01, 3_000, dtype=np.float32)[::-1].copy()
    drawn = draws(flat, SamplingState(SamplingParams(top_p=0.9, seed=1), [0]), 2_000)
    assert 2_600 < drawn.max() <= 2_700


@given(
    st.lists(st.one_of(st.integers(-3, 3), st.just(-np.inf), st.floats(-9, 9, width=32)), min_size=1, max_size=900),
    st.integers(1, 30),
)
def test_top_ids_are_those_of_a_stable_sort(values: list[float], count: int) -> None:
    row = np.array(values, np.float32)
    order = np.argsort(-row, kind="stable")[:count]
    assert top_ids(row, count).tolist() == order[row[order] > -np.inf].tolist()


def test_top_ids_of_a_real_vocabulary() -> None:
    row = np.random.default_rng(3).normal(size=49_157).astype(np.float32)
    for count in (1, 40, 700, 5_000):
        assert top_ids(row, count).tolist() == np.argsort(-row, kind="stable")[:count].tolist()


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = np.random.default_rng(3).normal(0, 3, 400).astype(np.float32)
    expected = np.log(np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum())
    params = SamplingParams(temperature=0, logit_bias={7: 100.0}, logprobs=3)
    drawn = draw(logits, SamplingState(params, [0]))
    assert drawn is not None
    assert drawn.logprob is not None
    assert drawn.token_id == drawn.logprob.token_id == 7
    assert drawn.logprob.logprob == pytest.approx(expected[7], abs=1e-5)
    best = np.argsort(-expected)[:3]
    assert [token for token, _ in drawn.logprob.top] == best.tolist()
    assert [value for _, value in drawn.logprob.top] == pytest.approx(expected[best], abs=1e-5)
    assert logprobs_of(logits, 5, 0).top == ()
