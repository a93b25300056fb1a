"""`python -m faults`: the long run. It is a module of its own, so that its child processes can import it."""

from __future__ import annotations

import sys

from faults.command import main

sys.exit(main())
