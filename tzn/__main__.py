"""``python -m tzn`` (and ``torchrun -m tzn``) is the ``tzn`` command."""

import sys

from tzn.cli import main

if __name__ == "__main__":
    sys.exit(main())
