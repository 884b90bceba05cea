"""The status page: plain HTML that works without scripts, and one small script that refreshes it."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from inference_proxy import __version__
from inference_proxy.accounting.metrics import Percentiles

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif }
body { margin: 1rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1.5rem 0; width: 100% }
caption { font-size: 1.2rem; font-weight: 600; padding: .3rem 0; text-align: left }
th, td { border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top }
td.number, th.number { font-variant-numeric: tabular-nums; text-align: right }
.bad { border-left: .4rem solid #c33; padding-left: .6rem }
.good { border-left: .4rem solid #383; padding-left: .6rem }
button { font: inherit }
"""

# Replaces only what has changed, so that a focused button keeps the focus.
_SCRIPT = """
const note = document.getElementById("note");
async function refresh() {
  try {
    const answer = await fetch(location.origin + "/");
    if (!answer.ok) throw new Error("status " + answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(part.id);
      if (!fresh || fresh.innerHTML === part.innerHTML) continue;
      const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
      part.innerHTML = fresh.innerHTML;
      if (focused) document.getElementById(focused)?.focus();
    }
    note.textContent = "";
  } catch (error) {
    note.textContent ||= "The worker has not answered since " + new Date().toLocaleTimeString() + ".";
  }
  setTimeout(refresh, 2000);
}
setTimeout(refresh, 2000);
"""


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "cache-control": "no-store",
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            f"style-src {_source(_STYLE)}",
            f"script-src {_source(_SCRIPT)}",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    # With a stricter policy, the page's own forms would have the origin "null".
    "referrer-policy": "same-origin",
}

_ENGINE_COLUMNS = (
    "engine", "state", "because", "requests", "tokens", "runs there", "waits there", "KV cache", "models",
    "address", "",
)  # fmt: skip
_LATENCY_COLUMNS = (
    "model", "requests", "queue p50", "p95", "first token p50", "p95", "between tokens p50", "p95",
    "whole request p50", "p95",
)  # fmt: skip


def render(
    *,
    worker: int,
    ready: bool,
    requests: int,
    config_error: str | None,
    engines: Sequence[Mapping[str, Any]],
    latencies: Mapping[str, Percentiles],
    views: Mapping[str, Sequence[Mapping[str, Any]]],
) -> bytes:
    """The page. `engines` are those of GET /admin/engines; each of `views` becomes a table with its name."""
    tables = [
        _table("engines", "Engines", _ENGINE_COLUMNS, map(_engine_row, engines)),
        _table(
            "latencies",
            "Latencies of each model's latest requests",
            _LATENCY_COLUMNS,
            (_latency_row(model, found) for model, found in latencies.items()),
        ),
        *(_view(name, rows) for name, rows in views.items()),
    ]
    title = f"Inference proxy, worker {worker}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p id="note" role="status"></p>
<div id="worker" data-live>{_worker(ready, requests, config_error)}</div>
{"".join(tables)}
</main>
<footer><p>Version {escape(__version__)}. Each worker of a host has a page of its own.</p></footer>
<script>{_SCRIPT}</script>
</body>
</html>
""".encode()


def _worker(ready: bool, requests: int, config_error: str | None) -> str:
    state = '<p class="good">Ready' if ready else '<p class="bad">Not ready'
    lines = f"{state}, {requests} requests in flight.</p>"
    if config_error is not None:
        why = f"The configuration on disk is refused, an older one is in use: {escape(config_error)}"
        lines += f'<p class="bad">{why}</p>'
    return lines


def _table(name: str, caption: str, columns: Sequence[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' if column else "<td></td>" for column in columns)
    body = "".join(rows) or f'<tr><td colspan="{len(columns)}">none yet</td></tr>'
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f'<tbody id="{escape(name)}" data-live>{body}</tbody></table>\n'
    )


def _engine_row(engine: Mapping[str, Any]) -> str:
    name = escape(engine["id"])
    mood = "good" if engine["state"] in ("serving", "absent") else "bad"
    action = "undrain" if engine["state"] == "drained" else "drain"
    target = escape(f"/admin/engines/{quote(engine['id'])}/{action}")
    return (
        f'<tr><th scope="row">{name}</th>'
        f'<td><span class="{mood}">{escape(engine["state"])}</span></td>'
        f"<td>{escape(engine['drained_because'] or engine['reason'])}</td>"
        f'<td class="number">{engine["in_flight"]}</td>'
        f'<td class="number">{engine["outstanding_tokens"]}</td>'
        f"{_cell(engine['running'])}{_cell(engine['waiting'])}{_cell(engine['kv_cache_usage'])}"
        f"<td>{escape(', '.join(engine['models']))}</td>"
        f"<td>{escape(engine['url'])}</td>"
        f'<td><form method="post" action="{target}">'
        f'<button id="button-{name}" aria-label="{action} {name}">{action}</button></form></td></tr>'
    )


def _latency_row(model: str, found: Percentiles) -> str:
    cells = "".join(
        f'<td class="number">{_seconds(seconds)}</td>'
        for name in found.p50
        for seconds in (found.p50[name], found.p95[name])
    )
    return f'<tr><th scope="row">{escape(model)}</th><td class="number">{found.requests}</td>{cells}</tr>'


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _view(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0]) if rows else [name]
    lines = ("".join(("<tr>", *(_cell(row.get(column)) for column in columns), "</tr>")) for row in rows)
    return _table(name, name.capitalize(), columns, lines)


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="number">{value:g}</td>'
    return f"<td>{escape('-' if value is None else str(value))}</td>"
