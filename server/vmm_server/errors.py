"""Every error a user can meet.

VMMError
├── InvalidRequest            400  a field is wrong; `param` names it
│   ├── UnsupportedParameter  400  a field asks for what this model or version cannot do
│   ├── ContextLengthExceeded 400
│   ├── InvalidModelName      400
│   ├── PreviousResponseNotFound 400 a conversation cannot go on from what is not there
│   └── UnsupportedCapability 400  the model cannot do this (`"x" does not support chat`)
├── Unauthenticated           401  no key, or one that is not known here
├── PermissionDenied          403  the key may not do this
├── RateLimited               429  a quota of the key is used up; carries retry_after_s
├── HostNotAllowed            403  the request's Host header is none of ours: DNS rebinding
├── OriginNotAllowed          403  a web page of that origin may not ask here
├── ModelNotFound             404
│   └── ModelArriving         503  the server is fetching it for its start
├── BlobNotFound              404  no such uploaded file
├── ResponseNotFound          404  no such stored response
├── FileNotFound              404  no such stored file
├── BatchNotFound             404  no such batch
├── RequestCancelled          499  the client went away
├── Overloaded                503  queue full; carries retry_after_s
│   └── DeadlineUnreachable   503  the queue is longer than the request can wait
├── DeadlineExceeded          504  the time that the request gave is over
├── ShuttingDown              503
├── SourceError               502  a file could not be fetched
│   ├── DigestMismatch        502  what arrived is not what was promised
│   └── SourceNotFound        404  nothing at that address
├── StoreError                507  the disk is full or cannot be written
├── ImportFailed              500  what was fetched cannot become a runnable model
│   ├── CorruptFile           500
│   └── UnsupportedArchitecture 500
├── ModelLoadFailed           500  no placement could run it; lists what was tried
│   └── LoadTimeout           503  it was not there in time; says who is in the way
├── ModelReplaced             503  its name got another model while it was waited for
├── GenerationFailed          500  the runtime failed in the middle
│   └── PlacementFailed       500  its device failed before this request had begun there
└── SettingsError              -   before the server starts
    └── AddressInUse           -

HTTP status codes live in `api/errors.py`, in one table; this module knows nothing of HTTP (the column is a guide).
"""


class VMMError(Exception):
    """Base. `message` is one plain sentence; `hint` what to do; `param` the request field, where there is one."""

    code: str | None = None
    """OpenAI's `error.code`, where clients look for one."""

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.hint = hint


class InvalidRequest(VMMError):
    """A field of the request is wrong."""


class UnsupportedParameter(InvalidRequest):
    """A field asks for something that cannot be honoured here; never ignored silently."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"

    def __init__(
        self,
        *,
        limit: int,
        asked: int,
        param: str,
        hint: str = "shorten the prompt, or use a model with a longer context",
    ) -> None:
        super().__init__(
            f"the input length exceeds the context length: {param} is {asked} tokens, the limit is {limit}",
            param=param,
            hint=hint,
        )
        self.limit = limit
        self.asked = asked


class InvalidModelName(InvalidRequest):
    """The name does not follow `[host/][namespace/]model[:tag][@version]`."""

    def __init__(self, name: str) -> None:
        hint = f"{name!r} is not [host/][namespace/]model[:tag][@version]"
        super().__init__("invalid model name", param="model", hint=hint)


class UnsupportedCapability(InvalidRequest):
    """The model cannot do what the route needs."""

    def __init__(self, model: str, capability: str, *, param: str = "model") -> None:
        super().__init__(f'"{model}" does not support {capability}', param=param)


class PreviousResponseNotFound(InvalidRequest):
    """The response that a request goes on from is not stored here."""

    code = "previous_response_not_found"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Previous response with id '{response_id[:100]}' not found.", param="previous_response_id")


class Unauthenticated(VMMError):
    """The request has no key, or one that is not known here."""

    code = "invalid_api_key"


class PermissionDenied(VMMError):
    """The key may not do this; the message names the scope that may."""

    code = "insufficient_permissions"


class RateLimited(VMMError):
    """A quota of the key is used up; the message names it, and its limit."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class HostNotAllowed(VMMError):
    """The server listens on this machine alone, and the request came under the name of another."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"host {host[:200]!r} is not allowed",
            hint="ask for localhost, or add the name to the server's setting allowed_hosts",
        )


class OriginNotAllowed(VMMError):
    """A web page asks whose origin is not among those that may."""

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"origin {origin[:200]!r} is not allowed",
            hint="add it to the server's setting origins (OLLAMA_ORIGINS)",
        )


class ResponseNotFound(VMMError):
    """No response is stored here under that id."""

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Response with id '{response_id[:100]}' not found.", param="response_id")


class FileNotFound(VMMError):
    """No file of this caller is stored here under that id."""

    def __init__(self, file_id: str, *, param: str = "file_id") -> None:
        super().__init__(f"No such File object: {file_id[:100]}", param=param)


class BatchNotFound(VMMError):
    """This caller has no batch of that id."""

    def __init__(self, batch_id: str, *, param: str = "batch_id") -> None:
        super().__init__(f"No batch found with id '{batch_id[:100]}'.", param=param)


class ModelNotFound(VMMError):
    """No such model here."""

    code: str | None = "model_not_found"

    def __init__(self, name: str, *, hint: str | None = None, message: str | None = None) -> None:
        """`message`: the words that a route has for it."""
        super().__init__(message or f"model '{name}' not found", param="model", hint=hint or f"vmm pull {name}")
        self.name = name


class ModelArriving(ModelNotFound):
    """The default model, which a server that starts is still fetching."""

    code = None

    def __init__(self, name: str) -> None:
        super().__init__(name, message=f"model '{name}' is still being fetched", hint="ask again in a while")


class BlobNotFound(VMMError):
    """No file with that digest is here."""

    def __init__(self, digest: str) -> None:
        super().__init__(f'blob "{digest[:100]}" not found', param="digest")


class RequestCancelled(VMMError):
    """The client went away before an answer could be given."""

    def __init__(self) -> None:
        super().__init__("request canceled")


class Overloaded(VMMError):
    """The queue is full; try again after `retry_after_s` seconds."""

    def __init__(self, *, retry_after_s: int = 1, message: str | None = None, hint: str | None = None) -> None:
        super().__init__(message or "server busy, please try again.  maximum pending requests exceeded", hint=hint)
        self.retry_after_s = retry_after_s


class DeadlineUnreachable(Overloaded):
    """What is in the queue takes longer than the request can wait; told at once."""

    def __init__(self, *, timeout_ms: int, expected_ms: int, retry_after_s: int = 1) -> None:
        super().__init__(
            retry_after_s=retry_after_s,
            message=f"x-vmm-timeout-ms: the answer would begin in about {expected_ms} ms, and {timeout_ms} are left",
            hint="allow more time, or try again later",
        )


class DeadlineExceeded(VMMError):
    """The time that the request gave is over; nothing more is computed for it."""

    code = "deadline_exceeded"

    def __init__(self) -> None:
        super().__init__("x-vmm-timeout-ms: the time for this request is over", hint="allow more time")


class ShuttingDown(VMMError):
    """The server is draining and takes no new work."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class SourceError(VMMError):
    """A file could not be fetched."""


class DigestMismatch(SourceError):
    """The bytes that arrived are not the ones that were promised; nothing of them is kept."""

    def __init__(self, what: str, *, expected: str, actual: str) -> None:
        super().__init__(f"digest mismatch for {what}, expected sha256:{expected}, got sha256:{actual}")
        self.expected = expected
        self.actual = actual


class SourceNotFound(SourceError):
    """There is nothing at that address."""


class StoreError(VMMError):
    """The store could not be written: disk full, no permission."""


class ImportFailed(VMMError):
    """What was fetched cannot be made into a runnable model."""


class CorruptFile(ImportFailed):
    """A file is truncated or is not what its name says."""


class UnsupportedArchitecture(ImportFailed):
    """The importer does not know this model family; the message names it."""


class ModelLoadFailed(VMMError):
    """No device could run the model; the message lists what was tried and why each failed."""


class LoadTimeout(ModelLoadFailed):
    """The model was not loaded in time: others in use have no room for it, or it is slow; a later try may succeed."""


class ModelReplaced(VMMError):
    """The name got another model, or none, after the request found this one and before it was in memory."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} was replaced while this request waited for it", hint="send it again")


class GenerationFailed(VMMError):
    """The runtime failed while generating."""


class PlacementFailed(GenerationFailed):
    """The device failed, and nothing of this request was computed there: it can be sent elsewhere."""

    def __init__(self, failure: str) -> None:
        """`failure`: which device failed, and its words."""
        super().__init__(
            f"{failure}; nothing of this request was computed yet",
            hint="send it again: it goes to another device, or to this one once the model is loaded anew",
        )
        self.failure = failure


class SettingsError(VMMError):
    """A setting is wrong; `param` names it."""


class AddressInUse(SettingsError):
    """Another program listens on that address."""
