"""The commands for pictures and sound, against servers that answer by rote."""

import base64
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from vmm_server.cli import main
from vmm_server.cli.classify import classify_files
from vmm_server.cli.client import Client
from vmm_server.cli.detect import detect_files
from vmm_server.cli.embed import embed_images, embed_texts, piped_lines
from vmm_server.cli.media import DEFAULTS, check_targets, choose_model, open_file, target, write_whole
from vmm_server.cli.transcribe import Job, transcribe_files
from vmm_server.errors import ModelNotFound, VMMError
from vmm_server.models.registry import read_cards

Answer = Callable[[httpx.Request], httpx.Response]
Captured = pytest.CaptureFixture[str]
PNG = b"\x89PNG\r\n\x1a\n..."
BAD = {"error": {"message": "file: is no image", "type": "invalid_request_error", "hint": "send a PNG"}}


def client(answer: Answer) -> Client:
    return Client("http://127.0.0.1:11434", transport=httpx.MockTransport(answer))


def form(request: httpx.Request) -> dict[str, list[str]]:
    """The fields of a form by name, the file's content among them."""
    boundary = request.headers["content-type"].partition("boundary=")[2]
    fields: dict[str, list[str]] = {}
    for part in request.read().decode("latin-1").split(f"--{boundary}")[1:-1]:
        head, _, content = part.strip("\r\n").partition("\r\n\r\n")
        name = re.search(r'name="([^"]*)"', head)
        assert name is not None
        fields.setdefault(name[1], []).append(content)
    return fields


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """`one` and `three` are good, `two` is not, `gone` is not there."""
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.wav").write_text(f"sound {name}")
    return [str(tmp_path / f"{name}.wav") for name in ("one", "two", "gone", "three")]


def unless_two(answer: Callable[[dict[str, list[str]]], httpx.Response]) -> Answer:
    def choose(request: httpx.Request) -> httpx.Response:
        fields = form(request)
        return httpx.Response(400, json=BAD) if fields["file"] == ["sound two"] else answer(fields)

    return choose


def events(*deltas: str) -> httpx.Response:
    sent: list[dict[str, Any]] = [{"type": "transcript.text.delta", "delta": each} for each in deltas]
    sent.append({"type": "transcript.text.done", "text": "".join(deltas)})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in sent)
    return httpx.Response(200, text=f": ping\n\n{text}data: [DONE]\n\n", headers={"content-type": "text/event-stream"})


# Models


def installed(**models: list[str]) -> Answer:
    entries = [{"name": name, "capabilities": capabilities} for name, capabilities in models.items()]
    return lambda request: httpx.Response(200, json={"models": entries})


def test_the_only_model_that_can_do_it_is_taken() -> None:
    with client(installed(llm=["completion"], ears=["transcription"], eyes=["detection"])) as there:
        assert choose_model(there, None, "transcription") == "ears"
        assert choose_model(there, "named", "transcription") == "named"
        assert choose_model(there, None, "embedding") == DEFAULTS["embedding"]


def test_of_several_the_built_in_one_is_taken() -> None:
    with client(installed(a=["transcription"], b=["transcription", "translation"])) as there:
        assert choose_model(there, None, "transcription") == DEFAULTS["transcription"]


@pytest.mark.parametrize("capability", DEFAULTS)
def test_the_defaults_have_cards_that_can_do_it(capability: str) -> None:
    cards = {name: card for card in read_cards([]) for name in (card.id, *card.aliases)}
    assert capability in cards[DEFAULTS[capability]].capabilities


def test_a_missing_model_ends_the_command_with_what_helps(files: list[str], capsys: Captured) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        error = {"message": "model 'm' not found", "code": "model_not_found"}
        return httpx.Response(404, json={"error": error | {"hint": "vmm pull m"}})

    with client(answer) as there, pytest.raises(ModelNotFound) as error:
        detect_files(there, files, {"model": "m"})
    assert (error.value.hint, len(asked)) == ("vmm pull m", 1)
    assert capsys.readouterr().out == ""


def test_a_server_that_fails_ends_the_command(files: list[str]) -> None:
    answer: Answer = lambda request: httpx.Response(500, json={"error": {"message": "out of breath"}})  # noqa: E731
    with client(answer) as there, pytest.raises(VMMError, match="out of breath"):
        classify_files(there, files, {"model": "m"})


# Sound


def test_texts_are_printed_as_they_are_heard_and_bad_files_are_told(files: list[str], capsys: Captured) -> None:
    asked: list[dict[str, list[str]]] = []

    def answer(fields: dict[str, list[str]]) -> httpx.Response:
        asked.append(fields)
        return events("Hello,", " world.")

    with client(unless_two(answer)) as there:
        job = Job({"model": "m", "language": "en"})
        assert transcribe_files(there, files, job) == 1
    one, two, gone, three = files
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"==> {one} <==", "Hello, world.", f"==> {three} <==", "Hello, world."]
    assert f"error: {two}: file: is no image\nhint: send a PNG\n" in err
    assert f"error: {gone}: No such file or directory\n" in err
    assert [fields["file"] for fields in asked] == [["sound one"], ["sound three"]]
    assert asked[0]["model"] == ["m"]
    assert asked[0]["language"] == ["en"]
    assert asked[0]["stream"] == ["true"]


def test_one_text_stands_alone(files: list[str], capsys: Captured) -> None:
    with client(lambda request: events("Hello.")) as there:
        assert transcribe_files(there, files[:1], Job({"model": "m"})) == 0
    assert capsys.readouterr().out == "Hello.\n"


def test_a_stream_that_breaks_is_an_error(files: list[str]) -> None:
    text = 'data: {"type": "transcript.text.delta", "delta": "Hel"}\n\ndata: {"error": {"message": "lost"}}\n\n'
    with client(lambda request: httpx.Response(200, text=text)) as there, pytest.raises(VMMError, match="lost"):
        transcribe_files(there, files[:1], Job({"model": "m"}))


@pytest.mark.parametrize(
    ("format", "suffix", "content"),
    [("srt", "srt", "1\n00:00"), ("vtt", "vtt", "WEBVTT"), ("json", "json", '{"text": "Hi"}')],
)
def test_transcripts_are_written_beside_each_other(
    files: list[str], tmp_path: Path, capsys: Captured, format: str, suffix: str, content: str
) -> None:
    out = tmp_path / "out"
    check_targets(out, files, f".{suffix}")
    with client(unless_two(lambda fields: httpx.Response(200, text=content))) as there:
        assert transcribe_files(there, files, Job({"model": "m"}, format, out=out)) == 1
    assert sorted(path.name for path in out.iterdir()) == [f"one.{suffix}", f"three.{suffix}"]
    assert (out / f"one.{suffix}").read_text() == content
    assert capsys.readouterr().out.splitlines() == [str(out / f"one.{suffix}"), str(out / f"three.{suffix}")]


def test_a_text_that_is_written_is_whole(files: list[str], tmp_path: Path) -> None:
    with client(lambda request: events("Hello,", " world.")) as there:
        transcribe_files(there, files[:1], Job({"model": "m"}, out=tmp_path))
    assert (tmp_path / "one.txt").read_text() == "Hello, world.\n"


def test_json_is_a_line_for_each_file(files: list[str], capsys: Captured) -> None:
    with client(lambda request: httpx.Response(200, text='{"text":\n"Grüß"}')) as there:
        transcribe_files(there, [files[0], files[3]], Job({"model": "m"}, "json"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"file": files[0], "text": "Grüß"}, {"file": files[3], "text": "Grüß"}]


def test_translations_have_a_route_of_their_own_and_come_whole(files: list[str], capsys: Captured) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, text="Hello.\n")

    with client(answer) as there:
        transcribe_files(there, files[:1], Job({"model": "m"}, translate=True))
    assert [request.url.path for request in asked] == ["/v1/audio/translations"]
    assert "stream" not in form(asked[0])
    assert capsys.readouterr().out == "Hello.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["transcribe", "a.wav", "--words"], "verbose_json"),
        (["transcribe", "a.wav", "--translate", "--language", "de"], "--language"),
        (["transcribe", "a.wav", "b.wav", "--format", "srt"], "--out DIR"),
        (["transcribe"], "FILE"),
        (["detect"], "IMAGE"),
        (["detect", "a.png", "--threshold", "1.5"], "threshold"),
        (["classify", "a.png", "--top-k", "0"], "top-k"),
        (["embed"], "name a text"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_asked(
    arguments: list[str], words: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_standard_input_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x00\xff")))
    with open_file("-") as (name, file):
        assert (name, file.read()) == ("stdin", b"\x00\xff")


def test_two_files_are_not_written_to_one(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"a\.wav and b/a\.mp3"):
        check_targets(tmp_path, ["a.wav", "b/a.mp3"], ".srt")


def test_a_file_is_not_written_over_its_source(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    with pytest.raises(click.UsageError, match="another --out"):
        check_targets(tmp_path, [str(tmp_path / "cat.png")], ".png")


def test_standard_input_has_a_name_among_the_written(tmp_path: Path) -> None:
    assert target(tmp_path, "-", ".srt") == tmp_path / "stdin.srt"


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError, match="there"):
        write_whole(tmp_path / "there", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# Pictures


def detections(fields: dict[str, list[str]]) -> httpx.Response:
    box = {"x1": 1, "y1": 2, "x2": 3, "y2": 4}
    found: dict[str, Any] = {
        "object": "detections",
        "index": 0,
        "width": 8,
        "height": 6,
        "detections": [{"label": "cat", "class_id": 15, "score": 0.9, "box": box}],
    }
    if fields.get("draw") == ["true"]:
        found["image"] = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    return httpx.Response(200, json={"object": "list", "data": [found]})


def test_detections_are_a_line_for_each_picture(files: list[str], capsys: Captured) -> None:
    with client(unless_two(detections)) as there:
        assert detect_files(there, files, {"model": "m", "classes": ["cat", "dog"]}) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [files[0], files[3]]
    assert lines[0]["detections"][0]["label"] == "cat"
    assert [*lines[0]] == ["file", "width", "height", "detections"]


def test_pictures_are_drawn_into_a_folder(files: list[str], tmp_path: Path, capsys: Captured) -> None:
    asked: list[dict[str, list[str]]] = []

    def answer(fields: dict[str, list[str]]) -> httpx.Response:
        asked.append(fields)
        return detections(fields)

    out = tmp_path / "drawn"
    check_targets(out, files, ".png")
    with client(unless_two(answer)) as there:
        detect_files(there, files, {"model": "m", "threshold": 0.4, "classes": ["cat", "dog"]}, out)
    assert sorted(path.name for path in out.iterdir()) == ["one.png", "three.png"]
    assert (out / "one.png").read_bytes() == PNG
    assert json.loads(capsys.readouterr().out.splitlines()[0])["image"] == str(out / "one.png")
    assert (asked[0]["threshold"], asked[0]["classes"]) == (["0.4"], ["cat", "dog"])


def classes(fields: dict[str, list[str]]) -> httpx.Response:
    named = [
        {"label": "tabby", "class_id": 281, "score": 0.875},
        {"label": "tiger cat", "class_id": 282, "score": 0.1},
    ]
    return httpx.Response(200, json={"data": [{"classes": named}]})


def test_classes_are_a_line_for_each_picture(files: list[str], capsys: Captured) -> None:
    with client(unless_two(classes)) as there:
        assert classify_files(there, files, {"model": "m", "top_k": 2}) == 1
        assert classify_files(there, files[:1], {"model": "m", "top_k": 2}, as_json=True) == 0
    one, three, as_json = capsys.readouterr().out.splitlines()
    assert one == f"{files[0]}: tabby 0.875, tiger cat 0.100"
    assert three.startswith(files[3])
    assert json.loads(as_json)["classes"][1]["label"] == "tiger cat"


def test_texts_go_together_and_pictures_one_by_one(files: list[str], capsys: Captured) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path == "/v1/embeddings":
            inputs = json.loads(request.content)["input"]
            return httpx.Response(200, json={"data": [{"embedding": [len(text)]} for text in inputs]})
        return httpx.Response(200, json={"data": [{"embedding": [0.5]}]})

    with client(answer) as there:
        embed_texts(there, ["ab", "ü" * 3], {"model": "m"})
        assert embed_images(there, files[:1], {"model": "m"}) == 0
    assert asked == ["/v1/embeddings", "/v1/vision/embed"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [{"text": "ab", "embedding": [2]}, {"text": "üüü", "embedding": [3]}]
    assert lines == [*expected, {"image": files[0], "embedding": [0.5]}]


def test_many_texts_are_sent_in_several_requests(capsys: Captured) -> None:
    sizes: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        inputs = json.loads(request.content)["input"]
        sizes.append(len(inputs))
        return httpx.Response(200, json={"data": [{"embedding": [float(text)]} for text in inputs]})

    with client(answer) as there:
        embed_texts(there, [str(number) for number in range(600)], {"model": "m"})
    assert sizes == [256, 256, 88]
    assert [json.loads(line)["embedding"] for line in capsys.readouterr().out.splitlines()] == [
        [number] for number in range(600)
    ]


def test_lines_that_are_piped_in_are_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n two \n"))
    assert piped_lines() == ("one", " two ")
