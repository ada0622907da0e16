// What stands in the message box: a new question, or an earlier one that is asked differently.
import { effect, signal } from "@preact/signals";
import { turns } from "./conversations";
import { load, save } from "./store";
import { ask } from "./talk";

export const draft = signal(load("draft", "", "tab"));
/** The turn whose question is in the box. The conversation stays as it is until that is sent. */
export const editing = signal<number | null>(null);
let unsent = ""; // what stood in the box before

export function edit(turn: number): void {
  if (editing.value === null) unsent = draft.value;
  editing.value = turn;
  draft.value = turns.value[turn]!.question;
}

/** What had not been sent before the edit is in the box again. */
export function endEdit(): void {
  editing.value = null;
  draft.value = unsent;
  unsent = "";
}

export function send(): void {
  ask(draft.value, editing.value ?? undefined);
  endEdit();
}

// what is not sent yet outlives a reload
effect(() => void save("draft", editing.value === null ? draft.value : unsent, "tab"));

// the turn may go with a new chat
effect(() => {
  if (editing.value !== null && editing.value >= turns.value.length) endEdit();
});
