"""`make bench ARGS="transcripts --python PYTHON"`: seconds of sound a second, beside faster-whisper.

`PYTHON` is an interpreter that has faster-whisper, `--folder` the same weights for it; without them VMM is measured
alone. Both get the same WAV files, the server over HTTP; one file at a time and eight, on one core and on all.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np

from bench.servers import vmm_server
from bench.tables import show
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import Store
from vmm_server.settings import read_settings

_CLIPS = Path(__file__).parents[1] / "tests" / "data" / "media"
_NAMES = ("0870.wav", "0930.wav", "goforward.wav")
_RATE = 16_000
_PAUSE_S = 0.4
Round = tuple[float, list[str]]
"""Seconds, and the texts of the files."""


def main(arguments: Sequence[str]) -> None:
    """Print a table for one core and one for all of them."""
    parser = argparse.ArgumentParser(prog="bench transcripts", description=__doc__)
    parser.add_argument("--model", default="whisper:tiny.en")
    parser.add_argument("--python", type=Path, help="an interpreter with faster-whisper")
    parser.add_argument("--folder", type=Path, help="the same model as a CTranslate2 folder, for it")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    settings = read_settings()
    model = Registry(Store(settings.store_dir), read_cards(settings.card_dirs)).resolve(chosen.model)
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        files = [_write(Path(scratch) / f"{number}.wav", number) for number in range(8)]
        for used in ([cores[0]], cores):
            os.sched_setaffinity(0, used)
            home = Path(scratch) / f"home{len(used)}"
            home.mkdir()
            (home / "models").symlink_to(settings.store_dir.resolve())
            with ExitStack() as stack:
                server = stack.enter_context(vmm_server(home, model.name, 0, num_threads=len(used)))
                layers: dict[str, Callable[[Sequence[Path]], Round]] = {"vmm": _http(server.port, model.name)}
                for kind in ("float32", "int8") if chosen.python else ():
                    layers[f"faster-whisper {kind}"] = stack.enter_context(
                        _faster_whisper(chosen.python, chosen.folder, kind, len(used))
                    )
                _measure(layers, files, len(used), chosen.rounds)
        os.sched_setaffinity(0, cores)


def _measure(
    layers: Mapping[str, Callable[[Sequence[Path]], Round]], files: Sequence[Path], num_cores: int, rounds: int
) -> None:
    rows = []
    for num_files in (1, 8):
        together = files[:num_files]
        seconds = sum(map(_duration, together))
        speeds: dict[str, list[float]] = {name: [] for name in layers}
        texts: dict[str, list[str]] = {}
        for turn in range(rounds + 1):
            for name, run in layers.items():
                took, texts[name] = run(together)
                if turn:  # the first round is not measured
                    speeds[name].append(seconds / took)
        ours = statistics.median(speeds["vmm"])
        for name, values in speeds.items():
            middle = statistics.median(values)
            same = sum(_words(a) == _words(b) for a, b in zip(texts["vmm"], texts[name], strict=True))
            rows.append([f"{num_files}: {name}", f"{middle:.1f}", f"{ours / middle:.2f}", f"{same} of {num_files}"])
    columns = ["files at a time", "seconds of sound a second", "vmm / it", "same words"]
    show(f"{num_cores} cores" if num_cores > 1 else "1 core", columns, rows)


def _words(text: str) -> list[str]:
    return "".join(each.lower() for each in text if each.isalnum() or each.isspace()).split()


def _http(port: int, model: str) -> Callable[[Sequence[Path]], Round]:
    async def transcribe(client: httpx.AsyncClient, name: str, content: bytes) -> str:
        answer = await client.post(
            f"http://127.0.0.1:{port}/v1/audio/transcriptions",
            files={"file": (name, content)},
            data={"model": model, "response_format": "text"},
        )
        answer.raise_for_status()
        return answer.text

    async def together(files: Sequence[tuple[str, bytes]]) -> list[str]:
        async with httpx.AsyncClient(timeout=600) as client:
            return await asyncio.gather(*(transcribe(client, *file) for file in files))

    def run(paths: Sequence[Path]) -> Round:
        started = time.perf_counter()
        texts = asyncio.run(together([(path.name, path.read_bytes()) for path in paths]))
        return time.perf_counter() - started, texts

    return run


@contextmanager
def _faster_whisper(
    python: Path, folder: Path, compute_type: str, num_cores: int
) -> Iterator[Callable[[Sequence[Path]], Round]]:
    script = Path(__file__).with_name("faster_whisper_child.py")
    command = [str(python), str(script), str(folder), compute_type, str(num_cores)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ""}
    ) as process:
        source, answers = process.stdin, process.stdout
        assert source is not None
        assert answers is not None

        def run(paths: Sequence[Path]) -> Round:
            source.write(json.dumps([str(path) for path in paths]) + "\n")
            source.flush()
            took, texts = json.loads(answers.readline())
            return took, texts

        yield run
        source.close()


def _write(path: Path, number: int) -> Path:
    """The clips once each, in turned order: what is said twice in a window of 30 s looks like a loop to either."""
    pause = np.zeros(int(_PAUSE_S * _RATE), np.int16)
    pieces = [np.zeros(100 * (number + 1), np.int16)]
    turned = number % len(_NAMES)
    for name in _NAMES[turned:] + _NAMES[:turned]:
        with wave.open(str(_CLIPS / name)) as clip:
            pieces += [np.frombuffer(clip.readframes(clip.getnframes()), np.int16), pause]
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, _RATE, 0, "NONE", ""))
        file.writeframes(np.concatenate(pieces).tobytes())
    return path


def _duration(path: Path) -> float:
    with wave.open(str(path)) as file:
        return float(file.getnframes() / file.getframerate())
