// Draws the charts of a page from its data, and draws them again when a head, a step or a statistic is chosen.
"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const state = { step: page.steps.length - 1, layer: 0, head: 0, labels: {} };
const views = new Map();
const ends = ["low", "high", "permuted_low", "permuted_high", "initial_low", "initial_high"];
const byId = (id) => document.getElementById(id);

// The rows of a cube at the chosen step, layer and head: one row per point of its other axes.
// `free` names shared axes that are not chosen: all of their coordinates are returned.
function rowsOf(cube, run, free = []) {
  const names = Object.keys(cube.axes);
  const indices = names.map((name) => {
    const values = cube.axes[name];
    if (free.includes(name) || !(name in state)) return values.map((_, index) => index);
    if (name !== "step") return [values.indexOf(state[name])].filter((index) => index >= 0);
    const last = values.filter((value) => value <= page.steps[state.step]).length - 1;
    return [Math.max(last, 0)];
  });
  let rows = [{ at: 0, run }];
  names.forEach((name, axis) => {
    const size = cube.axes[name].length;
    rows = rows.flatMap((row) =>
      indices[axis].map((index) => ({ ...row, at: row.at * size + index, [name]: cube.axes[name][index] })));
  });
  for (const row of rows) {
    for (const [column, values] of Object.entries(cube.columns)) row[column] = values[row.at];
    if (cube.x) row.x = row[cube.x];
    if (cube.y) row.y = row[cube.y];
    const nulls = ends.slice(2).map((end) => row[end]).filter((x) => x !== null && x !== undefined);
    row.inside = row.value !== null && row.value <= Math.max(...nulls) && row.value >= Math.min(...nulls);
    for (const end of ends) row[`${end}_drawn`] = row[end] ?? row.value;  // an empty band where there is none
  }
  return rows;
}

// The last step of a run that is not after the chosen one, or its first step.
function lastStep(rows, run) {
  const steps = rows.filter((row) => row.run === run).map((row) => row.step);
  const before = steps.filter((step) => step <= page.steps[state.step]);
  return before.length ? Math.max(...before) : Math.min(...steps);
}

function rowsFor(chart) {
  if (chart.rows) return chart.rows;
  const label = state.labels[chart.choice];
  const rows = (chart.cubes[label] || []).flatMap((place) => {
    const cube = page.cubes[place.cube];
    return rowsOf(cube, page.runs[place.run], chart.free);
  });
  for (const row of rows) {
    if (chart.tile) {
      row.x = row.head * (chart.tile + 1) + row.key;
      row.y = row.layer * (chart.tile + 1) + row.query;
      [row.x2, row.y2] = [row.x + 1, row.y + 1];
    }
    row.chosen = chart.free.includes("step") ? row.step === lastStep(rows, row.run)
      : row.layer === state.layer && row.head === state.head;
  }
  return rows;
}

// Limits and colours of a map: those of all runs, symmetric about 0 if values have both signs.
function coloursOf(chart) {
  const alike = page.charts.filter((other) => other.choice === chart.choice && other.spec.params);
  const values = alike.flatMap(rowsFor).map((row) => row.value).filter((value) => value !== null);
  const [lowest, highest] = values.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
  if (lowest >= 0 || highest <= 0) return { lowest, highest, scheme: "viridis" };
  const limit = Math.max(-lowest, highest);
  return { lowest: -limit, highest: limit, scheme: "blueorange" };
}

async function update(chart) {
  const view = views.get(chart.id);
  const rows = rowsFor(chart);
  const empty = rows.every((row) => row.value === null || row.value === undefined);
  byId(chart.id).closest("figure").hidden = empty;
  if (empty) return;  // scales of no numbers would be infinite
  if (!view) return embed(chart, rows);
  if (chart.spec.params) {
    for (const [name, value] of Object.entries(coloursOf(chart))) view.signal(name, value);
  }
  await view.change("rows", view.changeset().remove(() => true).insert(rows)).runAsync();
}

function download(name, indices) {
  const columns = ["run", "step", "layer", "head", "statistic", "unit", "value", ...ends];
  const quoted = (x) => (/[",\n]/.test(x) ? `"${x.replaceAll('"', '""')}"` : x);
  const lines = [columns, ...indices.flatMap(({ cube: index, run }) => {
    const cube = page.cubes[index];
    const rows = rowsOf(cube, page.runs[run], ["step", "layer", "head"]);
    return rows.map((row) => columns.map((column) => ({ ...row, statistic: cube.label, unit: cube.units })[column] ?? ""));
  })];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.map((line) => line.map((x) => quoted(String(x))).join(",")).join("\n")],
    { type: "text/csv" }));
  link.download = `${name}.csv`;
  link.click();
}

function fillTable(table) {
  const body = byId(table.id).tBodies[0];
  body.replaceChildren();
  const shown = (x) => (x === undefined || x === null ? "" : String(x).replaceAll("-", "−"));
  const range = (row, from) => (row[`${from}low`] === undefined || row[`${from}low`] === null ? ""
    : `${shown(row[`${from}low`])} … ${shown(row[`${from}high`])}`);
  for (const { cube: index, run } of table.cubes) {
    const cube = page.cubes[index];
    for (const row of rowsOf(cube, page.runs[run])) {
      const line = body.insertRow();
      const value = row.value === null ? `undefined: ${cube.reasons[row.at] ?? ""}` : shown(row.value);
      const cells = [...(page.runs.length > 1 ? [row.run] : []), cube.label, value, cube.units,
        range(row, ""), range(row, "permuted_"), range(row, "initial_")];
      for (const cell of cells) line.insertCell().textContent = cell;
      line.title = cube.meaning;
    }
  }
}

async function updateAll() {
  byId("step-name").textContent = `step ${page.steps[state.step].toLocaleString("en")}`;
  for (const axis of ["layer", "head"]) if (byId(axis)) byId(axis).value = state[axis];
  for (const place of document.querySelectorAll(".chosen")) place.textContent = `layer ${state.layer}, head ${state.head}`;
  for (const place of document.querySelectorAll(".query")) place.textContent = `query ${page.names[state.query] ?? state.query}`;
  page.tables.forEach(fillTable);
  await Promise.all(page.charts.map(update));
  document.body.dataset.drawn = `${state.step}/${state.layer}/${state.head}`;
}

async function embed(chart, rows) {
  const dark = document.documentElement.dataset.theme === "dark";
  const options = { actions: false, renderer: "svg", theme: dark ? "dark" : undefined };
  const spec = { ...chart.spec, datasets: { ...chart.spec.datasets, rows } };
  if (spec.params) {
    const colours = coloursOf(chart);
    spec.params = spec.params.map(({ name, value }) => ({ name, value: colours[name] ?? value }));
  }
  const { view } = await vegaEmbed(byId(chart.id), spec, options);
  views.set(chart.id, view);
  if (!chart.clickable) return;
  view.addEventListener("click", (event, item) => {
    if (!item || !item.datum || item.datum.head === undefined) return;
    for (const axis of ["layer", "head"]) state[axis] = item.datum[axis];
    if (!chart.tile && item.datum.query !== undefined) state.query = item.datum.query;
    updateAll();
  });
}

for (const select of document.querySelectorAll("select[data-choice]")) {
  select.addEventListener("change", () => {
    state.labels[select.dataset.choice] = select.value;
    page.charts.filter((chart) => chart.choice === select.dataset.choice).forEach(update);
  });
}
Object.assign(state, page.start);
byId("step").addEventListener("input", (event) => { state.step = Number(event.target.value); updateAll(); });
for (const axis of ["layer", "head"]) {
  byId(axis).addEventListener("change", (event) => { state[axis] = Number(event.target.value); updateAll(); });
}
for (const button of document.querySelectorAll("button[data-csv]")) {
  const table = page.tables.find((one) => one.id === `table-${button.dataset.csv}`);
  button.addEventListener("click", () => download(button.dataset.csv, table.cubes));
}
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  views.forEach((view) => view.finalize());
  views.clear();
  updateAll();
});
document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
updateAll();
