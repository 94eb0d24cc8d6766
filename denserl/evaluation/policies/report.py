"""What is written of judged policies: judgements, results.json, the table at the terminal, and the page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from denserl.evaluation.policies.judge_config import PolicyJudgingConfig
from denserl.evaluation.policies.judgements import write_alpacaeval, write_arenahard, write_mtbench, write_prompts
from denserl.evaluation.policies.judging import Given, Said
from denserl.evaluation.policies.length_files import read_length_files
from denserl.evaluation.policies.page import write_page
from denserl.evaluation.policies.results import Counting, results_of
from denserl.evaluation.results import in_columns, versions
from denserl.files import replace_whole

RESULTS, PAGE = "results.json", "report.html"
# Of the originals' numbers those that stand in the table, where they are made.
SHOWN = ("v0.1 style control", "newer style control", "turn_1", "turn_2")


def counting(options: PolicyJudgingConfig, given: Given) -> Counting:
    """How judgements are counted, as the options say."""
    lengths = read_length_files(options.lc_files, given.questions) if options.lc_files else None
    mode, stand_in = options.judged_mode, options.judge_reward_model is not None
    mean = "average" if mode == "single" else "win_rate"
    if stand_in:
        mean = "rm_win_rate"
    elif options.suite == "alpacaeval" and options.judge_verdict == "text":
        mean = "unweighted_win_rate"
    return Counting(options.suite, mode, mean, options.bootstrap, options.seed, stand_in, options.style_control, lengths)


def summary_of(options: PolicyJudgingConfig, said: Said, how: Counting) -> dict[str, Any]:
    """What is written to results.json."""
    found: dict[str, Any] = {
        "suite": options.suite,
        "mode": how.mode,
        "judge": said.about,
        "baseline": said.names.baseline or None,
        **({"stand_in": True} if how.stand_in else {}),
        **results_of(said.policies, how),
    }
    if said.other:
        rule, policies, count = said.other
        other = {
            name: entry["headline"]
            for name, entry in results_of(policies, how._replace(style_control=False))["policies"].items()
        }
        found["parse"] = {"by": options.parse, "other": rule, "games_that_differ": count, "headlines_by_other": other}
    return found | {"versions": versions()}


def write_all(folder: Path, options: PolicyJudgingConfig, said: Said, summary: Mapping[str, Any]) -> None:
    """The original's files of judgements, results.json and the page."""
    if not options.annotations and not options.judge_reward_model:
        _write_judgements(folder, options, said, summary)
    replace_whole(folder / RESULTS, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    tables = {"Numbers": table(summary), "Differences": differences(summary), "Categories": categories(summary)}
    shown = {name: rows for name, rows in tables.items() if len(rows) > 1}
    write_page(folder / PAGE, title(summary, said), remarks(summary), shown, said.policies, said.names.baseline or None)


def _write_judgements(folder: Path, options: PolicyJudgingConfig, said: Said, summary: Mapping[str, Any]) -> None:
    policies, names = said.policies, said.names
    if options.suite == "alpacaeval":
        write_alpacaeval(folder, policies, names, {name: _leaderboard(entry) for name, entry in summary["policies"].items()})
    elif options.suite == "arenahard":
        write_arenahard(folder, policies, names, options.shape)
    elif options.suite == "mtbench":
        write_mtbench(folder, policies, names, options.judged_mode)
    else:
        write_prompts(folder, policies, names)


def _leaderboard(entry: Mapping[str, Any]) -> dict[str, Any]:
    """AlpacaEval's numbers of a policy: those at equal lengths only where they are made as AlpacaEval makes them."""
    published = entry["length_control"].get("v1") or {}
    names = ("length_controlled_winrate", "lc_standard_error")
    return {**entry["original"], **{name: published[name] for name in names if name in published}}


def title(summary: Mapping[str, Any], said: Said) -> str:
    """Which numbers these are. Those of different judges are not comparable, so that the judge belongs to them."""
    against = f" against {summary['baseline']}" if summary["baseline"] else ""
    return f"{summary['suite']} judged by {said.names.judge}{against}"


def table(summary: Mapping[str, Any]) -> list[list[str]]:
    """A head, and a row for each policy, the best first."""
    policies = summary["policies"]
    head = next(iter(policies.values()))["headline"]["name"]
    mean = _mean_name(summary)
    shown = [name for name in SHOWN if any(name in entry.get("original", {}) for entry in policies.values())]
    names = ["policy", head, *([mean] if mean != head else []), *shown, "judged", "no verdict", "characters", "cut off"]
    ordered = sorted(policies.items(), key=lambda entry: -(entry[1]["headline"]["value"] or 0.0))
    return [names, *([name, *_cells(entry, mean, mean != head, shown)] for name, entry in ordered)]


def differences(summary: Mapping[str, Any]) -> list[list[str]]:
    """A head, and a row for each two policies."""
    lc = [row.get("length_control") for row in summary["differences"]]
    names = [found["of"] for found in lc[:1] if found]
    rows = [
        [f"{row['first']} - {row['second']}", *([_figure(found)] if found else []), _figure(row), str(row["questions"])]
        for row, found in zip(summary["differences"], lc, strict=True)
    ]
    return [["difference", *names, _mean_name(summary), "questions of both"], *rows]


def categories(summary: Mapping[str, Any]) -> list[list[str]]:
    """A head, and a row for each category, with a column for each policy."""
    policies = summary["policies"]
    known = list(dict.fromkeys(name for entry in policies.values() for name in entry["by_category"]))
    rows = [[name, *(_figure(entry["by_category"].get(name)) for entry in policies.values())] for name in known]
    return [["category", *policies], *(rows if len(known) > 1 else [])]


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers has to know, a line each."""
    found = [f"{name}: {line}" for name, entry in summary["policies"].items() for line in _remarks(entry, summary)]
    if summary.get("stand_in"):
        found.insert(
            0, "a reward model stands in for a judge: its numbers say what it prefers, and nothing of people's preferences"
        )
    if parse := summary.get("parse"):
        count = parse["games_that_differ"]
        found.append(f"read by the rule {parse['by']}; by {parse['other']} {count} verdicts are others" if count else "")
    return [line for line in found if line]


def format_summary(summary: Mapping[str, Any], said: Said) -> str:
    """The tables and remarks, for the terminal."""
    parts = [in_columns(rows) for rows in (table(summary), differences(summary)) if len(rows) > 1]
    return "\n".join([title(summary, said), *parts, *remarks(summary)])


def _remarks(entry: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    lines = list(entry["remarks"])
    mean = _mean_name(summary)
    if entry["missing"]:
        lost = entry[f"{mean}_if_missing_lost"]
        lines.append(f"{entry['missing']} questions have no answer; {mean} {lost:.2f} if these were lost")
    if entry["empty"]:
        lines.append(f"{entry['empty']} questions with an empty answer")
    if entry["equal_answers"]:
        most = entry["equal_answers"][0]
        lines.append(f"one text answers {most['questions']} questions: {most['begins']!r}")
    if (unread := entry["invalid"] + entry["cut"]) > 0:
        lines.append(f"{unread} of {entry['games']} games have no verdict, {entry['cut']} of them cut off")
    if entry["one_sided"]:
        lines.append(f"in {entry['one_sided']} games the judge told the probability of one verdict alone")
    return lines


def _mean_name(summary: Mapping[str, Any]) -> str:
    """What the mean of what is counted is called: the first number behind the headline."""
    entry = next(iter(summary["policies"].values()))
    return next(name for name in ("rm_win_rate", "unweighted_win_rate", "win_rate", "average") if name in entry)


def _cells(entry: Mapping[str, Any], mean: str, has_mean: bool, shown: Sequence[str]) -> list[str]:
    cut, own = entry["truncated"], entry["lengths"]
    return [
        _figure(entry["headline"]),
        *([_figure(entry[mean])] if has_mean else []),
        *(_figure(_of_original(entry, name)) for name in shown),
        str(entry["judged"]),
        str(entry["invalid"] + entry["cut"]),
        f"{own['policy']:.0f}" + (f" ({own['baseline']:.0f})" if "baseline" in own else ""),
        "unknown" if cut is None else f"{cut['share']:.1%}",
    ]


def _of_original(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A number of the original program, a row of Arena-Hard's table or a mean, as `_figure` shows it."""
    found = entry["original"].get(name)
    return (
        {"value": found["win_rate"], "interval": found["interval"]}
        if isinstance(found, dict)
        else {"value": found, "interval": None}
    )


def _figure(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    bounds = entry["interval"]
    return f"{entry['value']:.2f}" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "")
