"""Makes the references of Whisper's importers: what transformers computes.

    python tests/data/whisper/make.py TINY_EN_FOLDER

needs torch and transformers (made with torch 2.13.0, transformers 5.23.0). TINY_EN_FOLDER is openai's
whisper-tiny.en, in float16 as the model `whisper:tiny.en` has it.

* tiny.npz: of `tests/models/importers/tiny_whisper.py`, the logits of every 25th word and the softmax of all heads of
  the cross-attention.
* tiny_en.npz: of tests/data/media/0870.wav and its text, the 20 highest logits after five of the tokens, and there the
  softmax of the alignment heads over the first 360 frames.
"""

import runpy
import sys
import wave
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast

HERE = Path(__file__).parent
TINY = runpy.run_path(str(HERE.parents[1] / "models" / "importers" / "tiny_whisper.py"))
TEXT = (
    " And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them."
)
PLACES = [0, 1, 5, 13, 27]
NUM_FRAMES = 360


def make_tiny() -> None:
    config = WhisperConfig(
        **TINY["SIZES"], attn_implementation="eager", pad_token_id=10, bos_token_id=10, eos_token_id=10,
        decoder_start_token_id=11, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    state = {f"model.{name}": torch.from_numpy(value) for name, value in TINY["make_weights"]().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["proj_out.weight"], missing
    assert not unexpected
    model.tie_weights()
    features, tokens = TINY["make_input"]()
    found = run(model, features, tokens)
    attention = np.stack([each.numpy() for each in found.cross_attentions])
    np.savez_compressed(HERE / "tiny.npz", logits=found.logits[:, :, ::25].numpy(), cross_attention=attention)


def make_tiny_en(folder: str) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with wave.open(str(HERE.parent / "media" / "0870.wav")) as clip:
        samples, rate = np.frombuffer(clip.readframes(clip.getnframes()), np.int16) / 32768, clip.getframerate()
    features = WhisperFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=rate, return_tensors="np")
    tokenizer = WhisperTokenizerFast.from_pretrained(folder)
    words = tokenizer(TEXT, add_special_tokens=False).input_ids
    generation = model.generation_config
    tokens = np.array([[generation.decoder_start_token_id, generation.no_timestamps_token_id, *words]])
    found = run(model.eval(), features["input_features"], tokens)
    logits = found.logits[0, PLACES].numpy()
    top = np.argsort(-logits, axis=-1)[:, :20]
    shares = [found.cross_attentions[layer][0, head, PLACES, :NUM_FRAMES] for layer, head in generation.alignment_heads]
    np.savez_compressed(
        HERE / "tiny_en.npz",
        tokens=tokens,
        places=np.array(PLACES),
        top=top,
        logits=np.take_along_axis(logits, top, axis=-1),
        cross_attention=np.stack([each.numpy() for each in shares]).astype(np.float16),
    )


def run(model: WhisperForConditionalGeneration, features: np.ndarray, tokens: np.ndarray):
    with torch.no_grad():
        return model(
            input_features=torch.from_numpy(features),
            decoder_input_ids=torch.from_numpy(tokens),
            output_attentions=True,
        )


if __name__ == "__main__":
    make_tiny()
    make_tiny_en(sys.argv[1])
