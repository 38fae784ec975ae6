"""``python -m streammaml``."""

from streammaml.cli import main

main()
