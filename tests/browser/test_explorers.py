"""Each explorer of the notebook, moved with the mouse and with the keyboard, in a real JupyterLab.

What changed is read from the page: the pixels of the picture, or the data of the Plotly figure. With
TOOLKIT_SCREENSHOTS=1 the pictures of the documentation are taken anew.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

PICTURES = Path(__file__).parents[2] / "docs" / "images"
DIGEST = """async image => {
  for (;;) {  // a picture that is being replaced has no width, or the pixels of another one
    const source = image.src;
    await image.decode().catch(() => {});
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    if (width && image.src === source) {
      const canvas = new OffscreenCanvas(width, height).getContext("2d");  // an address may be gone: nothing is fetched
      canvas.drawImage(image, 0, 0);
      const pixels = canvas.getImageData(0, 0, width, height).data;
      const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", pixels));
      const digest = Array.from(hash).map(b => b.toString(16).padStart(2, "0")).join("");
      return [digest, Number(image.dataset.bytes), width];
    }
    await new Promise(resolve => setTimeout(resolve, 50));
  }
}"""


class Shown:
    """One explorer on the page."""

    def __init__(self, page: Any, title: str) -> None:
        self.page = page
        self.box = page.locator(".toolkit-explorer", has=page.locator(f"b:text-is('{title}')")).first
        self.box.scroll_into_view_if_needed()
        self.picture = self.box.locator("img.toolkit-picture").first

    def digest(self) -> str:
        """Hash of the picture's pixels; it is a picture, and a small one."""
        digest, size, width = self.picture.evaluate(DIGEST)
        assert 1_000 < size < 500_000
        assert width > 300
        return str(digest)

    def wait_for_change(self, before: str) -> str:
        """Hash of the picture once it differs and stays the same for a while."""
        now = before
        for _ in range(300):
            now = self.digest()
            if now != before:
                self.page.wait_for_timeout(400)
                if self.digest() == now:
                    return now
            self.page.wait_for_timeout(100)
        raise AssertionError("The picture did not change.")

    def press(self, name: str, key: str) -> None:
        """A key on the handle of a slider."""
        handle = self.box.locator(f".toolkit-{name} .noUi-handle").first
        handle.focus()
        self.page.keyboard.press(key)

    def drag(self, name: str, by: int) -> None:
        """Drag the handle of a slider so many pixels to the right."""
        handle = self.box.locator(f".toolkit-{name} .noUi-handle").first
        handle.scroll_into_view_if_needed()
        place = handle.bounding_box()
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + by, y, steps=4)
        self.page.mouse.up()

    def click(self, across: float, down: float) -> None:
        """A click at a place of the picture, as a share of its width and height."""
        self.picture.scroll_into_view_if_needed()
        box = self.picture.bounding_box()
        self.picture.click(position={"x": across * box["width"], "y": down * box["height"]})

    def at(self, across: float, down: float) -> tuple[float, float]:
        """Place on the page of a share of the picture's width and height."""
        self.picture.scroll_into_view_if_needed()
        box = self.picture.bounding_box()
        return box["x"] + across * box["width"], box["y"] + down * box["height"]

    def figure(self) -> Any:
        """The Plotly figure of the explorer."""
        return self.box.locator(".js-plotly-plot").first.element_handle()

    def wait_until(self, expression: str, seconds: float = 300) -> None:
        """Wait until a function of the figure is true; the figure is looked up each time, as it may be made anew."""
        deadline = time.monotonic() + seconds
        while not self.figure().evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            self.page.wait_for_timeout(200)

    def wait_for_curve(self) -> None:
        """Wait until the figure holds points."""
        self.box.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=120_000)
        self.wait_until(
            "gd => Boolean(gd._fullData && gd._fullData.length && gd._fullData[0].x && gd._fullData[0].x.length > 1)"
        )

    def curve(self) -> list[float]:
        """x of the first trace, as the page holds it."""
        return list(self.figure().evaluate("gd => Array.from(gd._fullData[0].x)"))

    def wait_for_points(self, before: list[float]) -> list[float]:
        """x of the first trace once it differs."""
        for _ in range(300):
            now = self.curve()
            if now != before:
                return now
            self.page.wait_for_timeout(100)
        raise AssertionError("The points did not move.")

    def lasso(self) -> None:
        """Draw a loop around the middle of the figure."""
        plot = self.box.locator(".js-plotly-plot .nsewdrag").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        corners = [(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9), (0.1, 0.12)]
        places = [(box["x"] + a * box["width"], box["y"] + b * box["height"]) for a, b in corners]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=8)
        self.page.mouse.up()

    def screenshot(self, name: str) -> None:
        """A picture for the documentation, if asked for."""
        if os.environ.get("TOOLKIT_SCREENSHOTS") == "1":
            self.page.mouse.move(5, 5)
            self.box.screenshot(path=str(PICTURES / f"explorer_{name}.png"))


def test_every_cell_ran(opened: Any) -> None:
    failed = opened.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
    assert failed.count() == 0, failed.all_inner_texts()


def test_training_monitor(opened: Any) -> None:
    shown = Shown(opened.page, "Training")
    shown.wait_for_curve()
    first = shown.curve()
    shown.wait_until(f"gd => Boolean(gd._fullData && gd._fullData.length && gd._fullData[0].x.length > {len(first)})")
    shown.box.locator(".toolkit-logarithmic input").focus()
    shown.page.keyboard.press("Space")
    shown.wait_until("gd => Boolean(gd.layout && gd.layout.yaxis && gd.layout.yaxis.type === 'log')", 60)
    shown.screenshot("training")
    shown.box.get_by_role("button", name="Stop after this step").click()
    shown.page.wait_for_function(
        "box => [...box.querySelectorAll('button')].some(button => button.textContent.includes('Interrupted'))",
        arg=shown.box.element_handle(),
        timeout=300_000,
    )


def test_cam_explorer(opened: Any) -> None:
    shown = Shown(opened.page, "Class activation maps")
    first = shown.digest()
    shown.press("slice", "ArrowRight")
    second = shown.wait_for_change(first)
    shown.drag("opacity", -60)
    third = shown.wait_for_change(second)
    shown.click(0.08, 0.63)  # the first picture of the strip
    fourth = shown.wait_for_change(third)
    assert shown.box.locator(".toolkit-layer select").evaluate("s => s.selectedOptions[0].text") == "encoder.1"
    shown.page.keyboard.press("ArrowRight")  # the picture has the focus now
    shown.wait_for_change(fourth)
    assert shown.box.locator(".toolkit-layer select").evaluate("s => s.selectedOptions[0].text") == "encoder.2"
    shown.screenshot("cam")


def test_zoom_drag_window_and_values(lab: Any, opened: Any) -> None:
    shown = Shown(opened.page, "Class activation maps")
    page, readout = shown.page, shown.box.locator(".toolkit-readout").first
    first = shown.digest()
    shown.press("window", "ArrowLeft")
    second = shown.wait_for_change(first)
    page.mouse.move(*shown.at(0.15, 0.3))
    page.wait_for_function("line => /^row \\d+, column \\d+/.test(line.textContent)", arg=readout.element_handle())
    words = readout.inner_text()
    assert "mm" in words
    assert "image" in words
    shown.picture.focus()
    page.mouse.wheel(0, -300)
    third = shown.wait_for_change(second)
    page.mouse.down()
    page.mouse.move(*shown.at(0.2, 0.35), steps=4)
    page.mouse.up()
    fourth = shown.wait_for_change(third)
    shown.screenshot("zoom")
    shown.box.get_by_role("button", name="Whole image").click()
    shown.wait_for_change(fourth)
    shown.box.get_by_role("button", name="Save this figure").click()
    shown.box.get_by_text("Saved as class_activation_maps_1.png").wait_for()
    assert (lab.root / "class_activation_maps_1.png").read_bytes().startswith(b"\x89PNG")


def test_long_work_is_announced(opened: Any) -> None:
    shown = Shown(opened.page, "Class activation maps")
    shown.box.evaluate("""box => {
      window.announced = [];
      new MutationObserver(() => {
        const words = box.querySelector(".toolkit-announced");
        if (words) window.announced.push(words.textContent);
      }).observe(box, {subtree: true, childList: true});
    }""")
    before = shown.digest()
    label = shown.box.locator(".toolkit-method option", has_text="Occlusion").first.inner_text()
    shown.box.locator(".toolkit-method select").select_option(label=label)  # on a slow machine it says how long
    shown.wait_for_change(before)
    assert any("Computing" in words for words in shown.page.evaluate("window.announced"))
    assert shown.box.locator(".toolkit-announced").count() == 0


def test_mask_explorer(opened: Any) -> None:
    shown = Shown(opened.page, "Masked latent code")
    first = shown.digest()
    shown.drag("fraction", 60)
    second = shown.wait_for_change(first)
    shown.press("seed", "ArrowRight")
    third = shown.wait_for_change(second)
    shown.click(0.03, 0.53)  # the first cells of the code
    fourth = shown.wait_for_change(third)
    shown.page.keyboard.press("ArrowRight")
    fifth = shown.wait_for_change(fourth)
    shown.page.keyboard.press("Enter")
    shown.wait_for_change(fifth)
    shown.screenshot("mask")


def test_similarity_explorer(opened: Any) -> None:
    shown = Shown(opened.page, "Similarity of layers and channels")
    first = shown.digest()
    shown.click(0.13, 0.2)  # a cell of the layer map
    second = shown.wait_for_change(first)
    shown.page.keyboard.press("ArrowRight")
    third = shown.wait_for_change(second)
    shown.click(0.5, 0.3)  # a cell of the channel matrix of layer A
    fourth = shown.wait_for_change(third)
    shown.press("channel_i", "ArrowRight")
    shown.wait_for_change(fourth)
    shown.screenshot("similarity")


def test_drift_explorer(opened: Any) -> None:
    shown = Shown(opened.page, "Drift of the features")
    shown.wait_for_curve()
    first = shown.curve()
    shown.press("stage", "ArrowRight")
    second = shown.wait_for_points(first)
    shown.box.locator(".jupyter-widgets.widget-play button, .widget-play button").first.click()
    third = shown.wait_for_points(second)
    shown.box.locator(".jupyter-widgets.widget-play button, .widget-play button").first.click()
    assert len(third) == len(first)
    picture = shown.digest()
    shown.lasso()
    picture = shown.wait_for_change(picture)
    shown.screenshot("drift")
    shown.picture.focus()
    shown.page.keyboard.press("ArrowRight")
    shown.wait_for_change(picture)
    assert shown.box.locator(".toolkit-numbers tr").count() > 5
    picture = shown.digest()
    shown.figure().scroll_into_view_if_needed()
    place = shown.figure().evaluate("""gd => {
      const box = gd.querySelector(".nsewdrag").getBoundingClientRect(), points = gd._fullData[0], axes = gd._fullLayout;
      return [box.left + axes.xaxis.d2p(points.x[7]), box.top + axes.yaxis.d2p(points.y[7])];
    }""")
    shown.page.mouse.move(*place)
    shown.page.wait_for_timeout(300)
    shown.page.mouse.click(*place)
    shown.wait_for_change(picture)


def test_the_console_is_quiet(opened: Any) -> None:
    assert not opened.errors


def test_the_notebook_is_readable_without_a_kernel(lab: Any, opened: Any, browser: Any) -> None:
    lab.save(opened.page)
    name = "reopened.ipynb"
    (lab.root / name).write_bytes((lab.root / "80_explorers.ipynb").read_bytes())
    opened.page.close()
    page = browser.new_page()
    lab.open(page, name)
    lab.shut_down_kernels()
    pictures = page.locator(".jp-RenderedImage img")
    pictures.nth(4).wait_for(state="attached")
    widths = pictures.evaluate_all("all => all.map(image => image.naturalWidth)")
    assert len(widths) >= 6, "one static picture an explorer, two for the drift"
    assert min(widths) > 300
    assert page.get_by_text("It stays when the notebook is reopened without a kernel").count() >= 5
    assert page.locator("img.toolkit-picture").count() == 0, "the live pictures need a kernel"
