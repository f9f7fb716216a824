"""Every figure that `/metrics` shows: its name, kind, labels and meaning.

Names and bounds are those of OpenTelemetry's semantic conventions where these have one, as its exporter for Prometheus
spells them: dots are underscores, and the unit is the name's end.
"""

from dataclasses import dataclass
from typing import Literal

PLACE = ("model", "backend", "device", "variant")
"""Labels of everything that belongs to a model on a placement."""
GEN_AI = (
    *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model"),
    *("vmm_backend", "vmm_device"),
)
"""Labels of requests to a model."""
HTTP = ("http_request_method", "http_route", "http_response_status_code")
"""Labels of HTTP requests: the route is the template of its path, and empty where there is none."""
PROVIDER = "vmm"
OTHER = "_OTHER"
"""OpenTelemetry's word for what has no name of its own: `error.type`, `http.request.method`."""
HTTP_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""`http.server.request.duration`."""
REQUEST_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""`gen_ai.server.request.duration`."""
REQUEST_TOKENS = tuple(4.0**power for power in range(14))
"""`gen_ai.client.token.usage`: 1 to 67108864."""
LOAD_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)

Kind = Literal["gauge", "counter", "histogram", "info"]


@dataclass(frozen=True, slots=True)
class Family:
    """Series of one name. Those of counters end `_total` on the wire, of infos `_info`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    """Empty where there is none, or the text says what is counted."""
    text: str


FAMILIES = (
    Family("vmm_build", "info", (), "", "The server that runs: its version, and Python's."),
    Family("vmm_model", "info", PLACE, "", "Models in memory, with the digest of each."),
    Family("vmm_requests_running", "gauge", PLACE, "", "Requests that are computed."),
    Family("vmm_requests_waiting", "gauge", PLACE, "", "Requests that wait for others: the queue's length."),
    Family(
        "vmm_kv_blocks", "gauge", PLACE, "", "Blocks of the KV cache; not there where a runtime keeps it to itself."
    ),
    Family("vmm_kv_blocks_used", "gauge", PLACE, "", "Of them, those that running requests hold."),
    Family("vmm_model_memory_bytes", "gauge", PLACE, "bytes", "Memory for weights and KV blocks."),
    Family(
        "vmm_prompt_tokens",
        "counter",
        PLACE,
        "tokens",
        "Of prompts of requests that are over, cached ones included; of encoders, all tokens.",
    ),
    Family(
        "vmm_cached_tokens", "counter", PLACE, "tokens", "Of them, found in the prefix cache and not computed again."
    ),
    Family("vmm_tokens_generated", "counter", PLACE, "tokens", "Drawn."),
    Family("vmm_draft_tokens", "counter", PLACE, "tokens", "Guessed, and computed with the one before them."),
    Family(
        "vmm_accepted_tokens",
        "counter",
        PLACE,
        "tokens",
        "Of them, those that were drawn; generated tokens include them.",
    ),
    Family(
        "vmm_inputs",
        "counter",
        PLACE,
        "",
        "Computed by a model that answers whole: pictures, seconds of sound, characters of speech.",
    ),
    Family(
        "vmm_preemptions", "counter", PLACE, "", "Requests that gave their KV blocks to others and were computed again."
    ),
    Family(
        "vmm_queue_seconds",
        "histogram",
        PLACE,
        "seconds",
        "How long requests waited for others, those that left included; of sound, its windows.",
    ),
    Family("vmm_inter_token_seconds", "histogram", PLACE, "seconds", "Between two tokens of one answer."),
    Family("vmm_step_sequences", "histogram", PLACE, "", "Answers that one step of a text model worked on."),
    Family(
        "vmm_step_tokens",
        "histogram",
        PLACE,
        "tokens",
        "Computed by one step, of prompts and answers; not there where a runtime does not say.",
    ),
    Family("vmm_batch_items", "histogram", PLACE, "", "Inputs that a model which answers whole computed together."),
    Family("vmm_load_seconds", "histogram", PLACE, "seconds", "How long loads took that succeeded."),
    Family("vmm_load_failures", "counter", (*PLACE, "reason"), "", "Loads that failed, by the class of the error."),
    Family(
        "vmm_unloads",
        "counter",
        (*PLACE, "reason"),
        "",
        "Models that left memory: keep_alive, room (for another one), asked, failed, replaced, shutdown.",
    ),
    Family(
        "vmm_calibrations",
        "counter",
        (*PLACE, "outcome"),
        "",
        "Measurements of a model on a placement: measured or failed.",
    ),
    Family(
        "gen_ai_server_request_duration_seconds",
        "histogram",
        (*GEN_AI, "error_type"),
        "seconds",
        "From the moment that a request is understood to its answer's end, loading and waiting included.",
    ),
    Family(
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        GEN_AI,
        "seconds",
        "The same, to the first token; of requests that succeeded.",
    ),
    Family(
        "gen_ai_server_time_per_output_token_seconds",
        "histogram",
        GEN_AI,
        "seconds",
        "Mean time between the tokens of an answer; of requests that succeeded.",
    ),
    Family(
        "gen_ai_client_token_usage",
        "histogram",
        (*GEN_AI, "gen_ai_token_type"),
        "tokens",
        "Of a request: input or output.",
    ),
    Family(
        "http_server_request_duration_seconds",
        "histogram",
        HTTP,
        "seconds",
        "From the head of an HTTP request to the end of its answer. Status 499: the client left before it began.",
    ),
    Family(
        "http_server_active_requests", "gauge", ("http_request_method",), "", "HTTP requests and WebSockets under way."
    ),
    Family(
        "vmm_errors",
        "counter",
        ("error_type", "family"),
        "",
        "Errors that were answered, in the middle of a stream too, by class and the route's dialect.",
    ),
    Family(
        "vmm_tenant_requests",
        "counter",
        ("tenant",),
        "",
        "Requests that were let in, by the id of their key; empty without one.",
    ),
    Family("vmm_tenant_tokens", "counter", ("tenant",), "tokens", "Of their prompts and answers."),
    Family(
        "vmm_tenant_rejections",
        "counter",
        ("tenant", "reason"),
        "",
        "Requests that were turned away: the key, or the limit that was used up.",
    ),
    Family(
        "vmm_process_threads", "gauge", (), "", "Threads of the process, with those of runtimes where the system tells."
    ),
    Family("vmm_asyncio_tasks", "gauge", (), "", "Tasks of the event loop."),
)
"""All but the standard ones of a process, `process_*`, which are the client library's."""
