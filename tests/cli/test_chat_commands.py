import json
from pathlib import Path

import pytest

from vmm_server.cli.chat import chat_loop
from vmm_server.cli.chat_commands import HELP, run_command
from vmm_server.cli.conversation import Conversation
from vmm_server.errors import InvalidRequest, ModelNotFound

from .conftest import FakeClient, Typed


def run(conversation: Conversation, *lines: str) -> Typed:
    reader = Typed()
    for line in lines:
        run_command(line, conversation, reader)
    return reader


def test_parameters_go_with_the_next_question(fake: FakeClient, conversation: Conversation) -> None:
    run(
        conversation,
        "/set parameter temperature 0.2",
        "/set parameter num_ctx 4096",
        "/set parameter stop END ###",
        "/set parameter temperature 1",
    )
    conversation.answer("one")
    assert fake.fields == [{"model": "m", "options": {"temperature": 1, "num_ctx": 4096, "stop": ["END", "###"]}}]


@pytest.mark.parametrize("line", ["nonsense 1", "num_predict many", "seed 1 2"])
def test_a_parameter_that_is_none_is_refused_at_once(conversation: Conversation, line: str) -> None:
    with pytest.raises(InvalidRequest, match=line.split()[0]):
        run(conversation, f"/set parameter {line}")
    assert conversation.session.options == {}


def test_the_system_message_is_replaced(fake: FakeClient, conversation: Conversation) -> None:
    run(conversation, "/set system Be kind.", "/set system Be  brief,\nand clear.")
    conversation.answer("one")
    assert fake.seen[0][0] == {"role": "system", "content": "Be  brief,\nand clear."}


def test_format_is_json_or_a_schema_until_it_is_taken_back(
    fake: FakeClient, conversation: Conversation, tmp_path: Path
) -> None:
    schema = {"type": "object"}
    file = tmp_path / "a schema.json"
    file.write_text(json.dumps(schema))
    for line in ("/set format json", f"/set format {json.dumps(schema)}", f"/set format {file}", "/set noformat"):
        run(conversation, line)
        conversation.answer("one")
    assert [fields.get("format") for fields in fake.fields] == ["json", schema, schema, None]


@pytest.mark.parametrize("form", ["yaml", "{no", "/etc"])
def test_a_format_that_is_none_is_refused(conversation: Conversation, form: str) -> None:
    with pytest.raises(InvalidRequest, match="format"):
        run(conversation, f"/set format {form}")
    assert conversation.session.format is None


def test_thinking_is_for_models_that_can(fake: FakeClient, conversation: Conversation) -> None:
    with pytest.raises(InvalidRequest, match="m does not support thinking"):
        run(conversation, "/set think")
    fake.shown["capabilities"].append("thinking")
    seen = []
    for line in ("/set think", "/set think high", "/set nothink"):
        run(conversation, line)
        seen.append(conversation.session.think)
    assert seen == [True, "high", False]


def test_switches(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    session = conversation.session
    reader = run(conversation, "/set nowordwrap", "/set verbose", "/set nohistory")
    assert (session.word_wrap, session.verbose, reader.keeps_history) == (False, True, False)
    reader = run(conversation, "/set wordwrap", "/set quiet", "/set history")
    assert (session.word_wrap, session.verbose, reader.keeps_history) == (True, False, True)
    assert "Set nohistory\n" in capsys.readouterr().out


def test_verbose_prints_the_timings(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    chat_loop(conversation, Typed("/set verbose", "one", "/set quiet", "two"))
    assert capsys.readouterr().err.count("eval rate:            2.0 tokens/s") == 1


def test_load_goes_on_with_another_model(fake: FakeClient, conversation: Conversation) -> None:
    conversation.session.keep_alive = "1h"
    conversation.answer("one")
    run(conversation, "/load other")
    conversation.answer("two")
    assert fake.loaded == [("other", "1h")]
    assert [fields["model"] for fields in fake.fields] == ["m", "other"]
    assert len(fake.seen[1]) == 1, "what was said to the other model is forgotten"


def test_an_unknown_model_leaves_the_conversation_as_it_is(conversation: Conversation) -> None:
    conversation.answer("one")
    with pytest.raises(ModelNotFound):
        run(conversation, "/load nonsense")
    assert conversation.session.model == "m"
    assert len(conversation.messages) == 2


def test_save_makes_a_model_of_all_that_was_set_and_said(fake: FakeClient, conversation: Conversation) -> None:
    fake.shown["messages"] = [{"role": "user", "content": "zero"}]
    run(conversation, "/set system Be kind.", "/set parameter seed 1")
    conversation.answer("one")
    run(conversation, "/save mine")
    assert fake.created == [
        {
            "model": "mine",
            "from": "m",
            "system": "Be kind.",
            "parameters": {"seed": 1},
            "messages": [
                {"role": "user", "content": "zero"},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "2 messages"},
            ],
        }
    ]


def test_show_prints_what_the_server_knows(
    fake: FakeClient, conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.shown |= {
        "license": "Apache-2.0\nand so on",
        "modelfile": "FROM x",
        "parameters": "stop  END",
        "system": "Be kind.",
        "template": "{{ messages }}",
        "details": {"parameter_size": "135M", "quantization_level": "Q4_1", "family": "llama"},
        "model_info": {"general.architecture": "llama", "llama.context_length": 2048},
    }
    for what in ("license", "modelfile", "template", "system"):
        run(conversation, f"/show {what}")
        assert capsys.readouterr().out == f"{fake.shown[what]}\n"
    run(conversation, "/set system Be brief.", "/show system")
    assert capsys.readouterr().out.endswith("Be brief.\n")
    run(conversation, "/set parameter seed 1", "/show parameters")
    words = " ".join(capsys.readouterr().out.split())
    assert words == "Set parameter seed 1 of the model: stop END set here: seed 1"
    run(conversation, "/show info")
    out = capsys.readouterr().out
    for fact in ("llama", "135M", "Q4_1", "2048", "completion", "Apache-2.0"):
        assert fact in out
    assert "and so on" not in out


@pytest.mark.parametrize("what", ["license", "modelfile", "template", "system"])
def test_show_says_what_is_not_there(conversation: Conversation, capsys: pytest.CaptureFixture[str], what: str) -> None:
    run(conversation, f"/show {what}")
    assert f"has no {what}" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["/nonsense", "/set nonsense", "/show nonsense", "/load", "/save a b", "/clear all"])
def test_what_is_no_command_says_where_the_list_is(conversation: Conversation, line: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        run(conversation, line)
    assert "/?" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("line", "topic"),
    [
        ("/?", ""),
        ("/help", ""),
        ("/? set", "set"),
        ("/help /set", "set"),
        ("/? show", "show"),
        ("/? shortcuts", "shortcuts"),
        ("/? shortcut", "shortcuts"),
        ("/? nonsense", ""),
        ("/set", "set"),
        ("/set parameter", "set"),
        ("/set parameter seed", "set"),
        ("/set system", "set"),
        ("/show", "show"),
    ],
)
def test_help_is_by_topic(
    conversation: Conversation, capsys: pytest.CaptureFixture[str], line: str, topic: str
) -> None:
    run(conversation, line)
    assert capsys.readouterr().out == HELP[topic] + "\n"


def test_help_names_every_command() -> None:
    for command in ("/set", "/show", "/load", "/save", "/clear", "/bye", "/?"):
        assert command in HELP[""]


def test_the_installed_models_are_listed(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    run(conversation, "/list")
    assert capsys.readouterr().out == "m:latest\nother:latest\n"
    with pytest.raises(InvalidRequest, match="/list takes nothing after it"):
        run(conversation, "/list m")
