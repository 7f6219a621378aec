"""A small case page, and a headless Chromium, driven through the DevTools protocol over a pipe."""

import base64
import fcntl
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from clipseg3d.reporting.case_page import CasePage

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {
    "ArrowRight": {"windowsVirtualKeyCode": 39, "code": "ArrowRight"},
    "Home": {"windowsVirtualKeyCode": 36, "code": "Home"},
}
TIMEOUT_S = 60  # for an answer; a busy machine starts slowly
# The protocol wants its pipe at descriptors 3 and 4, whatever numbers Python got.
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
SHAPE = 24, 30, 18
SPACING_MM = (1.0, 1.5, 3.0)
SEQUENCES = ("t1", "t1ce", "t2", "flair")


def box(x, y, z):
    mask = np.zeros(SHAPE, bool)
    mask[slice(*x), slice(*y), slice(*z)] = True
    return mask


@pytest.fixture
def make():
    """Make a case page of a small brain with everything in it, or with some of it changed."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1.05, 1.05, n) for n in SHAPE), indexing="ij")
    brain = x**2 + y**2 + z**2 < 1
    images = {name: (rng.uniform(100, 200, SHAPE) * brain).astype(np.float32) for name in SEQUENCES}
    core, enhancing = box((7, 11), (8, 12), (7, 9)), box((8, 10), (9, 11), (7, 8))
    prediction = np.stack([box((6, 12), (7, 13), (6, 10)), core, enhancing])
    prediction[0] |= box((15, 17), (20, 22), (12, 14))
    moved = box((8, 10), (9, 11), (8, 9))
    reference = np.stack([box((6, 12), (7, 13), (8, 12)), core, moved])
    everything = {
        "case_id": "Case_001",
        "images": images,
        "spacing_mm": SPACING_MM,
        "prediction": prediction,
        "reference": reference,
        "text": "A lesion on the right.\nIt enhances.",
        "attention": {name: (3 * x).astype(np.float32) for name in ("TC", "ET")},
        "similarity": {name: (y / 1.3).astype(np.float32) for name in ("TC", "ET")},
        "views": [
            (plane, np.full((20, 20, 3), 99, np.uint8))
            for plane in ("axial", "coronal", "sagittal")
        ],
        "uncertainty": {"entropy": np.abs(z), "ensemble variance": np.abs(x)},
        "provenance": {"weights": "demo.ckpt", "sha256": "00ff" * 16},
    }

    def build(**changes):
        return CasePage(**{**everything, **changes})

    return build


class Chromium:
    """One browser; pages are opened with :meth:`open`."""

    def __init__(self, program, profile):
        to_browser, self.out = os.pipe()
        self.into, from_browser = os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser)]
        options = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",  # which root may not use
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--force-device-scale-factor=1",
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *map(str, theirs), program, *options],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (to_browser, from_browser, *theirs):
            os.close(fd)
        self.numbers = itertools.count(1)
        self.unread = b""
        self.events = []

    def call(self, method, session=None, **parameters):
        """Send a command and return its result; events that come meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _read(self):
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.into], [], [], max(0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            chunk = os.read(self.into, 1 << 20)
            assert chunk, "Chromium has stopped"
            self.unread += chunk
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, fragment="", width=1400, height=900):
        return Page(self, path, fragment=fragment, width=width, height=height)

    def close(self):
        os.close(self.out)
        os.close(self.into)
        self.process.terminate()
        self.process.wait(timeout=30)


class Page:
    """A case page, opened from its file and fully drawn."""

    def __init__(self, browser, path, *, fragment, width, height):
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.wait(
            "document.body?.hasAttribute('data-ready')"
            " || document.getElementById('problem')?.hidden === false"
        )

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, code):
        """Return what a JavaScript expression, or a promise of it, is."""
        answer = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"never so: {condition}"
            time.sleep(0.02)

    def settle(self):
        """Wait until everything asked for so far is drawn."""
        self.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def picture(self, selector):
        """Return the pixels of a canvas or an image, (height, width, 3) in [0, 1]."""
        address = self.evaluate(f"""(async () => {{
            const shown = document.querySelector({json.dumps(selector)});
            if (shown instanceof HTMLImageElement) return shown.src;
            return shown.toDataURL();
        }})()""")
        return imread(io.BytesIO(base64.b64decode(address.partition(",")[2])))[..., :3]

    def mouse(self, kind, selector, at=(0.5, 0.5), **more):
        """Send a mouse event to a place in an element, given as shares of its width and height."""
        left, top, width, height = self.evaluate(f"""(() => {{
            const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
            return [box.left, box.top, box.width, box.height];
        }})()""")
        x, y = left + at[0] * width, top + at[1] * height
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector, at=(0.5, 0.5), *, times=1):
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.mouse(kind, selector, at, button="left", clickCount=count)
        self.settle()

    def press(self, key):
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **KEYS[key])
        self.settle()

    def swipe(self, selector, across, down=0.0):
        """Draw a finger over an element from its middle, given as shares of width and height."""
        left, top, width, height = self.evaluate(f"""(() => {{
            const shown = document.querySelector({json.dumps(selector)});
            shown.scrollIntoView({{block: "center"}});
            const box = shown.getBoundingClientRect();
            return [box.left, box.top, box.width, box.height];
        }})()""")

        def touch(kind, share):
            x, y = left + width * (0.5 + share * across), top + height * (0.5 + share * down)
            points = [] if kind == "touchEnd" else [{"x": x, "y": y}]
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

        touch("touchStart", 0)
        for share in (0.25, 0.5, 0.75, 1):
            touch("touchMove", share)
        touch("touchEnd", 1)
        self.settle()

    def set(self, control, value):
        """Give a slider, list or check box a value, as a person's hand does."""
        self.evaluate(f"""(() => {{
            const control = document.getElementById({json.dumps(control)});
            if (control.type === "checkbox") control.checked = {json.dumps(value)};
            else control.value = {json.dumps(value)};
            control.dispatchEvent(new Event("input", {{bubbles: true}}));
            control.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()""")
        self.settle()

    def events(self, *methods):
        return [
            event["params"]
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] in methods
        ]

    def complaints(self):
        """Everything in the console, and every script that failed."""
        return self.events("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")

    def addresses(self):
        """What the page has loaded, without pictures that it holds itself."""
        requests = self.events("Network.requestWillBeSent")
        urls = {request["request"]["url"].partition("#")[0] for request in requests}
        return {url for url in urls if not url.startswith("data:")}

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is installed")
    browser = Chromium(program, Path(tmp_path_factory.mktemp("chromium")))
    yield browser
    browser.close()


@pytest.fixture
def browse(chromium):
    """Open a case page; it is closed after the test."""
    pages = []

    def show(path, **options):
        pages.append(chromium.open(path, **options))
        return pages[-1]

    yield show
    for page in pages:
        page.close()
