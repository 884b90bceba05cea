"""A request as it came in."""

import msgspec
from starlette.types import Receive, Scope, Send

from inference_proxy.api.endpoints import Endpoint
from inference_proxy.http.message import HeaderFields
from inference_proxy.http.server_protocol import ClientConnection


class Incoming(msgspec.Struct, frozen=True, eq=False):
    """`client` has the short ways of the server's protocol; None under a server that has none."""

    endpoint: Endpoint
    headers: HeaderFields
    scope: Scope
    receive: Receive
    send: Send
    connection: ClientConnection | None
