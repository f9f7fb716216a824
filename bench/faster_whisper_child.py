"""faster-whisper on a CTranslate2 folder, for an interpreter that has it; its arguments are FOLDER, TYPE, CORES.

Reads lines of JSON, `[path, …]`, on stdin: the files of one round, transcribed at the same time. Answers a line each:
the seconds that it took, and the texts. Imports nothing of VMM, since it runs elsewhere.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from faster_whisper import WhisperModel  # type: ignore[import-not-found]


def main() -> None:
    """Answer rounds until stdin ends."""
    folder, compute_type, cores = sys.argv[1:4]
    model = WhisperModel(folder, device="cpu", compute_type=compute_type, cpu_threads=int(cores), num_workers=1)

    def transcribe(path: str) -> str:
        segments, _ = model.transcribe(path, beam_size=1, language="en", condition_on_previous_text=False)
        return "".join(segment.text for segment in segments)

    for line in sys.stdin:
        paths = json.loads(line)
        started = time.perf_counter()
        with ThreadPoolExecutor(len(paths)) as threads:
            texts = list(threads.map(transcribe, paths))
        print(json.dumps([time.perf_counter() - started, texts]), flush=True)


if __name__ == "__main__":
    main()
