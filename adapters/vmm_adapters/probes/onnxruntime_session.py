"""Whether a session starts with a provider: being built in says nothing of the driver and the libraries it needs."""

import sys

import onnxruntime
from onnx import TensorProto, helper

from vmm_adapters.probes.answering import answer
from vmm_adapters.probing.findings import ProviderTrial


def tiny_model() -> bytes:
    """y = x + x."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def ask(provider: str) -> ProviderTrial:
    """Start a session. Without its libraries a provider is left out of it, with an error in the log alone."""
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider") and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # those that pip installed
    session = onnxruntime.InferenceSession(tiny_model(), providers=[provider])
    return ProviderTrial(provider, provider in session.get_providers())


if __name__ == "__main__":
    answer(lambda: ask(sys.argv[1]))
