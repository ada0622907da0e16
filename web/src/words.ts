// Every visible string, in both languages, from one table: words.json, key -> [English, 中文].
import { signal } from "@preact/signals";
import table from "./words.json";
import { load, save } from "./store";

export type Word = keyof typeof table;
export type Language = "en" | "zh";

export const language = signal<Language>(load("language", navigator.language.startsWith("zh") ? "zh" : "en"));

export function setLanguage(value: Language): void {
  language.value = value;
  document.documentElement.lang = value === "zh" ? "zh-CN" : "en";
  save("language", value);
}

/** The string for a key in today's language, with {names} filled in. */
export function t(key: Word, values: Record<string, string | number> = {}): string {
  const text = table[key][language.value === "zh" ? 1 : 0] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** A stage's name as people say it; the recipe's own title for a stage the table does not know. */
export function stageTitle(name: string, title?: string): string {
  const key = `stage_${name}`;
  return key in table ? t(key as Word) : title || name;
}

/** What happens in a stage, or what a figure says, in a sentence; "" where the table has none. */
export function explained(name: string): string {
  const key = `explain_${name}`;
  return key in table ? t(key as Word) : "";
}

/** A moment as people say it: of today the hour, else the day. */
export function moment(time: number): string {
  const then = new Date(time);
  const today = then.toDateString() === new Date().toDateString();
  return then.toLocaleString(document.documentElement.lang, today ? { timeStyle: "short" } : { dateStyle: "medium" });
}

/** Seconds as people say them. */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return t("seconds", { n: s });
  const minutes = Math.round(s / 60);
  if (minutes < 60) return t("minutes", { n: minutes });
  if (minutes < 1440) return t("hours", { n: Math.floor(minutes / 60), m: minutes % 60 });
  return t("days", { n: Math.round(minutes / 1440) });
}
