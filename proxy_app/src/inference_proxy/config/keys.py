"""The keys file: a list of KeyConfig."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from inference_proxy.config.limits import KeyLimits
from inference_proxy.config.networks import Network
from inference_proxy.config.types import Name, Strict, refuse_doubles


def _in_utc(when: datetime) -> datetime:
    if when.utcoffset():
        raise ValueError("write it in UTC, such as 2027-01-31T00:00:00Z")
    return when


class KeyConfig(Strict):
    name: Name = Field(
        description="The key's own name: what logs call it, and under which its limits are counted."
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="Hash of the key, in hex.")
    owner: Name | None = Field(
        default=None, description="The tenant whose key it is; by default the key's name."
    )
    models: tuple[Name, ...] = Field(default=(), description="Models that it may use; all if empty.")
    priority: Name = Field(default="default", description="A name in `priorities` of config.yml.")
    limits: KeyLimits = Field(
        default=KeyLimits(), description="Its own limits; config.yml has those of keys that name none."
    )
    expires: Annotated[AwareDatetime, AfterValidator(_in_utc)] | None = Field(
        default=None, description="Moment, in UTC, from which it is no longer valid."
    )
    cidrs: tuple[Network, ...] = Field(
        default=(), description="Networks of the clients that may use it; all if empty."
    )


class KeyFile(Strict):
    keys: tuple[KeyConfig, ...]

    @model_validator(mode="after")
    def _no_key_twice(self) -> "KeyFile":
        refuse_doubles("key name", [key.name for key in self.keys])
        owners: dict[str, str] = {}
        for key in self.keys:
            if (other := owners.setdefault(key.sha256, key.name)) != key.name:
                raise ValueError(f"{other!r} and {key.name!r} are the same key: a key has one name")
        return self
