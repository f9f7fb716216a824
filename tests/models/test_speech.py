"""A folder of Kokoro's → a model that speaks."""

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.conftest import MakeSettings
from tests.tiny_kokoro import (
    LETTERS,
    SAMPLES_A_LETTER,
    VOICES,
    KokoroSession,
    height,
    kokoro_model,
    spell,
    write_kokoro,
)

from vmm_adapters import catalog
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import SessionOptions
from vmm_server.errors import CorruptFile, InvalidRequest, UnsupportedArchitecture, UnsupportedParameter
from vmm_server.models.importers import describe_folder
from vmm_server.models.importers.kokoro import MAX_TOKENS, KokoroInputs, kokoro_files, read_inputs
from vmm_server.models.ready import Sampled
from vmm_server.models.router import Placement
from vmm_server.models.sources.hub_files import choose_files
from vmm_server.models.speech import (
    ReadySpeaker,
    Utterance,
    find_voice,
    read_style,
    split_long,
    synthesize,
    warm_speaker,
)

INPUTS = KokoroInputs("input_ids", "style", "speed")
PLACE = Placement("onnxruntime", "CPU")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_kokoro(tmp_path / "kokoro")
    return tmp_path / "kokoro"


def ready(folder: Path, settings: MakeSettings, session: KokoroSession) -> ReadySpeaker:
    return warm_speaker(kokoro_model(folder), PLACE, settings(), session, INPUTS, spell)


def utterance(text: str, speed: float = 1.0) -> Utterance:
    return Utterance(tuple(LETTERS[each] for each in text), np.zeros(256, np.float32), speed)


def test_a_folder_is_described(folder: Path) -> None:
    described = describe_folder(folder)
    assert (described.family, described.capabilities, described.context_length) == ("kokoro", ("speech",), 510)
    assert described.adapter == "onnxruntime"


def test_the_graph_may_lie_where_the_hub_has_it(folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
    assert describe_folder(folder).family == "kokoro"


def test_exporters_call_the_letters_tokens_too(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx")
    graph.graph.input[0].name = graph.graph.node[0].input[1] = "tokens"
    onnx.save(graph, folder / "model.onnx")
    assert read_inputs(folder / "model.onnx").token_ids == "tokens"


def test_a_voice_that_is_cut_off_is_found_out(folder: Path) -> None:
    voice = folder / "voices" / "af_nova.bin"
    voice.write_bytes(voice.read_bytes()[:-4])
    with pytest.raises(CorruptFile, match=r"af_nova\.bin"):
        describe_folder(folder)


def test_a_graph_of_something_else_is_refused(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx")
    graph.graph.input[1].name = "speaker"
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(UnsupportedArchitecture, match="speaker"):
        describe_folder(folder)


def test_a_vocabulary_of_words_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"[PAD]": 0, "the": 1}}}')
    with pytest.raises(UnsupportedArchitecture, match=r"tokenizer\.json"):
        describe_folder(folder)


def test_of_a_repository_all_voices_and_one_graph_are_taken() -> None:
    others = ["README.md", "onnx/model_fp16.onnx", "samples/a.wav"]
    needed = ["config.json", "tokenizer.json", "voices/af_bella.bin", "voices/zm_yunxi.bin", "onnx/model.onnx"]
    assert sorted(kokoro_files(sorted([*others, *needed]))) == sorted(needed)
    assert kokoro_files([*others, "config.json", "tokenizer.json", "onnx/model.onnx"]) == []


def test_a_pull_of_the_hubs_repository_means_the_voices_too() -> None:
    paths = ["README.md", "config.json", "onnx/model.onnx", "onnx/model_q4.onnx", "tokenizer.json", "voices/af.bin"]
    chosen, folder = choose_files("hf:a/b", "a/b", paths, path="", quantization=None, generates=False)
    assert (sorted(chosen), folder) == (["config.json", "onnx/model.onnx", "tokenizer.json", "voices/af.bin"], "")


def test_it_can_be_tried(folder: Path, settings: MakeSettings) -> None:
    async def body() -> None:
        session = KokoroSession()
        speaker = ready(folder, settings, session)
        assert isinstance(speaker, Sampled)
        before = speaker.stats.computed_size
        await speaker.try_once()
        assert speaker.stats.computed_size - before == len(session.said[-1]) == 50
        assert speaker.load.num_running == speaker.load.num_waiting == 0
        await speaker.aclose()
        assert session.is_closed

    asyncio.run(body())


def test_a_sentence_is_not_held_back_for_those_behind_it(folder: Path, settings: MakeSettings) -> None:
    first, last = threading.Event(), threading.Event()

    class Slow(KokoroSession):
        def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            for number, event in ((1, first), (3, last)):
                assert len(self.said) != number or event.wait(30)
            return super().run(feeds)

    async def body() -> None:
        speaker = ready(folder, settings, Slow())
        calls = [asyncio.create_task(speaker.say(utterance(text))) for text in ("a", "b", "c")]
        while speaker.stats.num_running + speaker.stats.num_waiting < 3:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        first.set()
        await asyncio.wait_for(asyncio.gather(*calls[:2]), 20)
        assert not calls[2].done()
        last.set()
        await calls[2]
        await speaker.aclose()

    asyncio.run(body())


def test_each_sentence_is_an_utterance(folder: Path, settings: MakeSettings) -> None:
    session = KokoroSession()
    speaker = ready(folder, settings, session)
    found = speaker.utterances("Go on, now. Stop!\nYes", "ef_low", 1.5)
    names = {value: key for key, value in LETTERS.items()}
    assert ["".join(names[each] for each in one.token_ids) for one in found] == ["Go on, now.", "Stop!", "Yes"]
    assert {one.speed for one in found} == {1.5}


def test_letters_that_it_does_not_know_are_left_out(folder: Path, settings: MakeSettings) -> None:
    (one,) = ready(folder, settings, KokoroSession()).utterances("añb", "ef_low", 1)
    assert one.token_ids == (LETTERS["a"], LETTERS["b"])


@pytest.mark.parametrize("text", ["", " \n", "ñ", "🙂"])
def test_a_text_of_which_nothing_can_be_spoken(folder: Path, settings: MakeSettings, text: str) -> None:
    with pytest.raises(InvalidRequest, match="input") as error:
        ready(folder, settings, KokoroSession()).utterances(text, "ef_low", 1)
    assert error.value.param == "input"


def test_a_voice_may_be_named_without_its_prefix_where_it_is_the_only_one() -> None:
    voices = {name: Path(name) for name in VOICES}
    assert find_voice("af_nova", voices) == find_voice("nova", voices) == "af_nova"
    for wrong in ("twin", "alloy", "", "af_"):
        with pytest.raises(InvalidRequest, match="voice") as error:
            find_voice(wrong, voices)
        assert error.value.param == "voice"
        assert error.value.hint is not None
        assert all(name in error.value.hint for name in voices)


def test_a_voice_whose_language_cannot_be_read_is_refused(folder: Path, settings: MakeSettings) -> None:
    with pytest.raises(UnsupportedParameter, match="Japanese"):
        ready(folder, settings, KokoroSession()).utterances("Go", "jf_alpha", 1)


def test_the_style_is_that_of_the_number_of_letters(tmp_path: Path) -> None:
    rows = np.arange(20 * 256, dtype="<f4").reshape(20, 256)
    rows.tofile(tmp_path / "voice.bin")
    for num_letters, row in ((1, 0), (20, 19), (500, 19)):
        np.testing.assert_array_equal(read_style(tmp_path / "voice.bin", num_letters), rows[row])


@given(st.lists(st.sampled_from("ab "), max_size=1600))
def test_what_is_too_long_is_cut_at_spaces(letters: list[str]) -> None:
    pieces = split_long(letters)
    assert all(0 < len(piece) <= MAX_TOKENS for piece in pieces)
    joined = [each for piece in pieces for each in piece if each != " "]
    assert joined == [each for each in letters if each != " "]


def test_a_long_sentence_is_cut_at_the_last_space_that_fits() -> None:
    words = ["a"] * 300 + [" "] + ["b"] * 300
    assert [len(piece) for piece in split_long(words)] == [300, 300]
    assert [len(piece) for piece in split_long(["a"] * 1000)] == [510, 490]


def test_a_session_that_cannot_speak_is_closed(folder: Path, settings: MakeSettings) -> None:
    class Broken(KokoroSession):
        def run(self, feeds: object) -> dict[str, np.ndarray]:
            return {"waveform": np.array([0.0, np.nan], np.float32)}

    session = Broken()
    with pytest.raises(RuntimeFailed, match="NaN"):
        ready(folder, settings, session)
    assert session.is_closed


@pytest.mark.runtime
@pytest.mark.parametrize("adapter", ["onnxruntime", "openvino"])
def test_a_graph_speaks(folder: Path, adapter: str) -> None:
    session = catalog.load_session(adapter, folder / "model.onnx", SessionOptions(num_threads=1))
    text = "ab."
    for speed in (1.0, 2.0):
        samples = synthesize(session, read_inputs(folder / "model.onnx"), 0, utterance(text, speed))
        expected = np.repeat([0, *map(height, text), 0], int(SAMPLES_A_LETTER / speed))
        np.testing.assert_allclose(samples, expected, atol=1e-6)
    session.close()
