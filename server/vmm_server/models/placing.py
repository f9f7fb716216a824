"""Where a model runs: walk the placements until one takes it."""

from collections.abc import Callable
from typing import TypeVar

from vmm_adapters import catalog
from vmm_adapters.base import CausalLMRunner, Encoder
from vmm_adapters.errors import AdapterError
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.router import Placement, placements
from vmm_server.models.store import InstalledModel

Runner = TypeVar("Runner", CausalLMRunner, Encoder)


def load_on_best(model: InstalledModel, device: str, load: Callable[[Placement], Runner]) -> tuple[Placement, Runner]:
    """The first placement that `load`s and warms up. `device` is `auto` or a name.

    Raises `ModelLoadFailed` with each placement's reason.
    """
    failures: list[str] = []
    try:
        devices = catalog.list_devices(model.adapter)
    except AdapterError as error:
        raise ModelLoadFailed(f"cannot load {model.name!r}: {error.message}", hint=error.hint) from error
    for placement in placements(model.adapter, model.size_bytes, devices, device):
        try:
            runner = load(placement)
        except AdapterError as error:
            failures.append(f"{placement}: {error.message}")
            continue
        try:
            runner.warm_up()
        except AdapterError as error:
            runner.close()
            failures.append(f"{placement}: {error.message}")
            continue
        return placement, runner
    raise ModelLoadFailed(
        f"cannot load {model.name!r}: " + ("; ".join(failures) or f"{model.adapter} has no device here"),
        hint="vmm show tells what the model is; a log line tells more",
    )
