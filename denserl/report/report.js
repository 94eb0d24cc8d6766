"use strict";
// What the rest of the page does: settings that differ, and, of a page that is watched, what is new on it.

(() => {
  const EVERY = 3000; // milliseconds
  const box = document.getElementById("differing");
  const hide = () => document.querySelectorAll(".settings").forEach((table) => table.classList.toggle("differing", Boolean(box?.checked)));
  box?.addEventListener("change", hide);

  const unfold = document.getElementById("unfold"), groups = () => [...document.querySelectorAll("#curves .group")];
  unfold?.addEventListener("click", () => {
    const open = groups().some((group) => !group.open);
    groups().forEach((group) => { group.open = open; });
    unfold.textContent = open ? "Close all charts" : "Open all charts";
  });

  if (!document.getElementById("watch")) return;
  const told = document.getElementById("watched");
  let state = "";

  // Charts are drawn anew where they are, tables are put in the place of those before, samples keep choices and place; what is
  // open, and where the page stands, stays.
  function bring(page) {
    if ([...page.querySelectorAll("section")].some((section) => !document.getElementById(section.id))) return location.reload();
    for (const part of page.querySelectorAll("[data-part]")) {
      const old = [...document.querySelectorAll("[data-part]")].find((one) => one.dataset.part === part.dataset.part);
      if (old && old.innerHTML !== part.innerHTML) old.replaceChildren(...document.adoptNode(part).childNodes);
    }
    for (const group of page.querySelectorAll("[data-charts]")) {
      const old = [...document.querySelectorAll("[data-charts]")].find((one) => one.dataset.charts === group.dataset.charts);
      if (!old) continue;
      for (const figure of group.querySelectorAll(".chart")) {
        const name = figure.querySelector("figcaption").textContent, chart = JSON.parse(figure.querySelector("script").textContent);
        let there = [...old.querySelectorAll(".chart")].find((one) => one.querySelector("figcaption").textContent === name);
        if (!there) old.append((there = document.adoptNode(figure)));
        denserlCharts.draw(there, chart);
      }
    }
    const rows = page.getElementById("rows");
    if (rows) denserlSamples.update(JSON.parse(rows.textContent));
    hide();
  }

  async function ask() {
    try {
      const answer = await fetch("/", { headers: state ? { "If-None-Match": state } : {}, cache: "no-store" });
      if (answer.status === 200) {
        state = answer.headers.get("ETag") ?? "";
        bring(new DOMParser().parseFromString(await answer.text(), "text/html"));
      }
      told.textContent = answer.status < 400 ? `As of ${new Date().toLocaleTimeString()}.` : await answer.text();
    } catch {
      told.textContent = "The server of this page has stopped; what is shown stays.";
    }
    setTimeout(ask, EVERY);
  }
  ask();
})();
