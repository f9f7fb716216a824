"""What the openvino-genai adapter does beyond the contract of a `TextBackend`: prompts with images, in text."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vmm_adapters.base import TextBackend
from vmm_adapters.catalog import load_text_backend
from vmm_adapters.errors import AdapterError, UnsupportedModel
from vmm_adapters.types import IMAGE_MARK, FinishReason, RunnerOptions, SamplingParams

from .backend_subjects import GREEDY, OPTIONS, Session
from .tiny_ir import NUM_PATCHES, write_seeing_folder, write_text_folder

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing_folder(tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def seeing(folder: Path) -> Iterator[TextBackend]:
    backend = load_text_backend("openvino-genai", folder, OPTIONS)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextBackend]:
    backend = load_text_backend("openvino-genai", write_text_folder(tmp_path_factory.mktemp("text")), OPTIONS)
    yield backend
    backend.close()


def image(seed: int, height: int = 30, width: int = 50) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


def see(backend: TextBackend, text: str, *images: NDArray[np.uint8], **changes: object) -> list[int]:
    return Session(backend).ask((), replace(GREEDY, **changes), text=text, images=images).token_ids  # type: ignore[arg-type]


def test_what_is_seen_matters(seeing: TextBackend) -> None:
    text = IMAGE_MARK + "what?"
    first, second = see(seeing, text, image(1)), see(seeing, text, image(2))
    assert first != second
    assert see(seeing, text, image(1)) == first


def test_each_image_stands_where_its_mark_is(seeing: TextBackend) -> None:
    text = f"{IMAGE_MARK}and{IMAGE_MARK}?"
    in_order = see(seeing, text, image(1), image(2))
    assert see(seeing, text, image(2), image(1)) != in_order
    assert see(seeing, f"and?{IMAGE_MARK}{IMAGE_MARK}", image(1), image(2)) != in_order


def test_without_a_mark_the_images_come_first(seeing: TextBackend) -> None:
    assert see(seeing, "what?", image(1)) == see(seeing, IMAGE_MARK + "what?", image(1))


def test_the_familys_own_marker_does_too(seeing: TextBackend) -> None:
    assert see(seeing, "a<image>what?", image(1)) == see(seeing, f"a{IMAGE_MARK}what?", image(1))


def test_the_runtimes_own_tags_are_refused(seeing: TextBackend) -> None:
    """A client that typed one would move or repeat an image."""
    with pytest.raises(UnsupportedModel, match="stands for an image"):
        Session(seeing).add((), text=f"{IMAGE_MARK}<ov_genai_image_0>", images=(image(1),))


@pytest.mark.parametrize("text", [f"{IMAGE_MARK}{IMAGE_MARK}?", f"{IMAGE_MARK}<image>?", "<image><image>?"])
def test_marks_that_are_not_the_images_are_an_error_and_harm_nobody(seeing: TextBackend, text: str) -> None:
    expected = see(seeing, "what?", image(1))
    session = Session(seeing)
    answer = session.add((), text=text, images=(image(1),))
    session.finish()
    assert answer.error is not None
    assert answer.token_ids == []
    assert see(seeing, "what?", image(1)) == expected


def test_nothing_is_put_before_the_prompt(seeing: TextBackend) -> None:
    """Not the special tokens of the tokeniser either, which the prompt has already."""
    answer = Session(seeing).ask((), text="<s>what?" + IMAGE_MARK, images=(image(1),))
    assert answer.num_prompt_tokens == len("what?") + 1 + NUM_PATCHES
    answer = Session(seeing).ask((), text="<s>what?")
    assert answer.num_prompt_tokens == len("what?") + 1


def test_tokens_are_the_same_as_their_text(seeing: TextBackend) -> None:
    token_ids = (0, 60, 61, 62)
    text = "<s>" + "".join(chr(token_id + 30) for token_id in token_ids[1:])
    assert Session(seeing).ask(token_ids).token_ids == see(seeing, text)


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_max_tokens_cuts_an_answer_to_an_image(seeing: TextBackend, max_tokens: int) -> None:
    answer = Session(seeing).ask((), replace(GREEDY, max_tokens=max_tokens), text="what?", images=(image(1),))
    assert len(answer.token_ids) == max_tokens
    assert answer.finish_reason is FinishReason.LENGTH


def test_the_last_token_comes_with_the_length_of_the_prompt(seeing: TextBackend) -> None:
    """Who counts tokens stops at it, and asks no more."""
    session = Session(seeing)
    answer = session.add((), replace(GREEDY, max_tokens=3), text="what?", images=(image(1),))
    session.step_until(answer, num_tokens=3)
    assert answer.num_prompt_tokens == len("what?") + NUM_PATCHES
    plain = see(seeing, "what?", image(1))
    ends = frozenset({plain[0]})
    session = Session(seeing)
    answer = session.add((), text="what?", images=(image(1),), eos_token_ids=ends)
    session.step_until(answer, num_tokens=1)
    assert answer.num_prompt_tokens == len("what?") + NUM_PATCHES


def test_the_context_counts_images(seeing: TextBackend) -> None:
    text = "what?"
    num_prompt_tokens = len(text) + NUM_PATCHES
    limits = replace(GREEDY, max_tokens=100)
    answer = Session(seeing).ask((), limits, text=text, images=(image(1),), max_length=num_prompt_tokens + 7)
    assert answer.finish_reason is FinishReason.LENGTH
    assert (len(answer.token_ids), answer.num_prompt_tokens) == (7, num_prompt_tokens)


def test_an_image_that_leaves_no_room_is_an_error(seeing: TextBackend) -> None:
    session = Session(seeing)
    answer = session.add((), text="what?", images=(image(1),), max_length=len("what?") + NUM_PATCHES)
    session.finish()
    assert answer.error is not None


def test_an_end_token_ends_an_answer_to_an_image(seeing: TextBackend) -> None:
    plain = see(seeing, "what?", image(1))
    index = next(index for index in range(1, 8) if plain[index] not in plain[:index])
    ends = frozenset({plain[index]})
    answer = Session(seeing).ask((), text="what?", images=(image(1),), eos_token_ids=ends)
    assert answer.token_ids == plain[: index + 1]
    assert answer.finish_reason is FinishReason.STOP


def test_an_abort_while_it_looks_makes_room(seeing: TextBackend) -> None:
    expected = see(seeing, "what?", image(1))
    session = Session(seeing)
    session.abort(session.add((), replace(GREEDY, max_tokens=100), text="other?", images=(image(2),)))
    assert session.ask((), text="what?", images=(image(1),)).token_ids == expected


def test_a_second_request_at_a_time_is_refused(seeing: TextBackend) -> None:
    session = Session(seeing)
    session.add((), text="what?")
    with pytest.raises(AdapterError, match="one request at a time"):
        session.add((), text="what?")
    session.finish()


def test_a_blind_model_is_shown_nothing(blind: TextBackend) -> None:
    with pytest.raises(UnsupportedModel, match="does not see"):
        Session(blind).add((), text="what?", images=(image(1),))


def test_penalties_keep_a_token_from_coming_back(blind: TextBackend) -> None:
    prompt, many = range(20, 30), replace(GREEDY, max_tokens=40)
    plain = Session(blind).ask(prompt, many).token_ids
    assert len(set(plain)) < len(plain)
    for penalties in ({"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 3.0}):
        punished = Session(blind).ask(prompt, replace(many, **penalties)).token_ids  # type: ignore[arg-type]
        assert len(set(punished)) > len(set(plain)), penalties


@pytest.mark.parametrize("narrow", [SamplingParams(top_p=1e-6), SamplingParams(min_p=0.999), SamplingParams(min_p=1.0)])
def test_next_to_nothing_left_to_draw_from_is_greedy(blind: TextBackend, narrow: SamplingParams) -> None:
    greedy = Session(blind).ask(range(20, 30)).token_ids
    assert Session(blind).ask(range(20, 30), replace(narrow, max_tokens=8, seed=1)).token_ids == greedy


def test_the_kv_cache_bounds_the_context(folder: Path) -> None:
    backend = load_text_backend("openvino-genai", folder, RunnerOptions(kv_cache_bytes=32 * 1024))
    assert backend.context_length == 32 * 1024 // (2 * 2 * 2 * 32 * 2)
    backend.close()


@pytest.mark.parametrize(
    ("missing", "named"),
    [("openvino_tokenizer.xml", "convert_tokenizer"), ("openvino_language_model.xml", "openvino_model.xml")],
)
def test_a_folder_without_its_parts_is_refused(tmp_path: Path, missing: str, named: str) -> None:
    write_seeing_folder(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UnsupportedModel) as caught:
        load_text_backend("openvino-genai", tmp_path, OPTIONS)
    assert named in f"{caught.value.message} {caught.value.hint}"


def test_a_damaged_part_is_told(tmp_path: Path) -> None:
    write_seeing_folder(tmp_path)
    (tmp_path / "openvino_vision_embeddings_model.xml").write_text("<net/>")
    with pytest.raises(AdapterError, match="loading on CPU failed"):
        load_text_backend("openvino-genai", tmp_path, OPTIONS)


def test_threads_are_as_many_as_it_is_told(folder: Path) -> None:
    """Of both pipelines: a property that one does not know is an error."""
    for loaded in (folder, write_text_folder(folder.parent / "threads")):
        backend = load_text_backend("openvino-genai", loaded, replace(OPTIONS, num_threads=1))
        assert len(Session(backend).ask(range(20, 30)).token_ids) == GREEDY.max_tokens
        backend.close()
