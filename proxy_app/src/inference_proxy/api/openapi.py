"""GET /openapi.json: the table of endpoints as OpenAPI 3.1, as far as the proxy itself checks requests."""

from typing import Any

from inference_proxy import __version__
from inference_proxy.api.dialects import Dialect
from inference_proxy.api.endpoints import BodyKind, Endpoint, Endpoints
from inference_proxy.config import EndpointClass

_TEXT = {"type": "string"}
_JSON, _FORM = "application/json", "multipart/form-data"
_KINDS = {BodyKind.JSON: (_JSON,), BodyKind.MULTIPART: (_FORM,), BodyKind.EITHER: (_JSON, _FORM)}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MESSAGES_ERROR = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _TEXT, "message": _TEXT},
        },
        "request_id": _TEXT,
    },
}


def document(endpoints: Endpoints) -> dict[str, Any]:
    """The whole document, ready to be encoded."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Inference API", "version": __version__},
        "security": [{"bearer": []}, {"x-api-key": []}, {"api-key": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
            }
        },
        "paths": {path: _path(path, endpoint) for path, endpoint in endpoints.items()}
        | {f"{path}/{{model}}": _one_model(path, endpoint) for path, endpoint in endpoints.models()},
    }


def _path(path: str, endpoint: Endpoint) -> dict[str, Any]:
    return {method.lower(): _operation(path, method, endpoint) for method in endpoint.methods}


def _operation(path: str, method: str, endpoint: Endpoint) -> dict[str, Any]:
    error = _MESSAGES_ERROR if endpoint.dialect is Dialect.MESSAGES else _ERROR
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}{path}".replace("/", "_"),
        "tags": [str(endpoint.kind)],
        "responses": {
            "2XX": {"description": "The answer."},
            "default": {
                "description": "An error.",
                # An answer to HEAD has no body.
                **({} if method == "HEAD" else {"content": {"application/json": {"schema": error}}}),
            },
        },
    }
    if endpoint.body is not BodyKind.NONE:
        content = {kind: {"schema": _body(endpoint, kind)} for kind in _KINDS[endpoint.body]}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _body(endpoint: Endpoint, kind: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"model": {"type": "string", "minLength": 1}}
    if endpoint.kind in (EndpointClass.GENERATION, EndpointClass.AUDIO):
        properties["stream"] = {"type": "boolean"}
    if kind == _FORM and endpoint.body is BodyKind.MULTIPART:
        properties["file"] = {"type": "string", "format": "binary"}
    properties |= {name: {"type": "integer", "minimum": 0} for name in endpoint.cap}
    required = [name for name in ("model", "file") if name in properties and name not in endpoint.defaults]
    return {"type": "object", "required": required, "properties": properties}


def _one_model(path: str, endpoint: Endpoint) -> dict[str, Any]:
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {"parameters": [name], "get": _operation(f"{path}/model", "GET", endpoint)}
