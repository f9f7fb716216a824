"""Images by URL: what is fetched, from where, and how much of it."""

import asyncio
import io
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.media import fetching
from vmm_server.media.fetching import Fetcher, is_public
from vmm_server.media.images import LIMITS, ImageLimits
from vmm_server.requests import GivenImage

WHERE = "images[0]"
PUBLIC = "93.184.215.14"


def resolving(**addresses: Sequence[str]) -> Callable[[str, int], Any]:
    """Names, with `_` for each dot, → addresses."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses[host.replace(".", "_")]

    return resolve


def fetch(fetcher: Fetcher, *urls: str, limits: ImageLimits = LIMITS) -> list[bytes]:
    async def run() -> list[bytes]:
        given = [GivenImage(url, f"images[{index}]") for index, url in enumerate(urls)]
        async with asyncio.timeout(20):
            files = await fetcher.fetched(given, limits)
        await fetcher.aclose()
        return [file.data.read() for file in files if not isinstance(file.data, str)]

    return asyncio.run(run())


def found(content: bytes = b"file") -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(content))


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
    return httpx.MockTransport(answer)


def test_the_connection_goes_to_the_address_that_was_looked_at() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return found()

    fetcher = Fetcher("public", resolve=resolving(a_example=[PUBLIC]), transport=answering(answer))
    assert fetch(fetcher, "https://a.example:8443/x.png?y=1#z") == [b"file"]
    (request,) = asked
    assert str(request.url) == f"https://{PUBLIC}:8443/x.png?y=1"
    assert request.headers["host"] == "a.example:8443"
    assert request.extensions["sni_hostname"] == "a.example"
    assert "authorization" not in request.headers


def test_an_address_of_ipv6_is_written_as_urls_have_it() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return found()

    fetcher = Fetcher("public", resolve=resolving(a_example=["2606:2800:21f::1"]), transport=answering(answer))
    fetch(fetcher, "http://a.example/x")
    assert asked == ["http://[2606:2800:21f::1]/x"]


LOCAL = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "2002:a00:1::"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:0:102:304::f5ff:fffe", "64:ff9b::", "64:ff9b:1::7f00:1"),
    *(
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "::ffff:100.64.0.1",
        "fd00:ec2::254",
        "0.1.2.3",
        "100::1",
        "3fff::1",
        "5f00::1",
    ),
    *("192.0.0.9", "192.88.99.1", "198.51.100.1", "203.0.113.1", "2002:c0a8:101::1", "fe80::5efe:7f00:1"),
]


@pytest.mark.parametrize("address", LOCAL)
def test_nothing_but_the_public_internet_is_reached(address: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"{request.url} was asked")

    for addresses in ([address], [PUBLIC, address]):
        fetcher = Fetcher("public", resolve=resolving(a_example=addresses), transport=answering(answer))
        with pytest.raises(InvalidRequest, match="no address of the public internet") as caught:
            fetch(fetcher, "http://a.example/x.png")
        assert caught.value.param == WHERE
        assert "image_urls" in str(caught.value.hint)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:21f::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are(address: str) -> None:
    assert is_public(ip_address(address))


@given(st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_no_spelling_of_a_local_address_is_public(address: Any) -> None:
    assert not is_public(address)
    for prefix in ("::ffff:", "64:ff9b::"):
        assert not is_public(ip_address(f"{prefix}{address}"))


@pytest.mark.parametrize(
    "url", ["http://2130706433/", "http://0x7f.1/", "http://[::1]/", "http://localhost:9/", "http://0/"]
)
def test_other_spellings_of_this_machine_are_seen_through(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"no address of the public internet|cannot be fetched"):
        fetch(Fetcher("public", transport=answering(lambda _: found())), url)


def test_each_redirect_is_looked_at() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"location": "http://b.example/admin"})

    resolve = resolving(a_example=[PUBLIC], b_example=["10.0.0.1"])
    with pytest.raises(InvalidRequest, match=r"b\.example is no address of the public internet"):
        fetch(Fetcher("public", resolve=resolve, transport=answering(answer)), "http://a.example/")


@pytest.mark.parametrize(
    "location",
    ["http://2130706433/", "http://[::ffff:127.0.0.1]/", "//0x7f.1/x", "http://0/", "https://[64:ff9b::a00:1]/"],
)
def test_a_redirect_to_an_address_is_looked_at_too(location: str) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(302, headers={"location": location})

    first = resolving(a_example=[PUBLIC])

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host == "a.example":
            return await first(host, port)
        return [str(found[4][0]) for found in await asyncio.get_running_loop().getaddrinfo(host, port)]

    with pytest.raises(InvalidRequest, match=r"no address of the public internet|cannot be fetched"):
        fetch(Fetcher("public", resolve=resolve, transport=answering(answer)), "http://a.example/")
    assert asked == [PUBLIC]


def test_a_name_that_changes_its_address_is_not_looked_up_again() -> None:
    """DNS rebinding: the first answer is public, and every other one this machine."""
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        return next(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(302, headers={"location": "/again"})

    with pytest.raises(InvalidRequest, match="no address of the public internet"):
        fetch(Fetcher("public", resolve=resolve, transport=answering(answer)), "http://a.example/")
    assert asked == [PUBLIC]


def test_redirects_are_followed_three_times() -> None:
    hops = iter([302, 301, 308, 200])

    def answer(request: httpx.Request) -> httpx.Response:
        stream = httpx.ByteStream(str(request.url).encode())
        return httpx.Response(next(hops), headers={"location": "../next"}, stream=stream)

    resolve = resolving(a_example=[PUBLIC])
    assert fetch(Fetcher("public", resolve=resolve, transport=answering(answer)), "http://a.example/a/b/c/d") == [
        f"http://{PUBLIC}/next".encode()
    ]
    forever = answering(lambda _: httpx.Response(302, headers={"location": "/again"}))
    with pytest.raises(InvalidRequest, match="more than 3 redirects"):
        fetch(Fetcher("public", resolve=resolve, transport=forever), "http://a.example/")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://a.example/x", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("data:image/png,abc", "only http and https"),
        ("http://", "only http and https"),
        ("http://user:secret@a.example/", "user's name"),
        ("http://a.example:99999/", "cannot be fetched"),
        ("http://a.example/" + "x" * 3000, "the limit is 2048"),
        ("http://a\x00b.example/", "cannot be fetched"),
    ],
)  # fmt: skip
def test_other_urls_are_refused(url: str, words: str) -> None:
    fetcher = Fetcher("any", resolve=resolving(a_example=[PUBLIC]), transport=answering(lambda _: found()))
    with pytest.raises(InvalidRequest, match=words) as caught:
        fetch(fetcher, url)
    assert caught.value.param == WHERE
    assert "secret" not in caught.value.message


def test_where_it_is_off_nothing_is_fetched() -> None:
    with pytest.raises(UnsupportedParameter, match="not fetched") as caught:
        fetch(Fetcher("off"), "http://a.example/")
    assert (caught.value.param, "image_urls" in str(caught.value.hint)) == (WHERE, True)


def test_images_that_were_sent_stay_as_they_are() -> None:
    async def run() -> None:
        given = [GivenImage("data:image/png;base64,AAAA", "image"), GivenImage(io.BytesIO(b"x"), "file")]
        assert await Fetcher("off").fetched(given, LIMITS) == given

    asyncio.run(run())


def test_more_urls_than_may_be_are_refused_before_one_is_fetched() -> None:
    fetcher = Fetcher("any", resolve=resolving(), transport=answering(lambda _: found()))
    with pytest.raises(InvalidRequest, match="65 URLs of images; the limit is 64") as caught:
        fetch(fetcher, *["http://a.example/"] * 65)
    assert caught.value.param == "images[64]"


class Endless(httpx.AsyncByteStream):
    """Bytes for ever; counts what was taken."""

    taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self.taken += 100
            yield bytes(100)


@pytest.mark.parametrize("headers", [{}, {"content-length": "50"}])
def test_a_file_over_the_limit_is_not_read_to_its_end(headers: dict[str, str]) -> None:
    endless = Endless()
    transport = answering(lambda _: httpx.Response(200, headers=headers, stream=endless))
    with pytest.raises(InvalidRequest, match="the limit is 1000"):
        fetch(
            Fetcher("any", resolve=resolving(a_example=[PUBLIC]), transport=transport),
            "http://a.example/",
            limits=ImageLimits(max_bytes=1000),
        )
    assert endless.taken == 1100


def test_a_promise_over_the_limit_is_enough() -> None:
    endless = Endless()
    transport = answering(lambda _: httpx.Response(200, headers={"content-length": "99999999999"}, stream=endless))
    with pytest.raises(InvalidRequest, match="99999999999 bytes"):
        fetch(Fetcher("any", resolve=resolving(a_example=[PUBLIC]), transport=transport), "http://a.example/")
    assert endless.taken == 0


def test_the_images_of_a_request_are_bounded_together() -> None:
    content = bytes(LIMITS.max_bytes)
    transport = answering(lambda _: found(content))
    num_fitting = fetching.MAX_REQUEST_BYTES // LIMITS.max_bytes
    with pytest.raises(InvalidRequest, match="bytes together") as caught:
        fetch(
            Fetcher("any", resolve=resolving(a_example=[PUBLIC]), transport=transport),
            *["http://a.example/"] * (num_fitting + 1),
        )
    assert caught.value.param == f"images[{num_fitting}]"


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx.Response(404), "its server answers 404"),
        (httpx.Response(206), "its server answers 206"),
        (httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Endless()), "compresses"),
    ],
)
def test_what_is_no_file_is_refused(response: httpx.Response, words: str) -> None:
    fetcher = Fetcher("any", resolve=resolving(a_example=[PUBLIC]), transport=answering(lambda _: response))
    with pytest.raises(InvalidRequest, match=words):
        fetch(fetcher, "http://a.example/")


@pytest.mark.parametrize(
    "failure",
    [httpx.ConnectError("nobody there"), httpx.ReadTimeout("too slow"), ssl.SSLError("bad certificate"), OSError("no")],
)
def test_a_server_that_fails_is_told_about(failure: Exception) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise failure

    fetcher = Fetcher("any", resolve=resolving(a_example=[PUBLIC]), transport=answering(answer))
    with pytest.raises(InvalidRequest, match="cannot be fetched") as caught:
        fetch(fetcher, "http://a.example/")
    assert "as a data URI" in str(caught.value.hint)


def test_addresses_are_tried_until_one_answers() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if len(asked) < 3:
            raise httpx.ConnectError("unreachable")
        return found(b"here")

    addresses = ["2606:2800:21f::1", PUBLIC, "8.8.8.8", "1.1.1.1"]
    fetcher = Fetcher("public", resolve=resolving(a_example=addresses), transport=answering(answer))
    assert fetch(fetcher, "http://a.example/") == [b"here"]
    assert asked == addresses[:3]


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = f"{self.path} {self.headers['host']} {self.headers['accept-encoding']}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def pictures_port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Pictures) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(10)


def test_a_real_server_is_reached_where_any_may_be(pictures_port: int) -> None:
    url = f"http://localhost:{pictures_port}/cat.png"
    assert fetch(Fetcher("any"), url) == [f"/cat.png localhost:{pictures_port} identity".encode()]
    with pytest.raises(InvalidRequest, match="no address of the public internet"):
        fetch(Fetcher("public"), url)
