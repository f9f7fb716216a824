"""Figures of requests: counted once each, when it is over, on the event loop."""

from collections import Counter
from collections.abc import Sequence

from vmm_server.engine.histogram import FIRST_TOKEN_S, OUTPUT_TOKEN_S, Histogram
from vmm_server.metrics.families import GEN_AI, HTTP_S, OTHER, PROVIDER, REQUEST_S, REQUEST_TOKENS
from vmm_server.metrics.figures import Bounded, Figures, Labels
from vmm_server.observed import Observed

MAX_SERIES = 2000
"""Sets of labels of one family, as OpenTelemetry's SDKs have it; what comes beyond is counted together."""
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))


class RequestFigures:
    """What the server's requests came to."""

    def __init__(self) -> None:
        self._http = _Histograms("http_server_request_duration_seconds", HTTP_S)
        self._duration = _Histograms("gen_ai_server_request_duration_seconds", REQUEST_S)
        self._first_token = _Histograms("gen_ai_server_time_to_first_token_seconds", FIRST_TOKEN_S)
        self._output_token = _Histograms("gen_ai_server_time_per_output_token_seconds", OUTPUT_TOKEN_S)
        self._tokens = _Histograms("gen_ai_client_token_usage", REQUEST_TOKENS)
        self._active: Counter[Labels] = Counter()
        self._errors: Counter[Labels] = Counter()

    def http_began(self, method: str) -> None:
        """An HTTP request came."""
        self._active[(_known(method),)] += 1

    def http_ended(self, method: str, route: str, status: int, duration_s: float) -> None:
        """It is over; `route` is the template of its path, empty where there is no such route."""
        self._active[(_known(method),)] -= 1
        self._http.add((_known(method), route, str(status)), duration_s)

    def error(self, error_type: str, family: str) -> None:
        """An error was answered."""
        self._errors[error_type, family] += 1

    def request(self, observed: Observed) -> None:
        """A request to a model is over."""
        labels = _labels(observed)
        self._duration.add((*labels, observed.error_type or ""), observed.duration_s)
        for token_type, count in (("input", observed.num_input_tokens), ("output", observed.num_output_tokens)):
            if count is not None:
                self._tokens.add((*labels, token_type), count)
        usage, first_token_at = observed.usage, observed.first_token_at
        if observed.error is not None or usage is None or first_token_at is None:
            return
        self._first_token.add(labels, first_token_at - observed.began_at)
        if usage.num_generated_tokens > 1:
            self._output_token.add(labels, usage.decode_s / (usage.num_generated_tokens - 1))

    def count(self, figures: Figures) -> None:
        """Add what there is."""
        figures.values["http_server_active_requests"].update(self._active)
        figures.values["vmm_errors"].update(self._errors)
        for histograms in (self._http, self._duration, self._first_token, self._output_token, self._tokens):
            histograms.count(figures)


class _Histograms:
    """Those of one family, by their labels."""

    def __init__(self, name: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._bounds = bounds
        self._bounded = Bounded(MAX_SERIES)
        self._by_labels: dict[Labels, Histogram] = {}

    def add(self, labels: Labels, value: float) -> None:
        labels = self._bounded(labels)
        if (histogram := self._by_labels.get(labels)) is None:
            histogram = self._by_labels[labels] = Histogram(self._bounds)
        histogram.add(value)

    def count(self, figures: Figures) -> None:
        for labels, histogram in self._by_labels.items():
            figures.add_distribution(self._name, labels, histogram.distribution)


def _labels(observed: Observed) -> Labels:
    """As `GEN_AI` names them. A version that was chosen, or was a canary's share, is the response's model."""
    name, place = observed.model.name, observed.placement
    labels = (
        *(observed.operation, PROVIDER, name.partition("@")[0], name),
        *((place.adapter, place.device) if place else ("", "")),
    )
    assert len(labels) == len(GEN_AI)
    return labels


def _known(method: str) -> str:
    return method if method in _METHODS else OTHER
