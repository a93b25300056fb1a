"""A long soak: python3 dev.py soak --minutes 30 [--seed 7] [--folder logs]. Exit code 1: a violation."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

from soak.run import soak


def main() -> int:
    """Run the soak, print the table, and return 1 if an invariant was violated."""
    parser = argparse.ArgumentParser(prog="dev.py soak", description=__doc__.partition(":")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--folder", type=Path, help="folder for logs and effects; it is not removed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"a soak of {options.minutes:g} minutes, seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="waooaw-soak-", ignore_cleanup_errors=True) as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = soak(options.minutes * 60, options.seed, folder.resolve())
    print(result.show())
    return int(bool(result.violations))


if __name__ == "__main__":
    sys.exit(main())
