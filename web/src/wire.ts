// The conversation as the server reads it.
import { shownAnswer } from "./conversations";
import type { Answer, Part, Turn, WireMessage } from "./types";

const MOST_BYTES = 900_000; // the server reads a million; a model, far less

const textOf = (part: Part) => (part.kind === "text" ? part.tokens.map((token) => token.text).join("") : "");

export function answerText(answer: Answer): string {
  return answer.parts.map(textOf).join("");
}

/** Up to the last question, of what was said before it as many of the newest turns as the server reads. */
export function wireMessages(all: Turn[], system: string): WireMessage[] {
  const first: WireMessage[] = system.trim() ? [{ role: "system", content: system.trim() }] : [];
  const last: WireMessage = { role: "user", content: all.at(-1)?.question ?? "" };
  const before: WireMessage[] = [];
  let room = MOST_BYTES - bytes([...first, last]);
  for (const turn of all.slice(0, -1).reverse()) {
    const said = wireTurn(turn);
    room -= bytes(said);
    if (room < 0) break;
    before.unshift(...said);
  }
  return [...first, ...before, last];
}

function bytes(messages: WireMessage[]): number {
  return new TextEncoder().encode(JSON.stringify(messages)).length;
}

/** A question with its answer; without either where none came, or the model would read that it says nothing. */
function wireTurn(turn: Turn): WireMessage[] {
  const answer = shownAnswer(turn);
  const said = answer ? wireAnswer(answer) : [];
  const nothing = answer?.state !== "done" && said.every((message) => !message.content);
  return nothing ? [] : [{ role: "user", content: turn.question }, ...said];
}

/** What was said before tools were called is in the message that calls them, as the model wrote it. */
export function wireAnswer(answer: Answer): WireMessage[] {
  const messages: WireMessage[] = [];
  let calls: WireMessage["tool_calls"];
  let content = "";
  for (const part of answer.parts) {
    content += textOf(part);
    if (part.kind !== "tool") continue;
    if (!part.beside) calls = undefined;
    if (part.result === null) continue;
    if (!calls) {
      calls = [];
      messages.push({ role: "assistant", content, tool_calls: calls });
      content = "";
    }
    calls.push({ id: part.id, type: "function", function: { name: part.name, arguments: part.arguments } });
    messages.push({ role: "tool", content: part.result, tool_call_id: part.id });
  }
  return [...messages, { role: "assistant", content }];
}
