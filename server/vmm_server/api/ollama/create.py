"""`/api/create`'s bodies → `CreateRequest`. Pure. What cannot be honoured is refused by name."""

from collections.abc import Mapping

from vmm_server.api.ollama.wire_models import CreateBody
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.models.create import CreateRequest
from vmm_server.models.modelfile import Modelfile, parse_modelfile

UPLOADED = "@sha256:"
"""How older clients write a file that they uploaded, after FROM and ADAPTER."""

_REFUSED: Mapping[str, str] = {
    "path": "send the Modelfile's text in modelfile",
    "renderer": "prompts are written by the model's chat template",
    "parser": "answers are read as the model's chat template shows",
    "info": "what a model is comes from its files",
    "remote_host": "models run on this server alone",
    "draft_files": "draft models are not run",
    "draft_quantize": "draft models are not run",
}
"""Fields that ask for what there is not, and what to know instead."""


def create_request(body: CreateBody) -> CreateRequest:
    """What a body asks for; its fields win over those of the Modelfile in it.

    Raises `InvalidRequest`, `UnsupportedParameter`.
    """
    for field, hint in _REFUSED.items():
        if getattr(body, field):
            raise UnsupportedParameter(f"{field} is not supported", param=field, hint=hint)
    told = parse_modelfile(body.modelfile) if body.modelfile else Modelfile("")
    from_, files = _base(body, told)
    return CreateRequest(
        name=body.reference,
        from_=from_,
        files=files,
        adapters=body.adapters or {adapter: adapter.removeprefix("@") for adapter in told.adapters},
        template=told.template if body.template is None else body.template,
        licenses=tuple(told.licenses if body.license is None else body.license),
        system=told.system if body.system is None else body.system,
        parameters={**told.parameters, **(body.parameters or {})},
        messages=told.messages
        if body.messages is None
        else tuple((message.role, message.content) for message in body.messages),
        quantize=body.quantize or body.quantization or None,
    )


def check_not_local(reference: str, param: str, *, hint: str) -> str:
    """`reference`, if it does not name what only this machine has. Raises `InvalidRequest`.

    A client on another machine must not name this machine's files or what listens on its loopback.
    """
    scheme = reference.partition(":")[0].lower()
    if scheme in ("file", "http"):
        raise InvalidRequest(f"{scheme}: sources are taken on the server's own machine only", param=param, hint=hint)
    return reference


def _base(body: CreateBody, told: Modelfile) -> tuple[str | None, Mapping[str, str]]:
    """What the model is made of: a name or a source, or uploaded files."""
    files = body.files or {}
    from_ = body.from_ or ("" if files else told.from_)
    if from_.startswith(UPLOADED):
        return None, {"model": from_.removeprefix("@")} | files
    if from_:
        check_not_local(from_, "from", hint="send the file to /api/blobs and name it in files")
    return from_ or None, files
