"""The keys of the proxy's own clients: a file of names and hashes.

A key is 32 random bytes, so its plain SHA-256 can't be reversed by search. Slow hashes are for passwords, which people
choose.
"""

import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from proxy.errors import ConfigError

_PREFIX = "ep-"
_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}")
_LINE = re.compile(rf"(?P<name>{_NAME.pattern})" r" +sha256:(?P<digest>[0-9a-f]{64}) +(?P<since>\d{4}-\d\d-\d\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    name: str
    digest: bytes
    since: str  # the date of creation, YYYY-MM-DD

    def __str__(self) -> str:
        return f"{self.name} sha256:{self.digest.hex()} {self.since}"


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
        found.append(ClientKey(name=match["name"], digest=bytes.fromhex(match["digest"]), since=match["since"]))
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
        key = _PREFIX + secrets.token_urlsafe(32)
        made = ClientKey(name=name, digest=_digest(key), since=time.strftime("%Y-%m-%d", time.gmtime()))
        before = file.read_text(encoding="utf-8").rstrip("\n") + "\n" if file.exists() else ""
        _write(file, before.lstrip("\n") + f"{made}\n")
    return key


def revoke(path: Path, name: str) -> None:
    """Remove a client's key from the file. Raises `ConfigError`."""
    with _locked(path) as file:
        known = read(file)
        gone = {str(key) for key in known if key.name == name}
        if not gone:
            accepted = ", ".join(key.name for key in known) or "none, the file is empty"
            raise ConfigError(f"client keys {path}: there is no key named {name}; accepted: {accepted}")
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
    """The keys that the proxy accepts. `reload` reads the file again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: list[ClientKey] = []
        self.keys_version = 0  # incremented by every reload
        self.reload()

    def reload(self) -> int:
        """Read the file and return the number of keys. Raises `ConfigError`, and then the previous keys stay valid."""
        self._keys = read(self._path)
        self.keys_version += 1
        return len(self._keys)

    def name_of(self, key: str) -> str | None:
        """The name of the client with this key. All keys are compared in constant time, so timing reveals nothing."""
        digest = _digest(key)
        name = None
        for known in self._keys:
            name = known.name if compare_digest(digest, known.digest) else name
        return name

    def knows(self, key: str) -> bool:
        return self.name_of(key) is not None
