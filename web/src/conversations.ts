// The conversation of this tab, and the others that this browser keeps, each under a name of its own.
import { signal } from "@preact/signals";
import { forget, keyOf, load, read, save } from "./store";
import type { Answer, Part, Token, Turn } from "./types";

export const MOST = 20; // conversations that are kept
const KEEP_ALTERNATIVES = 12; // of this many last turns
const KEEP_TOKENS = 100; // of this many; older ones are stored as text only

/** What a new tab opens, and then the others, newest first. Before there were several the only one was "turns". */
const names = () => load<string[]>("conversations", ["turns"]);

/** The name of this tab's conversation, which it keeps over a reload. */
export const conversation = signal(load("conversation", names()[0] ?? "turns", "tab"));
export const turns = signal<Turn[]>([]);
/** Whether an answer is being written in this tab. */
export const writing = signal(false);
let stored = turns.value; // what this tab last read or wrote, and the text of it
let text: string | null = null;

/** Go to a conversation; this one is kept. */
export function open(name: string): void {
  store();
  conversation.value = name;
  save("conversation", name, "tab");
  readAgain();
}

function readAgain(): void {
  text = read(conversation.value);
  stored = turns.value = settle(load<Turn[]>(conversation.value, []));
}

export function newName(): string {
  return `turns.${Date.now().toString(36)}${Math.random().toString(36).slice(2, 6)}`;
}

/** The conversation before this one, where there is one. */
export function lastOther(): string | undefined {
  return names().find((name) => name !== conversation.value && read(name) !== null);
}

/** A conversation in a list: its first question, and when the last one was asked. */
export interface Kept {
  name: string;
  title: string;
  time: number | undefined;
}

/** All that are kept, the newest first. */
export function kept(): Kept[] {
  store();
  return names().flatMap((name) => {
    const all = load<Turn[]>(name, []);
    return all.length ? [{ name, title: all[0]!.question, time: all.at(-1)!.time }] : [];
  });
}

export function remove(gone: string[]): void {
  gone.forEach(forget);
  save("conversations", names().filter((name) => !gone.includes(name)));
}

export function shownAnswer(turn: Turn): Answer | undefined {
  return turn.answers[turn.shown];
}

/** Remember the conversation, unless this tab changed nothing. */
export function store(): void {
  if (turns.value === stored || !turns.value.length) return;
  if (read(conversation.value) !== text) {
    conversation.value = newName(); // another tab wrote something else there meanwhile: that stays, too
    save("conversation", conversation.value, "tab");
  }
  keep(conversation.value, turns.value);
  stored = turns.value;
  text = read(conversation.value);
}

/** The browser's room is small: the oldest conversations make place, then what else could have been said. */
function keep(name: string, all: Turn[]): void {
  const kept = [name, ...names().filter((each) => each !== name)];
  kept.splice(MOST).forEach(forget);
  const light = all.map((turn, i) => {
    const age = all.length - i;
    return age <= KEEP_ALTERNATIVES ? turn : lighter(turn, age <= KEEP_TOKENS ? withoutAlternatives : asText);
  });
  while (!save(name, light)) {
    if (kept.length > 2) forget(kept.pop()!);
    else if (save(name, light.slice(-10).map((turn) => lighter(turn, withoutAlternatives)))) break;
    else return;
  }
  save("conversations", kept);
}

/** What a reload left unfinished was stopped. */
function settle(all: Turn[]): Turn[] {
  if (!Array.isArray(all)) return [];
  const settled = (answer: Answer): Answer => (answer.state === "writing" ? { ...answer, state: "stopped" } : answer);
  return all.map((turn) => ({ ...turn, answers: turn.answers.map((answer) => each(answer, settled)) }));
}

/** A change to an answer and to the one it is compared with. */
function each(answer: Answer, change: (answer: Answer) => Answer): Answer {
  return answer.other ? { ...change(answer), other: change(answer.other) } : change(answer);
}

function lighter(turn: Turn, lighten: (tokens: Token[]) => Token[]): Turn {
  const lightened = (part: Part): Part => (part.kind === "text" ? { ...part, tokens: lighten(part.tokens) } : part);
  const change = (answer: Answer): Answer => ({ ...answer, parts: answer.parts.map(lightened) });
  return { ...turn, answers: turn.answers.map((answer) => each(answer, change)) };
}

const withoutAlternatives = (tokens: Token[]) => tokens.map((token) => ({ ...token, alternatives: [] }));
const asText = (tokens: Token[]) => [{ id: 0, text: tokens.map((token) => token.text).join(""), logprob: 0, alternatives: [] }];

/** Another tab's words in this conversation, where it went on; a different one does not take its place. */
function follow(): void {
  const [ours, theirs] = [turns.value, load<Turn[]>(conversation.value, [])];
  const goesOn = ours.length > 0 && ours.every((turn, i) => turn.question === theirs[i]?.question);
  if (goesOn && !writing.value) readAgain();
}

save("conversation", conversation.value, "tab");
readAgain();
addEventListener("pagehide", store);
addEventListener("storage", (event) => event.key === keyOf(conversation.value) && follow());
