"""A tiny model, measured on each runtime that is installed, and then served from where it is the fastest."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.device import AdapterUse, Device, DeviceKind, Machine
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.calibration import Calibrated
from vmm_server.models.compiled import shared_compiled_dir
from vmm_server.models.loading import load_model
from vmm_server.models.machine import MachineReader
from vmm_server.models.router import NO_LOAD, Placement, Work, finish_s
from vmm_server.models.store import InstalledModel, Store
from vmm_server.parts import build_parts
from vmm_server.requests import ANYWHERE, Wanted

from .genai_folder import write_genai_folder
from .tiny_decoder import TinyDecoder

pytestmark = pytest.mark.runtime

MB = 1 << 20
ADAPTERS = ("cpu", "openvino", "onnxruntime-genai")
CPU = Device("CPU", DeviceKind.CPU, "a maker", "a CPU", uses=tuple(AdapterUse(adapter, "CPU") for adapter in ADAPTERS))


def installed(
    store: Store, folder: Path, change: Callable[[onnx.GraphProto], None] = lambda graph: None
) -> InstalledModel:
    decoder = TinyDecoder(vocab_size=96, weight_bits=4)
    write_genai_folder(folder, decoder)
    written = onnx.load(folder / "model.onnx")
    change(written.graph)
    (folder / "model.onnx").write_bytes(written.SerializeToString())
    model = InstalledModel(
        name="tiny:latest",
        aliases=(),
        digest="7" * 64,
        size_bytes=MB,
        modified_at=datetime(2026, 1, 1, tzinfo=UTC),
        adapter="openvino",
        folder=folder,
        format="onnx",
        family="llama",
        parameter_size="1M",
        quantization="F32",
        context_length=decoder.context_length,
        embedding_length=None,
        capabilities=("completion",),
        license=None,
        title="tiny",
        system=None,
        sampling=SamplingDefaults(),
        source="file:/tiny",
    )
    return store.install(model)


def _with_another_gate(graph: onnx.GraphProto) -> None:
    """One that OpenVINO computes as any other."""
    next(node for node in graph.node if node.op_type == "Sigmoid").op_type = "Softsign"


def test_a_model_is_measured_on_each_runtime_and_goes_where_it_ends_first(
    settings_with_kernels: Callable[..., Any], tmp_path: Path
) -> None:
    configured = settings_with_kernels(kv_cache_size=16 * MB)
    model = installed(Store(configured.store_dir), tmp_path / "tiny")
    machine = MachineReader(lambda: Machine((CPU,), {}))
    parts = build_parts(configured, partial(load_model, settings=configured), machine)

    async def body() -> None:
        try:
            found = [event async for event in parts.calibrator.calibrate(model) if isinstance(event, Calibrated)]
            assert [(each.placement.adapter, each.reason) for each in found] == [(name, None) for name in ADAPTERS]
            profiles = {each.placement: each.profile for each in found if each.profile is not None}
            for profile in profiles.values():
                assert min(profile.decode_1, profile.decode_8, profile.prefill, profile.load_s) > 0
                assert profile.memory_bytes > MB
            best = min(profiles, key=lambda placement: finish_s(profiles[placement], NO_LOAD, Work(num_streams=4)))
            (await parts.pool.acquire(model, None)).release()
            assert [loaded.placement for loaded in parts.pool.loaded()] == [best]
        finally:
            await parts.pool.aclose()
            await parts.response_store.aclose()

    asyncio.run(body())


def test_what_our_kernels_cannot_read_goes_on_to_the_next_runtime_at_once(
    settings: Callable[..., Any], tmp_path: Path
) -> None:
    configured = settings(kv_cache_size=16 * MB)
    model = installed(Store(configured.store_dir), tmp_path / "tiny", _with_another_gate)
    parts = build_parts(
        configured, partial(load_model, settings=configured), MachineReader(lambda: Machine((CPU,), {}))
    )
    first, second = (Placement(adapter, "CPU") for adapter in ADAPTERS[:2])

    async def body() -> None:
        try:
            assert (await parts.placer.placements(model, ANYWHERE))[0] == first
            (await parts.pool.acquire(model, None)).release()
            assert [loaded.placement for loaded in parts.pool.loaded()] == [second]
            failure = parts.placer.failure(model, first)
            assert failure is not None
            assert "an activation (SiLU or Gelu) is expected" in failure.reason
            assert not shared_compiled_dir(configured.cache_dir).exists()
            with pytest.raises(ModelLoadFailed, match=r"on cpu/CPU: Mul .*an activation"):
                await parts.pool.acquire(model, None, wanted=Wanted(backend="cpu"))
        finally:
            await parts.pool.aclose()
            await parts.response_store.aclose()

    asyncio.run(body())
