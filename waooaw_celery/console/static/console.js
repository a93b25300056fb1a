"use strict";
// What the console does in the browser: local times, "select all", and pausing the live page.

const zoneKey = "waooaw-utc";
let inUtc = localStorage.getItem(zoneKey) === "1";
const parts = {year: "numeric", month: "numeric", day: "numeric", hour: "numeric", minute: "numeric", second: "numeric"};
const local = new Intl.DateTimeFormat(undefined, parts);
const precise = new Intl.DateTimeFormat(undefined, {...parts, fractionalSecondDigits: 3});

function showTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    const isPrecise = element.classList.contains("precise");
    const utc = moment.toISOString().replace("T", " ").replace(isPrecise ? /Z$/ : /\.\d+Z$/, "") + " UTC";
    element.textContent = inUtc ? utc : (isPrecise ? precise : local).format(moment);
    element.title = utc;
  }
}

function showZone(button) {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";
  button.textContent = inUtc ? "UTC" : zone;
  button.title = "Times are in " + (inUtc ? "UTC. Show them in " + zone : zone + ". Show them in UTC");
}

const zoneButton = document.getElementById("zone");
zoneButton.hidden = false;
showZone(zoneButton);
zoneButton.addEventListener("click", () => {
  inUtc = !inUtc;
  localStorage.setItem(zoneKey, inUtc ? "1" : "0");
  showZone(zoneButton);
  showTimes(document);
});
showTimes(document);

for (const box of document.querySelectorAll("input[data-all]")) {
  box.hidden = false;
  box.addEventListener("change", () => {
    for (const each of box.form.querySelectorAll(`input[name="${box.dataset.all}"]`)) each.checked = box.checked;
  });
}

const pause = document.getElementById("pause");
if (pause) {
  pause.hidden = false;
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") !== "true";
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  });
  const live = document.getElementById("live");
  document.body.addEventListener("htmx:sseBeforeMessage", (event) => {
    // Who moves through the page with the keyboard must not lose the place.
    const isUsed = live.contains(document.activeElement);
    if (pause.getAttribute("aria-pressed") === "true" || isUsed) event.preventDefault();
  });
  document.body.addEventListener("htmx:sseMessage", () => showTimes(live));
  const lost = document.getElementById("lost");
  for (const name of ["htmx:sseError", "htmx:sseClose"]) {
    document.body.addEventListener(name, () => { lost.hidden = false; });
  }
  document.body.addEventListener("htmx:sseOpen", () => { lost.hidden = true; });
}

for (const form of document.querySelectorAll("form.search")) {
  form.addEventListener("submit", () => {  // a short address is a better bookmark
    for (const each of form.elements) if (each.name && each.value === "") each.disabled = true;
  });
}
window.addEventListener("pageshow", () => {  // back again: the fields are enabled
  for (const each of document.querySelectorAll("form.search [disabled]")) each.disabled = false;
});
