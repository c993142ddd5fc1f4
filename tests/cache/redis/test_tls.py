"""TLS to real servers under a private authority: verified, and refused where the authority is not known."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from proxy.cache.redis.store import RedisStore
from proxy.errors import StoreError
from tests.support.redis_cluster import MASTER, RedisCluster, Sentinel
from tests.support.redis_server import REDIS, RedisServer, free_port
from tests.support.servers import IS_CI

KEY, VALUE = bytes(32), b"value"


@pytest.fixture
def options(tmp_path: Path) -> tuple[str, ...]:
    """A server's, with a certificate for 127.0.0.1; the authority's own is in ca.pem."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    files = {"cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem", "ca-cert": tmp_path / "ca.pem"}
    return (*(f"tls-{name}-file {path}" for name, path in files.items()), "tls-auth-clients no")


def flags(options: tuple[str, ...]) -> list[str]:
    return [word for option in options for word in f"--{option}".split()]


Start = Callable[[Path, tuple[str, ...], str], tuple[str, list[RedisServer]]]


def one(folder: Path, options: tuple[str, ...], program: str) -> tuple[str, list[RedisServer]]:
    port = free_port()
    server = RedisServer(folder, "--tls-port", str(port), *flags(options), program=program)
    return f"rediss://127.0.0.1:{port}/0", [server]


def cluster(folder: Path, options: tuple[str, ...], program: str) -> tuple[str, list[RedisServer]]:
    # Alone it does not know its own address, and says none.
    nodes = RedisCluster(folder, "--tls-cluster", "yes", *flags(options), masters=1, is_tls=True, program=program)
    return nodes.url, nodes.nodes


def sentinel(folder: Path, options: tuple[str, ...], program: str) -> tuple[str, list[RedisServer]]:
    url, (master,) = one(folder / "master", options, program)
    port = free_port()
    watched = f"sentinel monitor {MASTER} 127.0.0.1 {url.rpartition(':')[2].removesuffix('/0')} 1"
    its = Sentinel(folder / "sentinel", f"tls-port {port}", "tls-replication yes", *options, watched, program=program)
    return f"rediss+sentinel://127.0.0.1:{port}/{MASTER}", [its, master]


@pytest.fixture(params=[one, cluster, sentinel])
def url(request: pytest.FixtureRequest, tmp_path: Path, options: tuple[str, ...], program: str) -> Iterator[str]:
    start: Start = request.param
    try:
        url, servers = start(tmp_path, options, program)
    except RuntimeError as error:
        # A wheel's Valkey is built without; Debian's Redis, which CI has, is not.
        if "tls" in str(error) and not (IS_CI and program == REDIS):
            pytest.skip(f"this {program} has no TLS")
        raise
    yield url
    for server in servers:
        server.kill()


async def test_a_private_authority_is_named_by_the_environment(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(url, timeout_s=5.0, max_connections=8)
    with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
        await store.get_many([KEY], timeout_s=5.0)
    await store.aclose()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    store = RedisStore(url, timeout_s=5.0, max_connections=8)
    assert await store.put_many({KEY: VALUE}, ttl_s=None, overwrite=False) == {}
    assert await store.get_many([KEY], timeout_s=5.0) == {KEY: VALUE}
    await store.aclose()
