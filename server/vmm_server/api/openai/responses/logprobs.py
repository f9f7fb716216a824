"""Log-probabilities of the tokens that a text was made of. Pure."""

from collections.abc import Sequence

from vmm_adapters.types import TokenLogprob
from vmm_server.api.openai.render import TokenText

Json = dict[str, object]


class TextLogprobs:
    """Finds the tokens of each text among those that were drawn.

    An answer's tokens also spell thinking, calls and their markers, and may come before their text does. So a text is
    looked for among the bytes of the tokens that came since the last one; what stands before it is of no text.
    """

    def __init__(self, token_bytes: TokenText) -> None:
        self._token_bytes = token_bytes
        self._waiting: list[tuple[bytes, TokenLogprob | None]] = []
        """Bytes not used up, and the token they are of unless it was given out already."""

    def push(self, logprobs: Sequence[TokenLogprob]) -> None:
        """The next tokens that were drawn."""
        self._waiting.extend((self._token_bytes(one.token_id), one) for one in logprobs)

    def take(self, text: str) -> list[Json]:
        """Entries of the next text's tokens; of all that wait if it cannot be found (half characters, say)."""
        raw = text.encode()
        start = b"".join(piece for piece, _ in self._waiting).find(raw)
        end = start + len(raw)
        taken: list[TokenLogprob] = []
        kept: list[tuple[bytes, TokenLogprob | None]] = []
        position = 0
        for piece, token in self._waiting:
            begin, position = position, position + len(piece)
            if token is not None and (start < 0 or (begin < end and position > start)):
                taken.append(token)
                token = None
            if start >= 0 and position > end:
                kept.append((piece[max(0, end - begin) :], token))
        self._waiting = kept
        return [self._entry(token) for token in taken]

    def _entry(self, token: TokenLogprob) -> Json:
        return self._fields(token.token_id, token.logprob) | {"top_logprobs": [self._fields(*top) for top in token.top]}

    def _fields(self, token_id: int, logprob: float) -> Json:
        raw = self._token_bytes(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}
