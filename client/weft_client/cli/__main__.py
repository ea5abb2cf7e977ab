"""`python -m weft_client.cli` is `weft`."""

from weft_client.cli import main

main()
