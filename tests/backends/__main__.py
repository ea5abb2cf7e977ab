"""Starts PostgreSQL and an S3 server, and runs the registry's tests on them: `python -m tests.backends [for pytest]`.

What needs neither is left out: it runs in `make test`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tests.backends.servers import BUCKET, ROOT, NotInstalledError, has_postgres, running

TESTS = ["tests/backends", "tests/registry", "--ignore=tests/registry/hostile"]


def main(arguments: list[str]) -> int:
    """The exit status of pytest, 1 where a server is not installed, or 130 after Ctrl-C and SIGTERM."""
    if arguments == ["--has-postgres"]:
        return 0 if has_postgres() else 1
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="weft-backends-") as directory:
        try:
            with running(Path(directory)) as (postgres, s3):
                print(f"PostgreSQL on 127.0.0.1:{postgres.port}, S3 on {s3.endpoint}", flush=True)
                given = {"WEFT_TEST_DATABASE": postgres.url, "WEFT_TEST_BLOBS": f"s3://{BUCKET}/tests"}
                named = any((ROOT / argument.partition("::")[0]).exists() for argument in arguments)
                chosen = [] if named else TESTS
                return subprocess.run(
                    [sys.executable, "-m", "pytest", *chosen, *arguments],
                    cwd=ROOT,
                    env={**os.environ, **s3.environment, **given},
                    check=False,
                ).returncode
        except KeyboardInterrupt:
            return 130
        except NotInstalledError as error:
            print(error, file=sys.stderr)
            return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # As Ctrl-C: the servers are stopped on the way out.
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
