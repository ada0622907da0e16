// Asking and answering: what is asked, how an answer grows while it is written, and what a person says of it.
import { signal } from "@preact/signals";
import { type Ask, chat, post, ServerError } from "./api";
import { conversation, newName, open, remove, store, turns, writing } from "./conversations";
import { causeOf, explain } from "./failures";
import { comparing, newestTwo } from "./run";
import { load, save } from "./store";
import type { Answer, ChatEvent, Model, Part, Side, ToolPart } from "./types";
import { wireAnswer, wireMessages } from "./wire";
import { t } from "./words";

export interface Settings {
  temperature: number;
  maxTokens: number;
  system: string;
  tint: boolean;
}

/** Those of `liuli chat`, too. */
export const DEFAULTS: Settings = { temperature: 0.5, maxTokens: 512, system: "", tint: false };
const FLUSH_MS = 40; // an answer is drawn at most this often: typing stays smooth however fast tokens come

export const settings = signal<Settings>({ ...DEFAULTS, ...load<Partial<Settings>>("settings", {}) });
export const announcement = signal("");
let abort: AbortController | null = null;
let leaving = false; // the page goes, and with it the answer that is being written

addEventListener("beforeunload", () => (leaving = true));
addEventListener("pageshow", () => (leaving = false));

export function setSettings(change: Partial<Settings>): void {
  settings.value = { ...settings.value, ...change };
  save("settings", settings.value);
}

/** Ask, after all turns or at the place of an earlier one: that one and everything after it go. */
export function ask(question: string, place = turns.value.length): void {
  if (writing.value || !question.trim()) return;
  const asked = question.replace(/^\s*\n/, "").trimEnd(); // the indent of the first line of code stays
  turns.value = [...turns.value.slice(0, place), { question: asked, time: Date.now(), answers: [], shown: -1 }];
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

/** Go to another conversation, a new one where none is named; what is written of this one is stopped and kept. */
export function goTo(name = newName()): void {
  stop();
  abort = null;
  writing.value = false;
  open(name);
}

/** Forget conversations; where this tab's is among them, a new one begins. */
export function discard(gone: string[]): void {
  if (gone.includes(conversation.value)) {
    turns.value = [];
    goTo();
  }
  remove(gone);
}

export function stop(): void {
  abort?.abort();
}

let judged = Promise.resolve();

/** Judge the shown answer of a turn: one judgement after the other, so that each knows of the one before. */
function judge(place: number, say: (answer: Answer) => Promise<Partial<Answer> | null>): Promise<void> {
  const name = conversation.value;
  const at = turns.value[place]?.shown;
  const judging = async () => {
    const answer = turns.value[place]?.answers[at ?? -1];
    const change = answer && conversation.value === name ? await say(answer) : null;
    if (!change || conversation.value !== name) return;
    const answers = (all: Answer[]) => all.map((each, i) => (i === at ? { ...each, ...change } : each));
    turns.value = turns.value.map((turn, i) => (i === place ? { ...turn, answers: answers(turn.answers) } : turn));
    store();
  };
  return (judged = judged.then(judging));
}

/** Tell the server whether the shown answer of a turn was good; told the same again, it is taken back. */
export function thumb(place: number, good: boolean): Promise<void> {
  return judge(place, async (answer) => {
    const wanted = answer.thumb === good ? null : good;
    const messages = [...promptOf(place, answer), ...wireAnswer(answer)];
    const who = answer.who ?? load("who", ""); // who takes a thumb back is who gave it
    return (await tell("api/thumb", { messages, good: wanted, who, ...answer.by })) ? { thumb: wanted ?? undefined, who } : null;
  });
}

/** Tell the server which of the two answers of a turn is better. */
export function prefer(place: number, better: Side): Promise<void> {
  return judge(place, async (answer) => {
    if (!answer.other || answer.better) return null;
    const two = better === "main" ? [answer, answer.other] : [answer.other, answer];
    const answers = two.map((each) => ({ messages: wireAnswer(each), ...each.by }));
    return (await tell("api/prefer", { messages: promptOf(place, answer), answers, who: load("who", "") })) ? { better } : null;
  });
}

/** What an answer was given to, under the system prompt of that time. */
const promptOf = (place: number, answer: Answer) => wireMessages(turns.value.slice(0, place + 1), answer.system ?? settings.value.system);

/** A judgement; false, and said aloud, where the server did not take it. */
async function tell(path: string, body: object): Promise<boolean> {
  try {
    await post(path, body);
    return true;
  } catch (error) {
    announcement.value = explain(causeOf(error), "not_kept");
    return false;
  }
}

async function write(): Promise<void> {
  const mine = new AbortController();
  abort = mine;
  leaving = false; // who asks has stayed
  writing.value = true;
  const place = turns.value.length - 1;
  const count = turns.value[place]?.answers.length ?? 0;
  const two = comparing.value ? newestTwo() : null;
  const { system } = settings.value;
  const asked: Ask = {
    messages: wireMessages(turns.value, system),
    temperature: settings.value.temperature,
    max_tokens: settings.value.maxTokens,
    ...(two && { seed: Math.floor(Math.random() * 2 ** 31) }), // the same for both
  };
  let main: Answer | undefined;
  let other: Answer | undefined;
  const put = () => {
    if (abort !== mine || !main) return; // the conversation was cleared meanwhile
    const answer = { ...main, system, ...(other && { other }) };
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
    if (answer.state === "writing") answer = { ...answer, state: "failed", error: "unreachable" };
  } catch (error) {
    answer = signal.aborted || leaving ? { ...answer, state: "stopped" } : { ...answer, state: "failed", error: causeOf(error) };
  }
  clearTimeout(timer);
  put(answer);
  return answer;
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
    case "call": {
      const { type: _, ...call } = event;
      const last = answer.parts.at(-1);
      const beside = last?.kind === "tool" && last.result === null;
      return { ...answer, parts: [...answer.parts, { kind: "tool", ...call, result: null, ...(beside && { beside }) }] };
    }
    case "result": {
      const open = answer.parts.filter((part): part is ToolPart => part.kind === "tool" && part.result === null);
      const meant = open.find((part) => part.id === event.id) ?? open[0];
      const fill = (part: Part): Part => (part === meant ? { ...meant, result: event.content } : part);
      return { ...answer, parts: answer.parts.map(fill) };
    }
    case "done":
      return { ...answer, state: "done", stoppedBy: event.stopped_by, tokens: event.tokens, seconds: event.seconds };
    case "error":
      return { ...answer, state: "failed", error: causeOf(new ServerError(event.message, event.code)) };
    default: // an event of a newer server
      return answer;
  }
}
