"""A text → its sentences, to be spoken one after the other."""

import re

_END = re.compile(r"(?P<mark>[.!?…]+)[\"'”’)\]»]*(?=\s)|[。！？]+[」』”）]*|\n+")
_ABBREVIATION = re.compile(
    r"(?:^|[^\w.])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Rev|Gen|Col|Lt|Capt|No|Fig|vs|cf|al|e\.g|i\.e)\.$"
)
"""The end of a text whose full stop ends no sentence as a rule."""


def split_sentences(text: str) -> list[str]:
    """Sentences and lines, in order, none of them blank; white space around each is left out.

    A full stop ends none after an initial or a common English title, nor before a small letter.
    """
    found: list[str] = []
    start = 0
    for end in _END.finditer(text):
        if end["mark"] == "." and _goes_on(text, end):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _goes_on(text: str, end: re.Match[str]) -> bool:
    following = text[end.end() : end.end() + 50].lstrip(" \t")
    stop = end.end("mark")
    return following[:1].islower() or _ABBREVIATION.search(text[max(0, stop - 10) : stop]) is not None
