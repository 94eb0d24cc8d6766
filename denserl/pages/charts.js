"use strict";
// Draws the charts of a page and writes their tables. The data of a chart stand beside it as JSON (denserl/pages/charts.py).

const denserlCharts = (() => {
  const HEIGHT = 240;
  const FEW = 40; // points that are marked one by one
  const drawn = new Map(); // figure -> { chart, data, plot }

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function format(value) {
    if (value == null) return "–";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  }

  const columnsOf = (series) => [series.x, series.y, ...(series.low ? [series.low, series.high] : [])];

  // Columns over one rising x: lines are joined there, points (of which several may have one x) follow one another.
  function joined(chart) {
    const own = chart.series.map(columnsOf);
    if (!own.length) return [[]];
    if (!chart.series.some((series) => series.kind === "points")) return uPlot.join(own);
    const width = own.reduce((sum, columns) => sum + columns.length - 1, 1), rows = [];
    let from = 1;
    for (const [x, ...others] of own) {
      x.forEach((value, i) => {
        const row = new Array(width).fill(undefined);
        row[0] = value;
        others.forEach((column, k) => { row[from + k] = column[i]; });
        rows.push(row);
      });
      from += others.length;
    }
    rows.sort((one, other) => one[0] - other[0]);
    return Array.from({ length: width }, (_, k) => rows.map((row) => row[k]));
  }

  // A series for uPlot, and behind it those of the bounds of its interval, which show nothing of their own.
  function seriesOf(series, colour) {
    const shapes = {
      line: { dash: series.dashed ? [5, 4] : undefined, points: { show: series.x.length <= FEW, size: 6 } },
      bars: { paths: uPlot.paths.bars({ size: [1, Infinity], gap: 1 }), fill: colour + "99", points: { show: false } },
      points: { paths: () => null, points: { show: true, size: series.x.length > 300 ? 4 : 7, fill: colour, width: 0 } },
    };
    const value = (plot, y, at, row) => {
      if (!series.low || row == null || y == null) return format(y);
      return `${format(y)} (${format(plot.data[at + 1][row])} to ${format(plot.data[at + 2][row])})`;
    };
    const own = { label: series.name, stroke: colour, width: 1.75, value, ...shapes[series.kind] };
    const bound = { label: "", class: "bound", stroke: "transparent", paths: series.kind === "line" ? undefined : () => null, points: { show: false } };
    return series.low ? [own, bound, bound] : [own];
  }

  function optionsOf(chart, width) {
    const ink = css("--soft"), line = { stroke: css("--line"), width: 1 };
    const axis = { stroke: ink, grid: line, ticks: line, font: "11px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 20 };
    const series = [{ label: chart.xlabel, value: (_, x) => format(x) }], bands = [], whiskers = [];
    for (const one of chart.series) {
      const at = series.length, colour = css(`--series-${one.colour % 10}`);
      series.push(...seriesOf(one, colour));
      if (one.low && one.kind === "line") bands.push({ series: [at + 2, at + 1], fill: colour + "33" });
      else if (one.low) whiskers.push({ at, colour });
    }
    const ticks = (_, values) => values.map((value) => (value == null ? "" : format(value)));
    return {
      width,
      height: HEIGHT,
      series,
      bands,
      cursor: { drag: { x: true, y: false }, points: { size: 7 } },
      axes: [{ ...axis, label: chart.xlabel, size: 34 }, { ...axis, label: chart.ylabel, size: 62, values: ticks }],
      scales: { x: { time: false, range: xRange(chart) }, y: { distr: chart.log ? 3 : 1, range: yRange(chart) } },
      hooks: {
        draw: [(plot) => drawOver(plot, chart, whiskers)],
        // What is hidden hides its interval too.
        setSeries: [(plot, at, change) => {
          if (at == null || change.show == null) return;
          for (let k = at + 1; plot.series[k]?.class === "bound"; k++) plot.setSeries(k, { show: change.show }, false);
        }],
      },
    };
  }

  // With room for the halves of bars and points at both ends, and for a single number.
  const xRange = (chart) => (_, low, high) => {
    if (low == null) return [0, 1];
    const bars = chart.series.filter((series) => series.kind === "bars");
    const gaps = bars.flatMap((series) => series.x.slice(1).map((x, i) => x - series.x[i])).filter((gap) => gap > 0);
    const points = chart.series.some((series) => series.kind === "points") ? (high - low) * 0.03 : 0;
    const half = gaps.length ? Math.min(...gaps) / 2 : low === high ? 1 : points;
    return [low - half, high + half];
  };

  // Of all that is drawn, lines across too; bars stand on 0.
  const yRange = (chart) => (_, low, high) => {
    if (chart.log) return low == null ? [0.1, 1] : uPlot.rangeLog(low, high, 10, false);
    const stands = chart.series.some((series) => series.kind === "bars") ? [0] : [];
    const heights = [low, high, ...chart.references.map((line) => line.y), ...stands].filter((y) => y != null);
    if (!heights.length) return [0, 1];
    const from = Math.min(...heights), to = Math.max(...heights), room = (to - from || Math.abs(to) || 1) * 0.08;
    return [from === 0 ? 0 : from - room, to + room];
  };

  function drawOver(plot, chart, whiskers) {
    const { ctx, bbox } = plot, ratio = devicePixelRatio;
    const stroke = (...points) => {
      ctx.beginPath();
      points.forEach(([x, y], i) => (i % 2 ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
      ctx.stroke();
    };
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineWidth = 1.5 * ratio;
    for (const { at, colour } of whiskers.filter((whisker) => plot.series[whisker.at].show)) {
      ctx.strokeStyle = colour;
      plot.data[0].forEach((x, i) => {
        if (plot.data[at + 1][i] == null) return;
        const middle = plot.valToPos(x, "x", true), half = 4 * ratio;
        const [low, high] = [at + 1, at + 2].map((k) => plot.valToPos(plot.data[k][i], "y", true));
        stroke([middle, low], [middle, high], [middle - half, low], [middle + half, low], [middle - half, high], [middle + half, high]);
      });
    }
    ctx.strokeStyle = ctx.fillStyle = css("--soft");
    ctx.lineWidth = ratio;
    ctx.setLineDash([6 * ratio, 4 * ratio]);
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    for (const line of chart.references) {
      const y = plot.valToPos(line.y, "y", true);
      stroke([bbox.left, y], [bbox.left + bbox.width, y]);
      const high = y - bbox.top < 14 * ratio; // no room above it
      ctx.textBaseline = high ? "top" : "bottom";
      ctx.fillText(line.name, bbox.left + 4 * ratio, y + (high ? 3 : -2) * ratio);
    }
    ctx.restore();
  }

  // What a pointer does, by keys: a name is a button; in the plot arrows read numbers, + and - magnify, 0 shows all.
  function answerKeys(plot, chart) {
    plot.root.querySelectorAll(".u-legend .u-series:not(.bound) th").forEach((name, number) => {
      if (!number) return; // of x
      name.tabIndex = 0;
      name.setAttribute("role", "button");
      name.setAttribute("aria-pressed", "true");
      name.addEventListener("click", () => name.setAttribute("aria-pressed", String(!name.parentElement.classList.contains("u-off"))));
      name.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        name.click();
      });
    });
    const place = plot.root.querySelector(".u-wrap");
    let at = null; // the row whose numbers are read
    place.tabIndex = 0;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${chart.ylabel} by ${chart.xlabel}. Arrow keys read numbers, + and - magnify, 0 shows all. The numbers follow as a table.`);
    place.addEventListener("keydown", (event) => {
      const x = plot.data[0], { min, max } = plot.scales.x;
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], factor = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
      if (!x.length || event.ctrlKey || event.metaKey || !(step || factor || event.key === "0")) return;
      event.preventDefault();
      if (step) {
        at = at == null ? 0 : Math.min(Math.max(at + step, 0), x.length - 1);
        plot.setCursor({ left: plot.valToPos(x[at], "x"), top: plot.over.clientHeight / 2 });
        return;
      }
      const middle = at == null ? (min + max) / 2 : x[at], half = factor ? ((max - min) * factor) / 2 : Infinity;
      plot.setScale("x", { min: Math.max(middle - half, x[0]), max: Math.min(middle + half, x[x.length - 1]) });
    });
  }

  function writeTable(place, chart, data) {
    const heads = [chart.xlabel, ...chart.series.flatMap((one) => [one.name, ...(one.low ? [`${one.name}, from`, `${one.name}, to`] : [])])];
    const cells = (i) => data.map((column) => (column[i] == null ? "" : String(column[i])));
    const [head, ...rows] = chart.table.length ? chart.table : [heads, ...data[0].map((_, i) => cells(i))];
    const table = document.createElement("table");
    const write = (row, text, tag, scope) => {
      const cell = document.createElement(tag);
      if (scope) cell.scope = scope;
      cell.textContent = text;
      row.append(cell);
    };
    const top = table.createTHead().insertRow(), body = table.createTBody();
    head.forEach((text) => write(top, text, "th", "col"));
    for (const texts of rows) {
      const row = body.insertRow();
      texts.forEach((text, i) => (i ? write(row, text, "td") : write(row, text, "th", "row")));
    }
    place.replaceChildren(table);
  }

  function redraw(figure) {
    const entry = drawn.get(figure), place = figure.querySelector(".plot");
    entry.plot?.destroy();
    entry.plot = null;
    if (!place.clientWidth) return; // folded: drawn when it is opened
    entry.plot = new uPlot(optionsOf(entry.chart, place.clientWidth), entry.data, place);
    answerKeys(entry.plot, entry.chart);
  }

  // Draws a chart into a figure, also one that has been drawn with other numbers.
  function draw(figure, chart) {
    const known = drawn.get(figure), entry = { ...known, chart, data: joined(chart) };
    drawn.set(figure, entry);
    const details = figure.querySelector("details"), place = details.querySelector(".scroll");
    if (!known) {
      place.tabIndex = 0;
      details.addEventListener("toggle", () => {
        const { chart, data } = drawn.get(figure);
        if (details.open) writeTable(place, chart, data);
      });
      new ResizeObserver(() => {
        const { plot } = drawn.get(figure), width = figure.querySelector(".plot").clientWidth;
        if (width && !plot) redraw(figure);
        else if (width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
      }).observe(figure);
    }
    redraw(figure);
    if (details.open) writeTable(place, chart, entry.data);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...drawn.keys()].forEach(redraw));
  document.querySelectorAll(".chart > script").forEach((script) => draw(script.parentElement, JSON.parse(script.textContent)));
  return { draw, format };
})();
