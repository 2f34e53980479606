"""Headless Chromium, driven through its debugging pipe: no port, no driver, no library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage --remote-debugging-pipe --force-color-profile=srgb"
)


class Browser:
    """A page in a browser of its own. Close it, or use it in a `with` block."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        read_command, self._write = os.pipe()
        self._read, write_answer = os.pipe()
        command = f"exec {executable()} {FLAGS} --user-data-dir={profile} --window-size={width},{height} about:blank"
        self._process = subprocess.Popen(
            ["bash", "-c", f"{command} 3<&{read_command} 4>&{write_answer} 2>/dev/null"],
            pass_fds=(read_command, write_answer),
        )
        os.close(read_command)
        os.close(write_answer)
        self._number, self._buffer, self.session = 0, b"", ""
        # Addresses of all requests, and messages of the console.
        self.requests: list[str] = []
        self.messages: list[str] = []
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Result of a command of the DevTools protocol. Raises RuntimeError for its error."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.session and not method.startswith("Target."):
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 16)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if event["method"] == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        if event["method"] == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(parameters["exceptionDetails"]))

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression; promises are awaited."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 60.0) -> Any:
        """Value of an expression as soon as it is true. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise TimeoutError(f"{script} has not become true: {self.run('document.body.innerText')[:2000]}")

    def open(self, address: str) -> None:
        """Goes to an address and waits for the whole page."""
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Presses a key; one letter writes itself."""
        text = {"text": key} if len(key) == 1 else {}
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Enter": 13, "Escape": 27}
        code = codes.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def choose_file(self, selector: str, path: Path) -> None:
        """Puts a file into a file input, as a user does."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def resize(self, width: int, height: int) -> None:
        """Size of the window."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def scheme(self, name: str) -> None:
        """Colour scheme, light or dark."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        """PNG of what is visible."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


def executable() -> str | None:
    """Path of Chromium; None where there is none."""
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
