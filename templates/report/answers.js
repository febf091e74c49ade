
"use strict";
// Filters, orders and walks through the questions. Everything is in the page already: nothing here writes markup.
(() => {
  const STEP = 20;
  const form = document.getElementById("filter");
  const list = document.getElementById("questions");
  const more = document.getElementById("f-more");
  const found = (id) => document.getElementById(id);
  const value = (id) => found(id)?.value ?? "";
  const models = [...form.querySelectorAll(".models input")];
  const questions = [...list.children].map((element, place) => ({
    element,
    place,
    scores: element.dataset.scores.split(",").map((one) => (one === "" ? null : Number(one))),
    text: null,
  }));
  let kept = questions;
  let limit = STEP;

  const band = (score) => (score === null ? "none" : score >= 2 / 3 ? "high" : score >= 1 / 3 ? "middle" : "low");

  function fits(question, wanted) {
    const { bench, category } = question.element.dataset;
    if (wanted.bench && bench !== wanted.bench) return false;
    if (wanted.category && category !== wanted.category) return false;
    if (wanted.score && band(question.scores[wanted.left]) !== wanted.score) return false;
    if (!wanted.text) return true;
    question.text ??= question.element.textContent.toLowerCase();
    return question.text.includes(wanted.text);
  }

  function rank(question, wanted) {
    const left = question.scores[wanted.left];
    const right = question.scores[wanted.right];
    if (wanted.order === "lowest") return left ?? Infinity;
    return left === null || right === null ? Infinity : -Math.abs(left - right);
  }

  function filter() {
    const wanted = {
      text: value("f-text").trim().toLowerCase(),
      bench: value("f-bench"),
      category: value("f-category"),
      score: value("f-score"),
      order: value("f-order"),
      left: Number(value("f-left")),
      right: Number(value("f-right")),
    };
    kept = questions.filter((one) => fits(one, wanted));
    const ranks = new Map(kept.map((one) => [one, wanted.order ? rank(one, wanted) : 0]));
    // Two that lack a score are as far behind: Infinity minus Infinity is no order.
    const order = (one, other) => (ranks.get(one) === ranks.get(other) ? 0 : ranks.get(one) - ranks.get(other));
    kept.sort((one, other) => order(one, other) || one.place - other.place);
    list.append(...kept.map((one) => one.element));
    show();
  }

  function show() {
    const seen = new Set(kept.slice(0, limit));
    for (const one of questions) one.element.hidden = !seen.has(one);
    more.parentElement.hidden = kept.length <= limit;
    const shown = `${seen.size} of ${kept.length} matching questions shown`;
    found("f-count").textContent = kept.length ? shown : "No question matches.";
  }

  function pick() {
    const off = new Set(models.filter((one) => !one.checked).map((one) => one.value));
    for (const answer of list.querySelectorAll(".answer")) answer.hidden = off.has(answer.dataset.model);
  }

  function arrive(element) {
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: "start", behavior: "instant" });
  }

  function walk(step) {
    const at = kept.findIndex((one) => one.element.contains(document.activeElement));
    const next = at < 0 ? 0 : Math.min(Math.max(at + step, 0), kept.length - 1);
    if (!kept.length) return;
    if (next >= limit) {
      limit += STEP;
      show();
    }
    arrive(kept[next].element);
  }

  function follow() {
    const wanted = questions.find((one) => one.element.id === location.hash.slice(1));
    if (!wanted) return;
    if (!kept.includes(wanted)) clear();
    limit = Math.max(limit, kept.indexOf(wanted) + 1);
    show();
    arrive(wanted.element);
  }

  function refresh() {
    limit = STEP;
    filter();
    pick();
  }

  function clear() {
    form.reset();
    refresh();
  }

  form.addEventListener("input", refresh);
  form.addEventListener("submit", (event) => event.preventDefault());
  found("f-clear").addEventListener("click", clear);
  more.addEventListener("click", () => {
    const first = kept[limit];
    limit += STEP;
    show();
    if (first) arrive(first.element);
  });
  window.addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => {
    if (!found("f-keys").checked || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input:not([type=checkbox]), select, textarea")) return;
    const onQuestion = document.activeElement.classList.contains("question");
    if (event.key === "/") found("f-text").focus(), found("f-text").scrollIntoView({ block: "center" });
    else if (event.key === "j" || (onQuestion && event.key === "ArrowRight")) walk(1);
    else if (event.key === "k" || (onQuestion && event.key === "ArrowLeft")) walk(-1);
    else return;
    event.preventDefault();
  });

  form.hidden = false;
  refresh();
  follow();
})();
