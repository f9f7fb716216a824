"""Where weights come from: a URI → a `Source`."""

from vmm_server.models.sources.base import Listing, Source, SourceFile, Step, Transfer, invalid_uri
from vmm_server.models.sources.download import RetryPolicy, make_client
from vmm_server.models.sources.https import HttpsSource
from vmm_server.models.sources.hub import HubSource
from vmm_server.models.sources.local import LocalSource
from vmm_server.models.sources.pypi import PypiSource

__all__ = [
    "Listing",
    "RetryPolicy",
    "Source",
    "SourceFile",
    "Step",
    "Transfer",
    "is_local",
    "is_uri",
    "make_client",
    "parse_source",
]

_SCHEMES = ("pypi:", "hf:", "https:", "http:", "file:")


def is_uri(reference: str) -> bool:
    """Whether this is a source's URI rather than a model's name."""
    return reference.startswith(_SCHEMES)


def is_local(reference: str) -> bool:
    """Whether this is the URI of a file or a folder."""
    return reference.startswith("file:")


def parse_source(uri: str, retry: RetryPolicy) -> Source:
    """The source a URI names. Raises `InvalidRequest` saying what is wrong with it."""
    if uri.startswith("pypi:"):
        return PypiSource.parse(uri, retry)
    if uri.startswith("hf:"):
        return HubSource.parse(uri, retry)
    if uri.startswith(("https:", "http:")):
        return HttpsSource.parse(uri, retry)
    if is_local(uri):
        return LocalSource.parse(uri)
    raise invalid_uri(uri, f"a source starts with one of {' '.join(_SCHEMES)}")
