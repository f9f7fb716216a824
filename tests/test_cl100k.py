"""OpenAI's table of tokens, read from a file and never fetched."""

import base64
import hashlib
from pathlib import Path

import pytest
from tiktoken import Encoding

from vmm_server import cl100k
from vmm_server.errors import SettingsError

TOKENS = {0: b"!", 1: b" w", 2: "ö".encode()[:1], 3: "ö".encode()[1:], 4: b"rld"}
CONTENT = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in TOKENS.items())
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("name", cl100k.FILES)
def test_the_file_is_found_under_both_its_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    table = cl100k.read_cl100k(tmp_path, sha256=DIGEST)
    assert table is not None
    assert table.decode([1, 2, 3, 4, 0]) == " wörld!"
    assert table.decode([100257, 0]) == "<|endoftext|>!"
    assert table.decode([]) == ""


def test_half_a_character_is_replaced(tmp_path: Path) -> None:
    (tmp_path / cl100k.FILES[1]).write_bytes(CONTENT)
    table = cl100k.read_cl100k(tmp_path, sha256=DIGEST)
    assert table is not None
    assert table.decode([4, 2]) == "rld�"
    with pytest.raises(KeyError):
        table.decode([5])


def test_it_reads_what_tiktoken_reads(tmp_path: Path) -> None:
    everything = [bytes([byte]) for byte in range(256)] + ["gör".encode(), b" the", "\u20ac".encode()[:2]]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(everything)]
    (tmp_path / cl100k.FILES[1]).write_bytes(b"".join(lines))
    table = cl100k.read_cl100k(tmp_path, sha256=hashlib.sha256(b"".join(lines)).hexdigest())
    ranks = {token: rank for rank, token in enumerate(everything)}
    theirs = Encoding("test", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens={"<|endofprompt|>": 100276})
    ids = [257, 103, 195, 182, 258, 226, 258, 172, 256, 100276, 195]
    assert table is not None
    assert table.decode(ids) == theirs.decode(ids)


def test_no_folder_and_no_file_is_no_table(tmp_path: Path) -> None:
    assert cl100k.read_cl100k(None) is None
    assert cl100k.read_cl100k(tmp_path) is None
    assert cl100k.read_cl100k(tmp_path / "nowhere") is None


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / cl100k.FILES[0]).write_bytes(CONTENT)
    with pytest.raises(SettingsError, match="is not OpenAI's cl100k_base"):
        cl100k.read_cl100k(tmp_path)


def test_the_cached_name_is_that_of_tiktoken() -> None:
    address = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    assert hashlib.sha1(address.encode()).hexdigest() == cl100k.FILES[0]
