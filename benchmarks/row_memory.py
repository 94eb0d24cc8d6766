"""Row 10: the memory of a rank while its pairs are prepared and trained on, as their number grows tenfold.

Of two starts on either number (starts.py), the first of which prepares. Memory is what no file backs, above what the process
held when its libraries were loaded: pages of memory-mapped tables are the system's to drop, and all ranks of a host share them.
"""

from harness import Options, Result, cpu_only, limited, run_alone
from starts import in_two_starts, pairs_of_size

PAIRS = 10_000
TIMES = 10
REACH_MIB, REACH_GROWTH = 600.0, 0.1
MIB = 2**20


def measure(options: Options) -> list[Result]:
    """Preparing and training on a tenth of the pairs, then on all."""
    cpu_only(options)
    many = options.pairs or PAIRS
    counts = (many // TIMES, many)
    found = [in_two_starts(options, count) for count in counts]
    sizes = [pairs_of_size(options, count).stat().st_size for count in counts]
    results = []
    for number, what in enumerate(("preparing", "found")):
        few, all_of_them = (starts[number] for starts in found)
        growth = (all_of_them.anonymous - few.anonymous) / (sizes[1] - sizes[0])
        resident = [round(start.resident / MIB) for start in (few, all_of_them)]
        note = f"{few.anonymous / MIB:.0f} MiB, then {all_of_them.anonymous / MIB:.0f}, of files of {sizes[0] / MIB:.0f} and "
        note += f"{sizes[1] / MIB:.0f}; with libraries and mapped pages {resident[0]}, then {resident[1]}"
        name = f"{counts[0]} to {counts[1]} pairs, {what}"
        results += [
            limited(10, f"{name}: MiB at most (limit)", [all_of_them.anonymous / MIB], REACH_MIB, note=note),
            limited(10, f"{name}: growth against the file's (limit)", [growth], REACH_GROWTH),
        ]
    return results


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
