"""What a name stands for, where other processes rename and remove files at any moment."""

from __future__ import annotations

import os
from pathlib import Path


def still_there(descriptor: int, path: Path) -> bool:
    """Whether an open file or directory still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
