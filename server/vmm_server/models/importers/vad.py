"""silero-vad, as its package has it: one ONNX file that computes whole sequences (`silero_vad_16k_sequence.onnx`)."""

from pathlib import Path

from vmm_server.models.importers.encoder_folder import GRAPHS
from vmm_server.models.importers.imported import ImportedModel, parameter_size
from vmm_server.models.importers.onnx_file import OnnxGraph
from vmm_server.models.importers.onnx_weights import count_onnx_weights

INPUTS = frozenset(("input", "h", "c"))
OUTPUTS = frozenset(("speech_probs", "hn", "cn"))


def is_vad(graph: OnnxGraph) -> bool:
    """Whether a graph takes frames and an LSTM's two states, and gives them again with probabilities of speech."""
    inputs, outputs = {port.name for port in graph.inputs}, {port.name for port in graph.outputs}
    return inputs == INPUTS and outputs == OUTPUTS


def describe_vad(folder: Path) -> ImportedModel:
    """What a folder with such a graph is. Raises `CorruptFile`."""
    count, quantization = count_onnx_weights(folder / GRAPHS[0])
    return ImportedModel(
        family="silero-vad",
        parameter_count=count,
        parameter_size=parameter_size(count),
        quantization=quantization,
        context_length=0,
        embedding_length=None,
        capabilities=("vad",),
        has_chat_template=False,
        license=None,
        name=None,
    )
