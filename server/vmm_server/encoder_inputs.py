"""Texts, pairs and token ids → what an encoder takes, special tokens included. For a thread: long texts take time.

Nothing is cut unless asked for, and then at the end of the text, never a special token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Encoding

from vmm_adapters.types import EncoderInput
from vmm_server.cl100k import Cl100k
from vmm_server.errors import ContextLengthExceeded, InvalidRequest
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.requests import EmbeddingRequest, RerankRequest

MAX_TOKENS = 300_000
"""Tokens in one request, as OpenAI's limit is."""
MAX_CHARACTERS = 8 * 2**20
"""In one request; more than that many tokens of any language. What is cut off is tokens first, too."""
_SYNONYMS = (("query", "search_query"), ("document", "passage", "search_document", "doc"))
"""What clients and models call the two sides of a search."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an encoder is to compute for one request."""

    items: Sequence[EncoderInput]
    num_dropped_tokens: int
    """Cut off at the ends of texts that were too long."""

    @property
    def num_tokens(self) -> int:
        """Special ones included."""
        return sum(len(item.token_ids) for item in self.items)


def embedding_inputs(request: EmbeddingRequest, ready: ReadyEncoder, table: Cl100k | None) -> Inputs:
    """One input a text. `table` is there if token ids are to be decoded with it.

    Raises `InvalidRequest`, `ContextLengthExceeded`, naming the field.
    """
    prompt = _prompt(request, ready)
    limit = min(request.max_tokens or ready.context_length, ready.context_length)
    texts: dict[int, str] = {}
    found: dict[int, EncoderInput] = {}
    num_dropped = 0
    for index, (value, param) in enumerate(zip(request.inputs, request.params, strict=True)):
        if isinstance(value, str):
            texts[index] = prompt + value
        elif table is not None:
            texts[index] = prompt + _decoded(table, value, param)
        else:
            found[index] = _own_tokens(value, ready, limit, request, param)
            num_dropped += len(value) - len(found[index].token_ids)
    _check_length(texts.values(), "input")
    encodings = ready.tokenizer.encode_batch_fast([*texts.values()], add_special_tokens=False)
    for index, encoding in zip(texts, encodings, strict=True):
        limited, num_cut = _limited(encoding, ready, limit, truncate=request.truncate, param=request.params[index])
        found[index] = _input(limited, request.params[index])
        num_dropped += num_cut
    return _bounded([found[index] for index in range(len(request.inputs))], num_dropped, "input")


def text_inputs(request: RerankRequest, ready: ReadyEncoder) -> Inputs:
    """The query and the documents as texts of their own, for a model that embeds; the query comes first."""
    prompts = [_named_prompt(ready, name) or "" for name in ("query", "document")]
    texts = [prompts[0] + request.query, *(prompts[1] + document for document in request.documents)]
    params = ["query", *(f"documents[{index}]" for index in range(len(request.documents)))]
    _check_length(texts, "documents")
    inputs, num_dropped = [], 0
    for index, encoding in enumerate(ready.tokenizer.encode_batch_fast(texts, add_special_tokens=False)):
        limit = ready.context_length
        if index and request.max_tokens_per_document:
            limit = min(limit, request.max_tokens_per_document + ready.tokenizer.num_special_tokens_to_add(False))
        may_cut = request.truncate and index > 0
        limited, num_cut = _limited(encoding, ready, limit, truncate=may_cut, param=params[index])
        inputs.append(_input(limited, params[index]))
        num_dropped += num_cut
    return _bounded(inputs, num_dropped, "documents")


def pair_inputs(request: RerankRequest, ready: ReadyEncoder) -> Inputs:
    """The query with each document, for a cross-encoder. The document gives way when the pair is too long."""
    _check_length((request.query, *request.documents), "documents")
    tokenizer = ready.tokenizer
    query = tokenizer.encode(request.query, add_special_tokens=False)
    room = ready.context_length - len(query.ids) - tokenizer.num_special_tokens_to_add(True)
    if room < 1:
        raise ContextLengthExceeded(limit=ready.context_length, asked=ready.context_length - room + 1, param="query")
    inputs, num_dropped = [], 0
    documents = tokenizer.encode_batch_fast(list(request.documents), add_special_tokens=False)
    for index, document in enumerate(documents):
        limit = min(room, request.max_tokens_per_document or room)
        if len(document.ids) > limit:
            if not request.truncate:
                raise _too_long(limit, len(document.ids), f"documents[{index}]")
            num_dropped += len(document.ids) - limit
            document.truncate(limit)
        pair = tokenizer.post_process(query, document, add_special_tokens=True)
        inputs.append(_input(pair, f"documents[{index}]"))
    return _bounded(inputs, num_dropped, "documents")


def _check_length(texts: Iterable[str], param: str) -> None:
    """Raise `InvalidRequest` before anything is made of texts that are longer than any request may be."""
    if (length := sum(map(len, texts))) > MAX_CHARACTERS:
        raise InvalidRequest(f"{param}: {length} characters in all, the limit is {MAX_CHARACTERS}", param=param)


def _limited(
    encoding: Encoding, ready: ReadyEncoder, limit: int, *, truncate: bool, param: str
) -> tuple[Encoding, int]:
    """`encoding`, which has no special tokens, with them; how many of its own went. Raises `ContextLengthExceeded`."""
    num_special = ready.tokenizer.num_special_tokens_to_add(False)
    num_tokens = len(encoding.ids) + num_special
    if num_tokens > limit:
        if not truncate:
            raise _too_long(limit, num_tokens, param)
        encoding.truncate(max(0, limit - num_special))
    num_dropped = num_tokens - num_special - len(encoding.ids)
    return ready.tokenizer.post_process(encoding, add_special_tokens=True), num_dropped


def _too_long(limit: int, asked: int, param: str) -> ContextLengthExceeded:
    hint = 'shorten it, send "truncate": true to have its end cut off, or use a model with a longer context'
    return ContextLengthExceeded(limit=limit, asked=asked, param=param, hint=hint)


def _input(encoding: Encoding, param: str) -> EncoderInput:
    ids, types = encoding.ids, encoding.type_ids
    if not ids:
        raise InvalidRequest(f"{param} has no token that the model knows", param=param)
    return EncoderInput(ids, types if any(types) else ())


def _own_tokens(
    ids: tuple[int, ...], ready: ReadyEncoder, limit: int, request: EmbeddingRequest, param: str
) -> EncoderInput:
    """Ids of the model's own vocabulary, taken as they are. Cut ones keep their last token, which is special."""
    if not ids:
        raise InvalidRequest(f"{param} is empty", param=param)
    wrong = next((token for token in ids if not 0 <= token < ready.vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(f"{param}: token id {wrong} is not in 0..{ready.vocab_size - 1}", param=param)
    if request.prompt_name is not None:
        raise InvalidRequest(
            f"{request.prompt_param}: a prompt goes before texts, not token ids", param=request.prompt_param
        )
    if len(ids) > limit:
        if not request.truncate:
            raise _too_long(limit, len(ids), param)
        ids = (*ids[: limit - 1], ids[-1])
    return EncoderInput(ids)


def _decoded(table: Cl100k, ids: tuple[int, ...], param: str) -> str:
    try:
        return table.decode(ids)
    except KeyError as error:
        raise InvalidRequest(f"{param}: {error.args[0]} is no token id of cl100k_base", param=param) from error


def _prompt(request: EmbeddingRequest, ready: ReadyEncoder) -> str:
    """The text to put before each input."""
    recipe = ready.recipe
    if request.prompt_name is None:
        return recipe.prompts[recipe.default_prompt] if recipe.default_prompt else ""
    prompt = _named_prompt(ready, request.prompt_name)
    if prompt is None:
        has = f"one of {', '.join(sorted(recipe.prompts))}" if recipe.prompts else "no prompts"
        raise InvalidRequest(
            f"{request.prompt_param}: {request.prompt_name!r} is no prompt of the model, which has {has}",
            param=request.prompt_param,
        )
    return prompt


def _named_prompt(ready: ReadyEncoder, name: str) -> str | None:
    names = next((group for group in _SYNONYMS if name in group), ())
    return next((ready.recipe.prompts[each] for each in (name, *names) if each in ready.recipe.prompts), None)


def _bounded(items: Sequence[EncoderInput], num_dropped: int, param: str) -> Inputs:
    inputs = Inputs(items, num_dropped)
    if inputs.num_tokens > MAX_TOKENS:
        raise InvalidRequest(
            f"{param} is {inputs.num_tokens} tokens in all, the limit of one request is {MAX_TOKENS}", param=param
        )
    return inputs
