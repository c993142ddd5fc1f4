"""The keys of the proxy's own clients: a file of names and hashes.

A key is 32 random bytes, so its plain SHA-256 can't be reversed by search. Slow hashes are for passwords, which people
choose.
"""

import math
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fcntl import LOCK_EX, flock
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from proxy.errors import ConfigError

_PREFIX = "ep-"
_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}")
_LINE = re.compile(
    rf"(?P<name>{_NAME.pattern})"
    r" +sha256:(?P<digest>[0-9a-f]{64}) +(?P<since>\d{4}-\d\d-\d\d)"
    r"( +until:(?P<until>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ))?"
)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    name: str
    digest: bytes
    since: str  # the date of creation, YYYY-MM-DD
    until_s: float | None = None  # Unix time at which a replaced key ends

    def __str__(self) -> str:
        until = "" if self.until_s is None else f" until:{self.until}"
        return f"{self.name} sha256:{self.digest.hex()} {self.since}{until}"

    @property
    def until(self) -> str | None:
        """``until_s`` in the format of RFC 3339."""
        return None if self.until_s is None else datetime.fromtimestamp(self.until_s, UTC).strftime(_TIME)

    def is_valid(self, now_s: float) -> bool:
        return self.until_s is None or now_s < self.until_s


def read(path: Path) -> list[ClientKey]:
    """The keys in a file. Raises `ConfigError` if it can't be read or has an invalid line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"client keys {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    found: list[ClientKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ConfigError(f"client keys {path}, line {number}: accepted: NAME sha256:HEX YYYY-MM-DD")
        digest, until = bytes.fromhex(match["digest"]), match["until"]
        try:
            until_s = None if until is None else datetime.strptime(until, _TIME).replace(tzinfo=UTC).timestamp()
        except ValueError as error:
            raise ConfigError(f"client keys {path}, line {number}: there is no such time as {until}") from error
        found.append(ClientKey(name=match["name"], digest=digest, since=match["since"], until_s=until_s))
    return found


def add(path: Path, name: str) -> str:
    """Create a key for a client and return it. The file has only its hash, so it can't be shown again.

    Raises `ConfigError`.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a valid name; accepted: letters, digits and any of . _ @ -, up to 64")
    with _locked(path) as file:
        if file.exists() and any(key.name == name for key in read(file)):
            raise ConfigError(f"client keys {path}: a key named {name} exists; revoke it first or choose another name")
        key, made = _make(name)
        before = file.read_text(encoding="utf-8").rstrip("\n") + "\n" if file.exists() else ""
        _write(file, before.lstrip("\n") + f"{made}\n")
    return key


def rotate(path: Path, name: str, *, overlap_s: float, now_s: float) -> str:
    """Create a new key for a client and return it. The present key stays valid for ``overlap_s`` from ``now_s``, Unix
    time. Earlier keys that have ended are removed.

    Raises `ConfigError`.
    """
    with _locked(path) as file:
        known = _required(file, path, name)
        key, made = _make(name)
        new = {
            str(old): old if old.until_s is not None else replace(old, until_s=math.ceil(now_s + overlap_s))
            for old in known
        }
        lines = []
        for line in file.read_text(encoding="utf-8").splitlines():
            old = new.get(" ".join(line.split()))
            if old is None:
                lines.append(line)
            elif old.is_valid(now_s) and overlap_s > 0:
                lines.append(str(old))
        _write(file, "\n".join([*lines, str(made)]) + "\n")
    return key


def _make(name: str) -> tuple[str, ClientKey]:
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, ClientKey(name=name, digest=_digest(key), since=time.strftime("%Y-%m-%d", time.gmtime()))


def _required(file: Path, path: Path, name: str) -> list[ClientKey]:
    """The keys of a client, at least one. Raises `ConfigError`."""
    known = read(file)
    found = [key for key in known if key.name == name]
    if not found:
        accepted = ", ".join(dict.fromkeys(key.name for key in known)) or "none, the file is empty"
        raise ConfigError(f"client keys {path}: there is no key named {name}; accepted: {accepted}")
    return found


def revoke(path: Path, name: str) -> None:
    """Remove a client's key from the file. Raises `ConfigError`."""
    with _locked(path) as file:
        gone = {str(key) for key in _required(file, path, name)}
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        _write(file, "".join(line for line in lines if " ".join(line.split()) not in gone))


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """The file, with symbolic links resolved, while no other process changes it."""
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            flock(folder, LOCK_EX)
            yield path
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"client keys {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    """Replace the file atomically, because a proxy may be reading it, and keep its owner and mode."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            if path.exists():
                status = path.stat()
                os.fchmod(file.fileno(), status.st_mode)
                with suppress(PermissionError):  # only root can give files away
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="surrogateescape")).digest()


class ClientKeys:
    """The keys that the proxy accepts. `reload` reads the file again. `drop_ended` must be called regularly, because
    the fast path admits a request that it knows by its bytes without looking at its key."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._keys: list[ClientKey] = []
        self.keys_version = 0  # incremented by every reload
        self.is_outdated = False  # the file could not be used when it was last read
        self.reload()

    def reload(self) -> int:
        """Read the file and return the number of keys. Raises `ConfigError`, and then the previous keys stay valid."""
        now_s = self._clock()
        self.is_outdated = True
        self._keys = [key for key in read(self._path) if key.is_valid(now_s)]
        self.is_outdated = False
        self.keys_version += 1
        return len(self._keys)

    def drop_ended(self) -> None:
        """Drop the keys that were replaced and whose overlap has passed."""
        now_s = self._clock()
        valid = [key for key in self._keys if key.is_valid(now_s)]
        if len(valid) < len(self._keys):
            self._keys = valid
            self.keys_version += 1

    def name_of(self, key: str) -> str | None:
        """The name of the client with this key. All keys are compared in constant time, so timing reveals nothing."""
        digest = _digest(key)
        name = None
        for known in self._keys:
            name = known.name if compare_digest(digest, known.digest) else name
        return name

    def knows(self, key: str) -> bool:
        return self.name_of(key) is not None
