// What the server sends (src/liuli/server/app_api.py) and what the page keeps.

export interface Alternative {
  id: number;
  text: string;
  logprob: number;
}

export interface Token extends Alternative {
  alternatives: Alternative[];
  forced?: boolean;
}

export interface TextPart {
  kind: "text";
  tokens: Token[];
}

export interface ToolPart {
  kind: "tool";
  id: string;
  name: string;
  arguments: string;
  result: string | null;
  /** Whether it was called in one message with the one before. */
  beside?: boolean;
}

export type Part = TextPart | ToolPart;

export interface Answer {
  parts: Part[];
  state: "writing" | "done" | "stopped" | "failed";
  stoppedBy?: string;
  /** What went wrong (failures.ts). */
  error?: string;
  leftOut?: number;
  tokens?: number;
  seconds?: number;
  by?: By;
  model?: Model | undefined;
  /** The system prompt it was given under. */
  system?: string;
  thumb?: boolean | undefined;
  /** The name under which the thumb was given. */
  who?: string;
  /** What the model before this one answered, where two are compared; the conversation goes on without it. */
  other?: Answer;
  /** Which of the two was said to be better. */
  better?: Side;
}

/** Of two answers that are compared: the one the conversation goes on with, or the other. */
export type Side = "main" | "other";

/** Which model gave an answer, and how it was drawn. */
export interface By {
  model: string;
  sampling: { temperature?: number; max_tokens?: number; seed?: number };
}

/** A question and all the answers it was given; `shown` is the one on the page. */
export interface Turn {
  question: string;
  /** When it was asked, in milliseconds. */
  time?: number;
  answers: Answer[];
  shown: number;
}

export type ChatEvent =
  | { type: "start"; left_out: number; model?: Model; seed?: number }
  | ({ type: "token" } & Token)
  | { type: "call"; id: string; name: string; arguments: string }
  | { type: "result"; id: string | null; content: string }
  | { type: "done"; stopped_by: string; tokens: number; seconds: number }
  | { type: "error"; message: string; code: string | null };

export interface WireMessage {
  role: "system" | "user" | "assistant" | "tool";
  content: string;
  tool_calls?: { id: string; type: "function"; function: { name: string; arguments: string } }[];
  tool_call_id?: string;
}

export interface StageState {
  name: string;
  title?: string;
  state: string;
  seconds?: number | null;
  share?: number;
}

export interface Status {
  state: string;
  stage?: string;
  stages?: StageState[];
  progress?: number;
  seconds_left?: number | null;
  step?: number | null;
  steps?: number | null;
  loss?: number | null;
  bpb?: number | null;
  tokens_per_s?: number | null;
  peak_share?: number | null;
  message?: string | null;
  updated?: number;
}

export interface Point {
  time: number | null;
  step: number | null;
  loss: number | null;
  bpb: number | null;
}

export interface Sample {
  time: number;
  stage: string;
  step: number;
  answers: { prompt: string; language?: string; answer: string }[];
}

export interface Model {
  name: string;
  stage: string;
  step: number;
  finished: boolean;
  made: number;
  /** Tokens it can read, question and answer together, where that is known. */
  context?: number | null;
}

export interface Run {
  kind: "run" | "model";
  name: string;
  training: boolean;
  judging: boolean;
  model: Model | null;
  models: Model[];
  now: number;
  status: Status | null;
  curves: { stage: string; points: Point[] }[];
  samples: Sample[];
  report: boolean;
}
