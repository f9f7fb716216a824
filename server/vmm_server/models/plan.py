"""What a pull's reference means, before anything is asked of anybody."""

import re
from dataclasses import dataclass, replace

from vmm_adapters.card import ModelCard
from vmm_server.errors import InvalidRequest, ModelNotFound
from vmm_server.models.names import DEFAULT_TAG, ModelName, ModelReference
from vmm_server.models.registry import HUB_HOSTS, Registry
from vmm_server.models.sources import RetryPolicy, Source, is_uri, parse_source

_HUB_PAGE = re.compile(
    r"https?://((?:hf|huggingface)\.co)/([^/?#]+/[^/?#]+?)(?:/(?:blob|tree)/([^/?#]+)(/[^?#]+?)?)?/?",
    re.IGNORECASE,
)
"""A repository's page, or that of a file or folder in it: host, repository, revision, path."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A source, and what its model will be called."""

    source: Source
    name: ModelName | None
    """`None`: derived from what the source holds."""
    card: ModelCard | None
    variant: "VariantPlan | None" = None
    """A precision to be fetched besides."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for pulls that do the same."""
        return self.source.uri, self.name.key if self.name else "", self.variant.name if self.variant else ""


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """A precision that a card lists."""

    name: str
    quantization: str
    plan: Plan
    """Its source, in place of the model's."""


def make_plan(
    reference: str, name: str | None, registry: Registry, retry: RetryPolicy, variant: str | None = None
) -> Plan:
    """Read a card's name, a hub's (`hf.co/org/repo:Q8_0`) or a source's URI; a model is called as it was asked for.

    `variant` is one that the card lists. Raises `InvalidRequest`, `InvalidModelName`, `ModelNotFound`.
    """
    plan = _make_plan(reference, name, registry, retry)
    return plan if variant is None else replace(plan, variant=_variant(plan, variant, reference, retry))


def _variant(plan: Plan, name: str, reference: str, retry: RetryPolicy) -> VariantPlan:
    listed = plan.card.variants if plan.card else ()
    for each in listed:
        if each.name == name:
            card = plan.card.model_copy(update={"source": each.source}) if plan.card else None
            source = parse_source(each.source.uri, retry)
            return VariantPlan(name, each.quantization, replace(plan, source=source, card=card))
    there = ", ".join(each.name for each in listed) or "none"
    raise InvalidRequest(
        f"variant: no {name[:100]!r} of {reference} can be pulled; its card lists: {there}",
        param="variant",
        hint=f"vmm quantize {reference} --to int8 or int4 makes one",
    )


def _make_plan(reference: str, name: str | None, registry: Registry, retry: RetryPolicy) -> Plan:
    wanted = ModelName.parse(name) if name else None
    reference = _shown_by(reference)
    if is_uri(reference):
        named = registry.find_card(name) if name else None
        card = named if named and named.source.uri == reference else None  # the card's own source, spelt out
        return Plan(parse_source(reference, retry), wanted, card)
    asked = ModelReference.parse(reference)
    if asked.digest:
        message = f"{reference}: a digest says which installed model is meant; it cannot be pulled by"
        raise InvalidRequest(message, param="model", hint=f"pull {asked.name}, or one commit: hf:org/repo@commit")
    if card := registry.find_card(reference):
        return Plan(parse_source(card.source.uri, retry), wanted or asked.name, card)
    if asked.name.host.lower() in HUB_HOSTS:
        if asked.name.version and wanted is None:
            message = f"{reference}: a repository has no versions of that kind"
            hint = f"one commit: hf:org/repo@commit; a version of your own: --name NAME@{asked.name.version}"
            raise InvalidRequest(message, param="model", hint=hint)
        return Plan(parse_source(_hub_uri(asked.name), retry), wanted or asked.name, None)
    raise ModelNotFound(reference, hint=registry.suggest(asked.name))


def _shown_by(page: str) -> str:
    """What a page of the hub shows, when its address was copied from a browser; anything else as it is."""
    match = _HUB_PAGE.fullmatch(page)
    if not match:
        return page
    host, repo, revision, path = match.groups()
    return f"hf:{repo}@{revision}{path or ''}" if revision else f"{host}/{repo}"


def _hub_uri(name: ModelName) -> str:
    quantization = f":{name.tag}" if name.tag.lower() != DEFAULT_TAG else ""
    return f"hf:{name.namespace}/{name.model}{quantization}"
