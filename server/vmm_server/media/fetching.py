"""Images by URL, for those who may not reach everything that this server reaches.

A URL of a request is a way to have the server ask in the client's place: of `localhost`, of machines behind the same
firewall, of a cloud's metadata service (server-side request forgery). So names are resolved here, every address must be
one of the public internet, and the connection goes to the very address that was looked at, not to what a second look
at the name may find (DNS rebinding). Each redirect is a new URL to look at.
"""

import asyncio
import io
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import httpx

from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.media.images import ImageLimits, check_bytes, is_url
from vmm_server.requests import GivenImage
from vmm_server.settings import ImageUrls

MAX_REDIRECTS = 3
TIMEOUT_S = 20.0
"""For one image, redirects included."""
REQUEST_TIMEOUT_S = 60.0
"""For all that one request has fetched."""
MAX_URLS = 64
"""In one request."""
MAX_REQUEST_BYTES = 64 * 1024 * 1024
"""Of all images that one request has fetched: what it could have sent itself."""
MAX_CONNECTIONS = 16
"""At a time, of all requests."""
_MAX_URL = 2048
_MAX_PORT = 65535
_PORTS = {"http": 80, "https": 443}
_NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: addresses that stand for those of IPv4."""
_NO_HOSTS = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "5f00::/16")))
"""For protocols, relays, documentation and segment routing (IANA's registries of special-purpose addresses): not all
versions of `ipaddress` know of each."""
_SEND_IT = "send the image itself, as a data URI or a file"

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""A host's name and port → its addresses. Raises `OSError`."""


@dataclass(slots=True)
class _Allowance:
    """Of one request."""

    num_bytes: int
    """That its images may still have."""
    deadline: float
    """Until when they have to be there, on the event loop's clock."""


class Fetcher:
    """Fetches the images of all requests."""

    def __init__(
        self,
        allowed: ImageUrls,
        *,
        user_agent: str = "vmm",
        resolve: Resolve | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`resolve` and `transport` stand in for the system's."""
        self.allowed = allowed
        """May be changed at any time."""
        self._resolve = resolve or _resolve
        self._transport = transport
        self._starting = asyncio.Lock()
        self._user_agent = user_agent
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)

    async def fetched(self, given: Sequence[GivenImage], limits: ImageLimits) -> list[GivenImage]:
        """The same images, with the files in place of their URLs: one after the other, so that a request of many does
        not keep others from theirs.

        Raises `InvalidRequest` naming the field, `UnsupportedParameter` where nothing is fetched.
        """
        if len(urls := [image for image in given if is_url(image)]) > MAX_URLS:
            param = urls[MAX_URLS].param
            raise InvalidRequest(f"{param}: {len(urls)} URLs of images; the limit is {MAX_URLS}", param=param)
        allowance = _Allowance(MAX_REQUEST_BYTES, asyncio.get_running_loop().time() + REQUEST_TIMEOUT_S)
        return [await self._fetch(image, limits, allowance) if is_url(image) else image for image in given]

    async def aclose(self) -> None:
        """Close what is open. Idempotent."""
        if self._transport is not None:
            await self._transport.aclose()

    async def _fetch(self, image: GivenImage, limits: ImageLimits, allowance: _Allowance) -> GivenImage:
        url, param = str(image.data), image.param
        if self.allowed == "off":
            raise UnsupportedParameter(
                f"{param}: images are not fetched from URLs", param=param, hint=f"{_SEND_IT}; or set image_urls"
            )
        if len(url) > _MAX_URL:
            raise InvalidRequest(f"{param}: a URL of {len(url)} characters; the limit is {_MAX_URL}", param=param)
        try:
            async with self._free, asyncio.timeout_at(allowance.deadline), asyncio.timeout(TIMEOUT_S):
                file = await self._follow(url, param, limits, allowance)
        except TimeoutError as error:
            seconds = f"{TIMEOUT_S:g} s, or all images {REQUEST_TIMEOUT_S:g} s"
            raise _refused(param, f"it took longer than {seconds}") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise _refused(param, str(error) or type(error).__name__) from error
        return replace(image, data=io.BytesIO(file))

    async def _follow(self, url: str, param: str, limits: ImageLimits, allowance: _Allowance) -> bytes:
        where = httpx.URL(url)
        for _ in range(1 + MAX_REDIRECTS):
            response = await self._get(where, param)
            try:
                if not response.has_redirect_location:
                    return await _content(response, param, limits, allowance)
                where = where.join(response.headers["location"])
            finally:
                await response.aclose()
        raise _refused(param, f"more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: httpx.URL, param: str) -> httpx.Response:
        """The head of an answer, from the first of the host's addresses that can be connected to."""
        if url.scheme not in _PORTS or not url.host:
            raise _refused(param, "only http and https URLs are fetched")
        if (url.port or 1) > _MAX_PORT:
            raise _refused(param, f"there is no port {url.port}")
        if url.userinfo:
            raise _refused(param, "its URL has a user's name in it")
        *others, last = reversed(await self._addresses(url, param))
        transport = await self._started()
        while others:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await transport.handle_async_request(self._request(url, last))
            last = others.pop()
        return await transport.handle_async_request(self._request(url, last))

    async def _addresses(self, url: httpx.URL, param: str) -> list[Address]:
        """Of a URL's host. Raises `InvalidRequest` if one of them is not to be reached, or there is none."""
        port = url.port or _PORTS[url.scheme]
        host = url.raw_host.decode("ascii")
        found = [ip_address(address.partition("%")[0]) for address in await self._resolve(host, port)]
        if not found:
            raise _refused(param, f"{host} has no address")
        if self.allowed != "any" and not all(is_public(address) for address in found):
            raise InvalidRequest(
                f"{param}: {host} is no address of the public internet",
                param=param,
                hint=f'{_SEND_IT}; or set image_urls = "any" on the server',
            )
        return found

    def _request(self, url: httpx.URL, address: Address) -> httpx.Request:
        """To that address; a certificate is checked against the host's name as ever."""
        headers = {
            "host": url.netloc.decode("ascii"),
            "user-agent": self._user_agent,
            "accept": "image/*",
            "accept-encoding": "identity",
        }
        extensions = {"sni_hostname": url.raw_host.decode("ascii"), "timeout": _TIMEOUT}
        pinned = url.copy_with(host=str(address), fragment=None)
        return httpx.Request("GET", pinned, headers=headers, extensions=extensions)

    async def _started(self) -> httpx.AsyncBaseTransport:
        """Made when it is first needed, in a thread: reading the machine's certificates takes a while. No connection
        is used twice: hosts of one address are not one host."""
        async with self._starting:
            if self._transport is None:
                limits = httpx.Limits(max_keepalive_connections=0)
                self._transport = await asyncio.to_thread(httpx.AsyncHTTPTransport, limits=limits, trust_env=False)
            return self._transport


_TIMEOUT = httpx.Timeout(TIMEOUT_S, connect=5.0).as_dict()


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, also one of IPv4 that an address of IPv6 stands for."""
    if isinstance(address, IPv6Address):
        teredo = address.teredo
        inner = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    if any(address in network for network in _NO_HOSTS if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def _content(response: httpx.Response, param: str, limits: ImageLimits, allowance: _Allowance) -> bytes:
    """The body, as long as it is bearable. One that is compressed was not asked for."""
    if response.status_code != httpx.codes.OK:
        raise _refused(param, f"its server answers {response.status_code}")
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise _refused(param, f"its server compresses it ({encoding})")
    length = response.headers.get("content-length", "")
    if length.isdecimal():
        check_bytes(int(length), param, limits)
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        check_bytes(len(content), param, limits)
        allowance.num_bytes -= len(chunk)
        if allowance.num_bytes < 0:
            raise InvalidRequest(
                f"{param}: with this one, the images have more than {MAX_REQUEST_BYTES} bytes together", param=param
            )
    return bytes(content)


def _refused(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: the image cannot be fetched: {reason}", param=param, hint=_SEND_IT)
