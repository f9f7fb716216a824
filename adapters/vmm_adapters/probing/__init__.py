"""What this machine computes on: `probe() -> Machine`.

Every runtime and the system are asked in child processes of their own, all at once, with a time limit (`children`).
Then each accelerator provider of ONNX Runtime's is tried with a session: being built in says nothing of the driver.
`merging` makes one device of what several of them say, `uses` tells which adapter can use it.
"""

import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.util import find_spec
from time import monotonic
from typing import TypeVar

from vmm_adapters.device import Machine
from vmm_adapters.probing.children import Outcome, Probe, run_probes
from vmm_adapters.probing.findings import (
    Accelerator,
    Finding,
    Findings,
    KernelCompiler,
    NvidiaDriver,
    OnnxRuntime,
    OnnxRuntimeGenAI,
    OpenVINOCore,
    OpenVINOGenAI,
    PlugIn,
    Processor,
    ProviderTrial,
    SystemAccelerators,
)
from vmm_adapters.probing.merging import merge
from vmm_adapters.probing.packages import installed_packages, plug_in_modules
from vmm_adapters.probing.uses import PROVIDERS

Found = TypeVar("Found", bound=Finding)

_UNTRIED = ("CPUExecutionProvider", "AzureExecutionProvider")
"""Providers that need no trial: one always starts, the other computes elsewhere."""
_RUNTIMES: tuple[tuple[str, str, type[Finding]], ...] = (
    ("openvino", "openvino", OpenVINOCore),
    ("openvino_genai", "openvino_genai", OpenVINOGenAI),
    ("onnxruntime", "onnxruntime", OnnxRuntime),
    ("onnxruntime_genai", "genai", OnnxRuntimeGenAI),
    ("numba", "kernel_compiler", KernelCompiler),
)
"""Module, probe, and what it finds."""


def probe(
    timeout_s: float = 20.0,
    *,
    probes: Sequence[Probe] | None = None,
    trial: Callable[[str], Probe] | None = None,
) -> Machine:
    """Ask everybody; back after `timeout_s` and a moment at the latest. Blocks: not for an event loop.

    Who crashes, hangs or talks nonsense is a line in `problems` and a reason in `uses`. `probes` and `trial` stand in
    for those that there are: `trial(provider)` starts a session.
    """
    deadline = monotonic() + timeout_s
    outcomes = run_probes(installed_probes() if probes is None else probes, timeout_s)
    onnxruntime = _first(outcomes, OnnxRuntime)
    witnesses = [_first(outcomes, SystemAccelerators), _first(outcomes, NvidiaDriver)]
    accelerators = [each for witness in witnesses if witness is not None for each in witness.accelerators]
    providers = providers_to_try(onnxruntime.providers if onnxruntime else (), accelerators)
    trials = run_probes([(trial or provider_trial)(each) for each in providers], max(0.0, deadline - monotonic()))
    findings = Findings(
        processor=_first(outcomes, Processor),
        system=_first(outcomes, SystemAccelerators),
        nvidia=_first(outcomes, NvidiaDriver),
        openvino=_first(outcomes, OpenVINOCore),
        openvino_genai=_first(outcomes, OpenVINOGenAI),
        onnxruntime=onnxruntime,
        genai=_first(outcomes, OnnxRuntimeGenAI),
        compiler=_first(outcomes, KernelCompiler),
        trials=tuple(_trial(provider, outcome) for provider, outcome in zip(providers, trials, strict=True)),
        plug_ins=tuple(each.finding for each in outcomes if isinstance(each.finding, PlugIn)),
        problems={each.probe.finding: each.problem for each in outcomes if each.problem},
        platform=sys.platform,
    )
    problems = tuple(each.problem for each in (*outcomes, *trials) if each.problem)
    return Machine(devices=merge(findings), packages=installed_packages(), problems=problems)


def providers_to_try(built_in: Iterable[str], accelerators: Collection[Accelerator]) -> list[str]:
    """Without those that have nothing here to run on: loading CUDA takes seconds."""
    return [
        name
        for name in built_in
        if name not in _UNTRIED
        and (
            (provider := PROVIDERS.get(name)) is None
            or any(provider.serves(each.kind, each.vendor) for each in accelerators)
        )
    ]


def installed_probes() -> tuple[Probe, ...]:
    """Those of what is installed here."""
    runtimes = [(name, module, finding) for name, module, finding in _RUNTIMES if find_spec(name) is not None]
    nvidia = [Probe("NVIDIA's driver", _command("nvidia"), NvidiaDriver)] if shutil.which("nvidia-smi") else []
    return (
        Probe("the CPU", _command("cpu"), Processor),
        Probe("the system's list of devices", _command("system"), SystemAccelerators),
        *nvidia,
        *(Probe(name.replace("_", "-"), _command(module), finding) for name, module, finding in runtimes),
        *(Probe(name.replace("_", "-"), _command("plug_in", name), PlugIn) for name in plug_in_modules()),
    )


def provider_trial(provider: str) -> Probe:
    """A session with one of ONNX Runtime's providers."""
    return Probe(provider, _command("onnxruntime_session", provider), ProviderTrial)


def _command(module: str, *arguments: str) -> tuple[str, ...]:
    """`-P`: no module of the current folder is taken for a package; `-B`: nothing is written."""
    return sys.executable, "-P", "-B", "-m", f"vmm_adapters.probes.{module}", *arguments


def _first(outcomes: Iterable[Outcome], kind: type[Found]) -> Found | None:
    return next((each.finding for each in outcomes if isinstance(each.finding, kind)), None)


def _trial(provider: str, outcome: Outcome) -> ProviderTrial:
    """Of a provider that was left out of its session, the log alone says why."""
    if isinstance(outcome.finding, ProviderTrial) and outcome.finding.works:
        return outcome.finding
    return ProviderTrial(provider, False, outcome.problem or outcome.last_words or None)
