"""One file over HTTP: resumed where an earlier attempt stopped, never mixed with another version of the file.

What is on disk counts, so a process may be killed at any byte. A resume asks with `Range`; where the content has no
known sha256 it also sends the validator (`If-Range`) that came with the first bytes and is kept beside the partial
file, so that a file that changed meanwhile is fetched anew. Where the sha256 is known the caller's check of the whole
decides, and `fetch_verified` starts over once if a resumed file fails it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import httpx

import vmm_server
from vmm_server.errors import DigestMismatch, RequestCancelled, SourceError, SourceNotFound
from vmm_server.models.disk import store_errors, write_atomically
from vmm_server.models.sources.base import SourceFile, Transfer

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_RESUME_HINT = "check the network, then run the same command again: it resumes"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a fetch is tried again when nothing new arrives; new bytes start the count anew."""

    attempts: int = 5
    first_delay_s: float = 0.3
    max_delay_s: float = 10.0

    def delay_s(self, failures: int, asked_s: float | None) -> float:
        """Seconds before the next attempt; what the server asked for, within bounds."""
        return min(asked_s if asked_s is not None else self.first_delay_s * 2 ** (failures - 1), self.max_delay_s)


def make_client(*, timeout_s: float = 30.0) -> httpx.Client:
    """A client that honours the usual proxy and certificate variables and never leaves TLS on a redirect."""

    def stay_on_tls(response: httpx.Response) -> None:
        target = response.headers.get("location", "") if response.has_redirect_location else ""
        if response.request.url.scheme == "https" and target.lower().startswith("http:"):
            raise SourceError(f"{response.request.url.host} redirects from https to http, which is refused")

    return httpx.Client(
        follow_redirects=True,
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
        headers={"User-Agent": f"vmm/{vmm_server.__version__}", "Accept-Encoding": "identity"},
        event_hooks={"response": [stay_on_tls]},
    )


def fetch_verified(
    file: SourceFile, target: Path, transfer: Transfer, retry: RetryPolicy, *, hint: str | None = None
) -> str:
    """Download and check size, sha256 and git's digest, as far as they are known; returns the sha256.

    `hint` is the mend for a refusal (401, 403). Raises `SourceError` and its kinds, `StoreError`, `RequestCancelled`;
    after a `DigestMismatch` nothing is kept.
    """
    download = _Download(file, target, transfer, retry, hint)
    digest = download.run()
    if download.resumed and not _is_as_promised(file, target, digest):
        target.unlink(missing_ok=True)  # perhaps the start was another version's
        digest = download.run()
    if not _is_as_promised(file, target, digest):
        actual = digest if file.sha256 else _git_oid(target)
        target.unlink(missing_ok=True)
        raise DigestMismatch(file.url, expected=file.sha256 or str(file.git_oid), actual=actual)
    return digest


class _Interrupted(Exception):
    """The attempt failed in a way that another may not."""

    def __init__(self, reason: str, asked_s: float | None = None) -> None:
        super().__init__(reason)
        self.asked_s = asked_s


class _Download:
    def __init__(
        self, file: SourceFile, target: Path, transfer: Transfer, retry: RetryPolicy, hint: str | None
    ) -> None:
        self._file = file
        self._target = target
        self._transfer = transfer
        self._retry = retry
        self._hint = hint
        self._sidecar = target.with_name(f"{target.name}.validator")
        self._has_digest = file.sha256 is not None or file.git_oid is not None
        self._sha256 = hashlib.sha256()
        self._completed = 0
        self._reported = 0
        self._validator: str | None = None
        self.resumed = False
        """Whether bytes of several replies were put together."""

    def run(self) -> str:
        """The sha256 of the whole file, once it is there."""
        with store_errors(f"write {self._target.name}", self._target.parent):
            self._target.touch()
            return self._run()

    def _run(self) -> str:
        with self._target.open("r+b", buffering=0) as out:
            self._resume(out)
            high_water, failures = self._completed, 0
            # without a digest even a whole file is asked about: it may have changed
            while not self._has_digest or self._file.size_bytes is None or self._completed < self._file.size_bytes:
                try:
                    self._attempt(out)
                    break
                except _Interrupted as error:
                    failures = 1 if self._completed > high_water else failures + 1
                    high_water = max(high_water, self._completed)
                    if failures >= self._retry.attempts:
                        raise SourceError(f"{self._file.url}: {error}", hint=_RESUME_HINT) from error
                    if self._transfer.cancelled.wait(self._retry.delay_s(failures, error.asked_s)):
                        raise RequestCancelled from None
        self._sidecar.unlink(missing_ok=True)
        return self._sha256.hexdigest()

    def _resume(self, out: FileIO) -> None:
        """Take over what is there, if it may be continued."""
        size = out.seek(0, 2)
        validator = None if self._has_digest else self._read_sidecar()
        may_go_on = self._has_digest or validator is not None
        if not may_go_on or (self._file.size_bytes is not None and size > self._file.size_bytes):
            size = 0
            out.truncate(0)
        self._sha256 = hashlib.sha256()
        self._validator = validator
        out.seek(0)
        while chunk := out.read(1 << 20):
            self._transfer.check()
            self._sha256.update(chunk)
        self._completed = size

    def _read_sidecar(self) -> str | None:
        try:
            return str(json.loads(self._sidecar.read_bytes())["validator"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _restart(self, out: FileIO) -> None:
        out.seek(0)
        out.truncate()
        self._sha256 = hashlib.sha256()
        self._completed = 0
        self._validator = None
        self._sidecar.unlink(missing_ok=True)

    def _attempt(self, out: FileIO) -> None:
        """One request; returns when the file is whole. Raises `_Interrupted` when another may go on."""
        headers = dict(self._file.headers)
        if self._completed and not self._has_digest and not self._validator:
            self._restart(out)  # nothing would tell that the rest is another version's
        if self._completed:
            headers["Range"] = f"bytes={self._completed}-"
            if self._validator:
                headers["If-Range"] = self._validator
        try:
            with self._transfer.client.stream("GET", self._file.url, headers=headers) as response:
                total = self._accept(response, out)
                if total is None or self._completed < total:
                    self._receive(response, out, total)
        except httpx.TimeoutException as error:
            raise _Interrupted("the server does not answer in time") from error
        except httpx.TransportError as error:
            raise _Interrupted(str(error) or type(error).__name__) from error
        except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise SourceError(f"{self._file.url}: {error}") from error

    def _accept(self, response: httpx.Response, out: FileIO) -> int | None:
        """Check the reply's head, start over if it is not a continuation; returns the file's size if it is told."""
        _refuse(response, self._file.url, self._hint)
        start, total = _position(response)
        if response.status_code == 416:
            if total == self._completed and total:
                return total
            self._restart(out)
            raise _Interrupted("the server has less than was fetched before")
        validator = None if self._has_digest else _validator(response)
        if response.status_code == 206 and (start != self._completed or self._changed(validator)):
            self._restart(out)
            raise _Interrupted("the file changed while it was fetched")
        if response.status_code == 200:
            self._restart(out)
        self.resumed |= self._completed > 0
        if None not in (total, self._file.size_bytes) and total != self._file.size_bytes:
            raise SourceError(f"{self._file.url} is {total} bytes, {self._file.size_bytes} were promised")
        if total is not None:
            self._transfer.reserve(total - self._completed)
        if not self._completed and validator:
            self._validator = validator
            write_atomically(self._sidecar, json.dumps({"validator": validator}).encode())
        return total

    def _changed(self, validator: str | None) -> bool:
        return None not in (validator, self._validator) and validator != self._validator

    def _receive(self, response: httpx.Response, out: FileIO, total: int | None) -> None:
        limit = total if total is not None else self._file.size_bytes
        for chunk in response.iter_raw():
            self._transfer.check()
            self._completed += len(chunk)
            if limit is not None and self._completed > limit:
                self._restart(out)
                raise SourceError(f"{self._file.url} sends more than the {limit} bytes it has")
            rest = memoryview(chunk)
            while rest:  # a disk that fills up takes a part first
                rest = rest[out.write(rest) :]
            self._sha256.update(chunk)
            self._reported = max(self._reported, self._completed)  # a fetch that starts over does not go back
            self._transfer.progress(self._reported, limit)
        if limit is not None and self._completed < limit:
            raise _Interrupted(f"the connection closed after {self._completed} of {limit} bytes")


def _refuse(response: httpx.Response, url: str, hint: str | None) -> None:
    """Raise for every status but 200, 206 and 416."""
    status = response.status_code
    if status in (404, 410):
        raise SourceNotFound(f"{url}: there is no such file (HTTP {status})", hint="check the address")
    if status in (401, 403):
        raise SourceError(f"{url}: access refused (HTTP {status})", hint=hint or "it may need credentials")
    if status in _RETRIED:
        asked = response.headers.get("retry-after", "")
        raise _Interrupted(f"the server answers HTTP {status}", float(asked) if asked.isdigit() else None)
    if status not in (200, 206, 416):
        raise SourceError(f"{url}: unexpected answer (HTTP {status})")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise SourceError(f"{url}: sent compressed, though that was ruled out")


def _position(response: httpx.Response) -> tuple[int | None, int | None]:
    """Where the body starts and the size of the whole file (RFC 9110, 14.4), as far as they are told."""
    if response.status_code == 200:
        length = response.headers.get("content-length", "")
        return 0, int(length) if length.isdigit() else None
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if not match:
        return None, None
    start, total = match.groups()
    return int(start) if start else None, None if total == "*" else int(total)


def _validator(response: httpx.Response) -> str | None:
    """What `If-Range` takes: a strong ETag, else the date of the last change (RFC 9110, 13.1.5)."""
    etag: str = response.headers.get("etag", "")
    if etag and not etag.startswith("W/"):
        return etag
    date: str | None = response.headers.get("last-modified")
    return date


def _is_as_promised(file: SourceFile, target: Path, digest: str) -> bool:
    if file.sha256:
        return file.sha256 == digest
    return file.git_oid is None or file.git_oid == _git_oid(target)


def _git_oid(path: Path) -> str:
    """The object id git gives a file: sha1 of `blob <size>\\0` and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
