"""GGUF → the one runnable form: an ONNX folder that onnxruntime-genai runs and OpenVINO reads.

One pass, no deep-learning framework: the keys are checked, the graph is built from the tensors' names and shapes,
then each tensor is read, repacked and written in pieces. Weights are the file's own, bit for bit in meaning.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gguf.constants import LlamaFileType

from vmm_server.errors import CorruptFile, ImportFailed, StoreError
from vmm_server.models.importers.gguf_config import DecoderConfig, read_config
from vmm_server.models.importers.gguf_graph import build_decoder, max_positions
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.gguf_tokenizer import TokenizerInfo, write_tokenizer
from vmm_server.models.importers.imported import ImportedModel, guess_capabilities, parameter_size
from vmm_server.models.importers.onnx_writer import MODEL_FILE, ModelWriter

GENAI_TYPES = {"gemma3": "gemma3_text", "olmo2": "olmo"}
"""Where onnxruntime-genai has another name for a family than GGUF."""
_NOT_PARAMETERS = {"rope_freqs.weight"}


def _no_progress(done: int, total: int) -> None:
    """Tell nobody."""


def import_gguf(source: Path, folder: Path, progress: Callable[[int, int], None] = _no_progress) -> ImportedModel:
    """Write the model in `source` into the empty `folder`; the same file gives the same bytes.

    Writes model.onnx, model.onnx.data, genai_config.json and the tokeniser's files. `progress` gets (bytes written,
    bytes in all). Everything that can be wrong with the file's header is found before the first weight is written.
    Raises `CorruptFile`, `UnsupportedArchitecture`, `ImportFailed`, or `StoreError` when `folder` cannot be written;
    `folder` is then incomplete and of no use.
    """
    with GGUFFile(source) as file:
        config = read_config(file)
        writer = ModelWriter(f"{config.family} decoder")
        vocab_size = build_decoder(writer, file, config)
        try:
            tokenizer = _write_tokenizer(file, folder)
            if tokenizer.vocab_size > vocab_size:
                raise CorruptFile(
                    f"{source}: has {tokenizer.vocab_size} tokens but embeddings for {vocab_size}",
                    hint="its keys and tensors do not belong together: get another file of this model",
                )
            write_genai_config(folder, config, tokenizer, vocab_size)
            writer.write(folder, progress)
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be written: {error.strerror or error}", hint="make room, or choose another models_dir"
            ) from error
        return _describe(file, config, tokenizer)


def _write_tokenizer(file: GGUFFile, folder: Path) -> TokenizerInfo:
    """Write the tokeniser's files; an error names the GGUF file besides the key."""
    try:
        return write_tokenizer(file.metadata, folder)
    except ImportFailed as error:
        raise type(error)(f"{file.path}: {error.message}", hint=error.hint) from error


def write_genai_config(folder: Path, config: DecoderConfig, tokenizer: TokenizerInfo, vocab_size: int) -> None:
    """onnxruntime-genai's configuration (onnxruntime.ai/docs/genai/reference/config.html)."""
    eos = list(tokenizer.eos_token_ids)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (eos[0] if eos else 0)
    context_length = max_positions(config)
    genai_config = {
        "model": {
            "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else pad,
            "context_length": context_length,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL_FILE,
                "head_size": config.head_size,
                "hidden_size": config.hidden_size,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config.num_heads,
                "num_hidden_layers": config.num_layers,
                "num_key_value_heads": config.num_kv_heads,
            },
            "eos_token_id": eos[0] if len(eos) == 1 else eos,
            "pad_token_id": pad,
            "type": GENAI_TYPES.get(config.family, config.family),
            "vocab_size": vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": context_length,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }
    text = json.dumps(genai_config, indent=2) + "\n"
    (folder / "genai_config.json").write_text(text, encoding="utf-8", newline="\n")


def _describe(file: GGUFFile, config: DecoderConfig, tokenizer: TokenizerInfo) -> ImportedModel:
    count = sum(tensor.num_elements for name, tensor in file.tensors.items() if name not in _NOT_PARAMETERS)
    return ImportedModel(
        family=config.family,
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=_quantization(file),
        context_length=max_positions(config),
        embedding_length=config.hidden_size,
        capabilities=guess_capabilities(tokenizer.chat_template, _tokens(file)),
        has_chat_template=tokenizer.chat_template is not None,
        license=_text(file, "general.license"),
        name=_text(file, "general.name"),
    )


def _tokens(file: GGUFFile) -> frozenset[str]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return frozenset(token for token in tokens if isinstance(token, str)) if isinstance(tokens, list) else frozenset()


def _text(file: GGUFFile, key: str) -> str | None:
    value = file.metadata.get(key)
    return value if isinstance(value, str) and value else None


def _quantization(file: GGUFFile) -> str:
    """What the file calls its mix of types, else the type most of its weights have."""
    declared = file.metadata.get("general.file_type")
    if declared in list(LlamaFileType) and declared != LlamaFileType.GUESSED:
        name: str = LlamaFileType(declared).name
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    weights: Counter[str] = Counter()
    for tensor in file.tensors.values():
        weights[tensor.type.name] += tensor.num_elements
    return weights.most_common(1)[0][0]
