// One question with its answer: words that open, tool calls as cards, and what can be done with it.
import { useComputed } from "@preact/signals";
import { useState } from "preact/hooks";
import { Better, ModelTitle } from "./compare";
import { shownAnswer, writing } from "./conversations";
import { copyText } from "./copy";
import { editing } from "./draft";
import { explain } from "./failures";
import { Icon } from "./icons";
import { opened, tokensOf } from "./inspector";
import { Markdown } from "./markdown";
import { run } from "./run";
import { regenerate, settings, show, thumb } from "./talk";
import type { Answer, Part, Side, ToolPart, Turn } from "./types";
import { answerText } from "./wire";
import { t, type Word } from "./words";

export function TurnView({ turn, place, last, edit }: { turn: Turn; place: number; last: boolean; edit: (turn: number) => void }) {
  const answer = shownAnswer(turn);
  const about = { turn, place, last };
  return (
    <>
      <article class="question" aria-label={t("you")}>
        <button class="icon quiet-button" aria-label={t("edit")} title={t("edit")} onClick={() => edit(place)}>
          <Icon name="edit" />
        </button>
        <div class={editing.value === place ? "bubble edited" : "bubble"} dir="auto">
          {turn.question}
        </div>
      </article>
      {answer && !answer.other && <AnswerView {...about} answer={answer} side="main" />}
      {answer?.other && (
        <div class="pair">
          <AnswerView {...about} answer={answer} side="main" pair />
          <AnswerView {...about} answer={answer.other} side="other" pair />
        </div>
      )}
    </>
  );
}

interface AnswerProps {
  turn: Turn;
  answer: Answer;
  place: number;
  side: Side;
  last: boolean;
  pair?: boolean;
}

function AnswerView({ turn, answer, place, side, last, pair = false }: AnswerProps) {
  const busy = answer.state === "writing";
  return (
    <article class={pair ? "answer card glass" : "answer"} data-turn={place} data-side={side} aria-busy={busy}>
      {pair && <ModelTitle model={answer.model} />}
      {answer.leftOut ? <p class="quiet small">{t("left_out", { n: answer.leftOut })}</p> : null}
      <Words answer={answer} place={place} side={side} />
      {busy && !answer.parts.length && (
        <p class="dots" role="status" aria-label={t("thinking")}>
          <i />
          <i />
          <i />
        </p>
      )}
      {answer.state === "failed" && (
        <p class="problem" role="alert">
          {explain(answer.error ?? "unreachable", "failed")}
        </p>
      )}
      {!busy && <Foot turn={turn} answer={answer} place={place} side={side} last={last} pair={pair} />}
    </article>
  );
}

/** The token of an answer that is open, or -1; only that answer is drawn again when it changes. */
function useOpenToken(place: number, side: Side): number {
  return useComputed(() => {
    const now = opened.value;
    return now?.turn === place && now.side === side ? now.token : -1;
  }).value;
}

function Words({ answer, place, side }: { answer: Answer; place: number; side: Side }) {
  const open = useOpenToken(place, side);
  const click = (event: MouseEvent) => {
    const target = event.target as Element;
    const word = target.closest("a") ? null : target.closest<HTMLElement>("[data-word]"); // a link opens its page
    if (word && getSelection()?.isCollapsed !== false) opened.value = { turn: place, side, token: Number(word.dataset["word"]) };
  };
  const key = (event: KeyboardEvent) => {
    if (opened.value || !["ArrowRight", "ArrowLeft", "Enter"].includes(event.key) || event.target !== event.currentTarget) return;
    const count = tokensOf(place, side).length;
    if (count) opened.value = { turn: place, side, token: event.key === "ArrowLeft" ? count - 1 : 0 };
    event.preventDefault();
    event.stopPropagation();
  };
  let base = 0;
  const drawn = answer.parts.map((part, i) => {
    if (part.kind === "tool") return <ToolCard key={i} part={part} />;
    const before = base;
    base += part.tokens.length;
    const mine = open >= before && open < base ? open - before : -1;
    return <Markdown key={i} tokens={part.tokens} base={before} selected={mine} tint={settings.value.tint} />;
  });
  const silent = answer.state !== "writing" && answer.state !== "failed" && !answerText(answer).trim();
  return (
    <div class={answer.state === "writing" ? "words writing" : "words"} tabIndex={0} aria-label={t("answer_words")} onClick={click} onKeyDown={key} role="group">
      {drawn}
      {silent && <p class="quiet">{t("no_answer")}</p>}
    </div>
  );
}

/** Ending is a choice of the model too: the token that ended the answer opens like a word. */
function EndMark({ answer, place, side }: { answer: Answer; place: number; side: Side }) {
  const tokens = answer.parts.flatMap((part: Part) => (part.kind === "text" ? part.tokens : []));
  const chosen = useOpenToken(place, side);
  if (answer.stoppedBy !== "end" || tokens.at(-1)?.text !== "") return null;
  const token = tokens.length - 1;
  const open = chosen === token;
  return (
    <button class={open ? "word end selected" : "word end"} data-word={token} onClick={() => (opened.value = { turn: place, side, token })}>
      {t("end_mark")}
    </button>
  );
}

export function ToolCard({ part }: { part: ToolPart }) {
  const key = `tool_${part.name}`;
  return (
    <div class="tool">
      <Icon name="calculator" />
      <span class="tool-name">{key === "tool_calculator" ? t(key as Word) : part.name}</span>
      <code>{argumentText(part.arguments)}</code>
      <span aria-hidden="true">→</span>
      {part.result === null ? <span class="quiet">{t("tool_running")}…</span> : <strong>{part.result}</strong>}
    </div>
  );
}

/** {"expression": "12*7"} is shown as 12*7; anything else as it is. */
function argumentText(text: string): string {
  try {
    const values = Object.values(JSON.parse(text) as object);
    return values.length === 1 ? String(values[0]) : text;
  } catch {
    return text;
  }
}

function Foot({ turn, answer, place, side, last, pair = false }: AnswerProps) {
  const [copied, setCopied] = useState(false);
  const text = answerText(answer).trim();
  const copy = async () => {
    if (!(await copyText(text))) return;
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  const facts = [
    answer.state === "stopped" && t("stopped"),
    answer.stoppedBy === "length" && t(outOfRoom(answer) ? "no_room" : "cut"),
    answer.tokens && t("count_tokens", { n: answer.tokens }),
    answer.tokens && answer.seconds ? t("speed", { n: Math.round(answer.tokens / answer.seconds) }) : null,
  ].filter(Boolean);
  return (
    <footer class="foot">
      {pair && <Better turn={turn} place={place} side={side} />}
      {side === "main" && turn.answers.length > 1 && <Versions turn={turn} place={place} />}
      {side === "main" && last && (
        <button class="icon" aria-label={t("regenerate")} title={t("regenerate")} disabled={writing.value} onClick={regenerate}>
          <Icon name="again" />
        </button>
      )}
      {text && (
        <button class="icon" aria-label={t(copied ? "copied" : "copy")} title={t("copy")} onClick={() => void copy()}>
          <Icon name={copied ? "check" : "copy"} />
        </button>
      )}
      {!pair && run.value?.judging && answer.state !== "failed" && text && <Thumbs answer={answer} place={place} />}
      <span class="facts">
        <span class="quiet small">{facts.join(" · ")}</span>
        <EndMark answer={answer} place={place} side={side} />
      </span>
    </footer>
  );
}

/** An answer that was cut short of the reader's own limit filled the model's context. */
function outOfRoom(answer: Answer): boolean {
  const limit = answer.by?.sampling.max_tokens;
  return answer.tokens !== undefined && limit !== undefined && answer.tokens < limit;
}

function Thumbs({ answer, place }: { answer: Answer; place: number }) {
  return (
    <>
      <button class="icon" aria-label={t("thumb_up")} title={t("thumb_up")} aria-pressed={answer.thumb === true} onClick={() => void thumb(place, true)}>
        <Icon name="up" />
      </button>
      <button class="icon" aria-label={t("thumb_down")} title={t("thumb_down")} aria-pressed={answer.thumb === false} onClick={() => void thumb(place, false)}>
        <Icon name="down" />
      </button>
    </>
  );
}

function Versions({ turn, place }: { turn: Turn; place: number }) {
  const step = (by: number) => () => {
    opened.value = null;
    show(place, turn.shown + by);
  };
  return (
    <span class="versions">
      <button class="icon" aria-label={t("previous_answer")} disabled={turn.shown === 0 || writing.value} onClick={step(-1)}>
        <Icon name="left" />
      </button>
      <span class="small">
        {turn.shown + 1}/{turn.answers.length}
      </span>
      <button class="icon" aria-label={t("next_answer")} disabled={turn.shown === turn.answers.length - 1 || writing.value} onClick={step(1)}>
        <Icon name="right" />
      </button>
    </span>
  );
}
