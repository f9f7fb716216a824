"""A look at what is counted: values and distributions by name and labels."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmm_server.engine.histogram import Distribution
from vmm_server.metrics.families import OTHER
from vmm_server.models.router import Placement

Labels = tuple[str, ...]
"""In the order of the family's names."""


def place_of(name: str, placement: Placement) -> Labels:
    """A model on a placement, as `families.PLACE` has it."""
    return name, placement.adapter, placement.device, placement.variant


class Bounded:
    """Sets of labels, so many at most: what comes beyond them is counted together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[Labels] = set()

    def __call__(self, labels: Labels) -> Labels:
        """These, or what stands for all others."""
        if labels not in self._known and len(self._known) >= self._most:
            return (OTHER,) * len(labels)
        self._known.add(labels)
        return labels


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
