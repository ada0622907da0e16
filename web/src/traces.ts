// The traces of learning from rewards (src/liuli/server/trace_api.py): what was fetched, and which of it is looked at.
import { computed, effect, signal, untracked } from "@preact/signals";
import { getJson } from "./api";
import { causeOf } from "./failures";
import { run } from "./run";
import type { Word } from "./words";

export interface Figures extends Record<Figure, number | null> {
  step: number;
}
export type Figure = "score" | "true_score" | "kl" | "entropy" | "length" | "stop_rate" | "explained_variance" | "clip_fraction";

export interface Stage {
  name: string;
  steps: number[];
  figures: Figures[];
}

export interface TracedAnswer {
  sequence: number;
  prompt: string;
  answer: string;
  score: number | null;
  members: (number | null)[] | null;
  length: number;
  finished: boolean;
  advantage: number | null;
  right: boolean | null;
  kl: number | null;
}

export type Scale = [low: number, high: number];

export interface AnswerList {
  stage: string;
  step: number;
  total: number;
  answers: TracedAnswer[];
  scales: Partial<Record<Quantity, Scale>>;
}

type Column = (number | boolean | null)[];

export interface TokenColumns extends Record<Quantity, Column> {
  position: number[];
  token: number[];
  text: string[];
  drawn: boolean[];
}

export interface OneAnswer {
  answer: TracedAnswer;
  tokens: TokenColumns;
  same_prompt: { step: number; answers: TracedAnswer[] }[];
}

// --- what can be shown as colour --------------------------------------------------------------------------------------

export type Quantity =
  | "advantage" | "kl" | "reward" | "value" | "return" | "ratio" | "entropy" | "clipped"
  | "logprob_sampler" | "logprob_old" | "logprob_new" | "logprob_ref";

/** signed: around 0. ratio: around 1, by its logarithm. grows: from 0 up. falls: from 0 down. yes: true or not. */
export const QUANTITIES: Record<Quantity, { word: Word; kind: "signed" | "ratio" | "grows" | "falls" | "yes" }> = {
  advantage: { word: "micro_advantage", kind: "signed" },
  kl: { word: "micro_kl", kind: "signed" },
  reward: { word: "micro_reward", kind: "signed" },
  value: { word: "micro_value", kind: "signed" },
  return: { word: "micro_return", kind: "signed" },
  ratio: { word: "micro_ratio", kind: "ratio" },
  clipped: { word: "micro_clipped", kind: "yes" },
  entropy: { word: "micro_entropy", kind: "grows" },
  logprob_sampler: { word: "micro_logprob_sampler", kind: "falls" },
  logprob_old: { word: "micro_logprob_old", kind: "falls" },
  logprob_new: { word: "micro_logprob_new", kind: "falls" },
  logprob_ref: { word: "micro_logprob_ref", kind: "falls" },
};

/** The ends of a quantity's colours: its usual range in the step, symmetric where colours diverge. */
export function ends(quantity: Quantity, scale: Scale | undefined): Scale {
  const [low, high] = scale ?? [0, 1];
  const kind = QUANTITIES[quantity].kind;
  if (kind === "yes") return [0, 1];
  if (kind === "grows") return [0, high > 0 ? high : 1];
  if (kind === "falls") return [low < 0 ? low : -1, 0];
  if (kind === "ratio") {
    const most = Math.max(1.001, high, low > 0 ? 1 / low : 1);
    return [1 / most, most];
  }
  const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
  return [-most, most];
}

/** How strongly a value is coloured, from -1 (one colour) over 0 (none) to 1 (the other); null where it is not defined. */
export function shade(quantity: Quantity, value: number | boolean | null, scale: Scale | undefined): number | null {
  if (value === null) return null;
  const [low, high] = ends(quantity, scale);
  const kind = QUANTITIES[quantity].kind;
  const number = Number(value);
  const share = kind === "ratio" ? Math.log(Math.max(number, 1e-9)) / Math.log(high) : kind === "falls" ? number / low : number / high;
  const clamped = Math.max(-1, Math.min(1, share));
  return kind === "signed" || kind === "ratio" ? clamped : Math.max(0, clamped);
}

// --- what was fetched -------------------------------------------------------------------------------------------------

export type Sort = "sequence" | "score" | "length" | "kl";

export const stages = signal<Stage[]>([]);
export const list = signal<AnswerList | null>(null);
export const one = signal<OneAnswer | null>(null);
export const problem = signal("");

export const quantity = signal<Quantity>("advantage");
export const sort = signal<Sort>("sequence");
export const down = signal(true);
const stageName = signal<string | null>(null);
const chosenStep = signal<number | null>(null); // null follows the newest

const HASH = "#/microscope";
export const open = signal(location.hash === HASH);
addEventListener("hashchange", () => (open.value = location.hash === HASH));

export function setOpen(value: boolean): void {
  open.value = value;
  location.hash = value ? HASH : "";
}

/** The stage one looks at: the chosen one, else the last. */
export const stage = computed(() => stages.value.find((each) => each.name === stageName.value) ?? stages.value.at(-1) ?? null);
export const step = computed(() => {
  const steps = stage.value?.steps ?? [];
  return chosenStep.value !== null && steps.includes(chosenStep.value) ? chosenStep.value : (steps.at(-1) ?? null);
});
export const follows = computed(() => step.value === (stage.value?.steps.at(-1) ?? null));

export function chooseStage(name: string): void {
  stageName.value = name;
  chosenStep.value = null;
}

/** Look at a traced step; the newest one is followed when newer ones come. */
export function chooseStep(value: number): void {
  chosenStep.value = value === stage.value?.steps.at(-1) ? null : value;
}

const get = <T,>(path: string) => getJson<T>(`api/traces${path}`);

const asking = { list: 0, one: 0 }; // the number of the newest question: answers to older ones are dropped

/** Fetch, and hand over what came, null for a failure, unless something newer was asked meanwhile. */
async function fetchInto<T>(kind: keyof typeof asking, path: string, take: (value: T | null) => void): Promise<void> {
  const mine = ++asking[kind];
  try {
    const value = await get<T>(path);
    if (mine !== asking[kind]) return;
    problem.value = "";
    take(value);
  } catch (error) {
    if (mine !== asking[kind]) return;
    problem.value = causeOf(error);
    take(null);
  }
}

export const PAGE = 50;

/** The answers of the step, from the first or the next ones; then the answer that was open, or one to the same prompt. */
export function loadAnswers(more?: "more"): void {
  const [name, at] = [stage.value?.name, step.value];
  if (!name || at === null) {
    list.value = one.value = null;
    return;
  }
  const before = more ? (list.value?.answers ?? []) : [];
  const order = `sort=${sort.value}&order=${sort.value !== "sequence" && down.value ? "down" : "up"}`;
  void fetchInto<AnswerList>("list", `/${name}/${at}?${order}&offset=${before.length}&limit=${PAGE}`, (said) => {
    if (!said) {
      if (!more) list.value = one.value = null; // the old step's answers are not this one's
      return;
    }
    list.value = { ...said, stage: name, step: at, answers: [...before, ...said.answers] };
    if (more) return;
    const last = one.value?.answer;
    const again = said.answers.find((each) => each.sequence === last?.sequence && each.prompt === last.prompt);
    const next = again ?? said.answers.find((each) => each.prompt === last?.prompt) ?? said.answers[0];
    if (next) loadTokens(next.sequence);
  });
}

export function loadTokens(sequence: number): void {
  const shown = list.value;
  if (shown) void fetchInto<OneAnswer>("one", `/${shown.stage}/${shown.step}/${sequence}`, (said) => {
    one.value = said && { ...said, same_prompt: bothEnds(said.same_prompt, stage.value?.steps ?? []) };
  });
}

/** The first and the newest step; the one at which a question was not asked has no answers. */
function bothEnds(asked: OneAnswer["same_prompt"], steps: number[]): OneAnswer["same_prompt"] {
  if (asked.length !== 1 || steps.length < 2) return asked;
  const other = asked[0]!.step === steps[0] ? steps.at(-1)! : steps[0]!;
  return [...asked, { step: other, answers: [] }].sort((a, b) => a.step - b.step);
}

/** Ask which stages there are whenever the run moved on: until there is one, and while one looks. */
effect(() => {
  if (run.value?.kind !== "run" || (stages.peek().length && !open.value)) return;
  get<{ stages: Stage[] }>("")
    .then((said) => (stages.value = said.stages))
    .catch(() => undefined); // that the server is gone is told elsewhere
});

const place = computed(() => `${stage.value?.name} ${step.value}`); // stays the same when only figures were added
effect(() => {
  const asked = [open.value, place.value, sort.value, down.value];
  if (asked[0]) untracked(() => loadAnswers());
});
