"""safetensors of a text model → the one runnable form: the same graph, writer and checks as for GGUF.

One pass, no deep-learning framework: config.json is checked, the graph is built from the tensors' names and shapes,
then each tensor is read and written in pieces. Only safetensors are read, never pickled weights.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from gguf.constants import LlamaFileType

from vmm_server.errors import StoreError
from vmm_server.models.importers.gguf import write_genai_config
from vmm_server.models.importers.gguf_graph import build_decoder, max_positions
from vmm_server.models.importers.gguf_tokenizer import TokenizerInfo
from vmm_server.models.importers.imported import ImportedModel, guess_capabilities, parameter_size
from vmm_server.models.importers.onnx_writer import ModelWriter
from vmm_server.models.importers.quantization_mix import mix_name
from vmm_server.models.importers.quantized_weights import QuantizedWeights
from vmm_server.models.importers.safetensors_config import TextConfig, read_text_config
from vmm_server.models.importers.safetensors_tokenizer import copy_tokenizer
from vmm_server.models.importers.safetensors_weights import SafetensorsWeights

_NOT_PARAMETERS = {"rope_freqs.weight"}


def import_decoder(
    source: Path, folder: Path, progress: Callable[[int, int], None], *, quantize: LlamaFileType | None = None
) -> ImportedModel:
    """Write the text model in the folder `source` into the empty `folder`; the same files give the same bytes.

    With `quantize` its matrices become those of that mix. `progress` gets (bytes written, bytes in all). Everything
    that can be wrong with configuration, names, types and shapes is found before the first weight is written. Raises
    `CorruptFile`, `UnsupportedArchitecture`, `ImportFailed`, or `StoreError` when `folder` cannot be written; `folder`
    is then incomplete and of no use.
    """
    config = read_text_config(source)
    with SafetensorsWeights(source, config) as stored:
        weights = stored if quantize is None else QuantizedWeights(stored, quantize)
        writer = ModelWriter(f"{config.decoder.family} decoder")
        vocab_size = build_decoder(writer, weights, config.decoder)
        try:
            tokenizer, tokens = copy_tokenizer(source, folder, vocab_size)
            write_genai_config(folder, config.decoder, tokenizer, vocab_size)
            writer.write(folder, progress)
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be written: {error.strerror or error}", hint="make room, or choose another models_dir"
            ) from error
        stored_as = _most_common_type(stored) if quantize is None else mix_name(quantize)
        return _describe(config, stored, tokenizer, tokens, stored_as)


def _most_common_type(weights: SafetensorsWeights) -> str:
    counted: Counter[str] = Counter()
    for tensor in weights.tensors.values():
        counted[tensor.type.name] += tensor.num_elements
    return counted.most_common(1)[0][0]


def _describe(
    config: TextConfig,
    weights: SafetensorsWeights,
    tokenizer: TokenizerInfo,
    tokens: frozenset[str],
    quantization: str,
) -> ImportedModel:
    count = sum(tensor.num_elements for name, tensor in weights.tensors.items() if name not in _NOT_PARAMETERS)
    return ImportedModel(
        family=config.decoder.family,
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=quantization,
        context_length=max_positions(config.decoder),
        embedding_length=config.decoder.hidden_size,
        capabilities=guess_capabilities(tokenizer.chat_template, tokens),
        has_chat_template=tokenizer.chat_template is not None,
        license=None,
        name=None,
    )
