import base64
from pathlib import Path

import pytest

from vmm_server.cli.conversation import user_message
from vmm_server.cli.images import find_images, take_images
from vmm_server.errors import InvalidRequest

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder one is in: with pictures, and a home within it."""
    for name in ("cat.png", "my cat (1).JPEG", "dog's.webp", "home/bird.jpg", "sub/cat.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PNG)
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "left", "found"),
    [
        ("What is ./cat.png?", "What is ?", ["./cat.png"]),
        ("../cat.png or ~/bird.jpg?", "or ?", ["../cat.png", "~/bird.jpg"]),
        ("{}/cat.png", "", ["{}/cat.png"]),
        ("see {}/my cat (1).JPEG please", "see  please", ["{}/my cat (1).JPEG"]),
        (r"see {}/my\ cat\ \(1\).JPEG please", "see  please", ["{}/my cat (1).JPEG"]),
        ("'{}/cat.png' twice: {}/cat.png", "twice:", ["{}/cat.png"]),
        (r"{}/dog\'s.webp", "", ["{}/dog's.webp"]),
        ("in /tmp there is ./cat.png", "in /tmp there is", ["./cat.png"]),
        ("cat.png", "cat.png", []),
        ("and/or ./none.png, {}/folder.png", "and/or ./none.png, {}/folder.png", []),
        ("https://example.test/cat.png", "https://example.test/cat.png", []),
        ("  no picture  ", "  no picture  ", []),
        ("/" + "x" * 5000 + ".png \0.png", "/" + "x" * 5000 + ".png \0.png", []),
    ],
)
def test_paths_that_lead_to_pictures_are_taken_out(folder: Path, text: str, left: str, found: list[str]) -> None:
    def here(path: str) -> str:
        return path.replace("{}", str(folder))

    content, taken = take_images(here(text))
    assert content == here(left)
    assert list(taken) == [str(Path(here(path)).expanduser()) if path[0] == "~" else here(path) for path in found]
    assert set(taken.values()) <= {base64.b64encode(PNG).decode()}


def test_a_file_that_is_no_picture_is_refused_by_name(folder: Path) -> None:
    (folder / "sub/text.png").write_text("text")
    with pytest.raises(InvalidRequest, match=r"\./text\.png is not a JPEG, PNG or WebP image"):
        take_images("./text.png")


def test_a_large_file_is_not_read(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="8 bytes; 7 is the most"):
        take_images("./cat.png", max_bytes=7)


@pytest.mark.parametrize("head", [b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 ", PNG])
def test_jpeg_webp_and_png_are_known_by_their_bytes(folder: Path, head: bytes) -> None:
    (folder / "sub/some.jpg").write_bytes(head)
    assert len(take_images("./some.jpg")[1]) == 1


def test_a_message_says_which_pictures_it_carries(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = user_message("What is this? ./cat.png")
    assert message == {"role": "user", "content": "What is this?", "images": [base64.b64encode(PNG).decode()]}
    assert capsys.readouterr().err == "Added image './cat.png'\n"
    assert user_message("Hello") == {"role": "user", "content": "Hello"}


def test_finding_is_quick_on_a_long_text() -> None:
    assert list(find_images("/a b " * 20_000)) == []
