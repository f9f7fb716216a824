"""`CausalLMRunner` by kernels of our own: a decoder's whole step is one call of compiled code."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.batching import pack
from vmm_adapters.cpu import cores
from vmm_adapters.cpu.buffers import StepBuffers
from vmm_adapters.cpu.formats import BLOCK_SIZE, block_bytes
from vmm_adapters.cpu.isa import InstructionSet
from vmm_adapters.cpu.kernels import Kernels, writable
from vmm_adapters.cpu.layout import Decoder, round_up
from vmm_adapters.cpu.matching import read_plan
from vmm_adapters.cpu.plan import DecoderPlan
from vmm_adapters.cpu.share import MODEL
from vmm_adapters.cpu.threads import Team
from vmm_adapters.decoder_folder import read_model_folder
from vmm_adapters.errors import OutOfMemory, RuntimeFailed, UnsupportedModel, runtime_errors
from vmm_adapters.heap import give_back, trim_heap
from vmm_adapters.types import Batch, Chunk, RunnerOptions

DEVICE = "CPU"


class CPURunner:
    """Implements `vmm_adapters.base.CausalLMRunner`. Built by `load_runner`."""

    block_size = BLOCK_SIZE
    device = DEVICE

    def __init__(self, plan: DecoderPlan, options: RunnerOptions, *, isa: InstructionSet | None = None) -> None:
        """Raises `OutOfMemory`, and `RuntimeFailed` where nothing can be compiled."""
        self.vocab_size, self.context_length = plan.vocab_size, plan.context_length
        num_sequences = min(options.max_sequences, options.max_batched_tokens)
        self._max_entries = num_sequences * -(-plan.context_length // BLOCK_SIZE)
        self._decoder: Decoder | None = Decoder(plan)
        layers = self._decoder.layers
        is_narrow = options.kv_cache_type == "u8"
        sizes = [_layer_bytes(layer, is_narrow) for layer in layers]
        self.num_blocks = _count_blocks(sum(map(sum, sizes)), options, plan.context_length)
        self._blocks = [[np.zeros((self.num_blocks, size), np.uint8) for size in pair] for pair in sizes]
        for layer, (keys, values) in zip(layers, self._blocks, strict=True):
            layer["keys"], layer["values"] = keys.ctypes.data, values.ctypes.data
        model = np.zeros(1, MODEL)
        model["width"], model["final_norm"], model["is_narrow"] = plan.width, self._decoder.final_norm, is_narrow
        for name in ("epsilon", "embedding_scale", "logit_scale"):
            model[name] = getattr(plan, name)
        model["logit_softcap"] = plan.logit_softcap or 0
        matrices = self._decoder.matrices
        forms = matrices["form"][matrices["is_dense"] == 0]
        num_threads = options.num_threads or cores.num_threads()
        self._buffers = StepBuffers(self._decoder, options, plan.context_length, num_threads)
        with runtime_errors("loading kernels", OSError, ValueError):
            kernels = Kernels(isa, forms, writable(options.shared_cache_dir))
        record = self._buffers.record
        self._team: Team | None = Team(kernels, num_threads, model, layers, matrices, record)
        blocks = sum(each.nbytes for pair in self._blocks for each in pair)
        self.memory_bytes = self._decoder.num_bytes + self._buffers.num_bytes + blocks

    def execute(self, batch: Batch) -> NDArray[np.float32]:
        """See `CausalLMRunner.execute`."""
        if self._team is None:
            raise RuntimeFailed("the runner is closed")
        if not batch.chunks:
            return np.empty((0, self.vocab_size), np.float32)
        arrays = pack(
            batch,
            block_size=BLOCK_SIZE,
            num_blocks=self.num_blocks,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )
        if (num_entries := len(arrays["block_indices"])) > self._max_entries:
            raise RuntimeFailed(f"the step's tables have {num_entries} blocks, more than {self._max_entries}")
        self._buffers.write(arrays, batch.num_logits)
        self._team.compute()
        return self._buffers.logits[: batch.num_logits, : self.vocab_size]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `CausalLMRunner.copy_blocks`."""
        if self._team is None:
            raise RuntimeFailed("the runner is closed")
        for source, target in pairs:
            if not (0 <= source < self.num_blocks and 0 <= target < self.num_blocks):
                raise RuntimeFailed(f"a block id is not in 0 .. {self.num_blocks - 1}")
            for kinds in self._blocks:
                for blocks in kinds:
                    blocks[target] = blocks[source]

    def warm_up(self) -> None:
        """See `CausalLMRunner.warm_up`. What packing took is given back."""
        self.execute(Batch((Chunk([0], 0, [0]),)))
        give_back()

    def close(self) -> None:
        """See `CausalLMRunner.close`."""
        if self._team is not None:
            self._team.close()
        self._team = self._decoder = None
        self._blocks = []
        trim_heap()


def _layer_bytes(layer: np.void, is_narrow: bool) -> tuple[int, int]:
    heads, head = int(layer["num_kv_heads"]), int(layer["head_size"])
    return block_bytes(heads, head, is_narrow), block_bytes(heads, round_up(head), is_narrow)


def _count_blocks(block_bytes: int, options: RunnerOptions, context_length: int) -> int:
    """Blocks that fit the budget, but no more than so many full sequences need. None of their pages is touched yet."""
    wanted = options.max_sequences * -(-context_length // BLOCK_SIZE)
    num_blocks = min(options.kv_cache_bytes // block_bytes, wanted)
    if num_blocks < 1:
        raise OutOfMemory(
            f"kv_cache_bytes={options.kv_cache_bytes} holds no KV block; one takes {block_bytes} bytes",
            hint="raise memory_budget",
        )
    return num_blocks


def load_runner(folder: Path, options: RunnerOptions, *, isa: InstructionSet | None = None) -> CPURunner:
    """Load a genai ONNX folder. Raises `AdapterError`; `UnsupportedModel` names the node that there is no kernel for.

    `isa`: instead of the best one that the machine has.
    """
    if options.device.upper() != DEVICE:
        raise RuntimeFailed(f"the cpu adapter computes on {DEVICE} alone, not on {options.device}")
    described = read_model_folder(folder)
    if described.decoder.suffix != ".onnx":
        raise UnsupportedModel(f"{folder}: the cpu adapter reads ONNX, not {described.decoder.name}")
    return CPURunner(read_plan(described.decoder, context_length=described.context_length), options, isa=isa)
