"""Runners that the contract is held to, each built once a module from a model written on the spot."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters import echo
from vmm_adapters.base import CausalLMRunner
from vmm_adapters.cpu.codegen.target import supported
from vmm_adapters.cpu.isa import InstructionSet
from vmm_adapters.types import RunnerOptions

from . import cpu_kernels
from .tiny_decoder import PRECISE, TinyDecoder, write_decoder

OPTIONS = RunnerOptions(kv_cache_bytes=4 * 1024**2, max_batched_tokens=96, max_sequences=8)


@dataclass(frozen=True)
class Subject:
    """An adapter under test."""

    load: Callable[[], CausalLMRunner]
    tolerance: float
    """How far logits may be apart; 0 is not at all."""


def _echo(folder: Path, cache: Callable[[], Path]) -> CausalLMRunner:
    echo.write_echo_model(folder)
    return echo.load_runner(folder, OPTIONS)


def _openvino(folder: Path, cache: Callable[[], Path]) -> CausalLMRunner:
    from vmm_adapters.openvino.runner import load_runner

    write_decoder(folder, TinyDecoder(windows=(-1, 40), weight_bits=4))
    return load_runner(folder, OPTIONS, properties=PRECISE)


def _cpu(folder: Path, cache: Callable[[], Path], **changes: Any) -> CausalLMRunner:
    from vmm_adapters.cpu.runner import load_runner

    write_decoder(folder, TinyDecoder(windows=(-1, 40), weight_bits=4))
    return load_runner(folder, replace(OPTIONS, shared_cache_dir=cache(), **changes))


ADAPTERS = [
    pytest.param((_echo, 0.0), id="echo"),
    pytest.param((_cpu, 0.0), id="cpu", marks=pytest.mark.runtime),
    pytest.param((partial(_cpu, num_threads=3), 0.0), id="cpu-3-threads", marks=pytest.mark.runtime),
    pytest.param((partial(_cpu, kv_cache_type="u8"), 0.0), id="cpu-u8", marks=pytest.mark.runtime),
    pytest.param((_openvino, 1e-4), id="openvino", marks=pytest.mark.runtime),
]


@pytest.fixture(scope="module", params=ADAPTERS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    build, tolerance = request.param
    cache = partial(request.getfixturevalue, "kernel_cache")
    return Subject(lambda: build(tmp_path_factory.mktemp("model"), cache), tolerance)


@pytest.fixture(scope="module")
def runner(subject: Subject) -> Iterator[CausalLMRunner]:
    loaded = subject.load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="session", params=InstructionSet, ids=lambda isa: isa.name)
def cpu_subject(request: pytest.FixtureRequest, kernel_cache: Path) -> cpu_kernels.Subject:
    """The CPU adapter's kernels of one instruction set."""
    if request.param not in supported():
        pytest.skip(f"this machine has no {request.param.name}")
    return cpu_kernels.subject(request.param, kernel_cache)
