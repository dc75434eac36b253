"""A headless Chromium, driven over the DevTools protocol by its pipe: JSON messages that end in NUL.

Where there is no Chromium the test is skipped, with the reason; under CI it fails.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60  # seconds for an answer


class Page:
    """A tab, and all events that it has told of."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers, self._unread, self._count, self._session = commands, answers, b"", 0, None
        self.events: list[dict] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, "sessionId": self._session}
        os.write(self._commands, json.dumps({k: v for k, v in message.items() if v is not None}).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self) -> dict:
        begin = time.monotonic()
        while b"\0" not in self._unread:
            assert select.select([self._answers], [], [], max(0, begin + PATIENCE - time.monotonic()))[0], "Chromium says nothing"
            self._unread += os.read(self._answers, 1 << 20)
        message, self._unread = self._unread.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path, place: str = "", width: int = 1280, scheme: str = "light") -> None:
        """Load a file anew, as wide as that, by a system that prefers light or dark."""
        self.events.clear()
        self.resize(width)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=path.as_uri() + place)
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int = 900) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]["exception"]["description"]
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        begin = time.monotonic()
        while not self.value(condition):
            assert time.monotonic() - begin < PATIENCE, f"never came true: {condition}"
            time.sleep(0.01)

    def press(self, key: str) -> None:
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=9 if key == "Tab" else 0)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def hover(self, element: str) -> None:
        """Move the mouse onto the middle of an element, given as a JavaScript expression."""
        self.value(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y = self.value(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({element}.getBoundingClientRect())")
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        width, height = self.value("[innerWidth, document.documentElement.scrollHeight]")
        self.resize(width, height)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._session = None
        self.send("Browser.close")


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A page of a Chromium of its own, whose profile goes into the folder."""
    path = shutil.which("chromium")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no chromium: install Debian's package of that name")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    # It reads on file descriptor 3 and writes on 4; ours are moved out of their way.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for _ in range(2) for end in os.pipe()]
    reads, commands, answers, writes = ends
    actions = [(os.POSIX_SPAWN_DUP2, reads, 3), (os.POSIX_SPAWN_DUP2, writes, 4)]
    actions += [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in (0, 1, 2)]
    process = os.posix_spawn(path, [path, *flags], os.environ, file_actions=actions)
    os.close(reads), os.close(writes)
    try:
        page = Page(commands, answers)
        yield page
        page.close()
    except BaseException:
        os.kill(process, signal.SIGKILL)
        raise
    finally:
        os.waitpid(process, 0)
        os.close(commands), os.close(answers)
