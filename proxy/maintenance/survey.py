"""What a store has: counted, and each record checked."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.cache.store import Store
from proxy.maintenance.transfer import Advance, pages
from proxy.protocol import records
from proxy.protocol.records import InvalidRecord, Record, RecordKey

# Upper bounds of age, in seconds. An entry counts for the first one that it is not older than.
AGES = {"1 hour": 3600, "1 day": 86_400, "1 week": 604_800, "30 days": 2_592_000, "1 year": 31_536_000}
OLDER = "older"
# The most keys that are named for each flaw.
_MAX_NAMED = 1000


class Kind(NamedTuple):
    model: str  # as the upstream's responses name it
    dimensions: int
    dtype: str


@dataclass(slots=True)
class Group:
    entries: int = 0
    bytes: int = 0  # of keys and values
    tokens: int = 0  # that the upstream billed for them
    oldest_s: int = 2**62  # Unix time
    newest_s: int = 0

    def add(self, record: Record, size_bytes: int) -> None:
        self.entries += 1
        self.bytes += size_bytes
        self.tokens += record.tokens
        self.oldest_s = min(self.oldest_s, record.stored_at_s)
        self.newest_s = max(self.newest_s, record.stored_at_s)


@dataclass(slots=True)
class Survey:
    groups: dict[Kind, Group] = field(default_factory=lambda: defaultdict(Group))
    scopes: dict[bytes, Group] = field(default_factory=lambda: defaultdict(Group))  # by fingerprint; b"": not known
    own: Group = field(default_factory=Group)  # what the proxy keeps for itself, which are no entries
    ages: Counter[str] = field(default_factory=Counter)
    tagged: int = 0
    invalid: Counter[str] = field(default_factory=Counter)  # by flaw
    invalid_bytes: int = 0

    @property
    def entries(self) -> int:
        return sum(group.entries for group in self.groups.values()) + self.invalid.total()

    @property
    def bytes(self) -> int:
        return sum(group.bytes for group in self.groups.values()) + self.invalid_bytes


@dataclass(slots=True)
class Verified:
    valid: int = 0
    unverified: int = 0  # of these have a tag, and no record key was given
    invalid: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # flaw -> keys in hexadecimal
    counts: Counter[str] = field(default_factory=Counter)  # flaw -> how many


async def survey(store: Store, *, now_s: float, advance: Advance) -> Survey:
    """Raises `StoreError`."""
    found = Survey()
    async for values, _ in pages(store):
        for key, value in values.items():
            _count(found, key, value, now_s)
        advance(len(values))
    return found


def _count(found: Survey, key: bytes, value: bytes, now_s: float) -> None:
    size_bytes = len(key) + len(value)
    try:
        record, is_tagged = records.inspect(key, value)
    except InvalidRecord as error:
        found.invalid[error.flaw.value] += 1
        found.invalid_bytes += size_bytes
        return
    if record.model == records.OWN:
        found.own.entries += 1
        found.own.bytes += size_bytes
        return
    vector = record.vector
    found.groups[Kind(record.model, vector.dimensions, vector.dtype.name.lower())].add(record, size_bytes)
    found.scopes[record.scope].add(record, size_bytes)
    age_s = now_s - record.stored_at_s
    found.ages[next((name for name, bound_s in AGES.items() if age_s <= bound_s), OLDER)] += 1
    found.tagged += is_tagged


async def verify(store: Store, *, record_key: RecordKey | None, advance: Advance) -> Verified:
    """Check every record's checksum and form, and with a record key its tag. Raises `StoreError`."""
    found = Verified()
    check = _checker(record_key)
    async for values, _ in pages(store):
        for key, value in values.items():
            try:
                found.unverified += check(key, value)
                found.valid += 1
            except InvalidRecord as error:
                flaw = error.flaw.value
                found.counts[flaw] += 1
                if len(found.invalid[flaw]) < _MAX_NAMED:
                    found.invalid[flaw].append(key.hex())
        advance(len(values))
    return found


def _checker(record_key: RecordKey | None) -> Callable[[bytes, bytes], bool]:
    """A function that raises `InvalidRecord`, and returns whether there is a tag that it could not verify."""
    if record_key is None:
        return lambda key, value: records.inspect(key, value)[1]

    def check(key: bytes, value: bytes) -> bool:
        records.decode(key, value, record_key)
        return False

    return check
