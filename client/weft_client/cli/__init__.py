"""The `weft` command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs `weft` on the arguments of this process, and exits: 0, 1 for a refusal, 2 for wrong usage, 130 on Ctrl-C."""
    try:
        # Imported here so that Ctrl-C during start-up is as quiet as later on.
        from weft_client.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)
