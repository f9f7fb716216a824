"""`/openapi.json`, and `/schema`: the page that shows it. Both work without a network."""

from pathlib import Path
from typing import Any

from litestar import Controller, MediaType, Request, Response, get

import vmm_server
from vmm_server.api.openapi import build_document, encoded
from vmm_server.api.streaming import JSON

PAGE = Path(__file__).with_name("schema.html")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
}
"""The page loads nothing from anywhere, and no other page can frame it."""


class SchemaController(Controller):
    """What this server can do, for programs and for people."""

    include_in_schema = False

    @get(["/openapi.json", "/schema/openapi.json"], sync_to_thread=False)
    def document(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The OpenAPI document; built when it is first asked for."""
        state = request.app.state
        if "openapi" not in state:
            state.openapi = encoded(build_document(request.app.routes, title="VMM", version=vmm_server.__version__))
        return Response(state.openapi, media_type=JSON)

    @get("/schema", media_type=MediaType.HTML, sync_to_thread=False)
    def page(self) -> Response[bytes]:
        """Routes by dialect, with their fields and examples, and a way to try them."""
        return Response(PAGE.read_bytes(), media_type=MediaType.HTML, headers=PAGE_HEADERS)
