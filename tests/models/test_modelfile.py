from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmm_adapters.card import SamplingDefaults
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.models.modelfile import Modelfile, modelfile_of, parameters_text, parse_modelfile, read_modelfile
from vmm_server.models.store import InstalledModel

nasty = st.text() | st.text(st.sampled_from('"""ab \t\r\n#<END\x0b\u2028\ufeff'), max_size=30)
filled = nasty.filter(str.strip)
numbers = st.floats(0, 1) | st.integers(0, 1)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "temperature": numbers,
        "top_p": numbers,
        "repeat_penalty": st.floats(0.5, 2),
        "seed": st.integers(-1, 2**63),
        "num_ctx": st.integers(1, 10**6),
        "use_mmap": st.booleans(),
        "stop": st.lists(nasty.filter(bool), min_size=1, max_size=3),
    },
)


@given(
    st.builds(
        Modelfile,
        filled,
        parameters,
        st.none() | nasty,
        st.none() | nasty,
        st.lists(filled, max_size=2).map(tuple),
        st.lists(nasty, max_size=3).map(tuple),
        st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), nasty), max_size=3).map(tuple),
        st.none() | st.just("0.14.0"),
    )
)
@example(Modelfile("a", system='a"""\nFROM b'))
@example(Modelfile("a", system='"""\nEND\nEND1\n"'))
@example(Modelfile("a", system='"\r\nEND\r'))
@example(Modelfile("a", template='"', licenses=('""', '"""', '""""""')))
def test_what_is_written_reads_back_the_same(modelfile: Modelfile) -> None:
    assert parse_modelfile(str(modelfile)) == modelfile


@given(st.text() | st.text(st.sampled_from('FROMSYSTE PARAMETER stop"x\n\r#<')))
def test_any_text_is_a_modelfile_or_an_error_that_says_why(text: str) -> None:
    try:
        assert parse_modelfile(str(parse_modelfile(text))) == parse_modelfile(text)
    except InvalidRequest as error:
        assert "Modelfile" in error.message  # noqa: PT017 - either is right


def test_every_instruction() -> None:
    text = '''
# a comment
FROM llama3.2
parameter temperature 0.7
Parameter  num_ctx   4096
PARAMETER stop <|eot_id|>
PARAMETER stop "two words "
PARAMETER use_mmap T
  # an indented comment
TEMPLATE """{{ if .System }}<|system|>
{{ .System }}{{ end }}
{{ .Prompt }}"""
SYSTEM You are "Mario" # of course
LICENSE first
LICENSE """
second
"""
MESSAGE user Is Toronto in Canada?
MESSAGE assistant "yes
and no"
REQUIRES 0.14.0
'''
    assert parse_modelfile(text) == Modelfile(
        "llama3.2",
        {"temperature": 0.7, "num_ctx": 4096, "stop": ["<|eot_id|>", "two words "], "use_mmap": True},
        "{{ if .System }}<|system|>\n{{ .System }}{{ end }}\n{{ .Prompt }}",
        'You are "Mario" # of course',
        licenses=("first", "\nsecond\n"),
        messages=(("user", "Is Toronto in Canada?"), ("assistant", "yes\nand no")),
        requires="0.14.0",
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("  blanks around \t", "blanks around"),
        ('"one line"', "one line"),
        ('" kept "', " kept "),
        ('""', ""),
        ("", ""),
        ('"a\nb"', "a\nb"),
        ('"a" b"', 'a" b'),  # it ends where a quote ends a line
        ('"""a"b"""', 'a"b'),
        ('""""a""""', '"a"'),
        ('"""a"""   ', "a"),
        ('"""\n"""', "\n"),
        ('"""a""" b\nc"""', 'a""" b\nc'),
        ("it's", "it's"),
        ("<<END", "<<END"),
    ],
)
def test_values_as_ollama_reads_them(value: str, text: str) -> None:
    assert parse_modelfile(f"FROM x\nSYSTEM {value}").system == text
    assert parse_modelfile(f"SYSTEM {value}\r\nFROM x\r\n").system == text
    assert parse_modelfile(f"FROM x\nPARAMETER stop x\nMESSAGE user {value}\n").messages == (("user", text),)


def test_a_text_between_words_of_ones_own() -> None:
    assert parse_modelfile('FROM x\nSYSTEM<<END\na"""\nFROM y\n END\nEND\nPARAMETER seed 1') == Modelfile(
        "x", {"seed": 1}, system='a"""\nFROM y\n END'
    )
    assert parse_modelfile("FROM x\r\nSYSTEM<<E\r\na\r\nb\r\nE\r\n").system == "a\r\nb"
    assert parse_modelfile("FROM x\nMESSAGE user<<E\nE").messages == (("user", ""),)


def test_the_last_of_what_can_be_told_once_counts() -> None:
    assert parse_modelfile("FROM x\nSYSTEM a\nSYSTEM b\nPARAMETER seed 1\nPARAMETER seed 2") == Modelfile(
        "x", {"seed": 2}, system="b"
    )


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    ],
)
def test_encodings(encode: Any) -> None:
    assert read_modelfile(encode("FROM x\r\nSYSTEM Grüße 👩‍🚀\r\n")) == Modelfile("x", system="Grüße 👩‍🚀")


@pytest.mark.parametrize("content", [b"FROM x\n\nSYSTEM \xe9", b"\xff\xfeF\x00\n\x00\n\x00\x00\xd8"])
def test_what_is_in_no_encoding_names_the_line(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="line 3: this is not UTF-"):
        read_modelfile(content)


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("", "has no FROM", "begin it with FROM"),
        ("SYSTEM a", "has no FROM", "begin it with FROM"),
        ("FROM", "line 1: FROM: its value is missing", None),
        ("FROM \n", "line 1: FROM: its value is missing", None),
        ("FROM x\nFROM y", "line 2: FROM: there is a FROM already", None),
        ("FROM x\n\nFORM y", "line 3: 'FORM y' begins with no instruction", "did you mean FROM?"),
        ("FROM x\r\nSYSTEM", "line 2: SYSTEM: its value is missing", None),
        ("FROM x\rSYSTEM:a", "line 2: SYSTEM: ':a' follows it without a space", None),
        ("FROM x\nSYSTEM a\nb", "line 3: 'b' begins with no instruction", "there are ADAPTER"),
        ('FROM x\n\nSYSTEM """a\nb', 'line 3: SYSTEM: its text begins with """ and never ends', "same quotes"),
        ('FROM x\nSYSTEM "a', 'line 2: SYSTEM: its text begins with " and never ends', "same quotes"),
        ("FROM x\nSYSTEM<<END\na", "line 2: SYSTEM: its text never ends", "put a line END"),
        ("FROM x\nPARAMETER", "line 2: PARAMETER: its second word is missing", "a parameter's name and its value"),
        ("FROM x\nPARAMETER seed", "line 2: PARAMETER seed: its value is missing", None),
        ("FROM x\nPARAMETER tempreature 1", "line 2: PARAMETER tempreature: there is no", "did you mean temperature?"),
        ("FROM x\nPARAMETER Seed 1", "line 2: PARAMETER Seed: there is no", "did you mean seed?"),
        ("FROM x\nPARAMETER seed one", "line 2: PARAMETER seed: must be a number, not 'one'", None),
        ("FROM x\nPARAMETER seed 1.5", "line 2: PARAMETER seed: must be a whole number, not '1.5'", None),
        ("FROM x\nPARAMETER temperature nan", "line 2: PARAMETER temperature: must be a number", None),
        ("FROM x\nPARAMETER temperature 1_0", "line 2: PARAMETER temperature: must be a number", None),
        ("FROM x\nPARAMETER temperature -1", "line 2: PARAMETER temperature: must be at least 0", None),
        ("FROM x\nPARAMETER seed " + "9" * 5000, "line 2: PARAMETER seed: must be a number", None),
        ("FROM x\nPARAMETER backend cuda", "line 2: PARAMETER backend: must be one of cpu, openvino, ", None),
        ("FROM x\nPARAMETER use_mmap maybe", "line 2: PARAMETER use_mmap: must be true or false", None),
        ('FROM x\nPARAMETER stop ""', "line 2: PARAMETER stop: must be a text", None),
        ("FROM x\nMESSAGE tool x", "line 2: MESSAGE tool: its role must be one of system, user, assistant", None),
        ("FROM x\nREQUIRES new", "line 2: REQUIRES: 'new' is no version", None),
        ('FROM x\nADAPTER ""', "line 2: ADAPTER: its value is missing", None),
    ],
)
def test_errors_name_the_line_and_the_instruction(text: str, problem: str, hint: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_modelfile(text)
    assert problem in caught.value.message
    assert (hint or "") in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["RENDERER", "parser", "DRAFT"])
def test_what_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter, match=f"line 2: {name.upper()} is not supported"):
        parse_modelfile(f"FROM x\n{name} y")


def test_numbers_are_read_in_their_parameters_type() -> None:
    read = parse_modelfile("FROM x\nPARAMETER temperature 1\nPARAMETER num_ctx 4096.0\nPARAMETER seed +7").parameters
    assert [(value, type(value)) for value in read.values()] == [(1.0, float), (4096, int), (7, int)]


def test_a_long_text_is_read_in_one_go() -> None:
    text = 'a "line" of many\n' * 50_000
    assert parse_modelfile(f'FROM x\nLICENSE """{text}"""').licenses == (text,)


def installed(**changes: Any) -> InstalledModel:
    fields: dict[str, Any] = {
        "name": "mine:latest",
        "aliases": (),
        "digest": "1" * 64,
        "size_bytes": 1,
        "modified_at": datetime(2026, 1, 1, tzinfo=UTC),
        "adapter": "echo",
        "folder": Path("/x"),
        "format": "gguf",
        "family": "llama",
        "parameter_size": "1M",
        "quantization": "F16",
        "context_length": 64,
        "embedding_length": None,
        "capabilities": ("completion",),
        "license": "MIT",
        "title": "Mine",
        "system": None,
        "sampling": SamplingDefaults(),
        "source": "file:/x",
    }
    return InstalledModel(**fields | changes)


def test_the_modelfile_of_a_model() -> None:
    model = installed(
        template="{{ .Prompt }}",
        system="Be\nkind",
        sampling=SamplingDefaults(temperature=0.5, stop=("a",)),
        num_ctx=8,
        parameters={"temperature": 0.5, "stop": ["a"], "num_ctx": 8},
        messages=(("user", "hi"),),
        license_texts=("text",),
    )
    assert modelfile_of(model, "of the folder") == Modelfile(
        "mine:latest",
        {"temperature": 0.5, "stop": ["a"], "num_ctx": 8},
        "{{ .Prompt }}",
        "Be\nkind",
        licenses=("text",),
        messages=(("user", "hi"),),
    )


def test_the_modelfile_of_a_model_with_a_card() -> None:
    model = installed(sampling=SamplingDefaults(temperature=0.2, repetition_penalty=1.1, max_tokens=9))
    assert modelfile_of(model, "of the folder") == Modelfile(
        "mine:latest",
        {"temperature": 0.2, "repeat_penalty": 1.1, "num_predict": 9},
        "of the folder",
        licenses=("MIT",),
    )


def test_parameters_stand_in_two_columns() -> None:
    parameters = {"temperature": 1.0, "top_p": 0.9, "num_ctx": 8, "use_mmap": True, "stop": ["<|im_end|>", 'a"b']}
    assert parameters_text(installed(parameters=parameters)).splitlines() == [
        "temperature                    1",
        "top_p                          0.9",
        "num_ctx                        8",
        "use_mmap                       true",
        'stop                           "<|im_end|>"',
        'stop                           "a\\"b"',
    ]
