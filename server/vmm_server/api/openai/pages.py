"""Pages of lists, as OpenAI's clients turn them. Pure."""

from collections.abc import Sequence

from vmm_server.errors import InvalidRequest

Json = dict[str, object]


def read_limit(text: str | None, *, default: int, maximum: int) -> int:
    """`limit`. Raises `InvalidRequest`."""
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= maximum:
        raise InvalidRequest(f"limit: must be 1 to {maximum}", param="limit")
    return int(text)


def read_order(text: str | None) -> bool:
    """`order`: whether it is ascending. Raises `InvalidRequest`."""
    if text not in (None, "asc", "desc"):
        raise InvalidRequest(f"order: {(text or '')[:100]!r} is none of asc, desc", param="order")
    return text == "asc"


def page(shown: Sequence[Json], *, has_more: bool) -> Json:
    """A page of objects that have an `id`."""
    return {
        "object": "list",
        "data": list(shown),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": has_more,
    }
