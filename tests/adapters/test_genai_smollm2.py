"""The default model in its fast form: as good as it is stored, and it answers."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_adapters.onnxruntime_genai.backend import load_backend
from vmm_adapters.onnxruntime_genai.fast_form import read_graph
from vmm_adapters.onnxruntime_genai.form_cache import fast_folder
from vmm_adapters.types import FinishReason, RunnerOptions, SamplingParams
from vmm_server.models.store import InstalledModel

from .backend_subjects import Session

pytestmark = pytest.mark.runtime

NUM_TOKENS = 256


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def log_probabilities(folder: Path, tokens: list[int]) -> NDArray[np.float64]:
    """`[tokens, vocabulary]`, of a whole text at once."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    feed: dict[str, NDArray[np.generic]] = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    feed |= {"input_ids": np.array([tokens], np.int64), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    logits = session.run(["logits"], feed)[0][0].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_the_fast_form_says_what_the_stored_one_says(smollm2: InstalledModel, cache: Path) -> None:
    text = (Path(__file__).parents[1] / "data" / "ppl.txt").read_text()
    tokens = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json")).encode(text).ids[:NUM_TOKENS]
    exact = log_probabilities(smollm2.folder, tokens)
    decoder = smollm2.folder / "model.onnx"
    with fast_folder(smollm2.folder, decoder, read_graph(decoder), cache) as folder:
        assert folder != smollm2.folder
        fast = log_probabilities(folder, tokens)
    divergence = float((np.exp(exact) * (exact - fast)).sum(axis=1).mean())
    print(f"KL divergence {divergence:.5f}")  # noqa: T201 - shown by pytest -s
    assert divergence < 0.01


def test_a_chat_ends_and_goes_on(smollm2: InstalledModel, cache: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json"))
    backend = load_backend(smollm2.folder, RunnerOptions(cache_dir=cache))
    session = Session(backend)
    end = frozenset({tokenizer.token_to_id("<|im_end|>")})
    chat = "<|im_start|>user\nWho wrote Hamlet? One line.<|im_end|>\n<|im_start|>assistant\n"
    sampling = SamplingParams(temperature=0, max_tokens=60)
    prompt = tokenizer.encode(chat, add_special_tokens=False).ids
    answer = session.ask(prompt, sampling, eos_token_ids=end)
    assert answer.finish_reason is FinishReason.STOP
    assert answer.token_ids[-1] in end
    chat += (
        tokenizer.decode(answer.token_ids) + "<|im_end|>\n<|im_start|>user\nWhen?<|im_end|>\n<|im_start|>assistant\n"
    )
    following = session.ask(tokenizer.encode(chat, add_special_tokens=False).ids, sampling, eos_token_ids=end)
    assert following.num_cached_tokens == len(prompt) + len(answer.token_ids) - 1
    backend.close()
