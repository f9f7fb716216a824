"""`https://host/model.gguf[#sha256=<hex>]`: one GGUF file at a URL. `http:` reaches this machine only."""

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from vmm_server.errors import SourceError
from vmm_server.models.sources.base import Listing, SourceFile, Transfer, invalid_uri
from vmm_server.models.sources.download import RetryPolicy, fetch_verified

_FRAGMENT = re.compile(r"sha256=([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class HttpsSource:
    """A URL."""

    uri: str
    url: str
    sha256: str | None
    headers: Mapping[str, str]
    """Credentials that stood in the URL; kept out of messages and manifests."""
    retry: RetryPolicy

    @classmethod
    def parse(cls, uri: str, retry: RetryPolicy) -> "HttpsSource":
        """Raises `InvalidRequest`."""
        url, hash_mark, fragment = uri.partition("#")
        parts = urlsplit(url)
        login, at, host = parts.netloc.rpartition("@")
        headers = {}
        if at:
            encoded = base64.b64encode(unquote(login).encode()).decode()
            headers["Authorization"] = f"Basic {encoded}"
            url = urlunsplit(parts._replace(netloc=host))
            uri = f"{url}{hash_mark}{fragment}"
        match = _FRAGMENT.fullmatch(fragment.lower())
        if fragment and not match:
            raise invalid_uri(uri, "after # only sha256=<64 hex digits> is understood")
        if not parts.hostname or not PurePosixPath(parts.path).name:
            raise invalid_uri(uri, "this does not name a file")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise invalid_uri(uri, "http: is for this machine only; use https:")
        return cls(uri, url, match.group(1) if match else None, headers, retry)

    def look_up(self, transfer: Transfer) -> Listing:
        """One HEAD request for size and version; a server that refuses it (status 4xx) just tells less."""
        name = unquote(PurePosixPath(urlsplit(self.url).path).name)
        size_bytes, revision = None, self.sha256
        try:
            response = transfer.client.head(self.url, headers=self.headers)
        except (httpx.TransportError, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            host = urlsplit(self.url).netloc
            hint = "check the address, the network and the proxy settings"
            raise SourceError(f"cannot reach {host}: {str(error) or type(error).__name__}", hint=hint) from error
        if response.is_success:
            length = response.headers.get("content-length", "")
            size_bytes = int(length) if length.isdigit() and length != "0" else None
            revision = revision or response.headers.get("etag")
        file = SourceFile(name, self.url, size_bytes=size_bytes, sha256=self.sha256, headers=self.headers)
        return Listing(name=PurePosixPath(name).stem, revision=revision, files=(file,))

    def fetch(self, file: SourceFile, target: Path, transfer: Transfer) -> str:
        """Download, resumed."""
        return fetch_verified(file, target, transfer, self.retry)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
