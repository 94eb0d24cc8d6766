"use strict";
// The browser of sample responses. Its rows stand in the page as JSON (denserl/report/sampled.py); texts are set as text alone.

const denserlSamples = (() => {
  const AT_ONCE = 10;
  const form = document.getElementById("controls");
  if (!form) return { update() {} };
  const one = (id) => document.getElementById(id);
  const format = (value, digits = 3) => (value == null ? "–" : (value >= 0 ? "+" : "") + value.toFixed(digits));
  const plain = (value) => (value == null ? "–" : String(Number(value.toPrecision(4))));
  let data, rows, files, steps, filled = false, shown = [], first = 0;

  // Rows of lists as objects, with what is worked out of them once.
  function read(given) {
    data = given;
    rows = data.rows.map((row, order) => {
      const found = { order };
      data.columns.forEach((name, i) => { found[name] = row[i]; });
      found.text = found.response ?? found.segments.map((part) => part[0]).join("");
      found.low = null; // texts in small letters, when something is searched
      return found;
    });
    files = new Set(rows.map((row) => row.file)).size;
    steps = new Map(); // run and file -> [first step, last step]
    for (const row of rows) {
      const key = `${row.run} ${row.file}`, known = steps.get(key) ?? [Infinity, -Infinity];
      steps.set(key, [Math.min(known[0], row.step ?? 0), Math.max(known[1], row.step ?? 0)]);
    }
  }

  function choices(name, options) {
    const select = form.elements[name], before = select.value;
    select.replaceChildren(...options.map(([value, label]) => {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = label;
      return option;
    }));
    if (filled && options.some(([value]) => value === before)) select.value = before;
    select.parentElement.hidden = options.length < 2;
  }

  function fillControls() {
    const has = (i) => rows.some((row) => row.numbers[i] != null);
    const kinds = data.files.map((name, i) => [String(i), name]).filter(([i]) => rows.some((row) => row.file === Number(i)));
    const runs = data.runs.map((name, i) => [String(i), name]).filter(([i]) => rows.some((row) => row.run === Number(i)));
    const all = [...new Set(rows.map((row) => row.step))].filter((step) => step != null).sort((a, b) => a - b);
    const several = all.length > 1;
    const prompts = ["prompts", several ? "before and after, by prompt" : "side by side, by prompt"];
    choices("view", [...(several || runs.length > 1 ? [prompts] : []), ["each", "each response"]]);
    choices("run", [...(runs.length > 1 ? [["", "all runs"]] : []), ...runs]);
    choices("file", [...kinds, ...(kinds.length > 1 ? [["", "held-out and training"]] : [])]);
    choices("step", [["", "all steps"], ...(several ? [["last", "the last step"], ["first", "the first step"]] : []), ...all.map((step) => [String(step), `step ${step}`])]);
    choices("sort", [["order", "order of logging"], ...data.numbers.map(([name], i) => [String(i), name]).filter(([i]) => has(Number(i))), ["worst", "lowest segment"]]);
    choices("order", [["down", "highest first"], ["up", "lowest first"]]);
    const segments = data.ofSegments.map((name, i) => [`segment-${i}`, name]);
    const tokens = data.ofTokens.map((name, i) => [`token-${i}`, name]);
    choices("colour", [
      ...segments.filter((_, i) => rows.some((row) => row.segments.some((part) => part[1 + i] != null))),
      ...tokens.filter(() => rows.some((row) => row.tokens)),
      ["none", "none"],
    ]);
    choices("ended", [["", "all"], ["true", "ended"], ["false", "cut off"]]);
    filled = true;
  }

  const value = (row, sort) => {
    if (sort === "order") return row.order;
    if (sort !== "worst") return row.numbers[Number(sort)];
    const paid = row.segments.map((part) => part[1]).filter((number) => number != null);
    return paid.length ? Math.min(...paid) : null;
  };

  // Rows without a number come last, whatever the order.
  function sorted(list, sort, order) {
    const sign = order === "up" ? 1 : -1;
    return list.map((item) => [value(item[0] ?? item, sort), item]).sort(([a], [b]) => (a == null) - (b == null) || sign * (a - b)).map(([, item]) => item);
  }

  function isWanted(row, wanted) {
    if (wanted.run !== "" && row.run !== Number(wanted.run)) return false;
    if (wanted.file !== "" && row.file !== Number(wanted.file)) return false;
    if (wanted.ended !== "" && String(row.ended) !== wanted.ended) return false;
    if (wanted.view === "each" && wanted.step !== "") {
      const [from, to] = steps.get(`${row.run} ${row.file}`);
      const step = { first: from, last: to }[wanted.step] ?? Number(wanted.step);
      if (row.step !== step) return false;
    }
    if (!wanted.search) return true;
    row.low ??= `${data.prompts[row.prompt]}\n${row.text}`.toLowerCase();
    return row.low.includes(wanted.search);
  }

  // By prompt: of each run and file the response of its first step and that of its last.
  function byPrompt(list) {
    const groups = new Map();
    for (const row of list) {
      const of = groups.get(row.prompt) ?? new Map(), key = `${row.run} ${row.file}`, known = of.get(key);
      of.set(key, known ? [known[0].step <= row.step ? known[0] : row, known[1].step > row.step ? known[1] : row] : [row, row]);
      groups.set(row.prompt, of);
    }
    return [...groups.values()]
      .map((of) => [...of.values()].flatMap(([before, after]) => (before === after ? [before] : [before, after])))
      .filter((group) => group.length > 1)
      // What is sorted by is the last response.
      .map((group) => [group[group.length - 1], ...group.slice(0, -1)]);
  }

  function choose(keep = false) {
    const wanted = Object.fromEntries(new FormData(form));
    for (const select of form.querySelectorAll("select")) wanted[select.name] = select.value;
    wanted.search = wanted.search.trim().toLowerCase();
    form.elements.step.disabled = wanted.view === "prompts";
    const list = rows.filter((row) => isWanted(row, wanted));
    shown = sorted(wanted.view === "prompts" ? byPrompt(list) : list, wanted.sort, wanted.order);
    first = keep ? Math.min(first, Math.max(0, Math.floor((shown.length - 1) / AT_ONCE) * AT_ONCE)) : 0;
    const of = wanted.view === "prompts" ? "prompts" : "responses";
    one("count").textContent = `${shown.length} ${of}${list.length < rows.length ? `, of ${rows.length} responses on this page ${list.length} as chosen` : ""}`;
    drawLegend(wanted.colour);
    drawList(wanted);
  }

  function drawLegend(colour) {
    const legend = one("legend"), limit = data.limits[colour] ?? 1, steps = [...legend.querySelectorAll(".scale span")];
    legend.hidden = colour === "none";
    legend.querySelector(".legend > span").textContent = form.elements.colour.selectedOptions[0]?.textContent ?? "";
    steps.forEach((step, i) => {
      const share = (2 * i) / (steps.length - 1) - 1;
      step.textContent = `${share > 0 ? "+" : ""}${Number((share * limit).toPrecision(2))}`;
    });
  }

  function parts(row, colour) {
    const [kind, place] = colour.split("-"), limit = data.limits[colour] ?? 1;
    const share = (number) => (number == null ? 0 : Math.min(Math.max(number / limit, -1), 1));
    const lines = (text) => text.replaceAll("\n", "↵\n");
    if (kind === "token" && row.tokens) {
      const [ends, kl, entropy] = row.tokens, numbers = row.tokens[1 + Number(place)];
      const found = ends.map((end, i) => ({
        text: lines(row.text.slice(i ? ends[i - 1] : 0, end)),
        title: `KL ${format(kl[i], 4)} nats, entropy ${plain(entropy[i])} nats`,
        share: share(numbers[i]),
        label: "",
      })).filter((part) => part.text);
      const rest = row.text.slice(ends[ends.length - 1]);
      return rest ? [...found, { text: lines(rest), title: "no numbers of these tokens", share: 0, label: "" }] : found;
    }
    if (!row.segments.length) return [{ text: lines(row.text), title: "no segments of this response", share: 0, label: "" }];
    return row.segments.map((part) => ({
      text: lines(part[0]),
      title: data.ofSegments.map((name, i) => `${name} ${format(part[1 + i], 4)}`).join(", "),
      share: kind === "segment" ? share(part[1 + Number(place)]) : 0,
      label: kind === "segment" ? format(part[1 + Number(place)], 2) : "",
    }));
  }

  function drawParts(row, colour) {
    const box = one("parts").content.firstElementChild.cloneNode(true), model = box.firstElementChild;
    if (!row.text) {
      box.textContent = "(empty response)";
      return box;
    }
    const list = parts(row, colour).map((part) => {
      const found = model.cloneNode(true), label = found.querySelector("b");
      found.firstChild.nodeType === 3 ? (found.firstChild.data = part.text) : found.prepend(part.text);
      found.title = part.title;
      found.style.setProperty("--share", part.share.toFixed(3));
      if (!part.label) label.remove();
      else {
        label.textContent = part.label;
        // In the line that ends, and not in the next one.
        if (part.text.endsWith("\n")) {
          found.firstChild.data = part.text.slice(0, -1);
          found.append("\n");
        }
      }
      return found;
    });
    // Tab comes to the first part; arrows go on from there.
    list.forEach((part, i) => { part.tabIndex = i ? -1 : 0; });
    box.replaceChildren(...list);
    return box;
  }

  function about(row) {
    const head = document.createElement("h5"), bold = document.createElement("b");
    const names = [data.runs.length > 1 ? data.runs[row.run] : "", files > 1 ? data.files[row.file] : "", row.step == null ? "" : `step ${row.step}`];
    bold.textContent = names.filter(Boolean).join(" · ");
    head.append(bold);
    const numbers = data.numbers.map(([name, unit], i) => (row.numbers[i] == null ? "" : `${name} ${plain(row.numbers[i])} ${unit}`.trim())).filter(Boolean);
    head.append(numbers.length ? ` · ${numbers.join(" · ")}` : "");
    if (row.ended === false) {
      const cut = document.createElement("span");
      cut.className = "cut";
      cut.textContent = "cut off by the length limit";
      head.append(cut);
    }
    return head;
  }

  // What is of one run stands in one row, before and after.
  function rowsOf(group) {
    const found = new Map();
    for (const row of group) {
      const key = `${row.run} ${row.file}`;
      found.set(key, [...(found.get(key) ?? []), row].sort((a, b) => a.step - b.step));
    }
    return [...found.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, part]) => part);
  }

  function drawList(wanted) {
    const part = shown.slice(first, first + AT_ONCE);
    one("list").replaceChildren(...part.map((item) => {
      const group = wanted.view === "prompts" ? [...item.slice(1), item[0]] : [item];
      const article = one("sample").content.firstElementChild.cloneNode(true);
      article.querySelector("h4").textContent = group[0].id ? `prompt ${group[0].id}` : "";
      article.querySelector("h4").hidden = !group[0].id;
      article.querySelector(".prompt").textContent = data.prompts[group[0].prompt];
      article.querySelector(".responses").append(...rowsOf(group).map((part) => {
        const pair = document.createElement("div");
        pair.className = part.length > 1 ? "pair" : "";
        pair.append(...part.map((row) => {
          const box = document.createElement("div");
          box.append(about(row), drawParts(row, wanted.colour));
          return box;
        }));
        return pair;
      }));
      return article;
    }));
    one("place").textContent = shown.length ? `${first + 1} to ${first + part.length} of ${shown.length}` : "none";
    one("previous").disabled = first === 0;
    one("next").disabled = first + AT_ONCE >= shown.length;
  }

  function turn(by) {
    first += by;
    drawList({ view: form.elements.view.value, colour: form.elements.colour.value });
    one("count").scrollIntoView({ block: "start" });
  }

  function walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.classList.contains("segment")) return;
    const next = step > 0 ? event.target.nextElementSibling : event.target.previousElementSibling;
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  // New rows, with the choices and the place as they are.
  function update(given) {
    read(given);
    fillControls();
    choose(true);
  }

  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(choose, 120);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  one("previous").addEventListener("click", () => turn(-AT_ONCE));
  one("next").addEventListener("click", () => turn(AT_ONCE));
  one("list").addEventListener("keydown", walk);
  read(JSON.parse(one("rows").textContent));
  fillControls();
  choose();
  return { update };
})();
