"""A tenant: whose use of the proxy is counted together (pure)."""

from msgspec import Struct


class Tenant(Struct, frozen=True, gc=False):
    """The unit whose use is counted. ``name`` is equal for all requests with one credential or client key."""

    name: bytes
    # No upstream has accepted the credential in this process, and no list of client keys has it.
    is_unverified: bool = False
