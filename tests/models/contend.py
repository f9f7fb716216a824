"""Pull, create, copy, delete and list one model in a loop: `contend.py <store> <uri> <seconds> <seed>`.

Several of these at once, on one store, may meet only the errors that are documented: a model that another has just
deleted is not found. Prints how often each thing was done. A test runs two for seconds; by hand they can run longer.
"""

import asyncio
import hashlib
import json
import random
import runpy
import sys
import time
from collections import Counter
from pathlib import Path

from vmm_server.errors import ModelLoadFailed, ModelNotFound
from vmm_server.models.create import CreateRequest, Creator
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry
from vmm_server.models.store import Store

IMPORTER = runpy.run_path(str(Path(__file__).with_name("pull_once.py")))["make_importer"]()


async def work(root: str, uri: str, seconds: float, chance: random.Random) -> Counter[str]:
    store = Store(Path(root))
    registry = Registry(store)
    puller = Puller(store, registry, importer=IMPORTER)
    creator = Creator(store, registry, puller, importer=IMPORTER)
    done: Counter[str] = Counter()

    async def pull() -> None:
        async for event in puller.pull(uri, name="m"):
            last = event.status
        assert last == "success"

    async def create() -> None:
        async for event in creator.create(CreateRequest("child", "m", system=str(chance.random()))):
            last = event.status
        assert last == "success"

    async def copy() -> None:
        await asyncio.to_thread(registry.copy, "m", "copy")

    async def delete() -> None:
        await asyncio.to_thread(registry.remove, chance.choice(["m", "m", "child", "copy"]))

    async def list_() -> None:
        for model in await asyncio.to_thread(registry.installed):
            content = await asyncio.to_thread((model.folder / "model.onnx").read_bytes)
            assert hashlib.sha256(content).hexdigest() == model.weights

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        act = chance.choice([pull, create, copy, delete, delete, list_])
        try:
            await act()
        except ModelNotFound:
            done[f"{act.__name__}: not found"] += 1
        except (FileNotFoundError, ModelLoadFailed):
            # what was listed, or made something of, has been deleted since
            assert act in (list_, create)
            done[f"{act.__name__}: gone"] += 1
        else:
            done[act.__name__] += 1
    return done


if __name__ == "__main__":
    root, uri, seconds, seed = sys.argv[1:]
    counts = asyncio.run(work(root, uri, float(seconds), random.Random(int(seed))))
    sys.stdout.write(json.dumps(counts) + "\n")
