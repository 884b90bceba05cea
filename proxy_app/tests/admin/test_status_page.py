"""The status page in a real browser."""

from pathlib import Path

import pytest

from browser import running_browser
from engine import Engine
from harness import ADMIN_KEY, Files, running_proxy

pytestmark = pytest.mark.anyio

STATE = "document.querySelector('#engines tr td')?.innerText"


async def test_the_page_lives(files: Files, engine: Engine, tmp_path: Path) -> None:
    files.configure(engine, admin=files.admin())
    async with running_proxy(files) as proxy, running_browser(tmp_path / "browser") as page:
        async with proxy.post() as response:
            assert response.status == 200
        await page.open(f"http://operator:{ADMIN_KEY}@127.0.0.1:{files.admin_port}/")
        assert await page.evaluate("document.title") == "Inference proxy, worker 0"
        assert await page.evaluate("document.querySelector('#latencies th').innerText") == "big"
        assert await page.evaluate(STATE) == "serving"

        # Without reloading the page: changes appear, and the focus stays.
        await page.evaluate("window.loaded = 1; document.querySelector('#engines button').focus()")
        (files.drained / "host1:e").write_text("<script>fan</script>")
        await page.until(f"{STATE} === 'drained'")
        assert await page.evaluate("window.loaded") == 1
        assert await page.evaluate("document.activeElement.innerText") == "undrain"
        assert await page.evaluate("document.querySelectorAll('#engines tr td')[1].innerText") == (
            "<script>fan</script>"
        )
        (files.drained / "host1:e").unlink()
        await page.until(f"{STATE} === 'serving'")

        # Its own button passes the check of the origin.
        await page.evaluate("document.querySelector('#engines button').click()")
        await page.until(f"{STATE} === 'drained'")
        assert (files.drained / "host1:e").read_text() == "admin: by the status page\n"

        assert {url.split("/")[2].rpartition("@")[2] for url in page.requests} == {
            f"127.0.0.1:{files.admin_port}"
        }
        assert page.complaints == []


async def test_the_page_can_be_read_aloud(files: Files, engine: Engine, tmp_path: Path) -> None:
    files.configure(engine, admin=files.admin())
    async with running_proxy(files), running_browser(tmp_path / "browser") as page:
        await page.open(f"http://operator:{ADMIN_KEY}@127.0.0.1:{files.admin_port}/")
        tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        said = {(node["role"]["value"], node.get("name", {}).get("value")) for node in tree if "role" in node}
        assert {("table", "Engines"), ("rowheader", "host1:e"), ("columnheader", "state")} <= said
        assert {("button", "drain host1:e")} <= said
        assert not [role for role, name in said if role in ("button", "table", "columnheader") and not name]
        assert await page.evaluate("document.documentElement.lang") == "en"
        assert await page.evaluate("document.querySelectorAll('h1').length") == 1
        narrow = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        await page.call("Emulation.setDeviceMetricsOverride", **narrow)
        assert await page.evaluate("document.querySelector('main').getBoundingClientRect().left >= 0")


async def test_it_says_when_the_worker_is_gone(files: Files, engine: Engine, tmp_path: Path) -> None:
    files.configure(engine, admin=files.admin())
    async with running_browser(tmp_path / "browser") as page:
        async with running_proxy(files):
            await page.open(f"http://operator:{ADMIN_KEY}@127.0.0.1:{files.admin_port}/")
        await page.until("document.querySelector('[role=status]').innerText.includes('not answered')")
