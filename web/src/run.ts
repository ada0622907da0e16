// The run being watched: asked for again and again, faster while it trains.
import { signal } from "@preact/signals";
import { getRun } from "./api";
import type { Run } from "./types";

export const run = signal<Run | null>(null);
export const reachable = signal(true);

const TRAINING_MS = 2000;
const RESTING_MS = 15000;

export function watch(): void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const look = async () => {
    clearTimeout(timer);
    if (!document.hidden) {
      try {
        run.value = await getRun();
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
