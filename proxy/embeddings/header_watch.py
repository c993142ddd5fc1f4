"""Notices a header field that keeps requests from the cache because its value differs each time (pure)."""

from collections import OrderedDict
from collections.abc import Iterable

from proxy.protocol.header_kinds import why_not_neutral
from proxy.protocol.identities import Identity

# So many values of one field without a hit between them are no coincidence.
MANY_VALUES = 20
_MAX_GROUPS = 256
_MAX_NAME = 128

Group = tuple[int, str]  # a hash of the credential and the model; the field's name


class HeaderWatch:
    """Remembers which values of a field one credential and model have shown since their last hit, as hashes.

    A hit clears a field, whatever its value was. Only fields of the key that the operator can declare neutral are
    watched; each value of the other fields is another client.
    """

    def __init__(self) -> None:
        self._values: OrderedDict[Group, set[int]] = OrderedDict()

    def missed(self, identity: Identity, model: str | None) -> list[str]:
        """The fields that have now shown `MANY_VALUES` values. After that, their count starts again."""
        many = []
        for group, value in _watched(identity, model):
            values = self._values.setdefault(group, set())
            self._values.move_to_end(group)
            values.add(value)
            if len(values) >= MANY_VALUES:
                del self._values[group]
                many.append(group[1])
        while len(self._values) > _MAX_GROUPS:
            self._values.popitem(last=False)
        return many

    def hit(self, identity: Identity, model: str | None) -> None:
        """Some item of a request was cached."""
        if self._values:
            self.clear(watched_groups(identity, model))

    def clear(self, groups: Iterable[Group]) -> None:
        """Some item of a request with these `watched_groups` was cached."""
        if self._values:
            for group in groups:
                self._values.pop(group, None)


def watched_groups(identity: Identity, model: str | None) -> tuple[Group, ...]:
    return tuple(group for group, _ in _watched(identity, model))


def _watched(identity: Identity, model: str | None) -> list[tuple[Group, int]]:
    """Each watched field's group, and a hash of its value, or of all its values where it is repeated."""
    values: dict[str, list[str]] = {}
    secrets = []
    for name, value in identity.credentials + identity.vector_affecting:
        if why_not_neutral(name) is not None:
            secrets.append((name, value))
        elif name and len(name) <= _MAX_NAME:  # the proxy's own credential has no name
            values.setdefault(name, []).append(value)
    credential_id = hash((tuple(secrets), model)) if values else 0
    return [((credential_id, name), hash(tuple(listed))) for name, listed in values.items()]
