"""Prompt lookup against a search that looks everywhere."""

from hypothesis import given
from hypothesis import strategies as st

from vmm_server.engine.ngrams import MAX_MATCH, NGramProposer

few_letters = st.lists(st.integers(0, 2), max_size=14)


def longest_match(text: list[int], suffix: list[int]) -> int:
    """Tokens before some place in the text, other than its end, that `suffix` ends with."""
    best = 0
    for place in range(len(text)):
        length = 0
        while length < min(place, len(suffix), MAX_MATCH) and text[place - 1 - length] == suffix[-1 - length]:
            length += 1
        best = max(best, length)
    return best


def follows(text: list[int], token_ids: list[int], suffix: list[int], match: int) -> bool:
    """Whether they stand in the text behind the last `match` tokens of `suffix`."""
    wanted = suffix[len(suffix) - match :] + token_ids
    return any(text[start : start + len(wanted)] == wanted for start in range(len(text)))


@given(prompt=st.lists(st.integers(0, 2), min_size=1, max_size=14), answer=few_letters)
def test_the_longest_match_is_continued_as_the_text_grows(prompt: list[int], answer: list[int]) -> None:
    tokens = list(prompt)
    proposer = NGramProposer(tokens)
    for token in answer:
        found = proposer.propose(3)
        assert (len(found.token_ids) == 3) == (longest_match(tokens, tokens) >= 2), "a repetition never runs out"
        if found.token_ids:
            assert found.match == longest_match(tokens, tokens)
            assert follows(tokens + found.token_ids, found.token_ids, tokens, found.match)
        tokens.append(token)


@given(prediction=st.lists(st.integers(0, 2), min_size=1, max_size=14), answer=few_letters)
def test_a_prediction_is_searched_as_the_prompt_is(prediction: list[int], answer: list[int]) -> None:
    tokens = [7, 8, 9]
    proposer = NGramProposer(tokens, prediction)
    for token in answer:
        found = proposer.propose(3)
        said = tokens[3:]
        longest = max(longest_match(prediction, said), longest_match(tokens, tokens))
        if len(said) < len(prediction) and prediction[: len(said)] == said:
            assert found.is_predicted
            assert found.token_ids == prediction[len(said) : len(said) + 3]
        elif longest >= 2:
            assert found.match == longest
            assert found.is_predicted == (longest_match(prediction, said) == longest)
        else:
            assert not found.token_ids
        tokens.append(token)


def test_a_place_that_proved_right_is_followed_past_any_number_of_others() -> None:
    copied = list(range(100, 130))
    noise = [token for _ in range(40) for token in (109, 110, 5)]
    tokens = [1, *copied, *noise, 2, 3, *copied[:5]]
    proposer = NGramProposer(tokens)
    for token in copied[5:20]:
        found = proposer.propose(1)
        assert found.token_ids == [token]
        tokens.append(token)
    assert found.match == MAX_MATCH


def test_what_is_not_there_is_not_proposed() -> None:
    for tokens in ([1], [1, 2], [1, 2, 3, 1], [1, 2, 3, 3, 2]):
        assert NGramProposer(tokens).propose(4).token_ids == []
    assert NGramProposer([5, 5, 5]).propose(4).token_ids == [5, 5, 5, 5]
