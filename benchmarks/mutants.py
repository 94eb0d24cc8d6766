"""What `make mutants` found: of each file, how many of mutmut's changes the tests catch; fails below 90 %.

mutmut run && python benchmarks/mutants.py
"""

import json
import sys
from pathlib import Path

FOLDER = Path("mutants")
LEAST = 0.9
SURVIVED, WITHOUT_TESTS = 0, (5, 33)  # mutmut's exit codes; any other but None (not run) is of tests that failed or hung


def main() -> int:
    total = caught = 0
    print(f"{'file':42}{'mutants':>9}{'caught':>9}{'survived':>10}{'no tests':>10}")
    for path in sorted(FOLDER.rglob("*.meta")):
        codes = list(json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"].values())
        if None in codes:
            print(f"{path.relative_to(FOLDER).with_suffix('')}: {codes.count(None)} are not run yet")
            return 1
        if codes:
            survived, untested = codes.count(SURVIVED), sum(code in WITHOUT_TESTS for code in codes)
            own = len(codes) - survived - untested
            print(f"{str(path.relative_to(FOLDER).with_suffix('')):42}{len(codes):9}{own:9}{survived:10}{untested:10}")
            total, caught = total + len(codes), caught + own
    share = caught / max(total, 1)
    print(f"{caught} of {total} caught: {share:.1%}; at least {LEAST:.0%} are asked for")
    return int(share < LEAST)


if __name__ == "__main__":
    sys.exit(main())
