"""A real PostgreSQL and a real S3 server on 127.0.0.1, each in a directory of its own, stopped by their process ids."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".cache" / "backends"
USER, PASSWORD = "weft", "not-a-secret"
BUCKET = "weft"
_START_S = 60.0


class NotInstalledError(Exception):
    """A server is not installed here; the message says how to install it."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on. Held together, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class Postgres:
    """A PostgreSQL server that can be stopped and started again. It refuses root, so root starts it as another user."""

    directory: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the database that is always there; tests make their own."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Makes the files of a new server: one role with a password, English collation."""
        self.directory.mkdir(parents=True)
        password = self.directory.parent / "password"
        password.write_text(PASSWORD)
        if os.getuid() == 0:
            user = _other_user()
            for path in (self.directory, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        options = ["-D", str(self.directory), "-U", USER, f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync"]
        # Another collation than bytes: what the catalog needs of the order of text it must say itself.
        english = ["--locale-provider=icu", "--icu-locale=en-US"] if _knows_icu() else []
        self._run("initdb", *options, "-E", "UTF8", "--locale=C", *english)

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            # Its processes are killed in tests, and the machine is not.
            "fsync": "off",
            "max_connections": "100",
        }
        options = [text for key, value in settings.items() for text in ("-c", f"{key}={value}")]
        log = (self.directory.parent / "postgres.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [postgres_binary("postgres"), "-D", str(self.directory), *options],
                stdout=log,
                stderr=log,
                cwd=self.directory.parent,
                **_as_another_user(),
            )
        wait(self.process, self._answers, "PostgreSQL", self.directory.parent / "postgres.log")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops it: SIGINT lets it write down its state, SIGQUIT is what `pg_ctl stop -m immediate` sends."""
        stop(self.process, how)
        self.process = None

    def restart(self) -> None:
        """As `pg_ctl restart -m immediate`: every connection breaks, and it recovers from its log."""
        self.stop(signal.SIGQUIT)
        self.start()

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [postgres_binary(program), *arguments],
            capture_output=True,
            text=True,
            cwd=self.directory.parent,
            check=False,
            **_as_another_user(),
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")


@dataclass
class S3Server:
    """SeaweedFS, in one process, with one bucket and one key."""

    directory: Path
    binary: str
    ports: list[int] = field(default_factory=lambda: free_ports(8))
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where S3's requests go."""
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client has to know, in the variables of Amazon's own tools."""
        return {
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Starts it, and waits until the bucket is there."""
        data = self.directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = self.directory / "s3.json"
        key = {"accessKey": USER, "secretKey": PASSWORD}
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        config.write_text(json.dumps({"identities": [{"name": USER, "credentials": [key], "actions": actions}]}))
        s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = map(str, self.ports)
        log = self.directory / "s3.log"
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [
                    *(self.binary, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"),
                    *(f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={config}"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0"),
                    *(f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.volumeSizeLimitMB=64"),
                    *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=0"),
                    *("-volume.minFreeSpace=1MiB", "-volume.preStopSeconds=0"),
                    *(f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
                ],
                stdout=sink,
                stderr=sink,
                cwd=self.directory,
            )
        bucket = urllib.request.Request(f"http://127.0.0.1:{filer}/buckets/{BUCKET}/", method="POST")
        wait(self.process, lambda: _http_ok(bucket), "SeaweedFS", log)
        wait(self.process, lambda: _http_ok(f"{self.endpoint}/healthz"), "SeaweedFS", log)

    def stop(self) -> None:
        """Stops it at once: nothing of it is needed again."""
        stop(self.process, signal.SIGKILL)
        self.process = None


@contextmanager
def running(directory: Path) -> Iterator[tuple[Postgres, S3Server]]:
    """Both servers, their files in `directory`, stopped at the end whatever happens. Raises `NotInstalledError`."""
    # PostgreSQL may run as somebody else.
    directory.chmod(0o755)
    postgres_binary("initdb")
    postgres, s3 = Postgres(directory / "postgres" / "data"), S3Server(directory / "s3", _weed())
    try:
        postgres.create()
        postgres.start()
        s3.start()
        yield postgres, s3
    finally:
        s3.stop()
        postgres.stop()


def has_postgres() -> bool:
    """Whether a PostgreSQL server is installed."""
    try:
        postgres_binary("initdb")
    except NotInstalledError:
        return False
    return True


def postgres_binary(name: str) -> str:
    """A program of PostgreSQL: Debian keeps the server's out of the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    for place in (*places, Path("/usr/local/pgsql/bin"), INSTALLED / "pgserver" / "pginstall" / "bin"):
        if (place / name).is_file():
            return str(place / name)
    found = shutil.which(name)
    if found is None:
        raise NotInstalledError("PostgreSQL is not installed: `make test-backends` installs one, or apt-get does")
    return found


def _knows_icu() -> bool:
    said = subprocess.run([postgres_binary("pg_config"), "--configure"], capture_output=True, text=True, check=True)
    return "--with-icu" in said.stdout


def _weed() -> str:
    own = INSTALLED / "bin" / "weed"
    found = str(own) if own.is_file() else shutil.which("weed")
    if found is None:
        raise NotInstalledError("SeaweedFS is not installed: `make test-backends` installs it")
    return found


def _other_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NotInstalledError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def _as_another_user() -> dict[str, Any]:
    if os.getuid():
        return {}
    user = _other_user()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], name: str, log: Path) -> None:
    """Returns once `ready` says so. Raises `RuntimeError` with the end of the log where the server does not start."""
    deadline = time.monotonic() + _START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{name} did not start (exit status {process.poll()}): {said}")
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes] | None, how: signal.Signals) -> None:
    """Ends a server, by force if it takes more than 20 s."""
    if process is None:
        return
    process.send_signal(how)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _http_ok(request: urllib.request.Request | str) -> bool:
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status < 300)
    except OSError:
        return False
