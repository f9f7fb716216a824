"""What a pull's reference means, before anything is asked of anybody."""

from dataclasses import dataclass

from vmm_adapters.card import ModelCard
from vmm_server.errors import ModelNotFound
from vmm_server.models.names import DEFAULT_TAG, ModelName
from vmm_server.models.registry import Registry
from vmm_server.models.sources import RetryPolicy, Source, is_uri, parse_source

_HUB_HOSTS = ("hf.co", "huggingface.co")
"""`hf.co/org/repo:Q4_K_M` is how Ollama's clients write `hf:org/repo:Q4_K_M`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A source, and what its model will be called."""

    source: Source
    name: ModelName | None
    """`None`: derived from what the source holds."""
    card: ModelCard | None

    @property
    def key(self) -> tuple[str, str]:
        """Equal for pulls that do the same."""
        return self.source.uri, self.name.key if self.name else ""


def make_plan(reference: str, name: str | None, registry: Registry, retry: RetryPolicy) -> Plan:
    """Read a card's name or a source's URI. Raises `InvalidRequest`, `InvalidModelName`, `ModelNotFound`."""
    wanted = ModelName.parse(name) if name else None
    if is_uri(reference):
        named = registry.find_card(name) if name else None
        card = named if named and named.source.uri == reference else None  # the card's own source, spelt out
        return Plan(parse_source(reference, retry), wanted, card)
    card = registry.find_card(reference)
    if card:
        return Plan(parse_source(card.source.uri, retry), wanted or ModelName.parse(card.id), card)
    parsed = ModelName.parse(reference)
    if parsed.host.lower() in _HUB_HOSTS:
        quantization = f":{parsed.tag}" if parsed.tag != DEFAULT_TAG else ""
        return Plan(parse_source(f"hf:{parsed.namespace}/{parsed.model}{quantization}", retry), wanted or parsed, None)
    raise ModelNotFound(reference, hint=registry.suggest(parsed))
