"""onnxruntime-genai's adapter on the CPU, beyond what every `TextBackend` promises."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest

from vmm_adapters.errors import AdapterError, UnsupportedModel
from vmm_adapters.onnxruntime_genai.backend import GenAIBackend, load_backend
from vmm_adapters.types import FinishReason, Guidance, RunnerOptions, SamplingParams

from .backend_subjects import GREEDY, Answer, Session
from .genai_folder import END, TOKENS, write_genai_folder
from .tiny_decoder import TinyDecoder, dense_logits

pytestmark = pytest.mark.runtime

DECODER = TinyDecoder(vocab_size=len(TOKENS))
"""In float32, where a continued session gives the same to the token."""
TOKEN_BYTES = DECODER.num_layers * 2 * DECODER.num_kv_heads * DECODER.head_size * 4
OPTIONS = RunnerOptions(kv_cache_bytes=4096 * TOKEN_BYTES, max_sequences=4)
BUILT_IN = {"CUDA.0": og.is_cuda_available, "DML.0": og.is_dml_available}
"""What can be asked; of others these functions say nothing that holds."""
PROMPT = tuple(np.random.default_rng(1).integers(5, 90, 20).tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_genai_folder(tmp_path_factory.mktemp("model"), DECODER)


@pytest.fixture
def backend(folder: Path) -> Iterator[GenAIBackend]:
    loaded = load_backend(folder, OPTIONS)
    yield loaded
    loaded.close()


def cold(folder: Path, prompt: tuple[int, ...], **changes: object) -> list[int]:
    loaded = load_backend(folder, OPTIONS)
    try:
        return Session(loaded).ask(prompt, replace(GREEDY, **changes)).token_ids
    finally:
        loaded.close()


def test_a_chats_next_turn_is_not_computed_twice(backend: GenAIBackend, folder: Path) -> None:
    session, prompt = Session(backend), PROMPT
    for _ in range(3):
        answer = session.ask(prompt)
        assert answer.token_ids == cold(folder, prompt)
        longer = (*prompt, *answer.token_ids, 7, 8, 9)
        following = session.ask(longer)
        assert following.num_cached_tokens == len(longer) - 3
        assert following.token_ids == cold(folder, longer)
        prompt = (*longer, *following.token_ids, 11)


def test_what_was_aborted_or_stopped_is_still_continued(backend: GenAIBackend, folder: Path) -> None:
    session = Session(backend)
    whole = session.ask(PROMPT).token_ids
    ends = session.ask(PROMPT, eos_token_ids=frozenset({whole[2]}))
    longer = (*PROMPT, *ends.token_ids, 7)
    continued = session.ask(longer)
    assert continued.num_cached_tokens == len(longer) - 1
    assert continued.token_ids == cold(folder, longer)
    doomed = session.add((9, *PROMPT), replace(GREEDY, max_tokens=30))
    session.step_until(doomed, num_tokens=3)
    session.abort(doomed)
    longer = (9, *PROMPT, *doomed.token_ids, 7)
    continued = session.ask(longer)
    assert continued.num_cached_tokens == len(longer) - 1
    assert continued.token_ids == cold(folder, longer)


def test_another_beginning_is_computed_from_the_start(backend: GenAIBackend, folder: Path) -> None:
    session = Session(backend)
    session.ask(PROMPT)
    other = (*PROMPT, 5, 5, 5)
    answer = session.ask(other)
    assert answer.num_cached_tokens == 0
    assert answer.token_ids == cold(folder, other)


def test_what_the_runtime_would_compute_again_is_not_called_cached(backend: GenAIBackend, folder: Path) -> None:
    """Its static engine computes a rewound session from the start."""
    session = Session(backend)
    longer = (*PROMPT, *session.ask(PROMPT).token_ids, 7, 8, 9)
    session.ask(longer)
    again = session.ask(longer)
    assert again.num_cached_tokens == 0
    assert again.token_ids == cold(folder, longer)


@pytest.mark.parametrize("length", [16, 17, 18, 33, 34, 100])
def test_a_prompt_in_pieces_says_what_it_says_at_once(folder: Path, length: int) -> None:
    loaded = load_backend(folder, replace(OPTIONS, max_batched_tokens=16))
    session, prompt = Session(loaded), tuple(np.random.default_rng(length).integers(0, 96, length).tolist())
    answer = session.ask(prompt)
    assert answer.token_ids == cold(folder, prompt)
    assert answer.num_cached_tokens == 0
    longer = (*prompt, *answer.token_ids, *prompt)
    following = session.ask(longer)
    assert following.token_ids == cold(folder, longer)
    assert following.num_cached_tokens == length + len(answer.token_ids)
    loaded.close()


def test_pieces_end_where_no_end_token_has_to_be_said(folder: Path) -> None:
    loaded = load_backend(folder, replace(OPTIONS, max_batched_tokens=8))
    for prompt in ((5,) * 6 + (END,) * 20 + (6,) * 9, (END,) * 40):
        assert Session(loaded).ask(prompt).token_ids == cold(folder, prompt)
    loaded.close()


def test_others_are_answered_between_the_pieces(folder: Path) -> None:
    loaded = load_backend(folder, replace(OPTIONS, max_batched_tokens=16))
    session = Session(loaded)
    other, long, doomed = session.add(PROMPT[:9]), session.add(PROMPT * 8), session.add(PROMPT * 9)
    session.step_until(other, num_tokens=4)
    assert not long.token_ids
    session.abort(doomed)
    session.finish()
    assert long.token_ids == cold(folder, PROMPT * 8)
    loaded.close()


def test_sessions_are_given_up_when_memory_is_needed(folder: Path) -> None:
    loaded = load_backend(folder, replace(OPTIONS, kv_cache_bytes=100 * TOKEN_BYTES))
    session = Session(loaded)
    first = session.ask(PROMPT)
    session.ask((6, *PROMPT), replace(GREEDY, max_tokens=70))
    longer = (*PROMPT, *first.token_ids, 7)
    assert session.ask(longer).num_cached_tokens == 0
    loaded.close()


def test_what_memory_has_no_room_for_waits_its_turn(folder: Path) -> None:
    loaded = load_backend(folder, replace(OPTIONS, kv_cache_bytes=100 * TOKEN_BYTES))
    assert loaded.context_length == 100
    session = Session(loaded)
    answers = [session.add((each, *PROMPT), replace(GREEDY, max_tokens=40)) for each in (5, 6, 7)]
    session.step_until(answers[0], num_tokens=3)
    assert not answers[1].token_ids
    session.finish()
    assert [len(answer.token_ids) for answer in answers] == [40, 40, 40]
    assert answers[2].token_ids == cold(folder, (7, *PROMPT), max_tokens=40)
    loaded.close()


def test_lengths_do_not_matter_to_those_in_a_batch(backend: GenAIBackend, folder: Path) -> None:
    session = Session(backend)
    prompts = [PROMPT[:1], PROMPT[:13], PROMPT, PROMPT * 4]
    together = [session.add(prompt) for prompt in prompts]
    session.finish()
    assert [answer.token_ids for answer in together] == [cold(folder, prompt) for prompt in prompts]


def test_one_that_fails_to_begin_leaves_its_batch_alone(backend: GenAIBackend, folder: Path) -> None:
    session = Session(backend)
    wrong = Guidance("regex", "(")
    first, failed, last = session.add(PROMPT), session.add(PROMPT, guidance=wrong), session.add(PROMPT)
    session.finish()
    assert isinstance(failed.error, AdapterError)
    assert first.token_ids == last.token_ids == cold(folder, PROMPT)


def likely(folder: Path, mass: float) -> set[int]:
    """The nucleus after the prompt."""
    logits = dense_logits(folder, DECODER, list(PROMPT))[-1].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    return set(order[before < mass].tolist())


def test_top_p_alone_leaves_the_tail_out(backend: GenAIBackend, folder: Path) -> None:
    session, nucleus = Session(backend), likely(folder, 0.3)
    sampling = SamplingParams(top_p=0.3, max_tokens=1, ignore_eos=True)
    drawn = {token for _ in range(60) for token in session.ask(PROMPT, sampling).token_ids}
    assert len(drawn) > 3
    assert drawn <= nucleus
    assert len(nucleus) < 30


def test_the_end_of_the_models_own_config_is_told(backend: GenAIBackend) -> None:
    """The runtime does not say which token ended the answer."""
    session = Session(backend)
    sampling = SamplingParams(temperature=20.0, max_tokens=200)
    answers = [session.ask(PROMPT, sampling, eos_token_ids=frozenset({END})) for _ in range(6)]
    ended = [answer for answer in answers if answer.finish_reason is FinishReason.STOP]
    assert ended, "one of 96 tokens, of 200 drawn, six times"
    assert all(answer.token_ids.index(END) == len(answer.token_ids) - 1 for answer in ended)


def test_no_tokens_asked_for_are_no_tokens(backend: GenAIBackend) -> None:
    answer = Session(backend).ask(PROMPT, replace(GREEDY, max_tokens=0))
    assert (answer.token_ids, answer.finish_reason) == ([], FinishReason.LENGTH)


@pytest.mark.parametrize("prompt", [(), (5, 96), (-1,)])
def test_prompts_that_are_none_are_refused(backend: GenAIBackend, prompt: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedModel):
        Session(backend).add(prompt)


def test_repetition_is_penalised(backend: GenAIBackend) -> None:
    session = Session(backend)
    plain = session.ask(PROMPT, replace(GREEDY, max_tokens=40)).token_ids
    varied = session.ask(PROMPT, replace(GREEDY, max_tokens=40, repetition_penalty=50.0)).token_ids
    assert len(set(varied)) > len(set(plain))


def test_it_says_where_it_runs(backend: GenAIBackend) -> None:
    assert backend.device == "CPU"


@pytest.mark.parametrize("device", ["CUDA.0", "DML.0", "WEBGPU.0", "GPU.0", "NPU", "ROCM.0", "METAL.0"])
def test_a_device_that_is_not_here_is_the_cpu_or_an_error(folder: Path, device: str) -> None:
    if BUILT_IN.get(device, bool)():
        pytest.skip(f"this onnxruntime-genai was built with what {device} needs")
    with pytest.raises(AdapterError) as raised:
        load_backend(folder, replace(OPTIONS, device=device, allow_fallback=False))
    assert device in raised.value.message
    loaded = load_backend(folder, replace(OPTIONS, device=device))
    assert loaded.device == "CPU"
    assert Session(loaded).ask(PROMPT).token_ids == cold(folder, PROMPT)
    loaded.close()


def test_without_a_tokeniser_there_is_no_guidance(tmp_path: Path) -> None:
    folder = write_genai_folder(tmp_path, DECODER)
    (folder / "tokenizer.json").unlink()
    loaded = load_backend(folder, OPTIONS)
    assert "guidance" in loaded.lacks
    answer: Answer = Session(loaded).ask(PROMPT)
    assert len(answer.token_ids) == 8
    loaded.close()


def test_a_tokeniser_that_cannot_be_read_costs_only_guidance(tmp_path: Path) -> None:
    folder = write_genai_folder(tmp_path, DECODER)
    (folder / "tokenizer.json").write_text("{}")
    loaded = load_backend(folder, replace(OPTIONS, max_batched_tokens=16))
    loaded.warm_up()
    session = Session(loaded)
    assert session.ask(PROMPT).token_ids == cold(folder, PROMPT)
    guided = session.add(PROMPT, guidance=Guidance("regex", "a"))
    session.finish()
    assert guided.error is not None
    loaded.close()


@pytest.mark.parametrize(
    ("config", "named"), [("{", "genai_config.json"), ('{"model": {"decoder": {}}}', "eos_token_id")]
)
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, config: str, named: str) -> None:
    folder = write_genai_folder(tmp_path, DECODER)
    (folder / "genai_config.json").write_text(config)
    with pytest.raises(UnsupportedModel, match=named):
        load_backend(folder, OPTIONS)


@pytest.mark.parametrize("missing", ["model.onnx", "model.onnx.data"])
def test_files_that_are_missing_are_named(tmp_path: Path, missing: str) -> None:
    folder = write_genai_folder(tmp_path, DECODER)
    (folder / missing).unlink()
    with pytest.raises(UnsupportedModel, match=missing):
        load_backend(folder, OPTIONS)


def test_what_it_needs_is_counted(backend: GenAIBackend, folder: Path) -> None:
    weights = sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert backend.memory_bytes == weights + OPTIONS.kv_cache_bytes
