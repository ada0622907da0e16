// Judging answers: the task at hand, what was said of it, and how much is done.
import { computed, effect, signal, untracked } from "@preact/signals";
import { getJson, post } from "./api";
import { causeOf } from "./failures";
import { load, save } from "./store";
import type { WireMessage } from "./types";

const HASH = "#/label";
export type Mode = "compare" | "rank";

export interface Shown {
  id: number;
  messages: WireMessage[];
}

export interface Task {
  messages: WireMessage[];
  answers: Shown[];
}

export interface Counts {
  choice: number;
  ranking: number;
  edit: number;
  thumb: number;
  skipped: number;
  prompts: number;
  prompts_done: number;
}

/** A ranking on its way: answers by number, the best first; the first `placed` of them were given their place. */
export interface Order {
  places: number[];
  placed: number;
}

/** What went wrong, and how it is tried again, where the page has no other way. */
export interface Problem {
  cause: string;
  undone: "failed" | "not_kept";
  again?: () => unknown;
}

export const open = signal(location.hash === HASH);
export const mode = signal<Mode>(load<Mode>("label_mode", "compare"));
export const who = signal(load("who", ""));
export const task = signal<Task | null>(null);
export const counts = signal<Counts | null>(null);
export const order = signal<Order>({ places: [], placed: 0 });
export const edited = signal<Record<number, string>>({}); // the new version that is kept, by the answer's id
/** The versions being written, by the answer's id. */
export const drafts = signal<Record<number, string>>({});
/** Whether one of them says something new: it would be lost with the task. */
export const unsaved = computed(() => !!task.value?.answers.some((shown) => (drafts.value[shown.id] ?? versionOf(shown)) !== versionOf(shown)));
export const problem = signal<Problem | null>(null);
const UNREAD_MS = 500; // a second click of a double click is no word on the answers that just came
let drawing: AbortController | null = null;
let appeared = 0;

addEventListener("hashchange", () => (open.value = location.hash === HASH));

export function setOpen(value: boolean): void {
  open.value = value;
  location.hash = value ? HASH : "";
}

export function setMode(value: Mode): void {
  if (value === mode.value || unsaved.value) return;
  mode.value = value;
  save("label_mode", value);
  void next();
}

/** The answer's last message as a person wrote it, else as the model did. */
export function versionOf(shown: Shown): string {
  return edited.value[shown.id] ?? shown.messages.at(-1)?.content ?? "";
}

/** null: nothing is being written any more. */
export function setDraft(id: number, text: string | null): void {
  const { [id]: _, ...others } = drafts.value;
  drafts.value = text === null ? others : { ...others, [id]: text };
}

export function setWho(value: string): void {
  who.value = value;
  save("who", value);
}

/** Ask for a prompt with new answers; an earlier wish is given up. */
export async function next(): Promise<void> {
  drawing?.abort();
  const mine = (drawing = new AbortController());
  task.value = problem.value = null;
  try {
    const drawn = await post<Task>("api/label/next", { answers: mode.value === "compare" ? 2 : 4 }, mine.signal);
    order.value = { places: drawn.answers.map((_, i) => i), placed: 0 };
    edited.value = drafts.value = {};
    task.value = drawn;
    appeared = performance.now();
  } catch (error) {
    if (!mine.signal.aborted) problem.value = { cause: causeOf(error), undone: "failed", again: () => void next() };
  }
}

async function count(): Promise<void> {
  try {
    counts.value = await getJson<Counts>("api/label/counts");
    if (problem.value?.again === count) problem.value = null;
  } catch (error) {
    problem.value = { cause: causeOf(error), undone: "failed", again: count };
  }
}

async function send(judgement: object, again?: () => unknown): Promise<boolean> {
  problem.value = null;
  try {
    counts.value = await post<Counts>("api/label/judge", { ...judgement, who: who.value });
    return true;
  } catch (error) {
    problem.value = { cause: causeOf(error), undone: "not_kept", ...(again && { again }) };
    return false;
  }
}

/** Hand in and go on; what could not be kept stays on the page. */
async function finish(judgement: object): Promise<void> {
  const judged = task.value;
  task.value = null; // a second press of the key says nothing
  if (await send(judgement, () => void finish(judgement))) void next();
  else task.value = judged;
}

const mayJudge = () => !unsaved.value && performance.now() - appeared > UNREAD_MS;
const kind = () => (mode.value === "compare" ? "choice" : "ranking");

export function choose(best: number): void {
  const ids = task.value?.answers.map((answer) => answer.id) ?? [];
  if (ids.length === 2 && best < 2 && mayJudge()) void finish({ kind: "choice", answers: [ids[best], ids[1 - best]] });
}

export function skip(): void {
  const ids = task.value?.answers.map((answer) => answer.id);
  if (ids && mayJudge()) void finish({ kind: kind(), answers: ids, skipped: true });
}

export function submitOrder(): void {
  const answers = task.value?.answers ?? [];
  const { places, placed } = order.value;
  if (answers.length > 1 && placed === answers.length && mayJudge()) void finish({ kind: "ranking", answers: places.map((i) => answers[i]!.id) });
}

export async function saveEdit(id: number, text: string): Promise<boolean> {
  const kept = await send({ kind: "edit", answers: [id], text });
  if (kept) edited.value = { ...edited.value, [id]: text };
  return kept;
}

/** Give an answer the next place; one that has a place loses it. The last one left needs no click. */
export function place({ places, placed }: Order, answer: number): Order {
  const at = places.indexOf(answer);
  const others = places.filter((each) => each !== answer);
  if (at < 0) return { places, placed };
  if (at < placed) return { places: [...others, answer], placed: placed - 1 };
  const count = placed + 1 === places.length - 1 ? places.length : placed + 1;
  return { places: [...others.slice(0, placed), answer, ...others.slice(placed)], placed: count };
}

/** Put an answer where another one is; an order made by dragging is an order of all. */
export function drop({ places }: Order, answer: number, onto: number): Order {
  const to = places.indexOf(onto);
  const others = places.filter((each) => each !== answer);
  return { places: [...others.slice(0, to), answer, ...others.slice(to)], placed: places.length };
}

effect(() => {
  if (!open.value) return drawing?.abort();
  untracked(() => {
    if (!task.value) void next();
    void count();
  });
});
