"""Which responses are final (RFC 9110 §15.2): the HTTP client would accept some that are not."""

from http import HTTPStatus

from aiohttp import ClientResponse, ClientResponseError
from aiohttp.connector import Connection


class FinalResponse(ClientResponse):
    """A response whose status is valid for its request.

    No status is below 100 (RFC 9110 §15), and a 101 is valid only for a request with ``Upgrade`` (§15.2.2). aiohttp
    takes these for responses without a body, and would keep the connection for other requests.
    """

    async def start(self, connection: Connection) -> ClientResponse:
        protocol = connection.protocol
        await super().start(connection)
        if self.status >= HTTPStatus.OK or protocol is None:
            return self
        if (
            self.status == HTTPStatus.SWITCHING_PROTOCOLS
            and protocol.upgraded
            and "Upgrade" in self.request_info.headers
        ):
            return self
        protocol.close()
        raise ClientResponseError(self.request_info, (), status=self.status)
