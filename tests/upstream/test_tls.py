"""TLS to upstreams: private authorities, client certificates, and files that can't be used."""

import errno
import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from proxy.config.settings import UpstreamSetting
from proxy.errors import ConfigError
from proxy.upstream.egress import Egress
from proxy.upstream.outbound import Outbound
from tests.conftest import StartProxy
from tests.support.authorities import Authorities, careless, refusing
from tests.support.client import Client
from tests.support.egress import Net, logged
from tests.support.samples import samples
from tests.support.scripted import Call, ScriptedUpstream

Start = Callable[[str, Egress], Any]


@pytest.fixture
def start(start_proxy: StartProxy) -> Start:
    """Starts a proxy in front of a base URL."""

    async def start(base_url: str, way: Egress) -> Client:
        return await start_proxy(upstream=UpstreamSetting(name="scripted", base_url=base_url, egress=way))

    return start


def peer_certificate(call: Call) -> Any:
    """The certificate of who called, as `ssl.SSLSocket.getpeercert` has it."""
    assert call.request.transport is not None
    return call.request.transport.get_extra_info("peercert")


def peer_name(call: Call) -> str:
    return str(dict(pair for (pair,) in peer_certificate(call)["subject"])["commonName"])


async def test_private_authority_is_trusted_only_if_configured(authorities: Authorities, start: Start) -> None:
    async with ScriptedUpstream().serving(authorities.server_tls()) as upstream:
        untrusting = await start(upstream.base_url, Egress())
        for answer in (await untrusting.embed("a"), await untrusting.send("GET", "/v1/models")):
            assert answer.json["error"]["message"].endswith(": its certificate is not trusted.")
        trusting = await start(upstream.base_url, Egress(ca=authorities.ca))
        assert [(await trusting.embed("a")).cache for _ in range(2)] == ["MISS", "HIT"]


async def test_configured_authority_replaces_the_system_ones(authorities: Authorities, start: Start) -> None:
    other = authorities.write("other.pem", trustme.CA().cert_pem.bytes())
    async with ScriptedUpstream().serving(authorities.server_tls()) as upstream:
        answer = await (await start(upstream.base_url, Egress(ca=other))).embed("a")
        assert answer.json["error"]["message"].endswith(": its certificate is not trusted.")
        both = authorities.write("both.pem", "Größe\n".encode() + other.read_bytes() + authorities.ca.read_bytes())
        assert (await (await start(upstream.base_url, Egress(ca=both))).embed("a")).status == 200


async def test_intermediate_authority_can_be_configured(authorities: Authorities, start: Start) -> None:
    middle = authorities.servers.create_child_ca()
    ca = authorities.write("middle.pem", middle.cert_pem.bytes())
    async with ScriptedUpstream().serving(authorities.server_tls(by=middle)) as upstream:
        assert (await (await start(upstream.base_url, Egress(ca=ca))).embed("a")).status == 200


async def test_authority_that_fails_strict_x509_checks_is_trusted(tmp_path: Path, start: Start) -> None:
    ca, tls = careless(tmp_path)
    async with ScriptedUpstream().serving(tls) as upstream:
        assert (await (await start(upstream.base_url, Egress(ca=ca))).embed("a")).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_client_certificate_is_sent_when_requested(
    authorities: Authorities, start: Start, version: ssl.TLSVersion
) -> None:
    seen = []

    def peer(call: Call) -> web.Response:
        seen.append(peer_name(call))
        return upstream.embed(call)

    cert, key = authorities.client_files("proxy")
    both = authorities.write("both.pem", cert.read_bytes() + key.read_bytes())
    upstream = ScriptedUpstream(reply=peer)
    async with upstream.serving(authorities.server_tls(asks=True, version=version)):
        for way in (Egress(ca=authorities.ca, cert=cert, cert_key=key), Egress(ca=authorities.ca, cert=both)):
            client = await start(upstream.base_url, way)
            assert [(await client.embed("a")).cache for _ in range(2)] == ["MISS", "HIT"]
            assert (await client.post({"input": "a", "model": "m", "unheard": 1})).status == 200
        without = await start(upstream.base_url, Egress(ca=authorities.ca))
        assert (await without.embed("a")).json["error"]["code"] == "upstream_unreachable"
    assert seen == ["proxy"] * 4


ALERTS = [
    (ssl.TLSVersion.TLSv1_3, False, "it asks for a client certificate"),
    (ssl.TLSVersion.TLSv1_3, True, "it refused this proxy's client certificate"),
    (ssl.TLSVersion.TLSv1_2, False, "TLS with it failed"),
    (ssl.TLSVersion.TLSv1_2, True, "it refused this proxy's client certificate"),
]


@pytest.mark.parametrize(("version", "has_certificate", "why"), ALERTS)
async def test_refused_client_certificate_is_reported(
    authorities: Authorities, start: Start, caplog: pytest.LogCaptureFixture,
    version: ssl.TLSVersion, has_certificate: bool, why: str,
) -> None:  # fmt: skip
    way = Egress(ca=authorities.ca)
    if has_certificate:
        cert, key = authorities.client_files("stranger", trustme.CA())
        way = replace(way, cert=cert, cert_key=key)
    async with refusing(authorities.server_tls(asks=True, version=version)) as port:
        client = await start(f"https://127.0.0.1:{port}/v1", way)
        answer = await client.embed("a")
        assert answer.json["error"]["message"] == f"The upstream could not be reached: {why}."
        assert (await client.embed("b")).status == 502
    (said,) = logged(caplog)  # once
    assert said.startswith(("upstream scripted: connection failed: ", "upstream scripted: connection rejected: "))


@pytest.mark.parametrize("upstream_scheme", ["https"])
@pytest.mark.parametrize("proxy_scheme", ["http", "https"])
async def test_client_certificate_is_sent_through_a_tunnel(net: Net, authorities: Authorities, start: Start) -> None:
    cert, key = authorities.client_files("proxy")
    async with ScriptedUpstream().serving(authorities.server_tls(asks=True)) as upstream:
        client = await start(upstream.base_url, replace(net.way, cert=cert, cert_key=key))
        assert [(await client.embed("a")).cache for _ in range(2)] == ["MISS", "HIT"]
    assert len(net.through.heads) == 1


async def test_https_to_an_http_server_is_reported(
    start: Start, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    client = await start(upstream.base_url.replace("http:", "https:"), Egress())
    answer = await client.embed("a")
    assert answer.json["error"]["message"].endswith(": it does not speak TLS.")
    assert logged(caplog)[-1].endswith("; is its URL http:// and not https://?")


async def test_reloaded_files_apply_to_new_connections(authorities: Authorities, start: Start) -> None:
    seen = []

    def peer(call: Call) -> web.Response:
        seen.append(peer_certificate(call)["serialNumber"])
        return upstream.embed(call)

    upstream = ScriptedUpstream(reply=peer)
    async with upstream.serving(authorities.server_tls(asks=True)):
        cert, key = authorities.client_files("proxy")
        client = await start(upstream.base_url, Egress(ca=authorities.ca, cert=cert, cert_key=key))
        outbound = client.proxy.origins.default.client.outbound
        await client.embed("a")
        authorities.client_files("proxy")
        await client.embed("b")
        outbound.reload()
        await client.embed("c")
        authorities.ca.write_bytes(b"")
        with pytest.raises(
            ConfigError, match=r"upstream scripted: the CA file .*ca\.pem has no certificate in PEM form"
        ):
            outbound.reload()
        assert (await client.embed("d")).status == 200
    assert seen[0] == seen[1] != seen[2] == seen[3]


def test_refresh_reloads_changed_files(authorities: Authorities, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cert, key = authorities.client_files("proxy")
    outbound = Outbound("gpu", Egress(ca=authorities.ca, cert=cert, cert_key=key))
    first = outbound.options("https://h")["ssl"]
    outbound.refresh()
    assert outbound.options("https://h")["ssl"] is first
    key_before = key.read_bytes()
    authorities.client_files("proxy")
    key_after = key.read_bytes()
    key.write_bytes(key_before)  # only the one of the two is there yet
    outbound.refresh()
    outbound.refresh()
    assert outbound.options("https://h")["ssl"] is first
    key.write_bytes(key_after)
    outbound.refresh()
    assert outbound.options("https://h")["ssl"] is not first
    key.unlink()
    outbound.refresh()
    wrong, read, gone = logged(caplog)  # each said once
    assert wrong.startswith(f"upstream gpu: the key in {key} is not that of the first certificate in {cert}")
    assert wrong.endswith("; keeping the previous certificates")
    assert read == "upstream gpu: certificates reloaded"
    assert gone.startswith(f"upstream gpu: the client certificate's key {key}: No such file or directory")


def test_files_that_could_not_be_used_are_tried_again_though_they_did_not_change(
    authorities: Authorities, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outbound = Outbound("gpu", Egress(ca=authorities.ca))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", denied)  # as in a folder of other permissions
        outbound.refresh(is_forced=True)
        for _ in range(3):
            outbound.refresh()
        assert outbound.is_outdated
    outbound.refresh()
    assert not outbound.is_outdated
    outbound.refresh()
    refused, read = logged(caplog)
    assert refused.endswith("Permission denied; keeping the previous certificates")
    assert read == "upstream gpu: certificates reloaded"


def denied(_: Path) -> bytes:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_file_that_is_replaced_while_it_is_read_is_an_error_of_its_own(
    authorities: Authorities, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = authorities.client_files("proxy")
    outbound = Outbound("gpu", Egress(ca=authorities.ca, cert=cert, cert_key=key))

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", gone)
    outbound.refresh(is_forced=True)
    assert logged(caplog) == [
        f"upstream gpu: {cert} and {key} can't be used: No such file or directory; keeping the previous certificates"
    ]


async def test_what_could_not_be_read_again_is_a_metric(authorities: Authorities, start: Start) -> None:
    upstream = ScriptedUpstream()
    async with upstream.serving(authorities.server_tls()):
        client = await start(upstream.base_url, Egress(ca=authorities.ca))
        outbound = client.proxy.origins.default.client.outbound
        metrics, files = client.proxy.metrics, {("certificates of scripted",): 1.0}
        assert samples(metrics, "reload_failed") == {}
        before = authorities.ca.read_bytes()
        authorities.ca.write_bytes(b"")
        outbound.refresh()
        assert samples(metrics, "reload_failed") == files
        authorities.ca.write_bytes(before)
        outbound.refresh()
        assert samples(metrics, "reload_failed") == {}


def broken(authorities: Authorities) -> dict[str, tuple[Egress, str]]:
    cert, key = authorities.client_files("one")
    _, other_key = authorities.client_files("two")
    ca = authorities.ca
    der = authorities.write("ca.der", ssl.PEM_cert_to_DER_cert(ca.read_text()))
    empty = authorities.write("empty.pem", b"")
    cut = authorities.write("cut.pem", ca.read_bytes()[:300])
    locked = authorities.write("locked.pem", ENCRYPTED_KEY)
    locked_old = authorities.write("old.pem", ENCRYPTED_KEY_OLD)
    reversed_chain = authorities.write("reversed.pem", authorities.clients.cert_pem.bytes() + cert.read_bytes())
    folder, missing = ca.parent, ca.parent / "missing.pem"
    return {
        "no CA file": (Egress(ca=missing), f"the CA file {missing}: No such file or directory"),
        "a folder": (Egress(ca=folder), f"the CA file {folder}: Is a directory"),
        "empty": (Egress(ca=empty), f"the CA file {empty} has no certificate in PEM form"),
        "a key": (Egress(ca=key), f"the CA file {key} has no certificate in PEM form"),
        "DER": (Egress(ca=der), f"has no certificate in PEM form; it is DER: openssl x509 -inform DER -in {der} -out "),
        "cut short": (Egress(ca=cut), f"the CA file {cut} can't be read: "),
        "no certificate": (Egress(cert=missing), f"the client certificate {missing}: No such file or directory"),
        "no key file": (Egress(cert=cert, cert_key=missing), f"the client certificate's key {missing}: No such file"),
        "no key": (Egress(cert=cert), f"{cert} has no private key in PEM form; give --upstream-cert-key, or cert_key"),
        "swapped": (Egress(cert=key, cert_key=cert), f"{key} has no certificate in PEM form"),
        "key empty": (Egress(cert=cert, cert_key=empty), f"{empty} has no private key in PEM form"),
        "mismatch": (Egress(cert=cert, cert_key=other_key), f"the key in {other_key} is not that of the first certif"),
        "order": (Egress(cert=reversed_chain, cert_key=key), f"the key in {key} is not that of the first certificate"),
        "encrypted": (
            Egress(cert=cert, cert_key=locked), f"the key in {locked} is encrypted and the proxy can't prompt for"
        ),
        "encrypted, old": (Egress(cert=cert, cert_key=locked_old), f"the key in {locked_old} is encrypted"),
        "cut key": (
            Egress(cert=cert, cert_key=authorities.write("cut-key.pem", key.read_bytes()[:200])), "can't be used: "
        ),
    }  # fmt: skip


# Of a password nobody needs to know.
ENCRYPTED_KEY = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIH0\n-----END ENCRYPTED PRIVATE KEY-----\n"
ENCRYPTED_KEY_OLD = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIH0\n"


def test_unusable_files_raise_config_errors(authorities: Authorities) -> None:
    for name, (way, message) in broken(authorities).items():
        with pytest.raises(ConfigError) as error:
            Outbound("gpu", way)
        assert str(error.value).startswith("upstream gpu: "), name
        assert message in str(error.value), name
        assert "\n" not in str(error.value)
