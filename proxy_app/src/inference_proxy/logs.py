"""What is not an access line (warnings, reloads, the server's own messages) as JSON on stdout too."""

import logging

from .account import write_line


class JsonHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        line: dict[str, object] = {
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        write_line(line)


def configure() -> None:
    """Route all loggers, uvicorn's included, through one handler."""
    root = logging.getLogger()
    root.handlers[:] = [JsonHandler()]
    root.setLevel(logging.INFO)
