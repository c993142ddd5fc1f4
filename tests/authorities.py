"""Private authorities, and PEM files and TLS servers that go by them."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trustme


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
