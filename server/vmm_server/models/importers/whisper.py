"""A Whisper model's files → its ONNX folder: from CTranslate2's model.bin, or from transformers' safetensors.

One graph builder reads either through `StoredWeights`, so the same weights give the same bytes. Small files are
written anew, all from what was checked; tokenizer.json is copied.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from vmm_server.errors import StoreError
from vmm_server.models.importers.ctranslate2_file import FILE as CTRANSLATE2_FILE
from vmm_server.models.importers.ctranslate2_whisper import CTranslate2Whisper
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.importers.json_files import read_json_object
from vmm_server.models.importers.stored_weights import SafetensorsWeightFiles, StoredWeights
from vmm_server.models.importers.whisper_config import FAMILY, WhisperConfig, read_whisper_config
from vmm_server.models.importers.whisper_decoder import build_decoder
from vmm_server.models.importers.whisper_encoder import build_encoder
from vmm_server.models.importers.whisper_folder import describe_whisper
from vmm_server.models.importers.whisper_tokens import find_alignment_heads, make_generation_config, read_tokens

_GENERATION = "generation_config.json"
_SAMPLE_RATE, _HOP_LENGTH, _FFT_LENGTH = 16000, 160, 400
"""Of the log-mel features: 100 frames a second."""


def _no_progress(done: int, total: int) -> None:
    """Tell nobody."""


def check_whisper(folder: Path) -> None:
    """Say from the small files of transformers' folder whether it could be imported. Raises `ImportFailed`."""
    config = read_whisper_config(folder)
    make_generation_config(read_tokens(folder, config.vocab_size), config, _found_in(folder), folder / _GENERATION)


def import_whisper(source: Path, folder: Path, progress: Callable[[int, int], None] = _no_progress) -> ImportedModel:
    """Write the model in the folder `source` into the empty `folder`; the same weights give the same bytes.

    `progress` gets (bytes written, bytes in all). Everything that can be wrong with configuration, names and shapes is
    found before the first weight is written. Raises `CorruptFile`, `UnsupportedArchitecture`, `ImportFailed`, or
    `StoreError` when `folder` cannot be written; `folder` is then incomplete and of no use.
    """
    with _opened(source) as (weights, config):
        tokens = read_tokens(source, config.vocab_size)
        generation = make_generation_config(tokens, config, _found_in(source), source)
        heads = find_alignment_heads(generation["alignment_heads"], config)
        encoder, decoder = build_encoder(weights, config), build_decoder(weights, config, heads)
        total = encoder.size_bytes + decoder.size_bytes
        try:
            _write_small_files(source, folder, config, generation)
            encoder.write(folder, lambda done, _: progress(done, total))
            decoder.write(folder, lambda done, _: progress(encoder.size_bytes + done, total))
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be written: {error.strerror or error}", hint="make room, or choose another models_dir"
            ) from error
    return describe_whisper(folder)


@contextmanager
def _opened(source: Path) -> Iterator[tuple[StoredWeights, WhisperConfig]]:
    if (source / CTRANSLATE2_FILE).is_file():
        with CTranslate2Whisper(source) as weights:
            yield weights, weights.config
    else:
        config = read_whisper_config(source)
        with SafetensorsWeightFiles(source) as weights:
            yield weights, config


def _found_in(source: Path) -> Mapping[str, object]:
    """What a folder says of generation, in transformers' words: its own file, else config.json, in either's."""
    config = read_json_object(source / "config.json")
    found = {
        "suppress_tokens": config.get("suppress_tokens", config.get("suppress_ids")),
        "begin_suppress_tokens": config.get("begin_suppress_tokens", config.get("suppress_ids_begin")),
        "alignment_heads": config.get("alignment_heads"),
    }
    path = source / _GENERATION
    return found | (read_json_object(path) if path.is_file() else {})


def _write_small_files(source: Path, folder: Path, config: WhisperConfig, generation: Mapping[str, object]) -> None:
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    special = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")
    _write_json(
        folder / "config.json",
        {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": FAMILY,
            **asdict(config),
            "activation_function": "gelu",
            "is_encoder_decoder": True,
            "scale_embedding": False,
            **{key: generation[key] for key in special},
        },
    )
    _write_json(folder / _GENERATION, generation)
    num_frames = 2 * config.max_source_positions
    _write_json(
        folder / "preprocessor_config.json",
        {
            "chunk_length": num_frames * _HOP_LENGTH // _SAMPLE_RATE,
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": config.num_mel_bins,
            "hop_length": _HOP_LENGTH,
            "n_fft": _FFT_LENGTH,
            "n_samples": num_frames * _HOP_LENGTH,
            "nb_max_frames": num_frames,
            "padding_side": "right",
            "padding_value": 0.0,
            "processor_class": "WhisperProcessor",
            "return_attention_mask": False,
            "sampling_rate": _SAMPLE_RATE,
        },
    )


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8", newline="\n")
