"use strict";
// The page is complete without this script, which adds search, filters, sorting, relative times and copying.
const every = (selector, from = document) => [...from.querySelectorAll(selector)];
const said = document.getElementById("Said");

// Copies a line to the clipboard; where that is not allowed, selects it.
const copy = async (button) => {
  const line = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(line.textContent);
    button.textContent = said.textContent = "Copied";
  } catch {
    const range = document.createRange();
    range.selectNodeContents(line);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    button.textContent = "Selected";
    said.textContent = "Selected: copy it with the keyboard.";
  }
  setTimeout(() => { button.textContent = "Copy"; said.textContent = ""; }, 2500);
};
for (const command of every(".command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.ariaLabel = `Copy: ${command.textContent}`;
  button.addEventListener("click", () => copy(button));
  command.append(button);
}

// Relative times: "3 weeks ago", with the exact time as the tooltip.
const spans = [["year", 31557600], ["month", 2629800], ["week", 604800], ["day", 86400], ["hour", 3600], ["minute", 60]];
const ago = (iso) => {
  const seconds = (Date.now() - Date.parse(iso)) / 1000;
  const [unit, length] = spans.find(([, length]) => seconds >= length) || ["", 1];
  const count = Math.floor(seconds / length);
  return unit ? `${count} ${unit}${count === 1 ? "" : "s"} ago` : "just now";
};
for (const time of every("time")) {
  if (Date.parse(time.dateTime) <= 0) continue;  // the record has no time
  time.title = `${time.textContent} UTC`;
  time.textContent = ago(time.dateTime);
}
for (const age of every(".age")) age.textContent = `, ${ago(age.dataset.at)}`;

// Search, filters and sorting. The address keeps them: "#state=yanked&q=torch".
const form = document.querySelector(".tools");
const list = document.getElementById("List");
let index;
const build = () => every("details.image", list).map((image) => ({
  image, name: image.id, opened: false,
  releases: every("details.release", image).map((release) => ({
    release, text: `${image.id} ${release.id} ${release.textContent}`.toLowerCase(),
    states: (release.dataset.state ?? "published").split(" "), channels: (release.dataset.channels ?? "").split(" "),
  })),
}));
const filter = () => {
  index ??= build();
  const { q, state, channel } = Object.fromEntries(new FormData(form));
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  const filtering = words.length > 0 || state !== "" || channel !== "";
  let images = 0, releases = 0;
  for (const entry of index) {
    const byName = words.every((word) => entry.name.includes(word));
    let found = 0;
    for (const one of entry.releases) {
      const match = (!state || one.states.includes(state)) && (!channel || one.channels.includes(channel))
        && (byName || words.every((word) => one.text.includes(word)));
      one.release.hidden = !match;
      found += match;
    }
    entry.match = found > 0 || (byName && !state && !channel);
    entry.inside = filtering && found > 0 && !(byName && !state && !channel);
    entry.image.hidden = !entry.match;
    images += entry.match;
    releases += found;
  }
  const few = images <= 12;  // a result that fits on some screens is opened
  for (const entry of index) {
    if (entry.inside && few && !entry.image.open) entry.image.open = entry.opened = true;
    else if (entry.opened && !(entry.inside && few)) entry.image.open = entry.opened = false;
  }
  document.querySelector(".empty").hidden = images > 0;
  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
  form.querySelector("output").textContent = filtering
    ? `${count(images, "image")}, ${count(releases, "release")}` : count(index.length, "image");
};
const orders = {
  "": (a, b) => b.dataset.new - a.dataset.new,
  name: (a, b) => (a.id < b.id ? -1 : 1),
  size: (a, b) => b.dataset.size - a.dataset.size,
  count: (a, b) => b.dataset.count - a.dataset.count,
};
const sort = () => list.append(...every("details.image", list).sort(orders[form.elements.sort.value]));
const fields = ["q", "state", "channel", "sort"];
const remember = () => {
  const kept = new URLSearchParams(fields.map((name) => [name, form.elements[name].value]).filter(([, value]) => value));
  history.replaceState(null, "", `#${kept}`);
};

// Opens the release that the address ends in, or takes the filters from it.
const go = () => {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.includes("=")) {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const name of fields) form.elements[name].value = asked.get(name) ?? "";
    if (form.elements.sort.selectedIndex < 0) form.elements.sort.value = "";
    sort();
    filter();
    return;
  }
  const target = hash && document.getElementById(hash);
  if (!target) return;
  for (let node = target; node; node = node.parentElement) {
    if (node.tagName === "DETAILS") { node.open = true; node.hidden = false; }
  }
  target.scrollIntoView();
};
if (form) {
  form.hidden = false;
  form.querySelector("output").textContent = document.querySelector(".tiles li").textContent;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { filter(); remember(); });
  form.elements.sort.addEventListener("input", sort);
  document.querySelector(".empty button").addEventListener("click", () => { form.reset(); sort(); filter(); remember(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.matches("input, select")) { event.preventDefault(); form.elements.q.focus(); }
  });
  addEventListener("hashchange", go);
  go();
}
