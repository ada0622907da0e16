// Talking to the server. Lines of JSON arrive in pieces cut anywhere, also inside a character; `lines` puts them together.
import type { ChatEvent, Run, WireMessage } from "./types";

export class ServerError extends Error {
  constructor(message: string, readonly code: string | null) {
    super(message);
  }
}

export async function getRun(): Promise<Run> {
  const response = await fetch("api/run");
  if (!response.ok) throw new ServerError(response.statusText, null);
  return (await response.json()) as Run;
}

export interface Ask {
  messages: WireMessage[];
  temperature: number;
  max_tokens: number;
}

/** Ask, and hand each event of the answer to `take` until the answer ends or `signal` aborts it. */
export async function chat(ask: Ask, signal: AbortSignal, take: (event: ChatEvent) => void): Promise<void> {
  const response = await fetch("api/chat", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...ask, alternatives: 8 }),
    signal,
  });
  if (!response.ok || !response.body) {
    const body = (await response.json().catch(() => null)) as { error?: { message: string; code: string | null } } | null;
    throw new ServerError(body?.error?.message ?? response.statusText, body?.error?.code ?? null);
  }
  for await (const line of lines(response.body)) take(JSON.parse(line) as ChatEvent);
}

async function* lines(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const whole = rest.split("\n");
    rest = whole.pop() ?? "";
    for (const line of whole) if (line) yield line;
    if (done) {
      if (rest) yield rest;
      return;
    }
  }
}
