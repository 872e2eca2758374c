"""``python -m trio_swarm`` is ``trio-swarm``."""

from __future__ import annotations

import sys

from trio_swarm.cli import main

if __name__ == "__main__":
    sys.exit(main())
