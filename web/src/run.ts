// The run being watched: asked for again and again, faster while it trains.
import { signal } from "@preact/signals";
import { getRun } from "./api";
import { load } from "./store";
import type { Model, Run } from "./types";

export const run = signal<Run | null>(null);
/** What is in front on a phone: where there is nobody to talk to yet, the run. */
export const front = signal<"chat" | "learn">("chat");
export const reachable = signal(true);
/** Whether every question goes to the model before the newest one, too. */
export const comparing = signal(load("compare", false));

/** The newest model and the one before it, where there are two. */
export function newestTwo(): [Model, Model] | null {
  const [newest, before] = run.value?.models ?? [];
  return newest && before ? [newest, before] : null;
}

const TRAINING_MS = 2000;
const RESTING_MS = 15000;

export function watch(): void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const look = async () => {
    clearTimeout(timer);
    if (!document.hidden) {
      try {
        const first = run.value === null;
        run.value = await getRun();
        if (first && run.value.kind === "run" && !run.value.model) front.value = "learn";
        reachable.value = true;
      } catch {
        reachable.value = false;
      }
    }
    const now = run.value;
    const moving = !reachable.value || now?.training || (now?.kind === "run" && !now.model);
    timer = setTimeout(() => void look(), moving ? TRAINING_MS : RESTING_MS);
  };
  document.addEventListener("visibilitychange", () => void look());
  void look();
}
