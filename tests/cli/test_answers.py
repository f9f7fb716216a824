import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from vmm_server.cli.answers import AnswerPrinter, format_timings
from vmm_server.cli.conversation import Conversation
from vmm_server.cli.word_wrap import WordWrap

from .conftest import FakeClient

WORDS = st.text(st.sampled_from("ab1,.日本é🙂"), min_size=1, max_size=30)
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", "\n"])).map("".join), max_size=20).map("".join)


def on_terminal(written: str) -> list[str]:
    """The lines that a terminal shows: of its commands, those that `WordWrap` writes."""
    lines = [""]
    for part in re.findall(r"\x1b\[\d*[DK]|.", written, re.DOTALL):
        if part == "\n":
            lines.append("")
        elif part.endswith("D") and part.startswith("\x1b"):
            back = int(part[2:-1])
            while back > 0:
                back -= get_cwidth(lines[-1][-1])
                lines[-1] = lines[-1][:-1]
        elif part != "\x1b[K":
            lines[-1] += part
    return lines


@given(TEXTS, st.integers(4, 40))
def test_lines_fit_and_say_the_same(text: str, columns: int) -> None:
    wrap = WordWrap(columns)
    lines = on_terminal("".join(wrap.feed(piece) for piece in text))
    assert all(get_cwidth(line) < columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split()), "nothing is lost, doubled or swapped"


@given(st.lists(st.text("abc", min_size=1, max_size=9), max_size=30), st.integers(11, 40))
def test_words_that_fit_are_whole(words: list[str], columns: int) -> None:
    lines = on_terminal(WordWrap(columns).feed(" ".join(words)))
    assert " ".join(lines).split() == words


def test_a_line_is_filled_before_it_breaks() -> None:
    assert on_terminal(WordWrap(10).feed("one two three four")) == ["one two ", "three ", "four"]
    assert on_terminal(WordWrap(5).feed("日本語")) == ["日本", "語"], "wide characters may be parted"
    assert on_terminal(WordWrap(5).feed("abcdefgh i")) == ["abcd", "efgh", "i"], "a word longer than the line is cut"


def test_the_lines_of_a_text_stay() -> None:
    assert WordWrap(80).feed("def f():\n    return 1\n") == "def f():\n    return 1\n"


def test_thinking_stands_apart_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    printer = AnswerPrinter(columns=80, word_wrap=True, hide_thinking=False)
    for piece in ("It is", " six."):
        printer.thinking(piece)
    printer.content("Six.")
    printer.end()
    out = capsys.readouterr().out
    assert re.sub(r"\x1b\[\d*m", "", out) == "Thinking...\nIt is six.\n...done thinking.\n\nSix.\n\n"
    assert out.endswith("\x1b[0mSix.\n\n"), "the answer has no colour"


def test_lines_break_between_words_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for word_wrap, lines in ((True, ["twelve", "columns", "wide", "", ""]), (False, ["twelve columns wide", "", ""])):
        printer = AnswerPrinter(columns=12, word_wrap=word_wrap, hide_thinking=False)
        printer.content("twelve columns wide")
        printer.end()
        assert [line.rstrip() for line in on_terminal(capsys.readouterr().out)] == lines


def test_elsewhere_the_answer_is_alone_and_as_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    printer = AnswerPrinter(columns=None, word_wrap=True, hide_thinking=False)
    printer.thinking("It is six.")
    printer.content("Six " * 100)
    printer.end()
    output = capsys.readouterr()
    assert output.out == "Six " * 100 + "\n"
    assert output.err == "Thinking...\nIt is six.\n...done thinking.\n\n"


def test_thinking_can_be_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    printer = AnswerPrinter(columns=None, word_wrap=True, hide_thinking=True)
    printer.thinking("It is six.")
    printer.content("Six.")
    printer.end()
    assert capsys.readouterr() == ("Six.\n", "")


def test_thinking_goes_back_with_the_conversation(fake: FakeClient, conversation: Conversation) -> None:
    fake.thinking = ("hm", "m")
    conversation.answer("one")
    assert conversation.messages[1] == {"role": "assistant", "content": "1 messages", "thinking": "hmm"}


def test_timings_are_rates_of_the_counts(conversation: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    conversation.session.verbose = True
    conversation.answer("one")
    output = capsys.readouterr()
    assert output.out == "1 messages\n"
    assert "eval rate:            2.0 tokens/s" in output.err


def test_drafts_are_told_where_there_were_any() -> None:
    assert "drafts accepted:      30 of 40 tokens" in format_timings({"draft_count": 40, "draft_accepted_count": 30})
    assert "draft" not in format_timings({"eval_count": 40})


def test_timings_without_a_duration_have_no_rate() -> None:
    assert "rate" not in format_timings({"done": True})
