"""Which files of a hub repository a pull means. Pure: paths in, paths out.

GGUF files come first, and go by their quantization, which stands at the end of their names or is the name of their
folder. As with Ollama, a repository without one means Q4_K_M where there is that, else something reasonable; a whole
file name does as well as a quantization (huggingface.co/docs/hub/ollama). Then come folders that can be run as they
are, then safetensors, which are quantised while they are imported where that is asked for. Of the precisions of an ONNX
graph the plain one is taken, another when it is named. Pickled weights are never taken.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from vmm_server.errors import ImportFailed, SourceNotFound
from vmm_server.models.importers.clip_folder import clip_files
from vmm_server.models.importers.encoder_folder import encoder_files
from vmm_server.models.importers.gguf_parts import PartName, all_parts, whole_name
from vmm_server.models.importers.kokoro import kokoro_files
from vmm_server.models.importers.onnx_file import with_external_data
from vmm_server.models.importers.preprocessor_config import FILES as PREPROCESSOR_FILES
from vmm_server.models.importers.quantization_mix import find_mix
from vmm_server.models.importers.safetensors_tokenizer import FILES, TOKENIZER
from vmm_server.models.importers.safetensors_weights import FILE as SAFETENSORS_FILE
from vmm_server.models.importers.safetensors_weights import INDEX
from vmm_server.models.importers.vision_folder import lone_graphs, small_files, vision_files
from vmm_server.models.importers.whisper_folder import ctranslate2_files, is_other_layout

PREFERRED = (
    *("Q4_K_M", "Q4_K_L", "Q4_K_XL", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
    *("Q6_K", "Q8_0", "BF16", "F16", "FP16", "F32", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
"""What is taken when nothing is asked for: Q4_K_M, as Ollama's users expect, then what is nearest to it."""
_UNREADABLE = re.compile(r"(?i)(?:^|[-._/])((?:I?Q1|IQ[23]|TQ[12]|MXFP4|NVFP4|Q4_0_[48]_[48])[A-Z0-9_]*)$")
"""Quantizations whose blocks the importer does not read: it says so before gigabytes are fetched."""
_FOLDER_MARKS = ("genai_config.json", "openvino_model.xml", "openvino_language_model.xml")
"""A folder that holds one of these can be run as it is."""
_NOT_NEEDED = re.compile(r"\..*|.*\.(md|png|jpe?g|gif|pdf|safetensors|pt|pth|gguf|py)|pytorch_model.*\.bin")
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
_PICKLED = re.compile(r"(?i)(.*/)?[^/]*\.(bin|pt|pth|ckpt)")
_SHOWN = 12


def choose_files(
    uri: str, repo: str, paths: Sequence[str], *, path: str, quantization: str | None, generates: bool
) -> tuple[list[str], str | None]:
    """The wanted ones of a repository's sorted `paths`, and where the folder that they make begins.

    That is `None` for a GGUF file, or the parts of a split one. `path` is a file or folder ("" for the whole
    repository), `generates` whether the hub says that the model writes text. Raises `SourceNotFound`, `ImportFailed`,
    saying what there is.
    """
    chooser = _Chooser(uri, repo, quantization, [each for each in paths if _is_weights(each)])
    if path in paths and path.endswith(".onnx"):
        return _one_graph(path, paths)
    if path in paths:
        return chooser.parts(chooser.readable(path), paths), None
    prefix = f"{path}/" if path else ""
    below = [each for each in paths if each.startswith(prefix)]
    if not below:
        hint = f"it holds {', '.join(_shortened(paths))}"
        raise SourceNotFound(f"{uri}: no such file or folder in the repository", hint=hint)
    weights = [each for each in below if _is_weights(each)]
    relative = [each.removeprefix(prefix) for each in below]
    text = text_files(relative)
    is_made = quantization and find_mix(quantization) and text and generates
    if weights or (quantization and not is_made):
        return chooser.parts(chooser.weights(weights), paths), None
    folders = [] if is_made else sorted({_parent(path) for path in below if PurePosixPath(path).name in _FOLDER_MARKS})
    if ready := kokoro_files(relative) or clip_files(relative):
        return [prefix + each for each in ready], prefix
    encoder = [] if folders or is_made else encoder_files(relative)
    if encoder and not (generates and "modules.json" not in encoder):
        return [prefix + each for each in encoder], prefix
    if not folders and text:
        chooser.check_parts(text)
        return [prefix + each for each in text], prefix
    if not folders and (other := ctranslate2_files(relative) or vision_files(relative)):
        return [prefix + each for each in other], prefix
    folder = chooser.folder(folders, relative)
    return [each for each in paths if _parent(each) == folder and _is_needed(each)], f"{folder}/" if folder else ""


class _Chooser:
    """One of several, or an error that lists them."""

    def __init__(self, uri: str, repo: str, quantization: str | None, weights: Sequence[str]) -> None:
        self._uri = uri
        self._repo = repo
        self._quantization = quantization
        self._readable = [path for path in _firsts(weights) if not _UNREADABLE.search(_stem(whole_name(path)))]

    def weights(self, paths: Sequence[str]) -> str:
        """The GGUF file of the wanted quantization."""
        offered = _firsts(paths)
        for wanted in [self._quantization] if self._quantization else PREFERRED:
            fitting = _of_quantization(offered, wanted)
            whole = [path for path in fitting if PartName.parse(path) is None]
            if fitting:
                return self.readable(self._only(whole or fitting, offered, "GGUF file of that quantization"))
        if self._quantization:
            return self._only([], offered, f"GGUF file {self._quantization}")
        return self.readable(self._only(offered, offered, "GGUF file"))

    def folder(self, folders: Sequence[str], paths: Sequence[str]) -> str:
        """The folder that can be run: the only one, or the only one made for CPUs."""
        is_whisper = "whisper" in self._repo.lower()
        if not folders and is_whisper and (graph := next(filter(is_other_layout, paths), None)):
            raise ImportFailed(
                f"{self._uri}: {graph} is Whisper in a layout that is not read",
                hint=f"pull its safetensors, as a rule hf:openai/{self._repo.partition('/')[2]}",
            )
        graphs = [] if folders or TOKENIZER in paths else lone_graphs(paths)
        if len(graphs) > 1:
            return self._only(graphs, graphs, "ONNX file")
        if not folders and (pickled := next(filter(_PICKLED.fullmatch, paths), None)):
            raise ImportFailed(
                f"{self._uri}: {pickled} is pickled, and is never read: such files can run code",
                hint="look for a revision or repository with safetensors or a GGUF file",
            )
        for_cpu = [folder for folder in folders if "cpu" in folder.lower()]
        what = "GGUF file, safetensors, or genai ONNX, OpenVINO or encoder folder,"
        return self._only(for_cpu if len(for_cpu) == 1 else folders, folders, what)

    def parts(self, path: str, paths: Sequence[str]) -> list[str]:
        """All parts of the model that a file is a part of. Raises `ImportFailed` naming those that are not there."""
        try:
            return all_parts(path, paths)
        except ImportFailed as error:
            raise ImportFailed(f"{self._uri}: {error.message}", hint="look for a whole copy of this model") from error

    def check_parts(self, paths: Sequence[str]) -> None:
        """Raise `ImportFailed` when parts of safetensors are missing: before the others are fetched."""
        parts = [found for path in paths if (found := _SHARD.fullmatch(path))]
        if parts and len(parts) != int(parts[0][1]):
            message = f"{self._uri}: {len(parts)} of the {int(parts[0][1])} parts of its safetensors are there"
            raise ImportFailed(message, hint="look for a whole copy of this model")

    def readable(self, path: str) -> str:
        """The path of a GGUF file, unless the importer is known not to read it."""
        if not path.lower().endswith(".gguf"):
            raise ImportFailed(f"{self._uri} is not a GGUF file", hint="name a .gguf file, or a folder")
        there_is = f"there is {', '.join(_shortened(self._readable))}" if self._readable else ""
        if unreadable := _UNREADABLE.search(_stem(whole_name(path))):
            hint = there_is or "look for a repository with Q4_K_M, or another of Q2_K to Q8_0, F16, BF16 or F32"
            raise ImportFailed(f"{self._uri}: {path} is stored as {unreadable[1]}, which is not read", hint=hint)
        return path

    def _only(self, chosen: Sequence[str], offered: Sequence[str], what: str) -> str:
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            first = chosen[0] or "the top folder"
            hint = f"name one of {', '.join(_shortened(chosen))}; such as hf:{self._repo}/{first}"
            raise SourceNotFound(f"{self._uri}: {len(chosen)} fit", hint=hint)
        elsewhere = (
            "safetensors need config.json and tokenizer.json beside them; "
            f"look for a repository such as {self._repo}-GGUF"
        )
        hint = f"it holds {', '.join(_shortened(offered))}" if offered else elsewhere
        raise SourceNotFound(f"{self._uri}: no {what} there", hint=hint)


def _one_graph(path: str, paths: Sequence[str]) -> tuple[list[str], str | None]:
    """An ONNX file that is named, with what lies beside it, or beside `onnx`, and says something of it."""
    folder = _parent(path)
    root = _parent(folder) if folder.rpartition("/")[2] == "onnx" else folder
    prefix = f"{root}/" if root else ""
    beside = [each.removeprefix(prefix) for each in paths if each.startswith(prefix)]
    chosen = [prefix + each for each in small_files(beside)] + with_external_data([path], paths)
    return (chosen, prefix) if len(chosen) > 1 else (chosen, None)


def text_files(paths: Sequence[str]) -> list[str]:
    """Of the files of a folder (relative, with `/`), those that a text model in safetensors needs, weights last.

    One file is taken before several, as transformers does; empty when there is no such model.
    """
    if SAFETENSORS_FILE in paths:
        weights = [SAFETENSORS_FILE]
    else:
        weights = [path for path in paths if _SHARD.fullmatch(path)]
        weights = [INDEX, *sorted(weights)] if weights and INDEX in paths else []
    if not weights or "config.json" not in paths or TOKENIZER not in paths:
        return []
    return [path for path in ("config.json", TOKENIZER, *FILES[1:], *PREPROCESSOR_FILES) if path in paths] + weights


def _firsts(paths: Sequence[str]) -> list[str]:
    """The files that stand for a model each: whole ones, and the first part that is there of each split one."""
    found = [(path, PartName.parse(path)) for path in sorted(paths)]
    models = {part.all[0] if part else path: path for path, part in reversed(found)}
    return sorted(models.values())


def _of_quantization(paths: Sequence[str], wanted: str) -> list[str]:
    """The files that are called so, else those that are stored so; a mix that goes by a longer name comes last."""
    wanted = wanted.lower().removesuffix(".gguf")
    named = [path for path in paths if wanted in (_stem(path).lower(), _stem(whole_name(path)).lower())]
    if named:
        return named
    ending = re.compile(rf"(?i)(^|[-._]){re.escape(wanted)}$")
    fitting = [
        path for path in paths if ending.search(_stem(whole_name(path))) or wanted in _parent(path).lower().split("/")
    ]
    plain = [path for path in fitting if not re.search(rf"(?i)UD-{re.escape(wanted)}", path)]
    return plain or fitting


def _stem(path: str) -> str:
    return PurePosixPath(path).name.removesuffix(".gguf")


def _parent(path: str) -> str:
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent


def _is_needed(path: str) -> bool:
    return not _NOT_NEEDED.fullmatch(PurePosixPath(path).name.lower())


def _is_weights(path: str) -> bool:
    """A GGUF file that is a model: not a vision projector, not an importance matrix."""
    name = PurePosixPath(path).name.lower()
    return name.endswith(".gguf") and "mmproj" not in name and "imatrix" not in name


def _shortened(names: Sequence[str]) -> list[str]:
    shown = [name or "(the top folder)" for name in names[:_SHOWN]]
    return [*shown, f"… ({len(names)} in all)"] if len(names) > _SHOWN else shown or ["nothing"]
