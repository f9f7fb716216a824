"""Whether OpenVINO GenAI and its tokenisers can be loaded beside the OpenVINO that is installed."""

import openvino_genai

from vmm_adapters.probes.answering import answer
from vmm_adapters.probing.findings import OpenVINOGenAI


def ask() -> OpenVINOGenAI:
    """Importing it loads its libraries: those of another version of OpenVINO fail here."""
    return OpenVINOGenAI(str(openvino_genai.__version__))


if __name__ == "__main__":
    answer(ask)
