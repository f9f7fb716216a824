"""What is wrong with an installation, a machine and its settings, and the command that mends it. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from vmm_adapters.catalog import RUNS
from vmm_adapters.device import Device, Machine
from vmm_server.models.disk import format_bytes

ONNXRUNTIME_BUILDS = tuple(
    f"onnxruntime{suffix}"
    for suffix in (
        *("", "-gpu", "-openvino", "-directml", "-migraphx", "-rocm", "-webgpu", "-trt-rtx", "-windowsml"),
        *("-training", "-azure", "-cann", "-coreml", "-silicon", "-qnn"),
    )
)
"""Packages with the module `onnxruntime`: of two, each overwrites files of the other."""
GENAI_BUILDS = tuple(f"onnxruntime-genai{suffix}" for suffix in ("", "-cuda", "-directml", "-winml"))
"""Packages with the module `onnxruntime_genai`."""
_OPENVINO_FAMILY = ("openvino-genai", "openvino-tokenizers")
"""Packages that hold libraries made for one version of openvino."""
_LEAST_FREE_DISK_BYTES = 5 * 10**9
"""Room for a model of some billions of parameters, or a few small ones."""


class Severity(StrEnum):
    """How bad it is."""

    BROKEN = "broken"
    """Something fails, or will."""
    WARNING = "warning"
    """It works, but not as well as it could, or as was meant."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    severity: Severity
    message: str
    mend: str | None = None
    """A command or a sentence."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What is installed."""

    packages: Mapping[str, str]
    """Name in small letters → version; those that matter to inference, `vmm-server`, and what these require."""
    requirements: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name → what its metadata requires, as pip writes it; without its extras."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What the settings come to on this machine."""

    device: str = "auto"
    memory_budget_bytes: int | None = None
    models_dir: str = ""
    models_dir_error: str | None = None
    """Why nothing can be written there."""
    free_disk_bytes: int | None = None
    """On the disk that holds it."""
    home: str = ""
    home_error: str | None = None
    cache_dir: str = ""
    cache_dir_error: str | None = None
    address_error: str | None = None
    """Why a server could not listen; `None` also when one of ours does already."""
    without_effect: tuple[str, ...] = ()
    """Sentences on variables that do nothing here."""


def diagnose(installation: Installation, machine: Machine, setup: Setup | None) -> list[Finding]:
    """What is broken first. `setup` is `None` where the settings cannot be read."""
    found = [*_packages(installation), *_machine(machine)]
    if setup is not None:
        found += _settings(setup, machine)
    return sorted(found, key=lambda finding: list(Severity).index(finding.severity))


def _packages(installation: Installation) -> Iterator[Finding]:
    packages = installation.packages
    for module, builds in (("onnxruntime", ONNXRUNTIME_BUILDS), ("onnxruntime_genai", GENAI_BUILDS)):
        if len(here := [name for name in builds if name in packages and not _is_plug_in(name, packages[name])]) > 1:
            yield _overwritten(module, here, packages)
    if "openvino" in packages:
        yield from _openvino_family(packages)
    for name, requirements in installation.requirements.items():
        for text in requirements:
            if finding := _unmet(name, text, packages):
                yield finding


def _is_plug_in(name: str, version: str) -> bool:
    """From its version 2 on, onnxruntime-qnn brings a plug-in for onnxruntime, not a build of it."""
    return name == "onnxruntime-qnn" and _release(version) >= (2,)


def _overwritten(module: str, here: Sequence[str], packages: Mapping[str, str]) -> Finding:
    kept = here[-1]  # the plain one is the first: who installed another one besides wanted that
    return Finding(
        Severity.BROKEN,
        f"{' and '.join(here)} are both installed, and overwrite each other's files: all hold the module {module}",
        f"pip uninstall -y {' '.join(here)} && pip install --no-deps {kept}=={packages[kept]}",
    )


def _openvino_family(packages: Mapping[str, str]) -> Iterator[Finding]:
    wanted = _release(packages["openvino"])[:2]
    wrong = [name for name in _OPENVINO_FAMILY if name in packages and _release(packages[name])[:2] != wanted]
    if wrong:
        version = ".".join(map(str, wanted))
        versions = ", ".join(f"{name} {packages[name]}" for name in ("openvino", *wrong))
        yield Finding(
            Severity.BROKEN,
            f"{versions} do not fit together: their first two numbers must be the same",
            "pip install " + " ".join(f"'{name}=={version}.*'" for name in ("openvino", *_OPENVINO_FAMILY)),
        )


def _unmet(name: str, text: str, packages: Mapping[str, str]) -> Finding | None:
    """A requirement that nothing here meets. Another build of onnxruntime is as good as onnxruntime itself."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return None
    wanted = _normal(requirement.name)
    if wanted in _OPENVINO_FAMILY and name in ("openvino", *_OPENVINO_FAMILY) and wanted in packages:
        return None  # said of the whole family
    alternatives = ONNXRUNTIME_BUILDS if wanted == "onnxruntime" else (wanted,)
    here = {each: packages[each] for each in alternatives if each in packages}
    if any(_fits(requirement, version) for version in here.values()):
        return None
    versions = " and ".join(f"{each} {version}" for each, version in here.items()) or "not installed"
    plain = Requirement(str(requirement).partition(";")[0])
    target = f"{next(iter(here), wanted)}{plain.specifier}"
    is_there = "here is" if here else "it is"
    return Finding(Severity.BROKEN, f"{name} needs {plain}; {is_there} {versions}", f"pip install '{target}'")


def _fits(requirement: Requirement, version: str) -> bool:
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True


def _machine(machine: Machine) -> Iterator[Finding]:
    for problem in machine.problems:
        package = problem.partition(" ")[0]
        mend = f"pip install --force-reinstall --no-deps {package}" if package in machine.packages else None
        if problem.startswith("NVIDIA's driver"):
            mend = "restart the machine, or install NVIDIA's driver anew; nvidia-smi tells more"
        yield Finding(Severity.BROKEN, problem, mend)
    for device in machine.devices:
        if not any(use.spelling for use in device.uses if "text" in RUNS[use.adapter].tasks):
            yield _unused(device)


def _unused(device: Device) -> Finding:
    severity = Severity.BROKEN if device.name == "CPU" else Severity.WARNING
    reasons = "; ".join(f"{use.adapter}: {use.reason}" for use in device.uses if use.reason)
    command = next((use.reason for use in device.uses if use.reason and "pip install" in use.reason), None)
    return Finding(
        severity,
        f"no text model can use {device.name} ({device.description}). {reasons}",
        f"pip install {command.partition('pip install ')[2]}" if command else None,
    )


def _settings(setup: Setup, machine: Machine) -> Iterator[Finding]:
    if setup.home_error:
        yield Finding(Severity.BROKEN, f"nothing can be written to {setup.home}: {setup.home_error}", "set VMM_HOME")
    if setup.models_dir_error and setup.models_dir_error != setup.home_error:
        yield Finding(
            Severity.BROKEN,
            f"no model can be stored in {setup.models_dir}: {setup.models_dir_error}",
            "check who owns that folder, or set VMM_MODELS_DIR to one you can write to",
        )
    if setup.cache_dir_error and setup.cache_dir_error != setup.home_error:
        yield Finding(
            Severity.WARNING,
            f"nothing can be kept in {setup.cache_dir}: {setup.cache_dir_error}; kernels are compiled at every start",
            "check who owns that folder, or set VMM_HOME to one you can write to",
        )
    if setup.free_disk_bytes is not None and setup.free_disk_bytes < _LEAST_FREE_DISK_BYTES:
        yield Finding(
            Severity.WARNING,
            f"the disk that holds {setup.models_dir} has {format_bytes(setup.free_disk_bytes)} left",
            "free some space (vmm rm MODEL), or set VMM_MODELS_DIR to a bigger disk",
        )
    if setup.address_error:
        yield Finding(Severity.BROKEN, setup.address_error, "stop what listens there, or set VMM_PORT")
    yield from _memory(setup, machine)
    names = [device.name for device in machine.devices]
    wanted = setup.device.upper()
    if wanted != "AUTO" and not any(name == wanted or name.startswith(f"{wanted}.") for name in names):
        yield Finding(
            Severity.BROKEN,
            f"setting device: there is no {setup.device} here",
            f"set it to auto, or {', '.join(names)}",
        )
    for sentence in setup.without_effect:
        yield Finding(Severity.WARNING, sentence)


def _memory(setup: Setup, machine: Machine) -> Iterator[Finding]:
    budget, total = setup.memory_budget_bytes, machine.devices[0].memory_total_bytes
    if budget is None or total is None or budget <= total:
        return
    yield Finding(
        Severity.BROKEN,
        f"setting memory_budget: {format_bytes(budget)} is more than the machine has, {format_bytes(total)}",
        f"set VMM_MEMORY_BUDGET to {format_bytes(total * 3 // 4).replace(' ', '')} or less",
    )


def _release(version: str) -> tuple[int, ...]:
    try:
        return Version(version).release
    except InvalidVersion:
        return ()


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
