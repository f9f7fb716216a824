"""Texts that are tokens of their own: how a grammar writes them, and which ids they have."""

import json
import re
from collections.abc import Iterable

from tokenizers import Tokenizer


class Spelling:
    """A `Spell` for one model: `<[id]>` for its special tokens, a quoted string for anything else.

    A token counts as special where llguidance takes it for one: `special` ones, and added ones in angle brackets
    (`<tool_call>`, `<think>`), whose text a grammar's strings do not match. See its docs/special_tokens.md.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids = {
            token.content: token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.content and (token.special or (token.content.startswith("<") and token.content.endswith(">")))
        }
        self.special_tokens = frozenset(self._ids)
        """Their texts."""
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"\Z.")

    def __call__(self, text: str) -> str:
        """The text as Lark, for a rule (a terminal has no special tokens)."""
        parts: list[str] = []
        end = 0
        for match in self._pattern.finditer(text):
            parts += [_quoted(text[end : match.start()]), f"<[{self._ids[match[0]]}]>"]
            end = match.end()
        return " ".join(part for part in (*parts, _quoted(text[end:])) if part) or '""'

    def ids(self, texts: Iterable[str]) -> frozenset[int]:
        """The special tokens in these texts."""
        return frozenset(self._ids[match[0]] for text in texts for match in self._pattern.finditer(text))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
