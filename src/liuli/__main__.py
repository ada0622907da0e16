"""`python -m liuli` is `liuli`."""

from liuli.cli import main

main()
