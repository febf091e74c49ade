"use strict";
// Filter, order and step through the questions. Everything is already in the page: nothing here writes markup.
(() => {
  const PAGE = 20; // questions that are shown at first, and added by each "Show more"
  const form = document.getElementById("filter");
  const list = document.getElementById("questions");
  const more = document.getElementById("f-more");
  const byId = (id) => document.getElementById(id);
  const value = (id) => byId(id)?.value ?? "";
  const models = [...form.querySelectorAll(".models input")];
  const questions = [...list.children].map((element, position) => ({
    element,
    position,
    scores: element.dataset.scores.split(",").map((score) => (score === "" ? null : Number(score))),
    text: null, // in lower case, computed at the first search
  }));
  let matching = questions;
  let limit = PAGE;

  // Scores are from 0 to 1: a rating of 7 is 2/3, one of 4 is 1/3; a win is 1 and a draw 1/2.
  const band = (score) => (score === null ? "none" : score >= 2 / 3 ? "high" : score >= 1 / 3 ? "middle" : "low");

  function matches(question, filters) {
    const { evaluation, category } = question.element.dataset;
    if (filters.evaluation && evaluation !== filters.evaluation) return false;
    if (filters.category && category !== filters.category) return false;
    if (filters.score && band(question.scores[filters.left]) !== filters.score) return false;
    if (!filters.text) return true;
    question.text ??= question.element.textContent.toLowerCase();
    return question.text.includes(filters.text);
  }

  function rank(question, filters) {
    const left = question.scores[filters.left];
    const right = question.scores[filters.right];
    if (filters.order === "lowest") return left ?? Infinity;
    return left === null || right === null ? Infinity : -Math.abs(left - right);
  }

  function filter() {
    const filters = {
      text: value("f-text").trim().toLowerCase(),
      evaluation: value("f-evaluation"),
      category: value("f-category"),
      score: value("f-score"),
      order: value("f-order"),
      left: Number(value("f-left")),
      right: Number(value("f-right")),
    };
    matching = questions.filter((question) => matches(question, filters));
    const ranks = new Map(matching.map((question) => [question, filters.order ? rank(question, filters) : 0]));
    // Questions without a score are last, in their own order: Infinity minus Infinity is NaN, which is no order.
    const order = (a, b) => (ranks.get(a) === ranks.get(b) ? 0 : ranks.get(a) - ranks.get(b));
    matching.sort((a, b) => order(a, b) || a.position - b.position);
    list.append(...matching.map((question) => question.element));
    show();
  }

  function show() {
    const shown = new Set(matching.slice(0, limit));
    for (const question of questions) question.element.hidden = !shown.has(question);
    more.parentElement.hidden = matching.length <= limit;
    const count = `${shown.size} of ${matching.length} matching questions shown`;
    byId("f-count").textContent = matching.length ? count : "No question matches.";
  }

  function showModels() {
    const hidden = new Set(models.filter((box) => !box.checked).map((box) => box.value));
    for (const answer of list.querySelectorAll(".answer")) answer.hidden = hidden.has(answer.dataset.model);
  }

  function focusOn(element) {
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: "start", behavior: "instant" });
  }

  function move(distance) {
    const current = matching.findIndex((question) => question.element.contains(document.activeElement));
    const next = current < 0 ? 0 : Math.min(Math.max(current + distance, 0), matching.length - 1);
    if (!matching.length) return;
    if (next >= limit) {
      limit += PAGE;
      show();
    }
    focusOn(matching[next].element);
  }

  function followLink() {
    const target = questions.find((question) => question.element.id === location.hash.slice(1));
    if (!target) return;
    if (!matching.includes(target)) clear();
    limit = Math.max(limit, matching.indexOf(target) + 1);
    show();
    focusOn(target.element);
  }

  function refresh() {
    limit = PAGE;
    filter();
    showModels();
  }

  function clear() {
    form.reset();
    refresh();
  }

  form.addEventListener("input", refresh);
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("f-clear").addEventListener("click", clear);
  more.addEventListener("click", () => {
    const first = matching[limit];
    limit += PAGE;
    show();
    if (first) focusOn(first.element);
  });
  window.addEventListener("hashchange", followLink);
  document.addEventListener("keydown", (event) => {
    if (!byId("f-keys").checked || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input:not([type=checkbox]), select, textarea")) return;
    const onQuestion = document.activeElement.classList.contains("question");
    if (event.key === "/") byId("f-text").focus(), byId("f-text").scrollIntoView({ block: "center" });
    else if (event.key === "j" || (onQuestion && event.key === "ArrowRight")) move(1);
    else if (event.key === "k" || (onQuestion && event.key === "ArrowLeft")) move(-1);
    else return;
    event.preventDefault();
  });

  form.hidden = false;
  refresh();
  followLink();
})();
