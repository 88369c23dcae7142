// Paper is light and does not unfold: in print every answer is open, and afterwards all is as before.
const look = document.documentElement.dataset;
let theme;
let folded = [];

window.addEventListener("beforeprint", () => {
  theme = look.theme;
  look.theme = "light";
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((part) => (part.open = true));
});

window.addEventListener("afterprint", () => {
  look.theme = theme;
  folded.forEach((part) => (part.open = false));
});
