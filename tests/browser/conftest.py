"""A real JupyterLab and a headless Chromium for the explorers."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "80_explorers.ipynb"
TOKEN = "browser-test"
PATIENCE = 600_000  # ms for all cells to run; a busy machine takes ten times as long as a quiet one
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


def chromium() -> str:
    """The browser of the system."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.fail("The browser tests need chromium: apt-get install -y chromium")


class Lab:
    """A running JupyterLab server on a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "notebooks"
        self.root.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = folder / "config"
        # one news toast would hide what is below it, and cells outside the window would not be drawn
        _write(
            config / "labconfig" / "page_config.json",
            {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
        )
        settings = folder / "settings"
        _write(
            settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings", {"windowingMode": "none"}
        )
        environment = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(config),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "JUPYTER_PREFER_ENV_PATH": "1",
            "FAST": os.environ.get("FAST", "0" if os.environ.get("TOOLKIT_SCREENSHOTS") == "1" else "1"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            f"--port={self.port}",
            "--ServerApp.port_retries=0",
            "--LabApp.expose_app_in_browser=True",
            f"--IdentityProvider.token={TOKEN}",
            f"--ServerApp.root_dir={self.root}",
        ]
        with (folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 180
        while True:
            try:
                self.rest("/api/status")
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError((folder / "server.log").read_text(encoding="utf-8")) from None
                time.sleep(0.3)

    def rest(self, path: str, method: str = "GET") -> Any:
        """Answer of the server's REST interface."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method, headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        return json.loads(text) if text else None

    def open(self, page: Any, name: str) -> None:
        """Show a notebook and wait for its cells."""
        page.goto(f"http://127.0.0.1:{self.port}/lab/tree/{name}?token={TOKEN}&reset", timeout=120_000)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)

    def wait_for_kernel(self, page: Any) -> None:
        """Wait until server and page agree that the kernel is idle (the page's sign alone lights too early)."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            sessions = self.rest("/api/sessions")
            idle = bool(sessions) and all(one["kernel"]["execution_state"] == "idle" for one in sessions)
            if idle and re.search(
                r"\|\s*Idle", page.locator("#jp-bottom-panel, .jp-StatusBar-Widget").first.inner_text()
            ):
                return
            page.wait_for_timeout(300)
        raise AssertionError("The kernel did not become idle.")

    def run_all(self, page: Any) -> None:
        """Run > Run All Cells, again if it was lost, and wait until every cell has run."""
        prompts = "Array.from(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')).map(e => e.textContent.trim())"
        for _ in range(3):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            try:
                page.wait_for_function(f"({prompts}).every(t => /\\[(\\*|\\d+)\\]/.test(t))", timeout=8_000)
                break
            except Exception:  # the click was lost
                continue
        page.wait_for_function(f"({prompts}).every(t => /\\[\\d+\\]/.test(t))", timeout=PATIENCE)

    def save(self, page: Any) -> None:
        """Save the notebook with its outputs."""
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")

    def shut_down_kernels(self) -> None:
        """End every session."""
        for session in self.rest("/api/sessions"):
            self.rest(f"/api/sessions/{session['id']}", "DELETE")

    def close(self) -> None:
        """End the server and its kernels."""
        try:
            self.shut_down_kernels()
        finally:
            self.process.terminate()
            self.process.wait(timeout=60)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            headless=True,
            executable_path=chromium(),
            args=FLAGS,
            viewport={"width": 1500, "height": 1250},
        )
        context.set_default_timeout(60_000)
        yield context
        context.close()


class Opened:
    """The notebook with all its cells run, and what the console said."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))


@pytest.fixture(scope="session")
def opened(lab: Lab, browser: Any) -> Opened:
    """The notebook of the explorers, run from top to bottom."""
    shutil.copy(NOTEBOOK, lab.root / NOTEBOOK.name)
    result = Opened(browser.new_page())
    lab.open(result.page, NOTEBOOK.name)
    lab.wait_for_kernel(result.page)
    lab.run_all(result.page)
    return result
