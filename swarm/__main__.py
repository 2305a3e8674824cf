"""`python -m swarm` is the same as `swarm`."""

import sys

from swarm.cli import main

if __name__ == "__main__":
    sys.exit(main())
