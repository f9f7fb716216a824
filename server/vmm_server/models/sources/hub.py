"""`hf:org/repo[@revision][:quantization or file][/path]`: a GGUF file or a model folder of a Hugging Face repository.

huggingface_hub speaks to the hub's API and knows where its token is kept; files then come through our own download,
from the commit that the revision meant when it was asked. `HF_ENDPOINT` and `HF_TOKEN` are read at each pull.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import httpx2
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from vmm_server.errors import SourceError, SourceNotFound
from vmm_server.models.importers.gguf_families import check_architecture
from vmm_server.models.importers.gguf_parts import whole_name
from vmm_server.models.importers.quantization_mix import find_mix
from vmm_server.models.sources.base import Listing, SourceFile, Transfer, invalid_uri
from vmm_server.models.sources.download import RetryPolicy, fetch_verified
from vmm_server.models.sources.hub_files import choose_files

_URI = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[^/:@]+))?(?::(?P<quantization>[\w.-]+)|/(?P<path>.+))?"
)
_GENERATOR = re.compile(r".*(ForCausalLM|ForConditionalGeneration|LMHeadModel)")
"""Architectures, as transformers calls them, that write text."""
_PROJECTORS = ("clip",)
"""What the hub may say of a repository whose vision projector it looked at."""
_TIMEOUT_S = 20.0
TOKEN_HINT = "if the repository is gated, accept its terms on its page; then set HF_TOKEN to a token that may read it"


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
        endpoint = os.environ.get("HF_ENDPOINT") or None
        token = get_token()
        found = self._model_info(HfApi(endpoint=endpoint, token=token or False))
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
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        files = []
        for path in paths:
            url = hf_hub_url(self.repo, path, revision=found.sha, endpoint=endpoint)
            name = PurePosixPath(path).name if root is None else path.removeprefix(root)
            files.append(_source_file(siblings[path], name, url, headers))
        if root is None:
            return Listing(PurePosixPath(whole_name(paths[0])).stem, found.sha, files=tuple(files))
        quantize = find_mix(self.quantization) if self.quantization else None
        return Listing(self.repo.partition("/")[2], found.sha, files=tuple(files), is_folder=True, quantize=quantize)

    def fetch(self, file: SourceFile, target: Path, transfer: Transfer) -> str:
        """Download, resumed."""
        return fetch_verified(file, target, transfer, self.retry, hint=TOKEN_HINT)

    def _check_architecture(self, found: ModelInfo) -> None:
        """Refuse, before gigabytes are fetched, what the hub says no importer reads. It knows one file a repository."""
        architecture = (found.gguf or {}).get("architecture")
        if architecture and architecture not in _PROJECTORS:
            check_architecture(self.uri, str(architecture))

    def _model_info(self, api: HfApi) -> ModelInfo:
        try:
            return api.model_info(self.repo, revision=self.revision, files_metadata=True, timeout=_TIMEOUT_S)
        except GatedRepoError as error:
            raise SourceError(f"{self.uri}: the repository is gated", hint=TOKEN_HINT) from error
        except RepositoryNotFoundError as error:
            hint = "check its spelling; for a private repository set HF_TOKEN"
            raise SourceNotFound(f"{self.uri}: there is no such repository, or it is private", hint=hint) from error
        except RevisionNotFoundError as error:
            hint = "check the branch, tag or commit after @"
            raise SourceNotFound(f"{self.uri}: no revision {self.revision}", hint=hint) from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "none"
            hint = TOKEN_HINT if status in (401, 403) else "try again later"
            raise SourceError(f"{self.uri}: the hub answers HTTP {status}", hint=hint) from error
        except OfflineModeIsEnabled as error:
            raise SourceError(f"{self.uri}: offline mode is on", hint="unset HF_HUB_OFFLINE") from error
        except (httpx2.TransportError, ValueError) as error:
            hint = "check the network, the proxy settings and HF_ENDPOINT"
            raise SourceError(f"{self.uri}: cannot reach the hub at {api.endpoint}: {error}", hint=hint) from error


def _generates(found: ModelInfo) -> bool:
    architectures = (found.config or {}).get("architectures") or ()
    return any(_GENERATOR.fullmatch(str(name)) for name in architectures)


def _source_file(sibling: RepoSibling, name: str, url: str, headers: dict[str, str]) -> SourceFile:
    lfs = sibling.lfs
    size_bytes = lfs.size if lfs else sibling.size
    sha256 = lfs.sha256 if lfs else None
    return SourceFile(name, url, size_bytes, sha256, None if lfs else sibling.blob_id, headers)
