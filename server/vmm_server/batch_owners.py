"""Whose requests the lines of a batch are: its key's as it is now, or nobody's any more."""

from functools import partial

from vmm_server.admission import Admission
from vmm_server.callers import BATCH_PRIORITY, Caller
from vmm_server.errors import PermissionDenied, RateLimited, Unauthenticated
from vmm_server.keys import KeyRing

SCOPES = ("inference",)
WAIT_S = 5
"""How long lines wait for more tokens of their key before they look again."""


class BatchOwners:
    """Tenants as callers of the lines of their batches."""

    def __init__(self, keys: KeyRing, admission: Admission) -> None:
        self._keys = keys
        self._admission = admission

    def __call__(self, tenant: str) -> Caller:
        """The caller of a tenant's next line; its tokens are charged, it is no request of the key's own otherwise.

        Raises `Unauthenticated` for a key that was revoked or has expired, and for none where one is needed by now,
        `PermissionDenied` for one that lost its scope, `RateLimited` while its tokens are used up.
        """
        key = self._keys.get(tenant) if tenant else None
        if key is None and (tenant or self._keys.is_required):
            raise Unauthenticated("the key that this batch was made with was revoked, or has expired")
        if key is not None and not key.allows(SCOPES):
            raise PermissionDenied(f"the key {key.name} may not run models any more")
        if any(quota.name == "tokens" and quota.remaining == 0 for quota in self._admission.quotas(key)):
            raise RateLimited("the tokens of this batch's key are used up", retry_after_s=WAIT_S)
        return Caller(
            tenant,
            weight=1.0 if key is None else key.weight,
            priority=BATCH_PRIORITY,
            best_priority=BATCH_PRIORITY,
            charge=partial(self._admission.charge, key),
        )
