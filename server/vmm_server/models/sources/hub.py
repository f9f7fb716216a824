"""`hf:org/repo[@revision][:quantization or file][/path]`: a GGUF file or a model folder of a Hugging Face repository.

huggingface_hub speaks to the hub's API and knows where its token is kept; files then come through our own download,
from the commit that the revision meant when it was asked. `HF_ENDPOINT` and `HF_TOKEN` are read at each pull.
"""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from vmm_server.models.importers.gguf_families import check_architecture
from vmm_server.models.importers.gguf_parts import whole_name
from vmm_server.models.importers.quantization_mix import find_mix
from vmm_server.models.sources.base import Listing, SourceFile, Transfer, invalid_uri
from vmm_server.models.sources.download import RetryPolicy, fetch_verified
from vmm_server.models.sources.hub_files import choose_files

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

    from vmm_server.models.sources.hub_client import Repository

_URI = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[^/:@]+))?(?::(?P<quantization>[\w.-]+)|/(?P<path>.+))?"
)
_GENERATOR = re.compile(r".*(ForCausalLM|ForConditionalGeneration|LMHeadModel)")
"""Architectures, as transformers calls them, that write text."""
_PROJECTORS = ("clip",)
"""What the hub may say of a repository whose vision projector it looked at."""
TOKEN_HINT = "if the repository is gated, accept its terms on its page; then set HF_TOKEN to a token that may read it"
_CLIENT = "vmm_server.models.sources.hub_client"
"""The hub's own client is 9 MB of memory, of which a server that pulls nothing from there has no need."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository, and what of it is wanted."""

    uri: str
    repo: str
    revision: str
    quantization: str | None
    path: str
    retry: RetryPolicy

    @classmethod
    def parse(cls, uri: str, retry: RetryPolicy) -> "HubSource":
        """Raises `InvalidRequest`."""
        match = _URI.fullmatch(uri)
        if not match:
            raise invalid_uri(uri, "hf:org/repo[@revision][:quantization][/path] is expected")
        path = (match["path"] or "").strip("/")
        if ".." in path.split("/"):
            raise invalid_uri(uri, "the path leaves the repository")
        return cls(uri, match["repo"], unquote(match["revision"] or "main"), match["quantization"], path, retry)

    def look_up(self, transfer: Transfer) -> Listing:
        """One call to the hub: the commit, and its files with their sizes and digests."""
        repository: Repository = import_module(_CLIENT).look_up(self.uri, self.repo, self.revision, TOKEN_HINT)
        found = repository.info
        siblings = {sibling.rfilename: sibling for sibling in found.siblings or []}
        paths, root = choose_files(
            self.uri,
            self.repo,
            sorted(siblings),
            path=self.path,
            quantization=self.quantization,
            generates=_generates(found),
        )
        if root is None and not self.path:
            self._check_architecture(found)
        files = []
        for path in paths:
            name = PurePosixPath(path).name if root is None else path.removeprefix(root)
            files.append(_source_file(siblings[path], name, repository.url(path), repository.headers))
        if root is None:
            return Listing(PurePosixPath(whole_name(paths[0])).stem, found.sha, files=tuple(files))
        quantize = find_mix(self.quantization) if self.quantization else None
        return Listing(self.repo.partition("/")[2], found.sha, files=tuple(files), is_folder=True, quantize=quantize)

    def fetch(self, file: SourceFile, target: Path, transfer: Transfer) -> str:
        """Download, resumed."""
        return fetch_verified(file, target, transfer, self.retry, hint=TOKEN_HINT)

    def _check_architecture(self, found: "ModelInfo") -> None:
        """Refuse, before gigabytes are fetched, what the hub says no importer reads. It knows one file a repository."""
        architecture = (found.gguf or {}).get("architecture")
        if architecture and architecture not in _PROJECTORS:
            check_architecture(self.uri, str(architecture))


def _generates(found: "ModelInfo") -> bool:
    architectures = (found.config or {}).get("architectures") or ()
    return any(_GENERATOR.fullmatch(str(name)) for name in architectures)


def _source_file(sibling: "RepoSibling", name: str, url: str, headers: dict[str, str]) -> SourceFile:
    lfs = sibling.lfs
    size_bytes = lfs.size if lfs else sibling.size
    sha256 = lfs.sha256 if lfs else None
    return SourceFile(name, url, size_bytes, sha256, None if lfs else sibling.blob_id, headers)
