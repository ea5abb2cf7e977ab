"""The committed protobuf code is what `make protos` would write now."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def _generated(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in (root / "weft" / "v1").glob("*_pb2*.py*")}


def test_generated_code_is_fresh(root: Path, tmp_path: Path) -> None:
    # -o: a test never installs anything, even when pyproject.toml is newer than the environment.
    command = ["make", "--no-print-directory", "-o", ".venv/.complete", "protos", f"OUT={tmp_path}"]
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    made = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    committed, fresh = _generated(root / "protos"), _generated(tmp_path)
    assert sorted(fresh) == sorted(committed), "a .proto was added or removed: run `make protos`"
    stale = [name for name in fresh if fresh[name] != committed[name]]
    assert not stale, f"stale: {', '.join(stale)}: run `make protos`"
    assert len(fresh) >= 12, "three protocol files, four modules each"
