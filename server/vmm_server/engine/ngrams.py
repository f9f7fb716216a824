"""Prompt lookup: what followed the last tokens where they stood before. Pure.

Whoever summarises, edits or quotes says again what is in the prompt already: "prompt lookup decoding" (Saxena, 2023).
Occurrences are found as Deflate finds them (RFC 1951, section 4): for each pair of tokens the place after its last
occurrence, and from each such place a link to the one before. A token costs one dictionary entry, when it is read; a
search walks a few links and compares backwards, so it costs the same in a context of any length.
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

MIN_MATCH = 2
"""Tokens that have to be the same before what follows them is worth a guess."""
MAX_MATCH = 16
"""Where comparing ends: a longer match is no better founded."""
_MAX_CANDIDATES = 16


class Continuation(NamedTuple):
    """What may come next."""

    token_ids: list[int]
    match: int
    """How many tokens before it are the same there, `MAX_MATCH` at most."""
    is_predicted: bool
    """Whether it stands in the prediction, not in the sequence itself."""


class NGramIndex:
    """Where pairs of tokens stand in a list, which may grow at its end."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = token_ids
        self._last: dict[int, int] = {}
        self._before = array("i", (-1,) * MIN_MATCH)

    def find(self, suffix: Sequence[int], shorter: int = MIN_MATCH - 1) -> tuple[int, int]:
        """Of the places that tokens stand at after the same ones as `suffix` ends with, that of the longest match.

        The latest of equals, and how long the match is; (-1, 0) where none is longer than `shorter`.
        """
        self._read()
        best, longest = -1, shorter
        place = self._last.get(suffix[-2] << 32 | suffix[-1], -1) if len(suffix) >= MIN_MATCH else -1
        for _ in range(_MAX_CANDIDATES):
            if place < 0 or longest >= MAX_MATCH:
                break
            if (length := self._match(place, suffix)) > longest:
                best, longest = place, length
            place = self._before[place]
        return (best, longest) if best >= 0 else (-1, 0)

    def _read(self) -> None:
        """Note the pairs that have a follower by now."""
        tokens, last, before = self.token_ids, self._last, self._before
        for place in range(len(before), len(tokens)):
            pair = tokens[place - 2] << 32 | tokens[place - 1]
            before.append(last.get(pair, -1))
            last[pair] = place

    def _match(self, place: int, suffix: Sequence[int]) -> int:
        tokens, length = self.token_ids, MIN_MATCH
        most = min(place, len(suffix), MAX_MATCH)
        while length < most and tokens[place - 1 - length] == suffix[-1 - length]:
            length += 1
        return length


class NGramProposer:
    """Continues a sequence's tokens from themselves, or from a text that was given as a prediction of the answer.

    An answer begins as its prediction does, until it does not. A place that proved right is followed on, and left only
    for a longer match.
    """

    def __init__(self, token_ids: list[int], prediction: Sequence[int] = ()) -> None:
        self._token_ids = token_ids
        self._own = NGramIndex(token_ids)
        self._predicted = NGramIndex(prediction)
        self._followed = self._predicted
        self._place = 0
        self._match = MAX_MATCH if prediction else 0
        self._num_read = len(token_ids)

    def propose(self, count: int) -> Continuation:
        """Up to `count` tokens; none where nothing matches."""
        self._follow()
        for index in (self._predicted, self._own):
            if self._match < MAX_MATCH:
                place, match = index.find(self._token_ids, max(self._match, MIN_MATCH - 1))
                if place >= 0:
                    self._followed, self._place, self._match = index, place, match
        is_predicted = self._followed is self._predicted
        if not self._match:
            return Continuation([], 0, is_predicted)
        token_ids = list(self._followed.token_ids[self._place : self._place + count])
        while token_ids and len(token_ids) < count and not is_predicted:
            token_ids += token_ids[: count - len(token_ids)]  # it runs into its own end: a repetition goes on
        return Continuation(token_ids, self._match, is_predicted)

    def _follow(self) -> None:
        """Move on by what is new, if that is what stands there."""
        new = self._token_ids[self._num_read :]
        self._num_read += len(new)
        text, place = self._followed.token_ids, self._place
        if self._match and place + len(new) < len(text) and list(text[place : place + len(new)]) == new:
            self._place += len(new)
            self._match = min(MAX_MATCH, self._match + len(new))
        elif new:
            self._match = 0
