// The conversation: what was asked and answered, and how an answer grows while it is written.
import { signal } from "@preact/signals";
import { type Ask, chat, post, ServerError } from "./api";
import { comparing, newestTwo } from "./run";
import { keyOf, load, save } from "./store";
import type { Answer, ChatEvent, Model, Part, Side, Turn, WireMessage } from "./types";
import { t, type Word } from "./words";

export interface Settings {
  temperature: number;
  maxTokens: number;
  system: string;
  tint: boolean;
}

/** Those of `liuli chat`, too. */
export const DEFAULTS: Settings = { temperature: 0.5, maxTokens: 512, system: "", tint: false };
const FLUSH_MS = 40; // an answer is drawn at most this often: typing stays smooth however fast tokens come
const KEEP_ALTERNATIVES = 12; // of this many last turns; older ones are stored as text only

export const settings = signal<Settings>({ ...DEFAULTS, ...load<Partial<Settings>>("settings", {}) });
export const turns = signal<Turn[]>(settle(load<Turn[]>("turns", [])));
let stored = turns.value; // what this tab last read or wrote
export const writing = signal(false);
export const announcement = signal("");
let abort: AbortController | null = null;

export function setSettings(change: Partial<Settings>): void {
  settings.value = { ...settings.value, ...change };
  save("settings", settings.value);
}

export function shownAnswer(turn: Turn): Answer | undefined {
  return turn.answers[turn.shown];
}

export function answerText(answer: Answer): string {
  return answer.parts.map((part) => (part.kind === "text" ? part.tokens.map((token) => token.text).join("") : "")).join("");
}

/** Ask, after all turns or at the place of an earlier one: that one and everything after it go. */
export function ask(question: string, place = turns.value.length): void {
  if (writing.value || !question.trim()) return;
  turns.value = [...turns.value.slice(0, place), { question: question.trim(), answers: [], shown: -1 }];
  void write();
}

/** Another answer to the last question; the earlier ones are kept beside it. */
export function regenerate(): void {
  if (!writing.value && turns.value.length) void write();
}

export function show(turn: number, answer: number): void {
  turns.value = turns.value.map((each, i) => (i === turn ? { ...each, shown: answer } : each));
  store();
}

export function clear(): void {
  stop();
  turns.value = [];
  store();
}

export function stop(): void {
  abort?.abort();
}

/** The conversation as the server reads it, up to the last question. */
export function wireMessages(all: Turn[], system: string): WireMessage[] {
  const messages: WireMessage[] = system.trim() ? [{ role: "system", content: system.trim() }] : [];
  all.forEach((turn, i) => {
    messages.push({ role: "user", content: turn.question });
    const answer = shownAnswer(turn);
    if (i < all.length - 1 && answer) messages.push(...wireAnswer(answer));
  });
  return messages;
}

function wireAnswer(answer: Answer): WireMessage[] {
  const messages: WireMessage[] = [];
  for (const part of answer.parts) {
    if (part.kind !== "tool" || part.result === null) continue;
    const call = { id: part.id, type: "function" as const, function: { name: part.name, arguments: part.arguments } };
    messages.push({ role: "assistant", content: "", tool_calls: [call] });
    messages.push({ role: "tool", content: part.result, tool_call_id: part.id });
  }
  messages.push({ role: "assistant", content: answerText(answer) });
  return messages;
}

/** Tell the server whether the shown answer of a turn was good; told the same again, it is taken back. */
export async function thumb(place: number, good: boolean): Promise<void> {
  const turn = turns.value[place];
  const answer = turn && shownAnswer(turn);
  if (!answer) return;
  const wanted = answer.thumb === good ? null : good;
  const messages = [...wireMessages(turns.value.slice(0, place + 1), settings.value.system), ...wireAnswer(answer)];
  if (await tell("api/thumb", { messages, good: wanted, ...answer.by })) mark(place, answer, { thumb: wanted ?? undefined });
}

/** Tell the server which of the two answers of a turn is better. */
export async function prefer(place: number, better: Side): Promise<void> {
  const turn = turns.value[place];
  const answer = turn && shownAnswer(turn);
  if (!answer?.other || answer.better) return;
  const messages = wireMessages(turns.value.slice(0, place + 1), settings.value.system);
  const two = better === "main" ? [answer, answer.other] : [answer.other, answer];
  const answers = two.map((each) => ({ messages: wireAnswer(each), ...each.by }));
  if (await tell("api/prefer", { messages, answers })) mark(place, answer, { better });
}

/** A judgement, in the name that is kept; false, and said aloud, where the server did not take it. */
async function tell(path: string, body: object): Promise<boolean> {
  try {
    await post(path, { ...body, who: load("who", "") });
    return true;
  } catch (error) {
    announcement.value = explain(error);
    return false;
  }
}

function mark(place: number, answer: Answer, change: Partial<Answer>): void {
  const marked = (each: Answer): Answer => (each === answer ? { ...each, ...change } : each);
  turns.value = turns.value.map((each, i) => (i === place ? { ...each, answers: each.answers.map(marked) } : each));
  store();
}

async function write(): Promise<void> {
  const mine = new AbortController();
  abort = mine;
  writing.value = true;
  const place = turns.value.length - 1;
  const count = turns.value[place]?.answers.length ?? 0;
  const two = comparing.value ? newestTwo() : null;
  const asked: Ask = {
    messages: wireMessages(turns.value, settings.value.system),
    temperature: settings.value.temperature,
    max_tokens: settings.value.maxTokens,
    ...(two && { seed: Math.floor(Math.random() * 2 ** 31) }), // the same for both
  };
  let main: Answer | undefined;
  let other: Answer | undefined;
  const put = () => {
    if (abort !== mine || !main) return; // the conversation was cleared meanwhile
    const answer = other ? { ...main, other } : main;
    turns.value = turns.value.map((turn, i) =>
      i === place ? { ...turn, answers: [...turn.answers.slice(0, count), answer], shown: count } : turn,
    );
  };
  const keepMain = (answer: Answer) => {
    main = answer;
    put();
  };
  const keepOther = (answer: Answer) => {
    other = answer;
    put();
  };
  const [ended] = await Promise.all([
    draw(asked, two?.[0], mine.signal, keepMain),
    two && draw({ ...asked, model: two[1].stage }, two[1], mine.signal, keepOther),
  ]);
  if (abort === mine) {
    abort = null;
    writing.value = false;
    announcement.value = t(ended.state === "done" ? "answer_done" : "stopped");
    store();
  }
}

/** Ask for one answer, hand it to `put` as it grows, and return it when it is over. */
async function draw(ask: Ask, model: Model | undefined, signal: AbortSignal, put: (answer: Answer) => void): Promise<Answer> {
  const sampling = { temperature: ask.temperature, max_tokens: ask.max_tokens };
  let answer: Answer = { parts: [], state: "writing", model, by: { model: "", sampling } };
  put(answer);
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    await chat(ask, signal, (event) => {
      answer = grow(answer, event);
      timer ??= setTimeout(() => {
        timer = undefined;
        put(answer);
      }, FLUSH_MS);
    });
    if (answer.state === "writing") answer = { ...answer, state: "failed", error: t("unreachable") };
  } catch (error) {
    answer = signal.aborted ? { ...answer, state: "stopped" } : { ...answer, state: "failed", error: explain(error) };
  }
  clearTimeout(timer);
  put(answer);
  return answer;
}

/** What the server says where something fails, by its words or its code. */
const FAILURES: Record<string, Word> = {
  still_learning: "still_learning",
  rate_limit_exceeded: "busy",
  model_busy: "busy",
  context_length_exceeded: "too_long",
  system_too_long: "system_too_long",
  "The server failed while it wrote this answer.": "server_failed",
  "The model computes no numbers any more (NaN).": "model_nan",
};

export function explain(error: unknown): string {
  if (!(error instanceof ServerError)) return t("unreachable");
  const known = FAILURES[error.message] ?? FAILURES[error.code ?? ""];
  return known ? t(known) : t("failed", { why: error.message });
}

/** The answer after one more event. */
export function grow(answer: Answer, event: ChatEvent): Answer {
  switch (event.type) {
    case "start": {
      const sampling = { ...answer.by?.sampling, ...(event.seed === undefined ? {} : { seed: event.seed }) };
      const by = { model: event.model?.name ?? "", sampling };
      const model = event.model ?? answer.model;
      return event.left_out ? { ...answer, by, model, leftOut: event.left_out } : { ...answer, by, model };
    }
    case "token": {
      const { type: _, ...token } = event;
      const last = answer.parts.at(-1);
      if (last?.kind !== "text") return { ...answer, parts: [...answer.parts, { kind: "text", tokens: [token] }] };
      return { ...answer, parts: [...answer.parts.slice(0, -1), { kind: "text", tokens: [...last.tokens, token] }] };
    }
    case "call":
      return {
        ...answer,
        parts: [...answer.parts, { kind: "tool", id: event.id, name: event.name, arguments: event.arguments, result: null }],
      };
    case "result": {
      const fill = (part: Part): Part => (part.kind === "tool" && part.result === null ? { ...part, result: event.content } : part);
      return { ...answer, parts: answer.parts.map(fill) };
    }
    case "done":
      return { ...answer, state: "done", stoppedBy: event.stopped_by, tokens: event.tokens, seconds: event.seconds };
    case "error":
      return { ...answer, state: "failed", error: explain(new ServerError(event.message, event.code)) };
    default: // an event of a newer server
      return answer;
  }
}

/** What a reload left unfinished was stopped. */
function settle(stored: Turn[]): Turn[] {
  if (!Array.isArray(stored)) return [];
  const settled = (answer: Answer): Answer => (answer.state === "writing" ? { ...answer, state: "stopped" } : answer);
  return stored.map((turn) => ({ ...turn, answers: turn.answers.map((answer) => each(answer, settled)) }));
}

/** A change to an answer and to the one it is compared with. */
function each(answer: Answer, change: (answer: Answer) => Answer): Answer {
  return answer.other ? { ...change(answer), other: change(answer.other) } : change(answer);
}

/** Remember the conversation, unless this tab changed nothing: another one may have. */
export function store(): void {
  if (turns.value === stored) return;
  stored = turns.value;
  const all = turns.value.slice(-100);
  const light = all.map((turn, i) => (i >= all.length - KEEP_ALTERNATIVES ? turn : withoutAlternatives(turn)));
  if (!save("turns", light)) save("turns", all.slice(-10).map(withoutAlternatives)); // the browser's room is small
}

function withoutAlternatives(turn: Turn): Turn {
  const lighten = (part: Part): Part =>
    part.kind === "text" ? { ...part, tokens: part.tokens.map((token) => ({ ...token, alternatives: [] })) } : part;
  const lightened = (answer: Answer): Answer => ({ ...answer, parts: answer.parts.map(lighten) });
  return { ...turn, answers: turn.answers.map((answer) => each(answer, lightened)) };
}

/** Another tab's conversation, where it is this one and went on; a different one does not take its place. */
function follow(): void {
  const [ours, theirs] = [turns.value, settle(load<Turn[]>("turns", []))];
  const goesOn = ours.length > 0 && ours.every((turn, i) => turn.question === theirs[i]?.question);
  if (goesOn && !writing.value) stored = turns.value = theirs;
}

addEventListener("pagehide", store);
addEventListener("storage", (event) => event.key === keyOf("turns") && follow());
