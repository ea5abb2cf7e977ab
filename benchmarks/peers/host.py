"""Runs one peer engine in the environment it was installed in: `python host.py MODULE SETTINGS_JSON`.

`MODULE` is a file beside this one with a class `Peer`; this file knows no engine, and no peer knows this file. One line
of JSON comes in for each batch, {prompts, adapters, new}, and one goes out, {tokens, seconds}; the first line out is
{ready}. Whatever the engine prints goes to standard error. The end of the input ends the process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time


def main() -> None:
    """Serves until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = importlib.import_module(sys.argv[1]).Peer(json.loads(sys.argv[2]))
    print(json.dumps({"ready": peer.about}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        begin = time.perf_counter()
        tokens = peer.generate(asked["prompts"], asked["adapters"], asked["new"])
        seconds = time.perf_counter() - begin
        print(json.dumps({"tokens": tokens, "seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
