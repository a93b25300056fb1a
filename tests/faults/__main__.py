"""`python -m faults`: the long form, which is a module that the processes which it starts find by name."""

from __future__ import annotations

import sys

from faults.command import main

sys.exit(main())
