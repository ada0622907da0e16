// Talking to the server. Lines of JSON arrive in pieces cut anywhere, also inside a character; `lines` puts them together.
import type { ChatEvent, Run, WireMessage } from "./types";

export class ServerError extends Error {
  constructor(message: string, readonly code: string | null) {
    super(message);
  }
}

export const getRun = () => getJson<Run>("api/run");

export async function getJson<T>(path: string): Promise<T> {
  const response = await fetch(path);
  if (!response.ok) throw await failure(response);
  return (await response.json()) as T;
}

export async function post<T>(path: string, body: object, signal?: AbortSignal): Promise<T> {
  return (await (await send(path, body, signal)).json()) as T;
}

async function send(path: string, body: object, signal?: AbortSignal): Promise<Response> {
  const headers = { "content-type": "application/json" };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), ...(signal ? { signal } : {}) });
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response: Response): Promise<ServerError> {
  const body = (await response.json().catch(() => null)) as { error?: { message: string; code: string | null } } | null;
  return new ServerError(body?.error?.message ?? response.statusText, body?.error?.code ?? null);
}

export interface Ask {
  messages: WireMessage[];
  temperature: number;
  max_tokens: number;
  seed?: number;
  /** The stage whose model answers; without it, the newest model. */
  model?: string;
}

/** Ask, and hand each event of the answer to `take` until the answer ends or `signal` aborts it. */
export async function chat(ask: Ask, signal: AbortSignal, take: (event: ChatEvent) => void): Promise<void> {
  const { body } = await send("api/chat", { ...ask, alternatives: 8 }, signal);
  for await (const line of lines(body!)) take(JSON.parse(line) as ChatEvent);
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
