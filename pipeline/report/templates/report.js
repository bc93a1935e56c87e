"use strict";
// Copies a line to the clipboard and says so; without a script the line can still be marked by hand.
for (const button of document.querySelectorAll("button[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const line = document.getElementById(button.dataset.copies);
    const said = document.getElementById("said");
    try {
      await navigator.clipboard.writeText(line.textContent);
      said.textContent = "Copied.";
      button.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(line);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      said.textContent = "Marked: copy it with the keyboard.";
      button.textContent = "Marked";
    }
    setTimeout(() => { button.textContent = "Copy"; said.textContent = ""; }, 2500);
  });
}
// Opens the release that an address ends in.
const open = () => {
  const there = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (there && there.tagName === "DETAILS") there.open = true;
};
addEventListener("hashchange", open);
open();
