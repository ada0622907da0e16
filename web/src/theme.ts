// Dark or light: the system's choice until the reader makes one.
import { signal } from "@preact/signals";
import { load, save } from "./store";

type Theme = "dark" | "light";
const system = matchMedia("(prefers-color-scheme: dark)");
export const chosen = signal<Theme | null>(load<Theme | null>("theme", null));
export const dark = signal(false);

function apply(): void {
  dark.value = (chosen.value ?? (system.matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset["theme"] = dark.value ? "dark" : "light";
}

export function toggleTheme(): void {
  chosen.value = dark.value ? "light" : "dark";
  save("theme", chosen.value);
  apply();
}

system.addEventListener("change", apply);
apply();
