// The language of the reader's browser to begin with; a readout under the pointer on every chart. The page is whole without this.
if (navigator.language.toLowerCase().startsWith("zh")) document.getElementById("zh").checked = true;
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
