"""A request as it arrived."""

import msgspec
from starlette.types import Receive, Scope, Send

from inference_proxy.api.endpoints import Endpoint
from inference_proxy.http.message import HeaderFields
from inference_proxy.http.server_protocol import ClientConnection


class Incoming(msgspec.Struct, frozen=True, eq=False):
    """The values that ASGI hands over.

    `connection` offers the fast paths of our server protocol; None under another server.
    """

    endpoint: Endpoint
    headers: HeaderFields
    scope: Scope
    receive: Receive
    send: Send
    connection: ClientConnection | None
