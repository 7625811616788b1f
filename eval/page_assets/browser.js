"use strict";
// The sample browser. Samples and answers are untrusted: they only ever become text, by textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const samples = data.samples;
  const total = samples.id.length;
  const PER_PAGE = 10;
  const DENSE = 48; // layers of a strip from which on their gaps shrink
  const SVG = "http://www.w3.org/2000/svg";
  const full = data.arms.find((arm) => arm.name === "full");
  const OUTCOMES = {
    any: ["all samples", () => true],
    right: ["right answers", (arm, i) => isRight(arm, i)],
    wrong: ["wrong answers", (arm, i) => !isRight(arm, i)],
    rescued: ["set right (full depth is wrong)", (arm, i) => isRight(arm, i) && !isRight(full, i)],
    lost: ["broken (full depth is right)", (arm, i) => !isRight(arm, i) && isRight(full, i)],
    other: ["another answer than at full depth", (arm, i) => arm.prediction[i] !== full.prediction[i]],
    none: ["no answer that can be read", (arm, i) => arm.prediction[i] === null],
  };
  const field = Object.fromEntries(["outcome", "arm", "task", "text"].map((id) => [id, document.getElementById(id)]));
  const cards = document.getElementById("cards");
  let found = [];
  let page = 0;
  let sought = null;

  function isRight(arm, i) {
    return arm.right[i] === "1";
  }

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function untrusted(tag, name, text) {
    const made = element(tag, name, text);
    made.dir = "auto";
    return made;
  }

  function letter(index) {
    return index < 26 ? String.fromCharCode(65 + index) : String(index + 1);
  }

  function mark(index) {
    const made = document.createElementNS(SVG, "svg");
    made.setAttribute("class", "mark");
    made.setAttribute("aria-hidden", "true");
    const use = document.createElementNS(SVG, "use");
    use.setAttribute("href", "#mark-" + index);
    made.append(use);
    return made;
  }

  // One cell a layer; see router/strip.py.
  function stripOf(marks) {
    const strip = element("div", marks.length > DENSE ? "strip dense" : "strip");
    strip.setAttribute("aria-hidden", "true");
    strip.style.gridTemplateColumns = "repeat(" + marks.length + ", minmax(0, 1fr))";
    const kinds = { "#": ["", "runs"], ".": ["skipped", "is skipped"], "~": ["moved", "runs in another place"] };
    [...marks].forEach((mark, layer) => {
      const [kind, words] = kinds[mark] || ["again", "runs " + mark + " times"];
      const cell = element("span", kind ? "cell " + kind : "cell");
      cell.title = "layer " + layer + " " + words;
      strip.append(cell);
    });
    return strip;
  }

  function answerText(sample, prediction) {
    if (prediction === null) return "no answer could be read";
    if (prediction < 0) return data.texts[-1 - prediction];
    const choice = samples.choices[sample][prediction];
    return letter(prediction) + (choice === undefined ? "" : "  " + choice);
  }

  function answerOf(arm, index, sample) {
    const [chain, marks, depth] = data.chains[arm.chain[sample]];
    const right = isRight(arm, sample);
    const row = element("li");
    const who = element("div", "who");
    who.append(mark(index), element("span", "", arm.label + (arm.saw ? " (saw the answers)" : "")));
    const said = element("div", right ? "said right" : "said wrong");
    said.append(element("b", "", right ? "\u2713 right" : "\u2717 wrong"));
    said.append(untrusted("bdi", "", answerText(sample, arm.prediction[sample])));
    const shown = element("div", "chain");
    const text = element("div", "small", depth + " layers: ");
    text.append(element("code", "", chain));
    shown.append(stripOf(marks), text);
    row.append(who, said, shown);
    return row;
  }

  function promptOf(i) {
    const parts = [];
    const about = [data.tasks[samples.task[i]]];
    if (samples.difficulty[i] !== null) about.push("difficulty " + samples.difficulty[i]);
    if (samples.subject[i] !== null) about.push("subject " + samples.subject[i]);
    const line = element("p", "about");
    for (const text of about) line.append(untrusted("span", "", text));
    line.append(element("code", "", samples.id[i]));
    parts.push(line);
    if (samples.context[i] !== null) {
      const context = element("details");
      context.append(element("summary", "", "Context"), untrusted("div", "context", data.texts[samples.context[i]]));
      parts.push(context);
    }
    parts.push(untrusted("div", "question", samples.question[i]));
    const answer = samples.answer[i];
    const choices = element("ul", "choices");
    samples.choices[i].forEach((choice, k) => {
      const gold = k === answer;
      choices.append(untrusted("li", gold ? "gold" : "", letter(k) + "  " + choice + (gold ? "  \u2713\u00a0right\u00a0answer" : "")));
    });
    if (!samples.choices[i].length) choices.append(untrusted("li", "gold", "right answer:  " + answer));
    parts.push(choices);
    return parts;
  }

  function card(i) {
    const made = element("article");
    made.append(...promptOf(i));
    const answers = element("ul", "answers");
    data.arms.forEach((arm, k) => answers.append(answerOf(arm, k, i)));
    made.append(answers);
    return made;
  }

  // What a sample is searched by, made at the first search.
  function textOf(i) {
    if (sought === null) sought = new Array(total);
    if (sought[i] === undefined) {
      const context = samples.context[i] === null ? "" : data.texts[samples.context[i]];
      const parts = [samples.id[i], samples.question[i], context, ...samples.choices[i], samples.answer[i]];
      sought[i] = [...parts, samples.subject[i], samples.difficulty[i]].join("\n").toLowerCase();
    }
    return sought[i];
  }

  function choose() {
    const arm = data.arms[Number(field.arm.value)];
    const test = OUTCOMES[field.outcome.value][1];
    const task = Number(field.task.value);
    const words = field.text.value.trim().toLowerCase();
    found = [];
    for (let i = 0; i < total; i++) {
      if (!test(arm, i) || (task >= 0 && samples.task[i] !== task)) continue;
      if (!words || textOf(i).includes(words)) found.push(i);
    }
    page = 0;
    show();
    remember();
  }

  function show() {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    const first = page * PER_PAGE;
    cards.replaceChildren(...found.slice(first, first + PER_PAGE).map(card));
    const number = (value) => value.toLocaleString("en");
    document.getElementById("count").textContent = number(found.length) + " of " + number(total) + " samples";
    document.getElementById("page").textContent = "page " + number(page + 1) + " of " + number(pages);
    document.getElementById("previous").disabled = page === 0;
    document.getElementById("next").disabled = page + 1 >= pages;
    document.getElementById("pager").hidden = pages === 1;
  }

  function turn(by) {
    page += by;
    show();
    document.getElementById("samples").scrollIntoView();
    cards.focus({ preventScroll: true });
  }

  // The choice stands in the address, so that a list can be passed on.
  function remember() {
    const kept = new URLSearchParams();
    if (field.outcome.value !== "any") kept.set("outcome", field.outcome.value);
    if (field.outcome.value !== "any") kept.set("arm", data.arms[Number(field.arm.value)].name);
    if (Number(field.task.value) >= 0) kept.set("task", data.tasks[Number(field.task.value)]);
    if (field.text.value.trim()) kept.set("text", field.text.value.trim());
    const text = kept.toString();
    if (text || location.hash.includes("=")) history.replaceState(null, "", text ? "#" + text : "#samples");
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    const index = (values, value, none) => (values.includes(value) ? values.indexOf(value) : none);
    const names = data.arms.map((arm) => arm.name);
    field.outcome.value = Object.hasOwn(OUTCOMES, kept.get("outcome")) ? kept.get("outcome") : "any";
    field.arm.value = index(names, kept.get("arm"), Math.max(0, names.indexOf("router")));
    field.task.value = index(data.tasks, kept.get("task"), -1);
    field.text.value = kept.get("text") || "";
    return [...kept].length > 0;
  }

  function start() {
    for (const [value, [label]] of Object.entries(OUTCOMES)) field.outcome.append(new Option(label, value));
    data.arms.forEach((arm, k) => field.arm.append(new Option(arm.label, k)));
    field.task.append(new Option("any", -1));
    data.tasks.forEach((task, k) => field.task.append(new Option(task, k)));
    field.task.parentElement.hidden = data.tasks.length < 2;
    const given = recall();
    document.getElementById("browser").hidden = false;
    choose();
    const form = document.getElementById("filters");
    let waiting = 0;
    form.addEventListener("input", (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(choose, event.target === field.text ? 200 : 0);
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      field.outcome.value = "any";
      field.task.value = -1;
      field.text.value = "";
      choose();
    });
    document.getElementById("previous").addEventListener("click", () => turn(-1));
    document.getElementById("next").addEventListener("click", () => turn(1));
    addEventListener("hashchange", () => {
      if (location.hash.includes("=") && recall()) choose();
    });
    if (given) document.getElementById("samples").scrollIntoView();
  }

  start();
})();
