// A question as it was put to the model, and a card for each answer, which can be rewritten.
import type { ComponentChildren } from "preact";
import { ToolCard } from "./answer";
import { Icon } from "./icons";
import { drafts, edited, saveEdit, setDraft, versionOf, type Shown } from "./labelling";
import { Markdown } from "./markdown";
import type { Part, WireMessage } from "./types";
import { t } from "./words";

export function Question({ messages }: { messages: WireMessage[] }) {
  return (
    <section class="label-question" tabIndex={-1} aria-label={t("label_question")}>
      {messages.map((message, i) => {
        if (message.role === "user") return <div key={i} class="bubble" dir="auto">{message.content}</div>;
        if (message.role === "system") return <p key={i} class="quiet small label-system">{message.content}</p>;
        return message.role === "assistant" ? <Said key={i} messages={[message, ...resultsAfter(messages, i)]} /> : null;
      })}
    </section>
  );
}

/** What the tools answered to the calls of message `i`. */
function resultsAfter(messages: WireMessage[], i: number): WireMessage[] {
  const end = messages.findIndex((message, at) => at > i && message.role !== "tool");
  return messages.slice(i + 1, end < 0 ? messages.length : end);
}

/** Messages of the assistant and of its tools as the chat draws them. */
function partsOf(messages: WireMessage[]): Part[] {
  const parts: Part[] = [];
  for (const message of messages) {
    if (message.role === "tool") {
      const open = parts.find((part) => part.kind === "tool" && part.result === null);
      if (open?.kind === "tool") open.result = message.content;
      continue;
    }
    if (message.content.trim()) parts.push({ kind: "text", tokens: [{ id: 0, text: message.content.trim(), logprob: 0, alternatives: [] }] });
    for (const call of message.tool_calls ?? []) parts.push({ kind: "tool", id: call.id, ...call.function, result: null });
  }
  return parts;
}

function Said({ messages }: { messages: WireMessage[] }) {
  const parts = partsOf(messages);
  return (
    <div class="label-said">
      {parts.map((part, i) => (part.kind === "tool" ? <ToolCard key={i} part={part} /> : <Markdown key={i} tokens={part.tokens} base={0} selected={-1} tint={false} />))}
      {!parts.length && <p class="quiet">{t("no_answer")}</p>}
    </div>
  );
}

interface CardProps {
  shown: Shown;
  name?: string;
  children?: ComponentChildren;
}

export function AnswerCard({ shown, name, children }: CardProps) {
  const editing = drafts.value[shown.id] !== undefined;
  const kept = edited.value[shown.id];
  return (
    <article class="card glass label-card" aria-label={name}>
      <header>
        <strong class="label-name">{name}</strong>
        {!editing && (
          <button class="icon" aria-label={t("edit")} title={t("edit")} onClick={() => setDraft(shown.id, versionOf(shown))}>
            <Icon name="edit" />
          </button>
        )}
      </header>
      {editing ? <Edit shown={shown} /> : <Said messages={shown.messages} />}
      {kept !== undefined && !editing && (
        <section class="label-kept">
          <span class="chip">{t("label_saved")}</span>
          <Said messages={[{ role: "assistant", content: kept }]} />
        </section>
      )}
      {!editing && children}
    </article>
  );
}

function Edit({ shown }: { shown: Shown }) {
  const original = shown.messages.at(-1)?.content ?? "";
  const text = drafts.value[shown.id] ?? "";
  const close = () => setDraft(shown.id, null);
  const save = async () => {
    if (await saveEdit(shown.id, text)) close();
  };
  return (
    <form
      class="label-edit"
      onSubmit={(event) => {
        event.preventDefault();
        void save();
      }}
      onKeyDown={(event) => event.key === "Escape" && !event.isComposing && close()}
    >
      <textarea rows={6} autoFocus aria-label={t("label_edit_box")} value={text} onInput={(event) => setDraft(shown.id, event.currentTarget.value)} />
      <div class="label-actions">
        <button class="choice" disabled={!text.trim() || text === versionOf(shown) || text === original}>
          {t("label_save")}
        </button>
        <button type="button" class="plain" onClick={close}>
          {t("label_cancel")}
        </button>
      </div>
    </form>
  );
}
