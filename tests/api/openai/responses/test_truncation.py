"""What goes of a conversation that is too long, and what never does."""

from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.types import SamplingParams
from vmm_server.api.openai.responses.truncation import num_messages, shortened
from vmm_server.requests import ChatPrompt, GenerateRequest, Message, TextPrompt, ToolCall


def request(*messages: Message, max_tokens: int | None = None) -> GenerateRequest:
    return GenerateRequest("m", ChatPrompt(messages), SamplingParams(max_tokens=max_tokens))


def left(asked: GenerateRequest | None) -> list[str]:
    assert asked is not None
    assert isinstance(asked.prompt, ChatPrompt)
    return [message.content for message in asked.prompt.messages]


SYSTEM = Message("system", "s")
OLD = (Message("user", "a" * 10), Message("assistant", "b" * 10))
CALL = Message("assistant", "", tool_calls=(ToolCall("f", "{}", "call_1"),))
TOOLS = (Message("user", "c" * 10), CALL, Message("tool", "d" * 10, tool_call_id="call_1"), Message("assistant", "e"))
LAST = Message("user", "last")


def test_as_few_exchanges_go_as_may_do() -> None:
    asked = request(SYSTEM, *OLD, *TOOLS, *OLD, LAST)
    assert left(shortened(asked, asked=70, limit=65)) == left(request(SYSTEM, *TOOLS, *OLD, LAST))
    assert left(shortened(asked, asked=70, limit=30)) == left(request(SYSTEM, *OLD, LAST))
    assert left(shortened(asked, asked=70, limit=5)) == left(request(SYSTEM, LAST))


def test_room_is_left_for_the_answer() -> None:
    messages = (SYSTEM, *OLD, *TOOLS, *OLD, LAST)
    assert left(shortened(request(*messages, max_tokens=30), asked=70, limit=65)) == left(request(SYSTEM, *OLD, LAST))
    assert left(shortened(request(*messages, max_tokens=10**6), asked=70, limit=65)) == left(
        request(SYSTEM, *OLD, LAST)
    )


def test_the_last_exchange_and_system_messages_stay() -> None:
    assert shortened(request(SYSTEM, LAST), asked=70, limit=5) is None
    assert shortened(request(SYSTEM, *TOOLS), asked=70, limit=5) is None
    assert shortened(request(OLD[0], LAST), asked=70, limit=5) is None
    late = Message("system", "t")
    assert left(shortened(request(*OLD, late, *OLD, LAST), asked=70, limit=5)) == ["t", "last"]
    assert shortened(GenerateRequest("m", TextPrompt("x"), SamplingParams()), asked=70, limit=5) is None


roles = st.sampled_from(["system", "user", "assistant", "tool"])
conversations = st.lists(st.builds(Message, roles, st.text(max_size=5)), max_size=12)


@given(conversations, st.integers(2, 10**4), st.data())
def test_what_is_left_is_the_end_and_less(messages: list[Message], asked: int, data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, asked - 1))
    before = request(*messages)
    after = shortened(before, asked=asked, limit=limit)
    if after is None:
        return
    assert num_messages(after) < num_messages(before)
    assert isinstance(after.prompt, ChatPrompt)
    kept = [message for message in after.prompt.messages if message.role != "system"]
    assert kept[0].role == "user"
    assert kept == [message for message in messages if message.role != "system"][-len(kept) :]
    assert [m for m in after.prompt.messages if m.role == "system"] == [m for m in messages if m.role == "system"]
