"""The tokeniser's files of a safetensors folder, for the folder that is made of it."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.gguf_tokenizer import TokenizerInfo
from vmm_server.models.importers.json_files import read_json_object

FILES = (
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
"""Taken over as they are, where they are there."""
TOKENIZER = "tokenizer.json"


def copy_tokenizer(source: Path, folder: Path, vocab_size: int) -> tuple[TokenizerInfo, frozenset[str]]:
    """Copy what belongs to the tokeniser into `folder`; what there is to know of it, and its tokens' texts.

    `vocab_size` is how many tokens the model has: added ones beyond those, which Gemma 3 has for images, would lead
    nowhere and are left out. Raises `CorruptFile` or `ImportFailed` naming the file, `OSError`.
    """
    content, tokenizer = _load(source, vocab_size)
    info = _describe(source, tokenizer, vocab_size)
    (folder / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8", newline="\n")
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return info, frozenset(tokenizer.get_vocab())


def check_tokenizer(source: Path, vocab_size: int) -> None:
    """Raise what `copy_tokenizer` would, without copying."""
    _describe(source, _load(source, vocab_size)[1], vocab_size)


def _load(source: Path, vocab_size: int) -> tuple[dict[str, object], Tokenizer]:
    """tokenizer.json without the tokens that lead nowhere, as JSON and as a tokeniser."""
    content = _read_tokenizer(source, vocab_size)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    except Exception as error:  # the library has no narrower one
        reason = " ".join(str(error).split())[:300]
        raise CorruptFile(f"{source / TOKENIZER}: is no tokeniser: {reason}", hint="fetch it again") from error
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if (highest := max(vocabulary.values(), default=0)) >= vocab_size:
        raise CorruptFile(
            f"{source / TOKENIZER}: has the token {highest} but the model embeddings for {vocab_size}",
            hint="these files do not belong together: fetch the folder again",
        )
    return content, tokenizer


def _read_tokenizer(source: Path, vocab_size: int) -> dict[str, object]:
    path = source / TOKENIZER
    if not path.is_file():
        raise ImportFailed(
            f"{source}: has no tokenizer.json", hint="save it with transformers' save_pretrained beside the model"
        )
    content = read_json_object(path)
    added = content.get("added_tokens")
    if isinstance(added, list):
        content["added_tokens"] = [entry for entry in added if not _is_beyond(entry, vocab_size)]
    return content


def _is_beyond(entry: object, vocab_size: int) -> bool:
    index = entry.get("id") if isinstance(entry, dict) else None
    return isinstance(index, int) and index >= vocab_size


def _describe(source: Path, tokenizer: Tokenizer, vocab_size: int) -> TokenizerInfo:
    """Token ids as generation_config.json has them, else config.json, and by its text in tokenizer_config.json.

    The last is added to what ends an answer: chat models are made of others and not all mend every file.
    """
    generation, config, told = (
        read_json_object(source / name) if (source / name).is_file() else {}
        for name in ("generation_config.json", "config.json", "tokenizer_config.json")
    )

    def ids(key: str) -> list[int]:
        found = generation.get(key) if generation.get(key) is not None else config.get(key)
        text = told.get(key.removesuffix("_id"))
        text = text.get("content") if isinstance(text, dict) else text
        by_text = tokenizer.token_to_id(text) if isinstance(text, str) else None
        every = [*(found if isinstance(found, list) else [found]), by_text]
        return list(dict.fromkeys(_known(every, vocab_size)))

    bos, eos, pad = ids("bos_token_id"), ids("eos_token_id"), ids("pad_token_id")
    if not eos:
        raise CorruptFile(
            f"{source}: nothing says which token ends an answer", hint="add eos_token_id to generation_config.json"
        )
    return TokenizerInfo(
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=tuple(eos),
        pad_token_id=pad[0] if pad else None,
        vocab_size=tokenizer.get_vocab_size(),
        chat_template=_chat_template(source, told),
        add_bos=bool(bos) and tokenizer.encode("").ids[:1] == bos[:1],
    )


def _known(found: Iterable[object], vocab_size: int) -> Iterable[int]:
    """Token ids; old configurations have -1 for none."""
    return (index for index in found if isinstance(index, int) and 0 <= index < vocab_size)


def _chat_template(source: Path, told: dict[str, object]) -> str | None:
    path = source / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8", errors="replace")
    template = told.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None
