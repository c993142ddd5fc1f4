"""What is checked: one model at one upstream. Also its keys in the store (pure)."""

from hashlib import blake2b
from typing import NamedTuple

from proxy.canary.check_bodies import TEXTS
from proxy.protocol.keys import KEY_BYTES, pack

# A separate hash domain (RFC 7693 §2.8), so that no key made here can be the key of an item.
_PERSON = b"canary"
_SCHEMA = 1


class Subject(NamedTuple):
    """A model as clients ask for it. The ``url`` is that of keys. It may contain a credential, so it is never shown."""

    upstream: str
    url: str
    model: str | None  # None: the URL alone names it
    name: str | None  # the model's name for people

    @property
    def digest(self) -> bytes:
        """Its name in the table of epochs."""
        return self.key("epoch")

    @property
    def state_key(self) -> bytes:
        return self.key("state")

    @property
    def turn_key(self) -> bytes:
        return self.key("turn")

    def reference_key(self, epoch: int) -> bytes:
        return self.key("reference", epoch, *TEXTS)

    def key(self, *parts: str | int) -> bytes:
        return key_of(self.url, self.model, *parts)


def key_of(*parts: str | int | None) -> bytes:
    """The key of one value of the canary's."""
    return blake2b(pack((_SCHEMA, *parts)), digest_size=KEY_BYTES, person=_PERSON).digest()


def epoch_digest(url: str, model: str | None) -> bytes:
    """`Subject.digest` of the subject that a request belongs to."""
    return key_of(url, model, "epoch")
