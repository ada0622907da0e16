// What went wrong: kept as the server names it, told in today's language.
import { ServerError } from "./api";
import { t, type Word } from "./words";

/** What the server says where something fails, by its words or its code. */
const FAILURES: Record<string, Word> = {
  unreachable: "unreachable",
  still_learning: "still_learning",
  rate_limit_exceeded: "busy",
  model_busy: "busy",
  context_length_exceeded: "too_long",
  "The body is larger than 1000000 bytes.": "too_long",
  system_too_long: "system_too_long",
  store_error: "store_error",
  "The server failed while it wrote this answer.": "server_failed",
  "The model computes no numbers any more (NaN).": "model_nan",
  not_traced: "micro_gone",
  damaged: "micro_damaged",
};

/** The name of a failure in the table above, else the server's words. */
export function causeOf(error: unknown): string {
  if (!(error instanceof ServerError)) return "unreachable";
  return [error.message, error.code ?? ""].find((each) => each in FAILURES) ?? error.message;
}

/** A cause as people say it; the server's own words follow what could not be done. */
export function explain(cause: string, undone?: Word): string {
  const known = FAILURES[cause];
  if (known) return t(known);
  return undone ? t(undone, { why: cause }) : cause;
}
