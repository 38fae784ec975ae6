"""A real Chromium for tests, driven by the DevTools protocol over a pair of pipes.

Rule: whatever is waited for is a condition in the page, never a time.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from tests.kafka_broker import wait_until

ANSWER_S = 60.0
POLL_S = 0.1


def chromium() -> str | None:
    """Where it is; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Tab:
    """One page. ``problems`` are errors on its console, ``requests`` the addresses it asked for."""

    def __init__(self, reading: IO[bytes], writing: IO[bytes]) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._writing = writing
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._number = 0
        self._session: str | None = None
        self._reader = threading.Thread(target=self._read, args=(reading,), daemon=True)
        self._reader.start()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have a command done; its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._writing.write(json.dumps(message).encode() + b"\0")
        self._writing.flush()
        while True:
            try:
                answer = self._answers.get(timeout=ANSWER_S)
            except Empty:
                raise AssertionError(f"no answer to {method}") from None
            if answer["id"] == self._number:
                break
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )

    def scheme(self, name: str) -> None:
        """Prefer ``dark`` or ``light``."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)
        loaded = "location.href !== 'about:blank' && document.readyState === 'complete'"
        self.wait_for(loaded, ANSWER_S)

    def value(self, script: str) -> Any:
        """What an expression gives in the page."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script: str, timeout_s: float) -> None:
        pause = threading.Event()

        def holds() -> bool:
            return self.value(f"!!({script})") or pause.wait(POLL_S)

        wait_until(holds, timeout_s, script)

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, down and up, by its virtual code and what it writes."""
        names = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        kind = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.send("Input.dispatchKeyEvent", **names, **kind)
        self.send("Input.dispatchKeyEvent", **names, type="keyUp")

    def point(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        place = self.value(
            f"(() => {{ const found = document.querySelector({selector!r});"
            " found.scrollIntoView({block: 'center'}); const r = found.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _read(self, reading: IO[bytes]) -> None:
        rest = b""
        while chunk := os.read(reading.fileno(), 65536):
            *whole, rest = (rest + chunk).split(b"\0")
            for text in whole:
                message = json.loads(text)
                if "id" in message:
                    self._answers.put(message)
                else:
                    self._note(message["method"], message["params"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.problems.append(json.dumps(details.get("exception", details)))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.problems.append(json.dumps(told["args"]))


@contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """A browser with one tab, and nothing of an earlier one; ``chromium`` must be there."""
    program = chromium()
    assert program is not None, "there is no chromium, chromium-browser or google-chrome"
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    command = [
        *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
        *("--disable-dev-shm-usage", "--hide-scrollbars", "--disable-background-networking"),
        f"--user-data-dir={profile}",
    ]
    # The protocol is spoken on descriptors 3 and 4.
    script = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    with open(from_read, "rb", buffering=0) as reading, open(to_write, "wb") as writing:
        try:
            yield Tab(reading, writing)
        finally:
            process.terminate()
            process.wait(ANSWER_S)
