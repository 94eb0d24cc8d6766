"""What was found, as sentences and tables: the terminal's summary and the page show these, and nothing is computed here."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from denserl.inspection.measures import QUANTILES
from denserl.levels import LEVELS

_LISTED = 8  # reasons, and scripts, that are listed
THRESHOLDS = 0.5  # nats between the thresholds that the summary shows
_SHARES = {"one_token": "one token", "at_word": "at a word", "at_line": "at a line", "at_sentence": "at a sentence"}
_PLURALS = {"prompt": "prompts", "chosen": "chosen", "rejected": "rejected", "response": "responses", "solution": "solutions"}

Table = list[list[str]]


class Section(NamedTuple):
    """A part of the summary: a title, sentences, and a table whose first row is its head; empty: none."""

    key: str
    title: str
    words: list[str]
    table: Table


def sections_of(figures: Mapping[str, Any]) -> list[Section]:
    """The parts of the summary, of what is found by `inspected`."""
    found = [_rows(figures), _lengths(figures), _tokens(figures), _duplicates(figures), _longer(figures), _numbers(figures)]
    found += [_scripts(figures), _likelihood(figures), _entropies(figures), _thresholds(figures)]
    return [section for section in found if section is not None]


def _rows(figures: Mapping[str, Any]) -> Section:
    rows, words = figures["rows"], []
    become = f", which make {rows['records']}" if rows["records"] != rows["used"] else ""
    left = f", {rows['left_out']} left out" if rows["left_out"] else ""
    words.append(
        f"{figures['kind']}: {rows['read']} rows read, {rows['used']} of them used{become}, {rows['refused']} refused{left}"
    )
    for source in rows["sources"] if len(rows["sources"]) > 1 else []:
        words.append(f"{source['source']}: {source['read']} read, {source['used']} used, {source['refused']} refused")
    unread = sorted({name for source in rows["sources"] for name in source["not_read"]})
    if unread:
        words.append(f"not read: {', '.join(unread)}")
    # Of a single source its path needs not be said again.
    known = rows["sources"][0]["source"] if len(rows["sources"]) == 1 else ""
    reasons = [reason for source in rows["sources"] for reason in source["reasons"]]
    table = [["refused because", "rows", "first places"]]
    table += [[each["reason"], str(each["count"]), _places(known, each["places"])] for each in reasons[:_LISTED]]
    lefts = [reason for source in rows["sources"] for reason in source["left_out_reasons"]]
    table += [[f"left out: {reason['reason']}", str(reason["count"]), ""] for reason in lefts[:_LISTED]]
    if len(reasons) > _LISTED:
        words.append(f"{len(reasons) - _LISTED} further reasons are in inspect.json")
    return Section("rows", "Rows", words, table if len(table) > 1 else [])


def _places(source: str, places: Sequence[str]) -> str:
    """Places of rows in a source, without its path."""
    return ", ".join(place.removeprefix(source).lstrip("/:") if source else place for place in places)


def _lengths(figures: Mapping[str, Any]) -> Section:
    rows = [(f"{part}, {unit}", of) for part, units in figures["lengths"].items() for unit, of in units.items()]
    return Section("lengths", "Lengths", [], _spreads(rows, "{:.0f}"))


def _tokens(figures: Mapping[str, Any]) -> Section | None:
    found = figures.get("tokens")
    if found is None:
        return None
    drawn = (
        f"of all {found['rows']} rows"
        if found["every"]
        else f"of {found['rows']} rows, drawn from {figures['rows']['records']}"
    )
    words = [f"{drawn}, with what the chat template writes around turns"]
    limits = {name: found[name] for name in ("max_length", "max_prompt_length") if found[name] is not None}
    cuts = [_cut(part, found["rows"] - found["plain"], cut) for part, cut in found["cut"].items()]
    if cuts:
        words.append(f"cut at {', '.join(f'{name} {tokens}' for name, tokens in limits.items())}: {', '.join(cuts)}")
    if found["plain"]:
        words.append(
            f"{found['plain']} are plain text, of which {found['split']} are split at max_length {found['max_length']}"
        )
    words += [
        f"{reason['count']} refused: {reason['reason']} ({', '.join(reason['places'])})"
        for reason in found["reasons"][:_LISTED]
    ]
    rows = list(found["lengths"].items())
    if found["together"] is not None:
        rows.append(("prompt with the longest response", found["together"]))
    return Section("tokens", "Lengths in tokens", words, _spreads(rows, "{:.0f}"))


def _cut(part: str, count: int, cut: Mapping[str, Any]) -> str:
    """How many of so many texts lose tokens."""
    within = "" if cut["interval"] is None else f" {_interval(cut['interval'])}"
    return f"{cut['count']} of {count} {_PLURALS[part]} ({cut['share']:.1%}{within})"


def _duplicates(figures: Mapping[str, Any]) -> Section:
    found = figures["duplicates"]
    names = {
        "rows": "rows that stand a second time",
        "prompts": "prompts that stand a second time",
        "turned_round": "pairs that stand the other way round in another row",
        "chosen_is_rejected": "chosen and rejected identical (refused)",
    }
    return Section("duplicates", "Duplicates", [], [["", "rows"], *([names[key], str(count)] for key, count in found.items())])


def _longer(figures: Mapping[str, Any]) -> Section | None:
    found = figures["longer"]
    if found is None:
        return None
    gap, interval = found["difference"], _interval(found["interval"])
    words = [
        f"chosen is longer in {found['share']:.1%} of the pairs, 95 % interval {interval}; as long in {found['equal']}",
        f"by {gap['mean']:+.0f} characters in the mean, {gap['median']:+.0f} in the median",
    ]
    return Section("longer", "Length and preference", words, [])


def _numbers(figures: Mapping[str, Any]) -> Section | None:
    found = figures["numbers"]
    if not found:
        return None
    words = []
    for name, of in found.items():
        parts = {"missing": "have none", "below_zero": "are below 0", "zero": "are 0"}
        said = [f"{of[key]} {text}" for key, text in parts.items() if of[key]]
        if said:
            words.append(f"{name}: {', '.join(said)}")
    return Section("numbers", "Labels and ratings", words, _spreads(list(found.items()), "{:.4g}"))


def _scripts(figures: Mapping[str, Any]) -> Section:
    found = list(figures["scripts"].items())
    rows = [[name, str(count), f"{count / figures['rows']['records']:.1%}"] for name, count in found[:_LISTED]]
    words = [f"{len(found) - _LISTED} further ones are in inspect.json"] if len(found) > _LISTED else []
    return Section("scripts", "Writing", words, [["script of most letters", "rows", "share"], *rows])


def _likelihood(figures: Mapping[str, Any]) -> Section | None:
    found = figures.get("likelihood")
    if found is None:
        return None
    words = ["negative log-likelihood, in nats a token; of plain texts the first max_length tokens are read"]
    table = [["", "texts", "tokens", "nats", "95 % interval"]]
    for name, of in found.items():
        within = "" if of["interval"] is None else "[{:.3f}, {:.3f}]".format(*of["interval"])
        table.append([name, str(of["texts"]), str(of["tokens"]), f"{of['nats']:.3f}", within])
    return Section("likelihood", "How well the model foretells", words, table)


def _entropies(figures: Mapping[str, Any]) -> Section | None:
    found = figures.get("entropies")
    if found is None:
        return None
    words = [f"of {found['n']} tokens in {found['responses']} responses, in nats, of what predicts each token"]
    return Section("entropies", "Entropies", words, _spreads([("entropy", found)], "{:.2f}"))


def _thresholds(figures: Mapping[str, Any]) -> Section | None:
    if "thresholds" not in figures:
        return None
    wished = figures["wished"]
    if wished["threshold"] is None:
        words = [f"no threshold gives {wished['tokens_per_segment']:g} tokens a segment: whole responses are shorter"]
    else:
        got = next(at for at in figures["thresholds"] if at["threshold"] == wished["threshold"])
        words = [
            f"{wished['tokens_per_segment']:g} tokens a segment (found: {got['tokens_per_segment']:.2f}): "
            f"denserl train-rm --entropy_threshold {wished['threshold']:g}"
        ]
    always = {LEVELS["segment"], *figures["cut_at"]}
    shown = [at for at in figures["thresholds"] if at["threshold"] % THRESHOLDS == 0 or at["threshold"] in always]
    return Section("thresholds", "Segments at thresholds", words, threshold_table(shown))


def threshold_table(at: Sequence[Mapping[str, float]]) -> Table:
    """What segments come to, a row for each threshold."""
    head = ["threshold", "segments/response", "tokens/segment", *_SHARES.values()]
    return [head, *(_threshold_row(each) for each in at)]


def _threshold_row(at: Mapping[str, float]) -> list[str]:
    shares = [f"{at[key]:.1%}" for key in _SHARES]
    return [f"{at['threshold']:g}", f"{at['segments_per_response']:.1f}", f"{at['tokens_per_segment']:.2f}", *shares]


def _spreads(rows: Sequence[tuple[str, Mapping[str, float]]], shape: str) -> Table:
    """A row for each of several distributions, with numbers in that shape; of none an empty one."""
    columns = [*QUANTILES, "mean"]
    return [["", *columns], *([name, *(shape.format(of[key]) for key in columns)] for name, of in rows if of["n"])]


def _interval(bounds: Sequence[float]) -> str:
    return f"[{bounds[0]:.1%}, {bounds[1]:.1%}]"
