"""Which items of a request must be asked for, and where each answer goes (pure)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """``keys[i]`` is the key of item i. ``missing`` are positions in ``keys``: of each key that was not found, the
    first place where it stands, in input order. What is asked for is just those items, each once."""

    keys: Sequence[bytes]
    missing: list[int]

    @property
    def is_reduced(self) -> bool:
        """Whether fewer items are asked for than the client sent."""
        return len(self.missing) < len(self.keys)


def plan(keys: Sequence[bytes], found: Collection[bytes]) -> Plan:
    asked: set[bytes] = set()
    missing = []
    for position, key in enumerate(keys):
        if key not in found and key not in asked:
            asked.add(key)
            missing.append(position)
    return Plan(keys, missing)
