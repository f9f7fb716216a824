"""Which scope of a key each route needs. One table, and what is not in it needs `admin`.

A rule holds for its path and for all beneath it, and the longest one counts that knows the method. Nothing but a rule
opens a route, so a new one is closed until somebody has thought of it. Pure.
"""

from dataclasses import dataclass

from vmm_server.keys import SCOPES, Scope

WEBSOCKET = "WEBSOCKET"
"""In place of a method."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a route needs."""

    path: str
    methods: tuple[str, ...]
    scopes: tuple[Scope, ...]
    """One of these will do. None at all: it needs no key."""
    runs: bool = False
    """A model runs: it is bounded by `max_pending`, and by the quotas of its key."""
    by_message: bool = False
    """A connection whose messages are requests: they are bounded, one by one, and it is not."""


_INFERENCE: tuple[Scope, ...] = ("inference",)
_MODELS: tuple[Scope, ...] = ("models",)
_LISTS: tuple[Scope, ...] = ("inference", "models")
_METRICS: tuple[Scope, ...] = ("metrics",)
_ADMIN: tuple[Scope, ...] = ("admin",)

RULES = (
    Rule("/", ("GET",), ()),
    Rule("/health", ("GET",), ()),
    *(
        Rule(path, ("POST",), _INFERENCE, runs=True)
        for path in (
            *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"),
            *("/v1/audio", "/v1/vision", "/v1/rerank", "/v2/rerank", "/rerank"),
            *("/tokenize", "/detokenize", "/apply-template"),
            *("/v1/tokenize", "/v1/detokenize", "/v1/apply-template"),
            *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"),
        )
    ),
    Rule("/v1/vision/stream", (WEBSOCKET,), _INFERENCE, runs=True),
    Rule("/v1/stream", (WEBSOCKET,), _INFERENCE, runs=True, by_message=True),
    Rule("/v1/responses", ("GET", "DELETE"), _INFERENCE),
    Rule("/v1/files", ("GET", "POST", "DELETE"), _INFERENCE),
    Rule("/v1/batches", ("GET", "POST"), _INFERENCE),
    *(Rule(path, ("GET",), _LISTS) for path in ("/v1/models", "/api/tags", "/api/ps")),
    Rule("/api/show", ("POST",), _LISTS),
    Rule("/api/version", ("GET",), SCOPES),
    *(Rule(path, ("GET",), SCOPES) for path in ("/schema", "/openapi.json")),
    *(Rule(f"/api/{verb}", ("POST",), _MODELS) for verb in ("pull", "push", "create", "copy")),
    Rule("/api/delete", ("DELETE",), _MODELS),
    Rule("/api/blobs", ("GET", "POST"), _MODELS),
    Rule("/api/vmm/devices", ("GET",), _MODELS),
    Rule("/api/vmm/profiles", ("GET",), _MODELS),
    Rule("/api/vmm/calibrate", ("POST",), _MODELS),
    Rule("/metrics", ("GET",), _METRICS),
    Rule("/api/vmm/events", (WEBSOCKET,), _METRICS),
    Rule("/api/vmm/dashboard", ("GET",), ()),
    Rule("/api/vmm/status", ("GET",), _METRICS),
    Rule("/api/vmm/reload", ("POST",), _ADMIN),
    Rule("/api/vmm/releases", ("GET", "PUT", "DELETE"), _MODELS),
)
ANYTHING_ELSE = Rule("", (), _ADMIN)
_BY_PLACE = {(method, rule.path): rule for rule in RULES for method in rule.methods}
_NUM_PARTS = max(rule.path.count("/") for rule in RULES) + 1


def rule_for(method: str, path: str) -> Rule:
    """What a request needs; `method` is `WEBSOCKET` for one that opens a socket. Nothing is beneath `/`."""
    if (exact := _BY_PLACE.get((method, path))) is not None:
        return exact
    parts = path.split("/", _NUM_PARTS)
    for num_parts in range(min(len(parts), _NUM_PARTS), 1, -1):
        root = "/".join(parts[:num_parts])
        if root != "/" and (rule := _BY_PLACE.get((method, root))) is not None:
            return rule
    return ANYTHING_ELSE
