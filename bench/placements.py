"""`make bench ARGS=placements`: where each workload ends first, and where the router sends it.

The router knows a profile of each placement: three rates, measured for seconds (`vmm bench --calibrate`). Here whole
workloads run on every placement in turn. The last column of the second table is the time there over the time on the
best one: where that is `chosen`, it is what the router's choice costs.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.streams import Load, run_engine
from vmm_server.models.calibration import WORKLOADS, Calibrated, Report
from vmm_server.models.loading import load_model
from vmm_server.models.router import NO_LOAD, Placement, finish_s
from vmm_server.models.store import InstalledModel
from vmm_server.parts import Parts, build_parts
from vmm_server.settings import read_settings

Seconds = dict[tuple[str, Placement], float]


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(prog="bench placements", description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        (home / "models").symlink_to(read_settings().store_dir.resolve())
        settings = read_settings(home=scratch)
        parts = build_parts(settings, partial(load_model, settings=settings))
        report, seconds = asyncio.run(run(parts, parts.registry.resolve(chosen.model), chosen.rounds))
    profiles = {row.placement: row.profile for row in report.rows if row.profile is not None}
    table = _table("profiles", ["placement", "decode 1", "decode 8", "prefill 512", "load s", "memory MB"])
    for row in report.rows:
        if (profile := row.profile) is None:
            table.add_row(str(row.placement), row.reason)
            continue
        rates = (f"{rate:.1f}" for rate in (profile.decode_1, profile.decode_8, profile.prefill, profile.load_s))
        table.add_row(str(row.placement), *rates, str(profile.memory_bytes >> 20))
    console.print(table)
    table = _table(
        "seconds of each workload", ["workload", "placement", "measured", "foreseen", "chosen", "to the best"]
    )
    for name, work in WORKLOADS.items():
        best = min(seconds[name, placement] for placement in profiles)
        for placement, profile in profiles.items():
            took = seconds[name, placement]
            is_chosen = placement == report.choices[name]
            foreseen = f"{finish_s(profile, NO_LOAD, work):.2f}"
            ratio = f"{took / best:.3f}"
            table.add_row(name, str(placement), f"{took:.2f}", foreseen, "yes" if is_chosen else "", ratio)
    console.print(table)


async def run(parts: Parts, model: InstalledModel, rounds: int) -> tuple[Report, Seconds]:
    """Calibrate, then run every workload on every placement; medians over the rounds."""
    try:
        found = [event async for event in parts.calibrator.calibrate(model) if isinstance(event, Calibrated)]
        seconds: Seconds = {}
        for placement in (each.placement for each in found if each.profile is not None):
            for name, median in (await on_placement(parts, model, placement, rounds)).items():
                seconds[name, placement] = median
        return await parts.calibrator.report(model), seconds
    finally:
        await parts.pool.aclose()
        await parts.response_store.aclose()
        parts.machine.close()


async def on_placement(parts: Parts, model: InstalledModel, placement: Placement, rounds: int) -> dict[str, float]:
    """The seconds of each workload there, after one unmeasured request."""
    rng = np.random.default_rng(11)
    lease = await parts.pool.borrow(model, placement)
    assert lease is not None
    try:
        engine = lease.ready.engine
        warm = Load(1, 32, 8)
        await run_engine(engine, warm, warm.prompts(rng))
        medians: dict[str, float] = {}
        for name, work in WORKLOADS.items():
            load = Load(work.num_streams, work.num_prompt_tokens, work.num_output_tokens)
            took = [(await run_engine(engine, load, load.prompts(rng))).seconds for _ in range(rounds)]
            medians[name] = statistics.median(took)
        return medians
    finally:
        lease.release()
        await parts.pool.unload(model)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    return table
