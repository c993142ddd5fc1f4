"""Short names for credentials. The ledger uses them to tell apart clients that no list names."""

from hashlib import blake2b

from proxy.protocol.header_kinds import Fields
from proxy.protocol.keys import pack

_BYTES = 5  # the chance that one of 50 clients shares its name with one of 100,000 is below 1 in 10,000


class Pseudonyms:
    """MACs under the operator's secret: a name can't be reversed or guessed without it, and is the same in every
    process that has it. Keyed BLAKE2b is a MAC (RFC 7693 §2.9)."""

    def __init__(self, secret: bytes) -> None:
        self._key = blake2b(secret, digest_size=32, person=b"client-labels").digest()

    def of(self, tenant_fields: Fields) -> str:
        """The name of the client with these credentials, as `c-3f81a0b29c`; `anonymous` without any."""
        if not tenant_fields:
            return "anonymous"
        return "c-" + blake2b(pack(tenant_fields), key=self._key, digest_size=_BYTES).hexdigest()
