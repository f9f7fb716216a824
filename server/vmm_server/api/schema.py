"""`/openapi.json`, and `/schema`: the page that shows it. Both work without a network."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litestar import Controller, MediaType, Request, Response, get
from litestar.routes import BaseRoute

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

    @get(["/openapi.json", "/schema/openapi.json"])
    async def document(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The OpenAPI document; built when it is first asked for."""
        app = request.app
        if "openapi" not in app.state:
            app.state.openapi = await asyncio.to_thread(_document, app.routes)
        return Response(app.state.openapi, media_type=JSON)

    @get("/schema", media_type=MediaType.HTML, sync_to_thread=False)
    def page(self) -> Response[bytes]:
        """Routes by dialect, with their fields and examples, and a way to try them."""
        return Response(PAGE.read_bytes(), media_type=MediaType.HTML, headers=PAGE_HEADERS)


def _document(routes: Sequence[BaseRoute]) -> bytes:
    return encoded(build_document(routes, title="VMM", version=vmm_server.__version__))
