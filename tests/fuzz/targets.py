"""What is fuzzed: each a way to make inputs, and a function that reads them as the server does."""

import asyncio
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from litestar import Litestar, Request, post
from litestar.types import ASGIApp
from onnx import TensorProto, helper
from pydantic import Field
from tests.fuzz import gguf_files, json_bodies
from tests.fuzz.bytes_of import damaged
from tests.fuzz.campaign import Target

from vmm_adapters.echo import CHAT_TEMPLATE
from vmm_server.api.body import Integer, Strings, Wire
from vmm_server.api.errors import respond
from vmm_server.api.multipart import Form, FormLimits, answer_form
from vmm_server.api.streaming import WholeAnswer, json_response
from vmm_server.errors import VMMError
from vmm_server.models.importers.onnx_file import read_graph
from vmm_server.models.importers.onnx_weights import count_onnx_weights
from vmm_server.models.importers.pickled_program import Unreadable, read_program
from vmm_server.models.importers.safetensors_file import SafetensorsFile
from vmm_server.models.modelfile import parse_modelfile, read_modelfile
from vmm_server.prompt.go_template import parse_go_template
from vmm_server.prompt.templates import read_template
from vmm_server.requests import Message, Tool, ToolCall

DATA = Path(__file__).parents[1] / "data"
OURS = (VMMError,)


def gguf() -> Target:
    """GGUF files, up to the model's configuration."""
    return Target(gguf_files.files(gguf_files.whole_files()), gguf_files.read, OURS)


def wire() -> Target:
    """Bodies of OpenAI's, Anthropic's and Ollama's routes, up to the request that runs."""
    return Target(json_bodies.bodies(), json_bodies.read, OURS)


_LINES = (
    *("FROM llama3", "from @sha256:" + "a" * 64, "FROM ./a b.gguf", "PARAMETER temperature 0.5", "PARAMETER stop x"),
    *('PARAMETER stop "a b"', "PARAMETER num_ctx 4096", "PARAMETER seed 1e400", "PARAMETER nothing 1", "# note", ""),
    *("TEMPLATE {{ .Prompt }}", 'TEMPLATE """{{ .System }}\n{{ .Prompt }}"""', 'SYSTEM "a\nb"', "SYSTEM<<END\na\nEND"),
    *("MESSAGE user hi", "MESSAGE assistant", "LICENSE MIT", "ADAPTER x", "REQUIRES 0.14.0", "RENDERER x", "DRAFT y"),
)
_NOISE = (
    '"',
    '"""',
    "\n",
    "\r",
    "\r\n",
    " ",
    "\t",
    "\0",
    "<<END",
    "END",
    "\ufeff",
    "é",
    "\u2028",
    "#",
    "FROM",
    "PARAMETER",
)


def modelfile() -> Target:
    """Modelfiles: what is read is written so that it reads the same."""
    right = st.lists(st.sampled_from(_LINES[3:]), max_size=8).map(lambda lines: ["FROM llama3", *lines])
    wild = st.lists(st.sampled_from(_LINES) | st.sampled_from(_NOISE) | st.text(max_size=20), max_size=12)
    ends = st.sampled_from(("\n", "\n", "\r\n", " "))
    joined = st.tuples(right | wild, ends).map(lambda pair: pair[1].join(pair[0]))
    encoded = st.tuples(joined, st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16")))
    whole = encoded.map(lambda pair: pair[0].encode(pair[1], "replace"))
    contents = whole | whole.flatmap(lambda content: damaged(content, 2))

    def read(content: bytes) -> None:
        found = read_modelfile(content)
        assert parse_modelfile(str(found)) == found

    return Target(contents, read, OURS)


NOW = datetime(2026, 11, 22, tzinfo=UTC)
MESSAGES = (
    Message("system", "Be brief."),
    Message("user", "é {{ x }}"),
    Message("assistant", "", tool_calls=(ToolCall("f", '{"a": [1, null]}', "c1"),)),
    Message("tool", "found", name="f", tool_call_id="c1"),
    Message("user", "and?"),
)
_GO = (
    *("{{", "}}", "{{- ", " -}}", " ", "\n", "/*", "*/", ".", "$", "$x", ":=", "=", "|", "(", ")", ",", '"', "`", "'"),
    *(
        "{{ if ",
        "{{ else }}",
        "{{ end }}",
        "{{ range ",
        "{{ with ",
        '{{ define "a" }}',
        '{{ template "a" . }}',
        "break",
    ),
    *("nil", "true", '"a"', "`b`", "'c'", "-5", "1e9", "0x1p-2", "99999", ".Messages", ".Tools", ".Prompt", ".Content"),
    *("{{ range 9999 }}", "index ", "slice ", "printf ", '"%999d" ', '"%*s" ', "len ", "eq ", "and ", "or ", "json "),
)
_JINJA = (
    *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        " ",
        "\n",
        "-",
        "|",
        "~",
        "*",
        "**",
        "%",
        "(",
        ")",
        "[",
        "]",
        ",",
        ":",
        '"',
        "'",
    ),
    *("{% for m in messages %}", "{% endfor %}", "{% if ", "{% endif %}", "{% set x = ", " %}", "{% macro a(b) %}"),
    *(
        "{% endmacro %}",
        "{{ a(a) }}",
        "messages",
        "range(99999)",
        "range(10**9)",
        "'a' * 10**9",
        "m.content",
        "loop.index",
    ),
    *("tojson", "join", "replace('', 'xx')", "format", "namespace()", "__class__", "|map(attribute='role')", "|sort"),
    *(
        "{% generation %}",
        "{% call a() %}",
        "{% filter upper %}",
        "{% raw %}",
        "raise_exception('x')",
        "1/0",
        "{}",
        "tools",
    ),
)


def _spliced(sources: list[str], pieces: tuple[str, ...]) -> st.SearchStrategy[str]:
    """A template with parts cut out, moved and repeated, and pieces put in."""

    @st.composite
    def spliced(draw: st.DrawFn) -> str:
        text = draw(st.sampled_from([*sources, ""]))
        for _ in range(draw(st.integers(0, 4))):
            start = draw(st.integers(0, len(text)))
            stop = min(len(text), start + draw(st.integers(0, 40)))
            piece = draw(st.sampled_from(pieces) | st.text(max_size=5) | st.just(text[start:stop] * 2))
            text = text[:start] + piece * draw(st.sampled_from((1, 1, 1, 2, 100))) + text[stop:]
        return text

    return spliced()


def go_template() -> Target:
    """Templates in Go's language: lexer, parser, a rendering."""
    sources = [path.read_text() for path in sorted((DATA / "go_templates").glob("*.gotmpl"))]

    def render(source: str) -> None:
        parse_go_template(source).render(MESSAGES, tools=[Tool("f")], now=NOW, variables={"x": [0.5, "y"]})

    return Target(_spliced(sources, _GO), render, OURS)


def jinja_template() -> Target:
    """Chat templates in Jinja's language, or whichever is found in them."""
    loops = "{% for message in messages %}{{ message.role }}: {{ message.content | trim }}{% endfor %}"
    macros = "{% macro a(x) %}{{ x | tojson }}{% endmacro %}{% for t in tools %}{{ a(t) }}{% endfor %}{{ messages }}"

    def render(source: str) -> None:
        template = read_template(source, bos_token="<s>", eos_token="</s>")
        template.render(MESSAGES, tools=[Tool("f")], now=NOW, variables={"x": [0.5, "y"]})

    return Target(_spliced([CHAT_TEMPLATE, loops, macros], _JINJA), render, OURS)


class _Fields(Wire):
    """Of the form under test."""

    name: str
    number: float | None = None
    count: Integer | None = None
    yes: bool = False
    many: Strings = Field(default_factory=list)
    inner: dict[str, str] | None = None


_LIMITS = FormLimits(3 * 2**20, max_files=2, max_fields=10, max_field_bytes=1000, setting="max_body_size")
_NAMES = (
    "name",
    "number",
    "count",
    "yes",
    "many",
    "many[]",
    "inner[a]",
    "inner[a][b]",
    "file",
    "",
    "[",
    "a]",
    "é",
    '"',
    "x" * 500,
)


@st.composite
def _forms(draw: st.DrawFn) -> tuple[bytes, bytes, int]:
    """(content type, body, how much of it comes at a time)."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(0, 6))):
        name = draw(st.sampled_from(_NAMES)).encode()
        head = b'Content-Disposition: form-data; name="' + name + b'"'
        if draw(st.booleans()):
            head += b'; filename="' + draw(st.sampled_from((b"a.png", b"", b"../x", b'\\"', b"\xff"))) + b'"'
        if draw(st.booleans()):
            head += b"\r\nContent-Type: " + draw(
                st.sampled_from((b"text/plain", b"image/png", b"", b"a/b; c=" + b"d" * 9000))
            )
        content = draw(
            st.sampled_from((b"0.5", b"true", b"\xff\x00", b"--x", b"\r\n--x--", b"y" * 1500)) | st.binary(max_size=40)
        )
        parts.append(b"--x\r\n" + head + b"\r\n\r\n" + content + b"\r\n")
    body = draw(damaged(b"".join(parts) + b"--x--\r\n", 3))
    kinds = (b"multipart/form-data; boundary=x",) * 8 + (
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"x" * 300,
    )
    return draw(st.sampled_from(kinds)), body, draw(st.sampled_from((1, 7, 100, 10**6)))


def multipart() -> Target:
    """Forms, as a route reads them."""

    @post("/", request_max_body_size=None)
    async def route(request: Request[Any, Any, Any]) -> ASGIApp:
        return await answer_form(request, _LIMITS, answer)

    def answer(form: Form) -> ASGIApp:
        form.parse(_Fields)
        sizes = [len(file.content.read()) for file in form.files_of("file")]

        async def work() -> WholeAnswer:
            return WholeAnswer({"sizes": sizes}, {})

        return json_response(work)

    app = Litestar([route], exception_handlers={Exception: respond}, openapi_config=None)
    runner = asyncio.Runner()

    def send_form(case: tuple[bytes, bytes, int]) -> None:
        kind, body, size = case
        chunks = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
        if len(chunks) > 200:
            chunks = [b"".join(chunks)]
        status = runner.run(_status(app, kind, chunks))
        assert status < 500

    return Target(_forms(), send_form, ())


async def _status(app: Any, kind: bytes, chunks: list[bytes]) -> int:
    """The status of the answer to a POST."""
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "", "server": ("test", 80),
        "client": ("test", 1), "headers": [(b"host", b"test"), (b"content-type", kind)], "state": {},
    }  # fmt: skip
    waiting = list(enumerate(chunks, 1))
    sent: list[Any] = []

    async def receive() -> dict[str, object]:
        if not waiting:
            await asyncio.sleep(3600)
        number, chunk = waiting.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return int(sent[0]["status"])


def _files(whole: list[bytes], read: Callable[[Path], object]) -> Target:
    """Damaged files of one kind."""

    def check(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            path.write_bytes(content)
            read(path)

    return Target(st.sampled_from(whole).flatmap(damaged), check, OURS)


def safetensors() -> Target:
    """Headers of safetensors files."""
    entries = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    header = json.dumps(entries).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(32)

    def read(path: Path) -> None:
        with SafetensorsFile(path) as file:
            for tensor in file.tensors.values():
                file.read(tensor, 0, tensor.size_bytes)

    return _files([whole], read)


def onnx() -> Target:
    """ONNX files: ports, operators, weights and where these lie."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], np.ones(4, np.float32))
    outside = TensorProto(name="e", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="model")
    outside.external_data.add(key="length", value="4")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", 2]) for name in ("x", "y")]
    branch = helper.make_graph([helper.make_node("Constant", [], ["z"], value=weight)], "b", [], [ports[1]])
    either = helper.make_node("If", ["x"], ["i"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [either, helper.make_node("Cast", ["i"], ["y"])], "g", ports[:1], ports[1:], initializer=[weight, outside]
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, {"names": "{0: 'person'}", "task": "detect"})

    def read(path: Path) -> None:
        found = read_graph(path)
        found.literal("names")
        found.image_input()
        count_onnx_weights(path)

    return _files([model.SerializeToString()], read)


def pickled() -> Target:
    """Pickles of PyTorch's, which are read and never run."""
    with zipfile.ZipFile(DATA / "pickled" / "tensors.zip.pth") as archive:
        (tensors,) = (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    simple = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01X\x01\x00\x00\x00bq\x02]q\x03(K\x02K\x03eu."
    hostile = b"cos\nsystem\n(S'echo x'\ntR."
    whole = [simple, hostile, tensors, tensors]

    def read(content: bytes) -> None:
        read_program(io.BytesIO(content))

    return Target(st.sampled_from(whole).flatmap(damaged), read, (Unreadable, ValueError, EOFError))


TARGETS: Mapping[str, Callable[[], Target]] = {
    target.__name__: target
    for target in (gguf, modelfile, wire, multipart, go_template, jinja_template, safetensors, onnx, pickled)
}
