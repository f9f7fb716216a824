"""A machine of four devices that does what a test says: its speeds, its load times, what fails and when.

`CPU` and `NPU` share the host's memory, `GPU.0` and `GPU.1` have some of their own. OpenVINO uses the CPU and the GPUs,
ONNX Runtime GenAI the CPU and the NPU. Time passes when a test says so (`advance`), and work is done at the speeds of
the profiles in `speeds`, so a profile that is kept of them is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

from tokenizers import Tokenizer

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.device import AdapterUse, Device, DeviceKind, Machine
from vmm_adapters.echo import END, EchoRunner, Gate, write_echo_model
from vmm_adapters.echo_backend import LACKS, EchoBackend
from vmm_adapters.errors import DeviceLost
from vmm_adapters.types import Batch
from vmm_server.engine.engine import Engine, EngineOptions
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.loading import ReadyModel, model_format
from vmm_server.models.placing import Placer
from vmm_server.models.router import NoLoad, Placement, Profile
from vmm_server.models.store import InstalledModel
from vmm_server.prompt.chat import read_chat_template
from vmm_server.prompt.spelling import Spelling
from vmm_server.prompt.token_bytes import TokenBytes
from vmm_server.settings import Settings

MB = 1 << 20
CPU, GPU, SECOND_GPU = (Placement("openvino", name) for name in ("CPU", "GPU.0", "GPU.1"))
GENAI = Placement("onnxruntime-genai", "CPU")
NPU = Placement("onnxruntime-genai", "NPU")
TOGETHER = Placement("openvino", "HETERO:GPU.0,GPU.1")

SPEEDS: Mapping[Placement, Profile] = {
    CPU: Profile(decode_1=20, decode_8=80, prefill=200, load_s=2, memory_bytes=1),
    GENAI: Profile(decode_1=25, decode_8=30, prefill=150, load_s=1, memory_bytes=1),
    GPU: Profile(decode_1=60, decode_8=400, prefill=2000, load_s=10, memory_bytes=1),
    SECOND_GPU: Profile(decode_1=30, decode_8=200, prefill=1000, load_s=10, memory_bytes=1),
}
"""What each placement does; the NPU's is nobody's business."""


def model(name: str, megabytes: int = 100, **fields: Any) -> InstalledModel:
    """A text model that every runtime can compute."""
    described: dict[str, Any] = {
        "name": f"{name}:latest",
        "aliases": (),
        "digest": name.encode().hex().ljust(64, "0"),
        "size_bytes": megabytes * MB,
        "modified_at": datetime(2026, 1, 1, tzinfo=UTC),
        "adapter": "openvino",
        "folder": Path(f"/models/{name}"),
        "format": "onnx",
        "family": "echo",
        "parameter_size": "0",
        "quantization": "F32",
        "context_length": 512,
        "embedding_length": None,
        "capabilities": ("completion",),
        "license": None,
        "title": name,
        "system": None,
        "sampling": SamplingDefaults(),
        "source": "file:/nowhere",
    }
    return InstalledModel(**described | fields)


@dataclass(slots=True, eq=False)
class FakeRequest:
    """What is left of one."""

    prompt_tokens: float
    output_tokens: float


@dataclass(eq=False)
class FakeReady:
    """A loaded model: no engine, but a queue that is worked off at the placement's speed."""

    model: InstalledModel
    placement: Placement
    memory_bytes: int
    profile: Profile
    context_length: int = 512
    failure: str | None = None
    is_closed: bool = False
    max_running: int = 8
    queue: list[FakeRequest] = field(default_factory=list)

    @property
    def load(self) -> NoLoad:
        """As an engine tells it."""
        num_running = min(len(self.queue), self.max_running)
        pending = sum(each.prompt_tokens for each in self.queue)
        return NoLoad(num_running, len(self.queue) - num_running, int(pending))

    def submit(self, num_prompt_tokens: int = 100, num_output_tokens: int = 100) -> FakeRequest:
        """Queue a request."""
        request = FakeRequest(num_prompt_tokens, num_output_tokens)
        self.queue.append(request)
        return request

    def advance(self, seconds: float) -> None:
        """Work: prompts one after the other, then a token of each answer at a time."""
        while seconds > 1e-9 and (running := self.queue[: self.max_running]):
            prompts = [each for each in running if each.prompt_tokens > 0]
            if prompts:
                spent = min(seconds, prompts[0].prompt_tokens / self.profile.prefill)
                prompts[0].prompt_tokens = max(0.0, prompts[0].prompt_tokens - spent * self.profile.prefill)
            else:
                speed = self.profile.decode(len(running)) / len(running)
                spent = min(seconds, min(each.output_tokens for each in running) / speed)
                for each in running:
                    each.output_tokens -= spent * speed
            self.queue = [each for each in self.queue if each.output_tokens > 1e-9]
            seconds -= spent

    async def aclose(self) -> None:
        """Gone at once."""
        self.is_closed = True
        self.queue.clear()


@dataclass(frozen=True)
class Hold:
    """Holds loads in their threads."""

    is_loading: Event = field(default_factory=Event)
    may_load: Event = field(default_factory=Event)


class FakeMachine:
    """See the module. `load` makes `FakeReady`s, `load_engine` real engines; either is a pool's `ModelLoader`."""

    def __init__(self, folder: Path | None = None, *, gpu_megabytes: int = 1000, now: float = 1000.0) -> None:
        """`folder`: where the echo model is written, for real engines."""
        self.now = now
        self.speeds = dict(SPEEDS)
        self.gpu_megabytes = gpu_megabytes
        self.refuses: dict[str, str] = {}
        """Device → why loads fail there."""
        self.lost: dict[str, str] = {}
        """Device → the words with which whatever runs there fails."""
        self.loads: list[tuple[str, Placement, int]] = []
        """Name, placement and bytes for KV blocks of each load that was tried."""
        self.holds: dict[str, Hold] = {}
        """Device → what holds the loads there."""
        self.ready: list[FakeReady] = []
        self.gates: dict[Placement, Gate] = {}
        """Of real engines: each step waits for its gate, if there is one."""
        self.lacks: Mapping[str, str] = LACKS
        """What ONNX Runtime GenAI lacks."""
        self.runtimes: dict[Placement, EchoRunner | EchoBackend] = {}
        self.folder = folder
        if folder is not None:
            write_echo_model(folder)

    def clock(self) -> float:
        """Seconds."""
        return self.now

    async def read(self) -> Machine:
        """The machine as a probe would find it."""
        own = int(self.gpu_megabytes * MB / 0.9) + 1
        return Machine(
            (
                _device("CPU", DeviceKind.CPU, 64_000 * MB, "openvino", "onnxruntime-genai"),
                _device("GPU.0", DeviceKind.GPU, own, "openvino"),
                _device("GPU.1", DeviceKind.GPU, own, "openvino"),
                _device("NPU", DeviceKind.NPU, 64_000 * MB, "onnxruntime-genai"),
            )
        )

    def placer(self, settings: Settings) -> Placer:
        """Who knows this machine."""
        return Placer(settings, self.read, clock=self.clock)

    async def measure(self, placer: Placer, wanted: InstalledModel, *placements: Placement) -> None:
        """Keep the profiles of these placements; of all that there are, if none is named."""
        await placer.know_machine()
        for placement in placements or tuple(self.speeds):
            placer.keep(wanted, placement, self.speeds[placement])

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        for each in self.ready:
            if each.failure is None:
                each.advance(seconds)

    def lose(self, device: str, words: str = "the driver was reset") -> None:
        """What runs on a device fails, and so do later loads, until it is `found` again."""
        self.lost[device] = self.refuses[device] = words
        for each in self.ready:
            if each.placement.device == device:
                each.failure = f"the device {device} failed: {words}"

    def find(self, device: str) -> None:
        """A device is back; what had failed has not."""
        self.lost.pop(device, None)
        self.refuses.pop(device, None)

    def load(self, wanted: InstalledModel, placement: Placement, kv_cache_bytes: int) -> FakeReady:
        """See `ModelLoader`."""
        self._begin_load(wanted, placement, kv_cache_bytes)
        speed = self.speeds.get(placement, self.speeds[CPU])
        ready = FakeReady(wanted, placement, wanted.size_bytes + kv_cache_bytes, speed)
        self.ready.append(ready)
        return ready

    def load_engine(self, wanted: InstalledModel, placement: Placement, kv_cache_bytes: int) -> ReadyModel:
        """The same with an engine: ONNX Runtime GenAI draws tokens by itself and lacks much."""
        self._begin_load(wanted, placement, kv_cache_bytes)
        assert self.folder is not None
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))

        def step(batch: Batch) -> None:
            if (gate := self.gates.get(placement)) is not None:
                gate(batch)
            if (words := self.lost.get(placement.device)) is not None:
                raise DeviceLost(words)

        draws = placement.adapter == GENAI.adapter
        runtime = EchoBackend(gate=step, lacks=self.lacks) if draws else EchoRunner(gate=step)
        runtime.device = placement.device
        self.runtimes[placement] = runtime
        spell = Spelling(tokenizer)
        template = read_chat_template(self.folder)
        options = EngineOptions(max_sequences=2, gather_s=0.0)
        engine = Engine(runtime, tokenizer, eos_token_ids=frozenset({END}), options=options, context_length=512)
        return ReadyModel(
            engine=engine,
            tokenizer=tokenizer,
            token_bytes=TokenBytes(tokenizer),
            template=template,
            format=model_format(wanted, template, spell),
            spell=spell,
            placement=placement,
            context_length=512,
            vocab_size=runtime.vocab_size,
            memory_bytes=wanted.size_bytes + kv_cache_bytes,
        )

    def _begin_load(self, wanted: InstalledModel, placement: Placement, kv_cache_bytes: int) -> None:
        self.loads.append((wanted.name, placement, kv_cache_bytes))
        if (hold := self.holds.get(placement.device)) is not None:
            hold.is_loading.set()
            assert hold.may_load.wait(10)
        if (reason := self.refuses.get(placement.device)) is not None:
            raise ModelLoadFailed(reason)


def scaled(profile: Profile, factor: float) -> Profile:
    """So many times as fast."""
    return replace(
        profile,
        decode_1=profile.decode_1 * factor,
        decode_8=profile.decode_8 * factor,
        prefill=profile.prefill * factor,
    )


def _device(name: str, kind: DeviceKind, memory_bytes: int, *adapters: str) -> Device:
    uses = tuple(AdapterUse(adapter, spelling=name) for adapter in adapters)
    return Device(name, kind, "Intel", f"the {name}", memory_total_bytes=memory_bytes, uses=uses)
