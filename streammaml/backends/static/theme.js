"use strict";
// Light, dark, or as the system has it. Runs before the first paint, so that nothing flashes.

(() => {
  const CHOICES = ["auto", "light", "dark"];
  const read = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  const keep = (choice) => {
    try { localStorage.setItem("theme", choice); } catch { /* it holds for this visit */ }
  };
  let choice = CHOICES.includes(read()) ? read() : "auto";

  function apply() {
    document.documentElement.dataset.theme = choice;
    const name = document.getElementById("theme-name");
    if (name) name.textContent = choice;
    window.dispatchEvent(new Event("themechange"));
  }

  apply();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
      keep(choice);
      apply();
    });
  });
})();
