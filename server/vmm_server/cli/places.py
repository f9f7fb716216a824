"""Where the models are that a command works on: in the store of this machine, or with a server.

A store needs no server, and its locks make it safe beside one, which sees the change with its next request. So it is
the place unless a server is named, on this machine or another: by `--host`, by a variable, or in vmm.toml. `--home`
names a store, and wins over the latter two as every flag does.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Protocol, TypeVar

from vmm_server.cli.client import Client, server_url
from vmm_server.cli.flags import variables
from vmm_server.errors import ModelNotFound, UnsupportedParameter
from vmm_server.models.compiled import compiled_dir, delete_compiled, shared_compiled_dir
from vmm_server.models.create import CreateRequest, Creator
from vmm_server.models.disk import delete_folder
from vmm_server.models.facts import FactsReader
from vmm_server.models.jobs import PullEvent, Report
from vmm_server.models.names import ModelName
from vmm_server.models.placing import host_memory_bytes
from vmm_server.models.pull import Puller
from vmm_server.models.push import Pusher
from vmm_server.models.quantizing import Made, Quantizer, Wish, score_on_cpu
from vmm_server.models.registry import Registry, not_released, read_cards
from vmm_server.models.releases import Release
from vmm_server.models.shown import details, shown
from vmm_server.models.sources import is_uri
from vmm_server.models.store import InstalledModel, Store
from vmm_server.models.variants import check_has_variant, remove_variant
from vmm_server.settings import Settings, read_settings

Json = dict[str, Any]
Item = TypeVar("Item")
_PIECE_BYTES = 1 << 20


class Place(Protocol):
    """Models that can be listed, shown, fetched, made and removed. Methods raise `VMMError`."""

    reads_files: bool
    """Whether it finds what a `file:` source names. A server is told no paths: it is sent the files."""

    def installed(self) -> list[Json]:
        """Objects with at least `name`, `digest`, `size` and `modified_at`, newest first."""
        ...

    def show(self, name: str, *, verbose: bool) -> Json:
        """What `/api/show` answers."""
        ...

    def pull(self, reference: str, *, name: str | None, insecure: bool) -> Iterator[PullEvent]: ...

    def push(self, name: str, *, insecure: bool) -> Iterator[PullEvent]: ...

    def copy(self, source: str, destination: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def releases(self) -> list[Json]:
        """Objects with `name` and `shares`."""
        ...

    def release_of(self, name: str) -> Json:
        """What a name means. Raises `ModelNotFound` for one that is not released."""
        ...

    def release(self, name: str, shares: Mapping[str, int]) -> Json: ...

    def clear_release(self, name: str) -> None: ...

    def has_blob(self, digest: str) -> bool: ...

    def put_blob(self, digest: str, path: Path, progress: Callable[[int], None]) -> None:
        """Send a file; `progress` is told how many of its bytes have been read."""
        ...

    def create(self, request: CreateRequest) -> Iterator[PullEvent]: ...


@contextmanager
def open_place(address: str | None, home: str | None) -> Iterator[Place]:
    """The server that is named, or the store of this machine."""
    settings = read_settings(home=home)
    named_by = "--host" if address is not None else _named_by(settings) if home is None else None
    hint = f"start it with: vmm serve; without {named_by}, or with --home, the models of this machine need no server"
    with Client(server_url(address, settings), hint=hint) as client:
        yield ServerPlace(client) if named_by else StorePlace(settings, client)


def open_registry(settings: Settings) -> Registry:
    """The models these settings see."""
    return Registry(Store(settings.store_dir), read_cards(settings.card_dirs))


class StorePlace:
    """The store of this machine; `client` is of a server that may run here too."""

    reads_files = True

    def __init__(self, settings: Settings, client: Client) -> None:
        self.settings = settings
        self.registry = open_registry(settings)
        self._store = Store(settings.store_dir)
        self._client = client

    def installed(self) -> list[Json]:
        """See `Place`."""
        return [
            _manifest(model)
            | {"name": model.name, "model": model.name, "size": model.size_bytes, "details": details(model)}
            for model in self.registry.listed()
        ]

    def show(self, name: str, *, verbose: bool) -> Json:
        """See `Place`; with the fields of the manifest besides."""
        model = self.registry.resolve(name)
        return _manifest(model) | shown(model, FactsReader(self._store).read(model, verbose=verbose))

    def pull(
        self, reference: str, *, name: str | None, insecure: bool, variant: str | None = None
    ) -> Iterator[PullEvent]:
        """See `Place`. `insecure` changes nothing: each source has its own transport."""
        return _run(lambda: Puller(self._store, self.registry).pull(reference, name=name, variant=variant))

    def push(self, name: str, *, insecure: bool) -> Iterator[PullEvent]:
        """See `Place`."""
        return _run(lambda: Pusher(self._store, self.registry).push(name, insecure=insecure))

    def copy(self, source: str, destination: str) -> None:
        """See `Place`."""
        self.registry.copy(source, destination)

    def remove(self, name: str) -> None:
        """See `Place`; a server of this machine unloads it first."""
        if self._client.answers():
            with suppress(ModelNotFound):  # it keeps its models elsewhere
                self._client.unload(name)
        self.registry.remove(name)
        delete_compiled(self.settings.cache_dir, keep=self.registry.installed())

    def releases(self) -> list[Json]:
        """See `Place`."""
        return [_shown(release) for release in self.registry.releases()]

    def release_of(self, name: str) -> Json:
        """See `Place`."""
        if (release := self.registry.release_of(ModelName.parse(name))) is None:
            raise not_released(name)
        return _shown(release)

    def release(self, name: str, shares: Mapping[str, int]) -> Json:
        """See `Place`."""
        return _shown(self.registry.release(name, shares))

    def clear_release(self, name: str) -> None:
        """See `Place`."""
        self.registry.clear_release(name)

    def quantize(self, name: str, wish: Wish, report: Report, cancelled: Event) -> Made:
        """Make a variant. Raises as `Quantizer.quantize` does."""
        score = partial(score_on_cpu, shared_cache_dir=shared_compiled_dir(self.settings.cache_dir))
        quantizer = Quantizer(self._store, host_memory_bytes(self.settings), score)
        return quantizer.quantize(ModelName.parse(self.registry.resolve(name).name), wish, report, cancelled)

    def remove_variant(self, name: str, variant: str) -> None:
        """Take a variant away; a server of this machine unloads the model first. Raises as `remove_variant` does."""
        model = self.registry.resolve(name)
        check_has_variant(model, variant)
        if self._client.answers():
            with suppress(ModelNotFound):  # it keeps its models elsewhere
                self._client.unload(name)
        remove_variant(self._store, model, variant)
        delete_folder(compiled_dir(self.settings.cache_dir, model, variant))

    def has_blob(self, digest: str) -> bool:
        """See `Place`."""
        return self._store.has_blob(digest)

    def put_blob(self, digest: str, path: Path, progress: Callable[[int], None]) -> None:
        """See `Place`."""

        async def content() -> AsyncIterator[bytes]:
            for piece in _told(path, progress):
                yield piece

        asyncio.run(self._store.put_blob(digest, content(), size_bytes=path.stat().st_size))

    def create(self, request: CreateRequest) -> Iterator[PullEvent]:
        """See `Place`."""
        puller = Puller(self._store, self.registry)
        return _run(lambda: Creator(self._store, self.registry, puller).create(request))


class ServerPlace:
    """A running server, on this machine or another."""

    reads_files = False

    def __init__(self, client: Client) -> None:
        self._client = client

    def installed(self) -> list[Json]:
        """See `Place`."""
        return self._client.installed()

    def show(self, name: str, *, verbose: bool) -> Json:
        """See `Place`."""
        return self._client.show(name, verbose=verbose)

    def pull(self, reference: str, *, name: str | None, insecure: bool) -> Iterator[PullEvent]:
        """See `Place`. A name of one's own is a copy of what was pulled, or a model created of a source."""
        if name is not None and is_uri(reference):
            yield from self._client.create({"model": name, "from": reference})
            return
        yield from self._client.pull(reference, insecure=insecure)
        if name is not None:
            self._client.copy(reference, name)

    def push(self, name: str, *, insecure: bool) -> Iterator[PullEvent]:
        """See `Place`."""
        return self._client.push(name, insecure=insecure)

    def copy(self, source: str, destination: str) -> None:
        """See `Place`."""
        self._client.copy(source, destination)

    def remove(self, name: str) -> None:
        """See `Place`."""
        self._client.delete(name)

    def releases(self) -> list[Json]:
        """See `Place`."""
        return self._client.releases()

    def release_of(self, name: str) -> Json:
        """See `Place`."""
        return self._client.release_of(name)

    def release(self, name: str, shares: Mapping[str, int]) -> Json:
        """See `Place`."""
        return self._client.release(name, shares)

    def clear_release(self, name: str) -> None:
        """See `Place`."""
        self._client.clear_release(name)

    def has_blob(self, digest: str) -> bool:
        """See `Place`."""
        return self._client.has_blob(digest)

    def put_blob(self, digest: str, path: Path, progress: Callable[[int], None]) -> None:
        """See `Place`."""
        self._client.put_blob(digest, _told(path, progress), path.stat().st_size)

    def create(self, request: CreateRequest) -> Iterator[PullEvent]:
        """See `Place`."""
        fields = {
            "from": request.from_,
            "files": dict(request.files),
            "template": request.template,
            "license": list(request.licenses),
            "system": request.system,
            "parameters": dict(request.parameters),
            "messages": [{"role": role, "content": content} for role, content in request.messages],
            "quantize": request.quantize,
        }
        return self._client.create({"model": request.name, **{name: value for name, value in fields.items() if value}})


def local(place: Place, what: str) -> StorePlace:
    """The store of this machine. Raises `UnsupportedParameter` where a server is named."""
    if not isinstance(place, StorePlace):
        hint = "log in there and run it, or leave out --host (VMM_HOST, VMM_PORT), or name a store with --home"
        raise UnsupportedParameter(f"{what} works on models of this machine alone; a server is named", hint=hint)
    return place


def read_pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a megabyte at a time. Raises `OSError`."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _named_by(settings: Settings) -> str | None:
    """What names a server without a flag; `None`: nothing does, and the default is meant."""
    for setting in ("host", "port"):
        if setting in settings.model_fields_set and getattr(settings, setting):  # port 0 names nobody
            return next((variable for variable in variables(setting) if variable in os.environ), "vmm.toml")
    return None


def _told(path: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    for piece in read_pieces(path):
        yield piece
        done += len(piece)
        progress(done)


def _shown(release: Release) -> Json:
    return {"name": str(release.name), "shares": {str(model): share for model, share in release.shares}}


def _manifest(model: InstalledModel) -> Json:
    """What the manifest says, for JSON."""
    return asdict(model) | {
        "modified_at": model.modified_at.isoformat(),
        "sampling": model.sampling.model_dump(exclude_none=True),
    }


def _run(start: Callable[[], AsyncGenerator[Item]]) -> Iterator[Item]:
    """The items of an asynchronous generator, on an event loop that lives until they end."""

    async def begin() -> AsyncGenerator[Item]:
        return start()

    async def next_of(items: AsyncGenerator[Item]) -> Item | None:
        return await anext(items, None)

    with asyncio.Runner() as runner:
        items = runner.run(begin())
        try:
            while (item := runner.run(next_of(items))) is not None:
                yield item
        finally:
            runner.run(items.aclose())
