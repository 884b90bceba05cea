"""Second step: check the body, as far as the proxy needs to understand it."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from inference_proxy.api.dialects import MESSAGES, Dialect
from inference_proxy.api.endpoints import JSON, MULTIPART, TABLE, Endpoint
from inference_proxy.api.errors import ApiError
from inference_proxy.api.json_body import NESTING, JsonFields, parse
from inference_proxy.api.multipart import Form
from inference_proxy.api.numbers import MOST, MOST_CHOICES
from inference_proxy.config import GENERATION
from inference_proxy.http.message import HeaderFields
from inference_proxy.keys.authenticate import Key
from inference_proxy.request.estimate import estimate

# A whole number written as a string; one with more digits is above MOST.
_DIGITS = re.compile(r"([+-]?[0-9]{1,19})(?:\.0*)?", re.ASCII)

_BOM = b"\xef\xbb\xbf"
# Accepted by engines besides JSON's own; in forms, the only ones.
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


# The only fields of a JSON body that are decoded.
_ACTED_ON = frozenset({"model", "stream", "n", "user"}).union(*(row.cap + row.refused for row in TABLE))
# Fails at the first byte of a list or an object, which could have millions of parts.
_scalar = msgspec.json.Decoder(str | int | float | bool | None).decode
# Stands for such a value: it has the wrong type wherever it is not refused.
_NESTED = object()
_Values = Mapping[str, Any]


class _Metadata(msgspec.Struct):
    """Anthropic's `metadata`. Other fields are skipped without decoding them."""

    user_id: str | None = None


_metadata = msgspec.json.Decoder(_Metadata).decode


class Asked(msgspec.Struct, frozen=True, eq=False):
    """What a request asks for: everything that the later steps need to know.

    `model` is the name that the client wrote. `max_tokens` is the client's cap for each choice, None without
    one; `choices` is the number of answers, `n` for each prompt. `prompt_tokens` is an estimate. `session`
    identifies the conversation; clients choose its value. `body` is the client's, byte for byte; `fields` are
    the parts of a JSON body, `form` those of a multipart one.
    """

    endpoint: Endpoint
    key: Key
    model: str
    stream: bool
    max_tokens: int | None
    choices: int
    prompt_tokens: int
    session: str | None
    body: bytes
    fields: JsonFields
    form: Form | None = None


def validate(endpoint: Endpoint, key: Key, headers: HeaderFields, body: bytes) -> Asked:
    """Check the fields that the proxy acts on, and no others.

    Raises ApiError 400 or 415; 400 names the field.
    """
    if endpoint.body is not JSON and (endpoint.body is MULTIPART or _is_form(headers)):
        form = Form(headers.get(b"content-type", b"").decode("latin-1"), body)
        return Asked(
            endpoint=endpoint,
            key=key,
            model=_model(form.text("model")),
            stream=form.flag("stream"),
            max_tokens=None,
            choices=1,
            prompt_tokens=0,
            session=_session(headers),
            body=body,
            fields={},
            form=form,
        )
    check_is_json(headers)
    if body.startswith(_BOM):
        # Some editors and Windows clients put this before a text. Engines skip it.
        body = body[len(_BOM) :]
    fields = parse(body)
    values = _built(fields)
    if endpoint.defaults:
        # The client's value takes precedence, even if it is null.
        values = {**endpoint.defaults, **values}
    for name in endpoint.refused:
        if values.get(name):
            raise wrong(name, "not_supported", f"'{name}' cannot be used here: no engine keeps responses.")
    prompts, prompt_tokens = estimate(endpoint, fields, body)
    return Asked(
        endpoint=endpoint,
        key=key,
        model=_model(values.get("model")),
        stream=_flag(values, "stream"),
        max_tokens=_cap(values, endpoint),
        choices=_choices(values, endpoint) * prompts,
        prompt_tokens=prompt_tokens,
        session=_session(headers) or _user(fields, values, endpoint.dialect),
        body=body,
        fields=fields,
    )


def _is_form(headers: HeaderFields) -> bool:
    return headers.get(b"content-type", b"").lstrip()[:19].lower() == b"multipart/form-data"


def _built(fields: JsonFields) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, raw in fields.items():
        if name in _ACTED_ON:
            try:
                values[name] = _scalar(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                if memoryview(raw)[:1] in NESTING:
                    values[name] = _NESTED
                    continue
                # Found only in decoded fields: a string that is not UTF-8, or a number out of every range.
                raise wrong(name, "invalid_value", f"'{name}' cannot be read: {error}.") from error
    return values


def _flag(values: _Values, name: str) -> bool:
    value = values.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    flag = flag_of(value)
    if flag is None:
        raise wrong(name, "invalid_type", f"'{name}' must be true or false.")
    return flag


def flag_of(value: Any) -> bool | None:
    """A boolean, or 1, 0, "true" and the like, which engines accept as well; None for anything else."""
    if isinstance(value, str):
        return _FLAGS.get(value.lower())
    return bool(value) if value in (0, 1) else None


def _cap(values: _Values, endpoint: Endpoint) -> int | None:
    for name in endpoint.cap:
        if (cap := _count(values, name, 0, MOST)) is not None:
            return cap
    return None


def _choices(values: _Values, endpoint: Endpoint) -> int:
    """The number of answers to each prompt.

    Where nothing is generated, `n` means nothing or something else.
    """
    if endpoint.kind is not GENERATION:
        return 1
    return _count(values, "n", 1, MOST_CHOICES) or 1


def _count(values: _Values, name: str, least: int, most: int) -> int | None:
    """A whole number, or 100.0 and "100", which engines accept as well."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, str) and (digits := _DIGITS.fullmatch(value)):
        value = int(digits[1])
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong(name, "invalid_type", f"'{name}' must be a whole number.")
    if not least <= value <= most:
        raise wrong(name, "invalid_value", f"'{name}' must be between {least} and {most}.")
    return value


def _user(fields: JsonFields, values: _Values, dialect: Dialect) -> str | None:
    """The API's field for telling end users apart."""
    if dialect is MESSAGES:
        try:
            return _metadata(fields.get("metadata", b"{}")).user_id
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None  # for the engine to refuse
    user = values.get("user")
    if user is not None and not isinstance(user, str):
        raise wrong("user", "invalid_type", "'user' must be a string.")
    return user


def _session(headers: HeaderFields) -> str | None:
    session = headers.get(b"x-session-id")
    return None if session is None else session.decode("latin-1")


def check_is_json(headers: HeaderFields) -> None:
    """Check that the body is sent as JSON. Raises ApiError 415.

    A missing content type is taken for JSON, the only type that could be meant.
    """
    if headers.get(b"content-type") == b"application/json" and b"content-encoding" not in headers:
        return
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind not in (b"", b"application/json"):
        raise ApiError(415, "unsupported_media_type", "Send this as 'Content-Type: application/json'.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise ApiError(415, "unsupported_encoding", "Send the body without a Content-Encoding.")


def wrong(param: str, code: str, message: str) -> ApiError:
    return ApiError(400, code, message, param=param)


def _model(value: Any) -> str:
    if value is None:
        raise wrong(
            "model", "missing_field", "'model' is missing: name one of those that GET /v1/models lists."
        )
    if not isinstance(value, str) or not value:
        raise wrong("model", "invalid_type", "'model' must be a non-empty string.")
    return value
