"""Headless Chromium over its debugging pipe, with a fake camera: no driver and no package is needed."""

import base64
import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_SECONDS = 120


class Browser:
    """One page of a Chromium; `requests` and `complaints` are what it asked for and logged."""

    def __init__(self, folder: Path, camera: Path) -> None:
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()

        def pipes() -> None:
            # Chromium reads commands on descriptor 3 and answers on 4. Above them first, lest one closes the other.
            commands, answers = os.dup(to_child), os.dup(from_child)
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-video-capture={camera}", f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["chromium", *options], preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._count = b"", 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **values: Any) -> Any:
        return self._send(method, self._session, **values)

    def _send(self, method: str, session: str | None = None, **values: Any) -> Any:
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": values}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], _SECONDS)
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, values: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.complaints.append(" ".join(str(one.get("value", one.get("description"))) for one in values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.complaints.append(values["entry"]["text"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        answer = self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True,
                              userGesture=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The expression's value as soon as it is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < until, f"{script} stayed {value!r}; status: {self.status()}"
            time.sleep(0.1)
        return value

    def status(self) -> str:
        return self.run("document.getElementById('status')?.textContent ?? ''")

    def open(self, address: str) -> None:
        self.command("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && !!document.getElementById('status')")

    def click(self, name: str) -> None:
        self.run(f"document.getElementById('{name}').click()")

    def upload(self, name: str, file: Path) -> None:
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=f"#{name}")["nodeId"]
        self.command("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def screenshot(self, width: int, height: int) -> bytes:
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                     mobile=width < 600)  # fmt: skip
        return base64.b64decode(self.command("Page.captureScreenshot")["data"])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)


@contextlib.contextmanager
def browser(folder: Path, camera: Path) -> Iterator[Browser]:
    opened = Browser(folder, camera)
    try:
        yield opened
    finally:
        opened.close()


def scene(face: np.ndarray) -> np.ndarray:
    """A camera's 640 x 480 px picture of a face photo before a grey wall."""
    large = cv2.resize(face, None, fx=2.5, fy=2.5, interpolation=cv2.INTER_CUBIC)
    picture = np.full((480, 640, 3), 128, dtype=np.uint8)
    top, left = (480 - large.shape[0]) // 2, (640 - large.shape[1]) // 2
    picture[top : top + large.shape[0], left : left + large.shape[1]] = large
    return picture


def show(camera: Path, picture: np.ndarray) -> None:
    """What the fake camera sees when it is opened next: one still picture, ten frames a second."""
    yuv = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420).tobytes()
    fresh = camera.with_suffix(".new")
    fresh.write_bytes(b"YUV4MPEG2 W640 H480 F10:1 Ip A1:1 C420\n" + (b"FRAME\n" + yuv) * 10)
    fresh.replace(camera)
