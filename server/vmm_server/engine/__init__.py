"""One loaded text model: paged KV blocks, continuous batching, sampling, streams."""

from vmm_server.engine.engine import Engine, EngineOptions
from vmm_server.engine.executor import EngineLoad, EngineStats
from vmm_server.engine.generation import Generation
from vmm_server.engine.sequence import SeenPrompt
from vmm_server.engine.stream import Delta, Usage

__all__ = ["Delta", "Engine", "EngineLoad", "EngineOptions", "EngineStats", "Generation", "SeenPrompt", "Usage"]
