"""Requests of every kind, good, bad and cut short, with what each may be answered with."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.asyncio.client import connect

TEXT = "the sea is grey and cold today but a boat with red sails comes home before the night and brings us fish"
WORDS = TEXT.split()
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": COLOUR}}
DIALECTS = ("/v1/chat/completions", "/api/chat", "/v1/messages")
NUM_TOO_LONG = 40
"""More than the event loop's pool ever has threads (`concurrent.futures`: 32)."""
MAX_READ = 3000
"""Bytes that a client reads at most before it leaves."""
BAD: tuple[tuple[str, bytes, int], ...] = (
    ("/v1/chat/completions", b"{", 400),
    ("/v1/chat/completions", b'{"model": "nobody", "messages": [{"role": "user", "content": "?"}]}', 404),
    ("/v1/chat/completions", b'{"model": "MODEL", "messages": []}', 400),
    ("/v1/chat/completions", b'{"model": "MODEL", "messages": [{"role": "user", "content": "?"}], "top_p": 7}', 400),
    ("/v1/embeddings", b'{"model": "ENCODER", "input": []}', 400),
    ("/api/generate", b'{"model": "nobody", "prompt": "?"}', 404),
    ("/v1/messages", b'{"model": "MODEL", "messages": [{"role": "user", "content": "?"}]}', 400),
    ("/no/such/route", b"{}", 404),
)


class Violation(Exception):
    """An answer that nobody should have got."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Of three keys: one for inference, one that may ask little, one that may do everything."""

    inference: str
    limited: str
    admin: str


def bearer(secret: str) -> dict[str, str]:
    """The header."""
    return {"authorization": f"Bearer {secret}"}


@dataclass
class Traffic:
    """One client after the other, chosen at random; `counts` says how often each kind was there."""

    port: int
    secrets: Secrets
    model: str
    encoder: str | None
    random: random.Random
    counts: dict[str, int] = field(default_factory=dict)
    num_refused: int = 0
    """429 and 503, with Retry-After."""

    @property
    def url(self) -> str:
        """Where the server is."""
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def client(self, secret: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
        """A client with a key, that for inference if none is named."""
        headers = bearer(secret or self.secrets.inference)
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=300, trust_env=False) as client:
            yield client

    async def one(self, client: httpx.AsyncClient) -> None:
        """A request of some kind. Raises `Violation`."""
        weights = {name: weight for name, (weight, _) in self._kinds().items()}
        (name,) = self.random.choices([*weights], [*weights.values()])
        await self._of_kind(name, client)

    async def each(self, client: httpx.AsyncClient) -> None:
        """A request of each kind. Raises `Violation`."""
        for name in self._kinds():
            await self._of_kind(name, client)

    async def _of_kind(self, name: str, client: httpx.AsyncClient) -> None:
        await self._kinds()[name][1](client)
        self.counts[name] = self.counts.get(name, 0) + 1

    def _kinds(self) -> Mapping[str, tuple[int, Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]]]:
        """How often each comes, against the others."""
        return {
            "answers": (4, self._whole),
            "streams": (8, self._stream),
            "cut short": (6, self._cut_short),
            "bad requests": (4, self._bad),
            "forms and tools": (2, self._form),
            "tokens": (3, self._tokens),
            "lists": (2, self._lists),
            "kept responses": (1, self._responses),
            "WebSockets": (1, self._socket),
            "over their quota": (2, self._limited),
            **({"vectors": (4, self._embed)} if self.encoder else {}),
        }

    def body(self, path: str, *, stream: bool) -> dict[str, Any]:
        """A question in the dialect of a route."""
        text, limit = " ".join(self.random.choices(WORDS, k=self.random.randint(3, 60))), self.random.randint(4, 24)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "stream": stream,
        }
        return body | ({"options": {"num_predict": limit}} if path == "/api/chat" else {"max_tokens": limit})

    async def post(self, client: httpx.AsyncClient, path: str, body: Any, *allowed: int) -> httpx.Response:
        """A whole answer of one of the statuses; 200, and to wait for one's turn, always may be."""
        answer = await client.post(path, json=body)
        self._check(path, answer, allowed or (200,))
        return answer

    def _check(self, path: str, answer: httpx.Response, allowed: tuple[int, ...]) -> None:
        if answer.status_code in (429, 503) and "retry-after" in answer.headers:
            self.num_refused += 1
        elif answer.status_code not in allowed:
            raise Violation(f"{path} answered {answer.status_code}, not {allowed}: {answer.text[:500]}")

    async def _whole(self, client: httpx.AsyncClient) -> None:
        path = self.random.choice(DIALECTS)
        await self.post(client, path, self.body(path, stream=False))

    async def _stream(self, client: httpx.AsyncClient) -> None:
        path = self.random.choice(DIALECTS)
        async with client.stream("POST", path, json=self.body(path, stream=True)) as answer:
            text = (await answer.aread()).decode()
        self._check(path, answer, (200,))
        if answer.status_code != 200:
            return
        if not any(end in text for end in ("[DONE]", '"done":true', "message_stop")) or '"error"' in text:
            raise Violation(f"{path} has not ended as it should: {text[-500:]}")

    async def _cut_short(self, client: httpx.AsyncClient) -> None:
        path = self.random.choice(DIALECTS)
        body = json.dumps(self.body(path, stream=self.random.random() < 0.8)).encode()
        await cut_short(self.port, path, body, self.random, self.secrets.inference)

    async def _bad(self, client: httpx.AsyncClient) -> None:
        path, content, status = self.random.choice(BAD)
        content = content.replace(b"MODEL", self.model.encode()).replace(b"ENCODER", (self.encoder or "no").encode())
        answer = await client.post(path, content=content)
        allowed = (status, 404) if path == "/v1/embeddings" else (status,)
        self._check(path, answer, allowed + ((403,) if path == "/no/such/route" else ()))

    async def _form(self, client: httpx.AsyncClient) -> None:
        body = self.body("/v1/chat/completions", stream=False) | {"max_tokens": 48}
        if self.random.random() < 0.5:
            body |= {"tools": [TOOL], "tool_choice": "required"}
        else:
            schema = {"name": "paint", "schema": COLOUR, "strict": True}
            body |= {"response_format": {"type": "json_schema", "json_schema": schema}}
        await self.post(client, "/v1/chat/completions", body)

    async def _tokens(self, client: httpx.AsyncClient) -> None:
        await self.post(client, "/tokenize", {"model": self.model, "prompt": TEXT})

    async def _lists(self, client: httpx.AsyncClient) -> None:
        path = self.random.choice(("/v1/models", "/api/tags", "/api/ps", "/metrics", "/api/vmm/status"))
        async with self.client(self.secrets.admin) as admin:
            self._check(path, await admin.get(path), (200,))

    async def _responses(self, client: httpx.AsyncClient) -> None:
        asked = {"model": self.model, "input": "The sea", "max_output_tokens": 16}
        first = await self.post(client, "/v1/responses", asked)
        if first.status_code != 200:
            return
        name = first.json()["id"]
        await self.post(client, "/v1/responses", asked | {"previous_response_id": name})
        self._check("/v1/responses", await client.delete(f"/v1/responses/{name}"), (200,))

    async def _socket(self, client: httpx.AsyncClient) -> None:
        url, headers = f"ws://127.0.0.1:{self.port}/v1/stream", bearer(self.secrets.inference)
        async with connect(url, additional_headers=headers, proxy=None) as socket:
            body = self.body("/v1/chat/completions", stream=True)
            await socket.send(json.dumps(body))
            for turn in itertools.count():
                message = json.loads(await asyncio.wait_for(socket.recv(), 300))
                if message.get("type") == "done":
                    if message["status"] not in (200, 429, 503):
                        raise Violation(f"/v1/stream answered {message}")
                    return
                if turn == 3 and self.random.random() < 0.3:
                    return

    async def _limited(self, client: httpx.AsyncClient) -> None:
        async with self.client(self.secrets.limited) as limited:
            await self.post(limited, "/v1/chat/completions", self.body("/v1/chat/completions", stream=False))

    async def _embed(self, client: httpx.AsyncClient) -> None:
        texts = [" ".join(self.random.choices(WORDS, k=20)) for _ in range(self.random.randint(1, 8))]
        if self.random.random() < 0.9:
            await self.post(client, "/v1/embeddings", {"model": self.encoder, "input": texts})
        else:
            await self.post(client, "/api/embed", {"model": self.encoder, "input": texts, "keep_alive": 0})


async def fill_pool(client: httpx.AsyncClient, model: str) -> None:
    """Have all threads of the event loop's pool come, each of which comes once the others are busy: prompts that are
    too long keep them so for a moment. Raises `Violation`."""
    path = "/v1/chat/completions"
    body = {"model": model, "messages": [{"role": "user", "content": TEXT * 200}]}
    for answer in await asyncio.gather(*(client.post(path, json=body) for _ in range(NUM_TOO_LONG))):
        if answer.status_code != 400:
            raise Violation(f"{path} answered {answer.status_code}, not 400: {answer.text[:500]}")


async def cut_short(
    port: int, path: str, body: bytes, chance: random.Random, secret: str = "", *, patience_s: float = 0.5
) -> None:
    """Send a request, and leave: after some of it, while it waits, or after some of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        key = f"Authorization: Bearer {secret}\r\n" if secret else ""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{key}Content-Length: {len(body)}\r\n\r\n"
        if chance.random() < 0.1:
            body = body[: chance.randrange(len(body))]
        writer.write(head.encode() + body)
        await writer.drain()
        wanted = chance.randrange(MAX_READ) if chance.random() < 0.6 else 0
        try:
            async with asyncio.timeout(chance.uniform(0, patience_s)):
                await reader.readexactly(wanted)
                if not wanted:
                    await asyncio.Event().wait()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass
    finally:
        writer.transport.abort()
