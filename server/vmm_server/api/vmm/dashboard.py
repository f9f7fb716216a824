"""`GET /api/vmm/dashboard`: the page that shows `/api/vmm/events`. It works without a network."""

import asyncio
import base64
import hashlib
import re
from pathlib import Path

from litestar import Controller, MediaType, Response, get

from vmm_server.api.openapi import Example, described

SHOWN = Example("The page", '<!DOCTYPE html>\n<html lang="en">…', media_type=MediaType.HTML)
PAGE = Path(__file__).with_name("dashboard.html")
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.S)


class DashboardController(Controller):
    """Has no figure and needs no key, since browsers send none with an address that is typed; the page asks for one."""

    @get(
        "/api/vmm/dashboard",
        operation_id="dashboard",
        summary="A page that shows live figures",
        media_type=MediaType.HTML,
        opt=described(SHOWN),
    )
    async def page(self) -> Response[bytes]:
        """Throughput, queue, KV cache, waiting times and memory of each model, while one looks."""
        content = await asyncio.to_thread(PAGE.read_bytes)
        headers = {
            "content-security-policy": policy(content),
            "cache-control": "no-cache",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        return Response(content, media_type=MediaType.HTML, headers=headers)


def policy(page: bytes) -> str:
    """A policy (CSP) under which the page's own script and style work, and nothing else does."""
    hashes = {kind: base64.b64encode(hashlib.sha256(text).digest()).decode() for kind, text in _INLINE.findall(page)}
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[b'script']}'; style-src 'sha256-{hashes[b'style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
