"""`make bench ARGS=contexts`: what one more token takes, by how many there are, to 32,768 positions.

The model's own positions end earlier, so its rotary tables are repeated: speed does not depend on what is in them.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bench.tables import show
from vmm_adapters.cpu.matching import read_plan
from vmm_adapters.cpu.plan import DecoderPlan, RotaryTable
from vmm_adapters.cpu.runner import CPURunner
from vmm_adapters.decoder_folder import read_model_folder
from vmm_adapters.types import Batch, Chunk, KVCacheType, RunnerOptions
from vmm_server.models.compiled import shared_compiled_dir
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import Store
from vmm_server.settings import read_settings

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
_NUM_STEPS = 15


def main(arguments: Sequence[str]) -> None:
    """Print a table for float16 and one for 8 bits."""
    parser = argparse.ArgumentParser(prog="bench contexts", description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    settings = read_settings()
    store = Store(settings.store_dir)
    model = Registry(store, read_cards(settings.card_dirs)).resolve(parser.parse_args(arguments).model)
    described = read_model_folder(model.folder)
    plan = _stretched(read_plan(described.decoder, context_length=described.context_length), LENGTHS[-1])
    for kind in ("f16", "q8_0"):
        options = RunnerOptions(
            kv_cache_bytes=2**33,
            kv_cache_type=_KINDS[kind],
            max_sequences=1,
            shared_cache_dir=shared_compiled_dir(settings.cache_dir),
        )
        runner = CPURunner(plan, options)
        runner.warm_up()
        rows, times = [], []
        for length in LENGTHS:
            times.append(_step_s(runner, length))
            slope = (times[-1] - times[0]) / (length - LENGTHS[0]) if len(times) > 1 else 0.0
            rows.append([str(length), f"{1000 * times[-1]:.2f}", f"{1e9 * slope:.0f}" if slope else ""])
        runner.close()
        show(f"one token more, KV in {kind}", ["positions", "ms", "ns a position more than 512"], rows)


_KINDS: dict[str, KVCacheType] = {"f16": "f16", "q8_0": "u8"}


def _step_s(runner: CPURunner, length: int) -> float:
    table = range(-(-length // runner.block_size))
    batch = Batch((Chunk([1], length - 1, table),))
    seconds = []
    for _ in range(_NUM_STEPS):
        started = time.perf_counter()
        runner.execute(batch)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _stretched(plan: DecoderPlan, positions: int) -> DecoderPlan:
    def tables(rotary: RotaryTable | None) -> RotaryTable | None:
        if rotary is None:
            return None
        times = -(-positions // len(rotary.cosines))
        return RotaryTable(np.tile(rotary.cosines, (times, 1)), np.tile(rotary.sines, (times, 1)))

    layers = tuple(
        replace(each, attention=replace(each.attention, rotary=tables(each.attention.rotary))) for each in plan.layers
    )
    return replace(plan, layers=layers, context_length=positions)
