"""What passed and failed, kind by kind: the plain table at the end of `make faults`."""

from collections import Counter, defaultdict
from pathlib import PurePath

COLUMNS = ("passed", "failed", "skipped")


def kind(nodeid: str) -> str:
    """The folder of a test; for tests/faults, where every file is a kind, and for files beside folders the file."""
    path = PurePath(nodeid.partition("::")[0])
    parts = path.parts[1:] if path.parts[0] == "tests" else path.parts
    of_file = parts[0] == "faults" or len(parts) == 1
    return path.stem.removeprefix("test_").replace("_", " ") if of_file else parts[0].replace("_", " ")


def table(stats: dict[str, list]) -> list[str]:
    """Lines of text from the reports by outcome that pytest's terminal reporter keeps."""
    counts, seconds, reasons = defaultdict(Counter), Counter(), Counter()
    for outcome, column in (*zip(COLUMNS, COLUMNS), ("error", "failed")):
        for report in stats.get(outcome, []):
            counts[kind(report.nodeid)][column] += 1
            if outcome == "skipped":
                reasons[f"{kind(report.nodeid)}: {report.longrepr[-1].removeprefix('Skipped: ')}"] += 1
    for reports in stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                seconds[kind(report.nodeid)] += report.duration
    lines = [f"{'kind':24}" + "".join(f"{column:>9}" for column in COLUMNS) + f"{'seconds':>9}"]
    for name in sorted(counts):
        lines.append(f"{name:24}" + "".join(f"{counts[name][column]:9}" for column in COLUMNS) + f"{seconds[name]:9.0f}")
    lines += [f"skipped, {reason} ({count})" for reason, count in sorted(reasons.items())]
    failed = sum(counts[name]["failed"] for name in counts)
    return [*lines, f"{failed} failed" if failed else "all passed" if not reasons else "all that ran passed"]
