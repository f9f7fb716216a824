"""`hf:org/repo[@revision][:quantization][/path]`: a GGUF file or a model folder of a Hugging Face repository.

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

from vmm_server.errors import ImportFailed, SourceError, SourceNotFound
from vmm_server.models.importers.encoder_folder import encoder_files
from vmm_server.models.sources.base import Listing, SourceFile, Transfer, invalid_uri
from vmm_server.models.sources.download import RetryPolicy, fetch_verified

_URI = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[^/:@]+))?(?::(?P<quantization>[\w.-]+)|/(?P<path>.+))?"
)
_FOLDER_MARKS = ("genai_config.json", "openvino_model.xml")
"""A folder that holds one of these can be run as it is."""
_NOT_NEEDED = re.compile(r"\..*|.*\.(md|png|jpe?g|gif|pdf|safetensors|pt|pth|gguf|py)|pytorch_model.*\.bin")
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
        paths, root = self._choose(sorted(siblings))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        files = []
        for path in paths:
            url = hf_hub_url(self.repo, path, revision=found.sha, endpoint=endpoint)
            name = PurePosixPath(path).name if root is None else path.removeprefix(root)
            files.append(_source_file(siblings[path], name, url, headers))
        name = PurePosixPath(paths[0]).stem if root is None else self.repo.partition("/")[2]
        return Listing(name=name, revision=found.sha, files=tuple(files), is_folder=root is not None)

    def fetch(self, file: SourceFile, target: Path, transfer: Transfer) -> str:
        """Download, resumed."""
        return fetch_verified(file, target, transfer, self.retry, hint=TOKEN_HINT)

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

    def _choose(self, paths: list[str]) -> tuple[list[str], str | None]:
        """The wanted files, and where the folder that they make begins; `None` for one file to import."""
        if self.path in paths:
            if not self.path.lower().endswith(".gguf"):
                raise ImportFailed(f"{self.uri} is not a GGUF file", hint="name a .gguf file, or a folder")
            return [_whole(self.uri, self.path)], None
        prefix = f"{self.path}/" if self.path else ""
        below = [path for path in paths if path.startswith(prefix)]
        if not below:
            hint = f"it holds {', '.join(_shortened(paths))}"
            raise SourceNotFound(f"{self.uri}: no such file or folder in the repository", hint=hint)
        weights = [path for path in below if _is_weights(path)]
        if self.quantization:
            ending = re.compile(rf"(?i)(^|[-._/]){re.escape(self.quantization)}(-\d+-of-\d+)?\.gguf$")
            chosen = [path for path in weights if ending.search(path)]
            return [_whole(self.uri, self._only(chosen, weights, "GGUF file of that quantization"))], None
        folders = sorted({_parent(path) for path in below if PurePosixPath(path).name in _FOLDER_MARKS})
        if weights and not folders:
            return [_whole(self.uri, self._only(weights, weights, "GGUF file"))], None
        if not folders and (encoder := encoder_files([path.removeprefix(prefix) for path in below])):
            return [prefix + path for path in encoder], prefix
        folder = self._only(folders, weights + folders, "GGUF file, or genai ONNX, OpenVINO or encoder folder,")
        root = f"{folder}/" if folder else ""
        return [path for path in paths if _parent(path) == folder and _is_needed(path)], root

    def _only(self, chosen: list[str], offered: list[str], what: str) -> str:
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            first = chosen[0] or "the top folder"
            hint = f"name one of {', '.join(_shortened(chosen))}; such as hf:{self.repo}/{first}"
            raise SourceNotFound(f"{self.uri}: {len(chosen)} fit", hint=hint)
        hint = f"it holds {', '.join(_shortened(offered))}" if offered else "safetensors have to be converted first"
        raise SourceNotFound(f"{self.uri}: no {what} there", hint=hint)


def _source_file(sibling: RepoSibling, name: str, url: str, headers: dict[str, str]) -> SourceFile:
    lfs = sibling.lfs
    size_bytes = lfs.size if lfs else sibling.size
    sha256 = lfs.sha256 if lfs else None
    return SourceFile(name, url, size_bytes, sha256, None if lfs else sibling.blob_id, headers)


def _parent(path: str) -> str:
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent


def _is_needed(path: str) -> bool:
    return not _NOT_NEEDED.fullmatch(PurePosixPath(path).name.lower())


def _is_weights(path: str) -> bool:
    """A GGUF file that is a model: not a vision projector, not an importance matrix."""
    name = PurePosixPath(path).name.lower()
    return name.endswith(".gguf") and not name.startswith(("mmproj", "imatrix"))


def _whole(uri: str, path: str) -> str:
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path):
        hint = "choose a quantization in one file, or join the parts with llama-gguf-split --merge"
        raise ImportFailed(f"{uri}: {path} is one part of a split GGUF", hint=hint)
    return path


def _shortened(names: list[str]) -> list[str]:
    shown = [name or "(the top folder)" for name in names[:12]]
    return [*shown, f"… ({len(names)} in all)"] if len(names) > 12 else shown or ["nothing"]
