"""One loaded text model: paged KV blocks, continuous batching, sampling, streams."""

from vmm_server.engine.engine import Engine, EngineOptions, EngineStats, Generation
from vmm_server.engine.stream import Delta, Usage

__all__ = ["Delta", "Engine", "EngineOptions", "EngineStats", "Generation", "Usage"]
