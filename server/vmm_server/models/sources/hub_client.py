"""What the hub says of a repository, by its own client. Imported when it is needed first."""

import os
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from vmm_server.errors import SourceError, SourceNotFound

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Repository:
    """At one commit."""

    repo: str
    info: ModelInfo
    headers: dict[str, str]
    """For its files: the token, if there is one."""
    endpoint: str | None

    def url(self, path: str) -> str:
        """Of a file."""
        return hf_hub_url(self.repo, path, revision=self.info.sha, endpoint=self.endpoint)


def look_up(uri: str, repo: str, revision: str, token_hint: str) -> Repository:
    """One call to the hub. Raises `SourceError`, with `token_hint` where a token may help."""
    endpoint, token = os.environ.get("HF_ENDPOINT") or None, get_token()
    info = _ask(HfApi(endpoint=endpoint, token=token or False), uri, repo, revision, token_hint)
    return Repository(repo, info, {"Authorization": f"Bearer {token}"} if token else {}, endpoint)


def _ask(api: HfApi, uri: str, repo: str, revision: str, token_hint: str) -> ModelInfo:
    try:
        return api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    except GatedRepoError as error:
        raise SourceError(f"{uri}: the repository is gated", hint=token_hint) from error
    except RepositoryNotFoundError as error:
        hint = "check its spelling; for a private repository set HF_TOKEN"
        raise SourceNotFound(f"{uri}: there is no such repository, or it is private", hint=hint) from error
    except RevisionNotFoundError as error:
        hint = "check the branch, tag or commit after @"
        raise SourceNotFound(f"{uri}: no revision {revision}", hint=hint) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "none"
        hint = token_hint if status in (401, 403) else "try again later"
        raise SourceError(f"{uri}: the hub answers HTTP {status}", hint=hint) from error
    except OfflineModeIsEnabled as error:
        raise SourceError(f"{uri}: offline mode is on", hint="unset HF_HUB_OFFLINE") from error
    except (httpx2.TransportError, ValueError) as error:
        hint = "check the network, the proxy settings and HF_ENDPOINT"
        raise SourceError(f"{uri}: cannot reach the hub at {api.endpoint}: {error}", hint=hint) from error
