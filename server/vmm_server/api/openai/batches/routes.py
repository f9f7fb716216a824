"""`/v1/batches`: create, look, list, cancel. A batch belongs to the tenant that made it."""

from typing import Any

from litestar import Controller, Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from vmm_server.api.body import read_body
from vmm_server.api.openai.batches import examples
from vmm_server.api.openai.batches.wire import BatchRequest, batch_object, new_batch
from vmm_server.api.openai.pages import page, read_limit
from vmm_server.api.openapi import described
from vmm_server.batch_store import JobStore
from vmm_server.batches import Batches
from vmm_server.callers import caller

MAX_PAGE = 100
PAGE_QUERY = {
    "limit": f"1 to {MAX_PAGE}; 20 unless said",
    "after": "the `id` of the batch that the page follows",
}


class BatchesController(Controller):
    """Batches."""

    path = "/v1/batches"

    @post(
        status_code=200,
        operation_id="createBatch",
        summary="Compute a file of requests",
        opt=described(*examples.CREATE, body=BatchRequest),
    )
    async def create(self, request: Request[Any, Any, Any], batches: NamedDependency[Batches]) -> dict[str, object]:
        """At the lowest priority; what is wrong with its lines is told once they were read."""
        wire = await read_body(request, BatchRequest)
        return batch_object(await batches.create(new_batch(wire, caller.get().tenant)))

    @get(operation_id="listBatches", summary="The batches there are", opt=described(*examples.LIST, query=PAGE_QUERY))
    async def list_batches(
        self, request: Request[Any, Any, Any], job_store: NamedDependency[JobStore]
    ) -> dict[str, object]:
        """Those of the caller's; the newest first."""
        query = request.query_params
        limit = read_limit(query.get("limit"), default=20, maximum=MAX_PAGE)
        found, has_more = await job_store.page(caller.get().tenant, after=query.get("after"), limit=limit)
        return page([batch_object(batch) for batch in found], has_more=has_more)

    @get("/{batch_id:str}", operation_id="getBatch", summary="How far a batch is", opt=described(*examples.RETRIEVE))
    async def retrieve(self, job_store: NamedDependency[JobStore], batch_id: FromPath[str]) -> dict[str, object]:
        """Its state, its counts, and the files of its results once it is over."""
        return batch_object(await job_store.get(batch_id, caller.get().tenant))

    @post(
        "/{batch_id:str}/cancel",
        status_code=200,
        operation_id="cancelBatch",
        summary="Stop a batch",
        opt=described(*examples.CANCEL),
    )
    async def cancel(self, batches: NamedDependency[Batches], batch_id: FromPath[str]) -> dict[str, object]:
        """What is done stays, in its files of results."""
        return batch_object(await batches.cancel(batch_id, caller.get().tenant))
