"""Building blocks for the configuration's sections."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator


class ConfigError(Exception):
    """A file that cannot be used.

    Each of `problems` is one line: the file, where in it, and what is wrong.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


# JSON, headers and clocks have no use for more than 64 bits.
_MOST = 2**63 - 1


class Strict(BaseModel):
    """A section: immutable after loading; unknown fields and implausible numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        numbers = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(number, int | float) and abs(number) > _MOST for number in numbers):
            raise ValueError(f"a number may not be larger than {_MOST}")
        return value


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("write an absolute path")
    return path


# Safe in a header and in a log line.
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
# A store of counters uses floating-point numbers, which are exact up to here.
Count = Annotated[int, Field(gt=0, le=2**53)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


def check_port(url: SplitResult) -> None:
    """Check the port of a URL. Raises ValueError if there can be no such port."""
    try:
        fits = url.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ValueError("the port is a number from 1 to 65535")


def refuse_doubles(what: str, values: Iterable[str]) -> None:
    """Refuse duplicates. Raises ValueError, which pydantic reports as a problem of the section."""
    if doubles := sorted(value for value, times in Counter(values).items() if times > 1):
        raise ValueError(f"{what} given more than once: {', '.join(doubles)}")
