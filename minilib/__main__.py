"""``python -m minilib`` is the command line, like ``minilib``."""

import sys

from minilib.cli import main

if __name__ == "__main__":
    sys.exit(main())
