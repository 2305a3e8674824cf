// Light or dark: what was chosen last is set before anything is painted, so nothing flashes. A classic script,
// because modules run only after the page was read.
(() => {
  const KEY = "swarm-board-theme";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const saved = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is blocked: the choice lasts as long as the page
    }
  };
  const chosen = saved();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
    const show = () => button.setAttribute("aria-label", isDark() ? "Switch to light" : "Switch to dark");
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try {
        localStorage.setItem(KEY, root.dataset.theme);
      } catch {
        // as above
      }
      show();
    });
    dark.addEventListener("change", show);
    show();
  });
})();
