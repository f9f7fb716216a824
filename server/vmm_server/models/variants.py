"""The precisions of one model: which it has, and how they come and go. The names are the users' words for them."""

import re

from vmm_server.errors import ImportFailed, InvalidRequest, ModelNotFound
from vmm_server.models.building import Runnable
from vmm_server.models.names import ModelName
from vmm_server.models.store import InstalledModel, Store, Variant

ORIGINAL = "original"
"""How requests and commands call the model as it was installed."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


def check_variant_name(name: str) -> str:
    """The name, if a variant can be called so. Raises `InvalidRequest`."""
    if not _NAME.fullmatch(name) or name in (ORIGINAL, "auto"):
        hint = f"small letters, digits, dots and dashes, 32 at most; not {ORIGINAL} or auto"
        raise InvalidRequest(f"{name[:100]!r} is no name of a variant", param="variant", hint=hint)
    return name


def with_variant(now: InstalledModel, made_of: InstalledModel, variant: Variant) -> tuple[Variant, ...]:
    """The variants of a model with another one, sorted by name; it takes the place of one that is called the same.

    Raises `ModelNotFound` when the model has become another meanwhile.
    """
    if now.weights != made_of.weights:
        raise ModelNotFound(now.name, message=f"{now.name} was replaced meanwhile")
    check_variant_name(variant.name)
    others = [each for each in now.variants if each.name != variant.name]
    return tuple(sorted([*others, variant], key=lambda each: each.name))


def describe_variant(model: InstalledModel, runnable: Runnable, name: str, quantization: str, source: str) -> Variant:
    """What was fetched as a variant of a model. Raises `ImportFailed` when it is no precision of that model."""
    imported = runnable.imported
    if imported.family != model.family or ("completion" in imported.capabilities) != model.generates:
        message = f"{source} is {imported.family}, {', '.join(imported.capabilities)}; {model.name} is {model.family}"
        raise ImportFailed(message, hint="mend the card's variant")
    size_bytes = sum(file.stat().st_size for file in runnable.folder.rglob("*") if file.is_file())
    return Variant(name, runnable.folder, size_bytes, runnable.digest, runnable.format, quantization, source)


def check_has_variant(model: InstalledModel, name: str) -> None:
    """Raises `InvalidRequest` naming those that it has."""
    if not any(each.name == name for each in model.variants):
        there = ", ".join(each.name for each in model.variants) or "none"
        raise InvalidRequest(f"{model.name} has no variant {name[:100]!r}; it has: {there}", param="variant")


def remove_variant(store: Store, model: InstalledModel, name: str) -> None:
    """Take one away, and its files unless another model has them.

    Raises `InvalidRequest` for one that is not there, `StoreError`.
    """
    check_has_variant(model, name)

    def without(now: InstalledModel) -> tuple[Variant, ...]:
        return tuple(each for each in now.variants if each.name != name)

    store.set_variants(ModelName.parse(model.name), without)
