"""``python -m facefix``."""

from facefix.cli import main

main()
