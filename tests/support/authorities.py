"""Private certificate authorities, their PEM files, and TLS servers."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authorities:
    """One for servers at 127.0.0.1, one for clients."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.servers, self.clients = trustme.CA(), trustme.CA()
        self.ca = self.write("ca.pem", self.servers.cert_pem.bytes())

    def write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path

    def server_tls(
        self, *, asks: bool = False, version: ssl.TLSVersion | None = None, by: trustme.CA | None = None
    ) -> ssl.SSLContext:
        """A server's; ``asks`` for a certificate of the clients' authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (by or self.servers).issue_cert("127.0.0.1").configure_cert(context)
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            self.clients.configure_trust(context)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context

    def client_files(self, name: str, by: trustme.CA | None = None) -> tuple[Path, Path]:
        """The certificate of a client called ``name``, and its key."""
        issued = (by or self.clients).issue_cert(common_name=name)
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        return self.write(f"{name}.pem", chain), self.write(f"{name}-key.pem", issued.private_key_pem.bytes())


def careless(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority as many a company has one, and a server's context by it: neither certificate has the extensions that
    RFC 5280 asks for and Python 3.13 insists on (key usage, key identifiers, criticality)."""
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Old Corporate CA")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])

    def issue(subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=False)
        dated = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        return dated.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca = folder / "careless.pem"
    ca.write_bytes(issue(ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=None)))
    address = x509.IPAddress(ip_address("127.0.0.1"))
    key = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server = folder / "careless-server.pem"
    server.write_bytes(issue(name, server_key, x509.SubjectAlternativeName([address])) + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server)
    return ca, context


@asynccontextmanager
async def refusing(tls: ssl.SSLContext) -> AsyncIterator[int]:
    """A server on the port that is yielded, which says why it refuses a client, as OpenSSL's, Go's and Envoy do.

    asyncio's own resets the connection, and the alert is lost.
    """

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        handshake = tls.wrap_bio(incoming, outgoing, server_side=True)
        while data := await reader.read(65536):
            incoming.write(data)
            try:
                handshake.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                writer.write(outgoing.read())
                writer.write_eof()
                break
            writer.write(outgoing.read())
        while await reader.read(65536):  # closing with something unread would reset it
            pass
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
