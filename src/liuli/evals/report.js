// Language and theme as the link asks (?lang=zh&theme=dark), else as the reader's browser does; a readout under the pointer
// on every chart. The page is whole without this.
const asked = new URLSearchParams(location.search), theme = asked.get("theme");
if ((asked.get("lang") ?? navigator.language).toLowerCase().startsWith("zh")) document.getElementById("zh").checked = true;
if (theme === "dark" || theme === "light") {
  document.documentElement.style.colorScheme = theme;
  for (const { media } of document.styleSheets[0].cssRules)
    if (media?.mediaText.includes("prefers-color-scheme")) media.mediaText = theme === "dark" ? "all" : "not all";
}
for (const plot of document.querySelectorAll(".plot")) {
  const points = JSON.parse(plot.querySelector("script").textContent);
  const box = plot.querySelector(".box"), cursor = plot.querySelector(".cursor"), label = plot.querySelector("output");
  if (!points.length) continue;
  box.addEventListener("pointermove", (event) => {
    const edge = box.getBoundingClientRect(), x = (100 * (event.clientX - edge.left)) / edge.width;
    const near = points.reduce((a, b) => (Math.abs(a[0] - x) <= Math.abs(b[0] - x) ? a : b));
    cursor.style.left = near[0] + "%";
    label.style.left = Math.min(88, Math.max(12, near[0])) + "%";
    label.textContent = near[2];
    plot.classList.add("on");
  });
  box.addEventListener("pointerleave", () => plot.classList.remove("on"));
}
