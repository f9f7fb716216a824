"""A model folder's tokenizer.json."""

from tokenizers import Tokenizer

from vmm_server.errors import ModelLoadFailed
from vmm_server.models.store import InstalledModel, how_to_mend

MAX_BYTES = 256 * 1024**2
"""The largest published ones have 35 MB."""


def read_tokenizer(model: InstalledModel) -> Tokenizer:
    """Read it. Raises `ModelLoadFailed`."""
    path = model.folder / "tokenizer.json"
    if not path.is_file():
        raise ModelLoadFailed(f"cannot load {model.name!r}: {path} is missing", hint=how_to_mend(model))
    if path.stat().st_size > MAX_BYTES:
        raise ModelLoadFailed(f"cannot load {model.name!r}: {path} has more than {MAX_BYTES} bytes")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelLoadFailed(f"cannot load {model.name!r}: {path}: {error}") from error
