"""A look at what is counted: values and distributions by name and labels."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmm_server.engine.histogram import Distribution
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel

Labels = tuple[str, ...]
"""In the order of the family's names."""


def place_of(model: InstalledModel, placement: Placement) -> Labels:
    """A model on a placement, as `families.PLACE` has it."""
    return model.name, placement.adapter, placement.device, placement.variant


@dataclass(slots=True)
class Figures:
    """Name → labels → what there is. Of what has the same name and labels, the sum."""

    values: defaultdict[str, Counter[Labels]] = field(default_factory=lambda: defaultdict(Counter))
    distributions: defaultdict[str, dict[Labels, Distribution]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, name: str, labels: Labels, value: int) -> None:
        """Count a value in."""
        self.values[name][labels] += value

    def add_distribution(self, name: str, labels: Labels, distribution: Distribution) -> None:
        """Count a distribution in."""
        before = self.distributions[name].get(labels)
        self.distributions[name][labels] = distribution if before is None else before + distribution

    def add_all(self, other: "Figures", names: Mapping[str, object] | frozenset[str] | None = None) -> None:
        """Count others in; only those of some names, where these are given."""
        for name, values in other.values.items():
            if names is None or name in names:
                for labels, value in values.items():
                    self.add(name, labels, value)
        for name, distributions in other.distributions.items():
            if names is None or name in names:
                for labels, distribution in distributions.items():
                    self.add_distribution(name, labels, distribution)
