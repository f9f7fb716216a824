"""One ONNX folder on all runtimes: they say the same, up to the first place where the model itself is undecided.

They round differently (OpenVINO's KV blocks have 8 bits and its products may be bf16, ONNX Runtime's activations have 8
bits, and so have those of our kernels), so logits differ a little. Where two answers part, each runtime's own logits
must hold both tokens for likely.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_adapters.base import CausalLMRunner
from vmm_adapters.catalog import load_causal_lm
from vmm_adapters.onnxruntime_genai.backend import load_backend
from vmm_adapters.onnxruntime_genai.fast_form import read_graph
from vmm_adapters.onnxruntime_genai.form_cache import fast_folder
from vmm_adapters.types import Batch, Chunk, RunnerOptions, SamplingParams
from vmm_server.models.store import InstalledModel

from .backend_subjects import Session

pytestmark = pytest.mark.runtime

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write a haiku about rain.",
    "What is 12 times 12?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "List the days of the week.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What does HTTP stand for?",
    "Explain gravity to a child.",
    "Write a Python function that adds two numbers.",
    "What is the opposite of hot?",
    "Name a planet with rings.",
    "How many legs does a spider have?",
    "Tell me a short story about a robot.",
    "What is photosynthesis?",
    "Continue: one, two, three,",
    "Which ocean is the largest?",
    "Say hello politely.",
)
NUM_TOKENS = 12
NEAR = 1.0
"""How far apart two logits may be that the other runtime puts in the other order."""


def logits_of(runner: CausalLMRunner, prompt: list[int], answer: list[int]) -> NDArray[np.float32]:
    """`[len(answer), vocabulary]`: what each token of the answer was drawn from, were it drawn here."""
    tokens = prompt + answer[:-1]
    table = range(-(-len(tokens) // runner.block_size))
    return runner.execute(Batch((Chunk(tokens, 0, table, num_logits=len(answer)),))).copy()


def ort_logits(session: onnxruntime.InferenceSession, tokens: list[int]) -> NDArray[np.float32]:
    """`[vocabulary]`: what comes after the tokens."""
    feed: dict[str, NDArray[np.generic]] = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    feed |= {"input_ids": np.array([tokens], np.int64), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    logits: NDArray[np.float32] = session.run(["logits"], feed)[0][0, -1]
    return logits


@pytest.mark.parametrize("adapter", ["openvino", "cpu"])
def test_runtimes_say_the_same_up_to_near_ties(
    adapter: str, smollm2: InstalledModel, tmp_path: Path, kernel_cache: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json"))
    options = RunnerOptions(kv_cache_bytes=64 << 20, cache_dir=tmp_path, shared_cache_dir=kernel_cache)
    runner = load_causal_lm(adapter, smollm2.folder, options)
    backend = load_backend(smollm2.folder, RunnerOptions(cache_dir=tmp_path))
    asked = Session(backend)
    decoder = smollm2.folder / "model.onnx"
    with fast_folder(smollm2.folder, decoder, read_graph(decoder), tmp_path) as folder:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    end = frozenset({tokenizer.token_to_id("<|im_end|>")})
    greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    num_same, moved = 0, []
    for question in QUESTIONS:
        chat = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer.encode(chat, add_special_tokens=False).ids
        said = list(asked.ask(prompt, greedy, eos_token_ids=end).token_ids)
        logits = logits_of(runner, prompt, said)
        parts = np.flatnonzero(logits.argmax(axis=1) != said)
        if not len(parts):
            num_same += 1
            continue
        at = int(parts[0])
        here, theirs = int(logits[at].argmax()), said[at]
        other = ort_logits(session, prompt + said[:at])
        moved.append(float(logits[at, here] - logits[at, theirs]))
        assert logits[at, here] - logits[at, theirs] < NEAR, question
        assert abs(other[theirs] - other[here]) < NEAR, question
    print(f"{num_same} of {len(QUESTIONS)} the same for {NUM_TOKENS} tokens; parted at {moved}")  # noqa: T201
    assert num_same >= len(QUESTIONS) // 2
    backend.close()
    runner.close()
