// The page where a person compares, ranks and edits answers: the human in learning from human feedback.
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { explain } from "./failures";
import { useOpener } from "./focus";
import { Icon } from "./icons";
import { AnswerCard, Question } from "./label_cards";
import "./label.css";
import { choose, counts, drop, mode, open, order, place, problem, setMode, setOpen, setWho, skip, submitOrder, task, unsaved, who } from "./labelling";
import { run } from "./run";
import { t, type Word } from "./words";

const LETTERS = "ABCD";

/** In the header, where the server keeps judgements. */
export function LabelButton() {
  const button = useOpener(open.value);
  if (!run.value?.judging && !open.value) return null;
  const label = t("label");
  return (
    <button ref={button} class="icon" aria-label={label} title={label} aria-pressed={open.value} onClick={() => setOpen(!open.value)}>
      <Icon name="scales" />
    </button>
  );
}

export function Label() {
  const page = useRef<HTMLElement>(null);
  useEffect(() => {
    if (!open.value) return;
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, [open.value]);
  useLayoutEffect(() => {
    // the button that was pressed went with the last task: whoever uses the keyboard goes on here
    if (document.activeElement === document.body) page.current?.querySelector<HTMLElement>(".label-question")?.focus();
  }, [task.value]);
  if (!open.value) return null;
  return (
    <main ref={page} class="label-page" aria-label={t("label")}>
      <header class="label-head">
        <h2>{t("label")}</h2>
        <p class="quiet small">{t("label_more")}</p>
        <ModeSwitch />
        <button class="icon" aria-label={t("close")} title={t("close")} onClick={() => setOpen(false)}>
          <Icon name="close" />
        </button>
      </header>
      {problem.value && (
        <p class="problem small" role="alert">
          {explain(problem.value.cause, problem.value.undone)}
          {problem.value.again && (
            <button class="plain" onClick={problem.value.again}>
              {t("label_again")}
            </button>
          )}
        </p>
      )}
      {!task.value && !problem.value && (
        <p class="dots" role="status" aria-label={t("label_drawing")}>
          <i />
          <i />
          <i />
        </p>
      )}
      {task.value && <Question messages={task.value.messages} />}
      {task.value && <Answers />}
      <Progress />
    </main>
  );
}

/** 1, 2: the better one. A to D: the next place, Enter: keep the order. 0: neither. Not while somebody writes. */
function key(event: KeyboardEvent): void {
  const target = event.target as Element;
  const writing = target.closest("input, textarea") || document.querySelector("dialog[open]");
  if (writing || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  const letter = LETTERS.indexOf(event.key.toUpperCase());
  if (event.key === "0") skip();
  else if (mode.value === "compare" && "12".includes(event.key)) choose(Number(event.key) - 1);
  else if (mode.value === "rank" && letter >= 0) order.value = place(order.value, letter);
  else if (mode.value === "rank" && event.key === "Enter" && !target.closest("button, a")) submitOrder();
  else return;
  event.preventDefault();
}

function ModeSwitch() {
  return (
    <div class="switch" role="group" aria-label={t("label_mode")}>
      <button aria-pressed={mode.value === "compare"} disabled={unsaved.value} onClick={() => setMode("compare")}>
        {t("label_compare")}
      </button>
      <button aria-pressed={mode.value === "rank"} disabled={unsaved.value} onClick={() => setMode("rank")}>
        {t("label_rank")}
      </button>
    </div>
  );
}

function Answers() {
  if (!task.value || task.value.answers.length < 2) return <TheOnlyOne />;
  return mode.value === "compare" ? <Compare /> : <Rank />;
}

function TheOnlyOne() {
  return (
    <>
      <p class="quiet small">{t("label_same")}</p>
      <div class="label-answers">{task.value?.answers.map((shown) => <AnswerCard key={shown.id} shown={shown} />)}</div>
      <Actions skipping="label_next" />
    </>
  );
}

function Compare() {
  return (
    <>
      <div class="label-answers two">
        {task.value?.answers.map((shown, i) => (
          <AnswerCard key={shown.id} shown={shown} name={String(i + 1)}>
            <button class="choice" disabled={unsaved.value} onClick={() => choose(i)}>
              {t("label_better")} <kbd>{i + 1}</kbd>
            </button>
          </AnswerCard>
        ))}
      </div>
      <Actions skipping="label_neither" />
    </>
  );
}

function Rank() {
  const { places, placed } = order.value;
  const answers = task.value?.answers ?? [];
  return (
    <>
      <p class="quiet small">{t("label_rank_more")}</p>
      <ol class="label-answers" aria-label={t("label_rank")}>
        {places.map((number, i) => (
          <RankedCard key={answers[number]!.id} number={number} rank={i < placed ? i + 1 : null} />
        ))}
      </ol>
      <Actions skipping="label_neither">
        <button class="choice" disabled={placed < answers.length || unsaved.value} onClick={submitOrder}>
          {t("label_submit")} <kbd>↵</kbd>
        </button>
      </Actions>
    </>
  );
}

function RankedCard({ number, rank }: { number: number; rank: number | null }) {
  const shown = task.value!.answers[number]!;
  const put = () => (order.value = place(order.value, number));
  const dropped = (event: DragEvent) => {
    event.preventDefault();
    const moved = Number(event.dataTransfer?.getData("text/plain") || number);
    if (moved !== number && order.value.places.includes(moved)) order.value = drop(order.value, moved, number);
  };
  return (
    <li
      draggable
      onDragStart={(event) => event.dataTransfer?.setData("text/plain", String(number))}
      onDragOver={(event) => event.preventDefault()}
      onDrop={dropped}
      onClick={(event) => (event.target as Element).closest("button, textarea, a") || put()}
    >
      <button class="rank" aria-pressed={rank !== null} aria-label={`${LETTERS[number]}: ${rank ? t("label_place", { n: rank }) : t("label_place_next")}`} onClick={put}>
        {rank ?? ""}
      </button>
      <AnswerCard shown={shown} name={LETTERS[number]!} />
    </li>
  );
}

function Actions({ skipping, children }: { skipping: Word; children?: preact.ComponentChildren }) {
  return (
    <div class="label-actions">
      {children}
      <button class="plain" disabled={unsaved.value} onClick={skip}>
        {t(skipping)} <kbd>0</kbd>
      </button>
      {unsaved.value && <p class="quiet small">{t("label_edit_first")}</p>}
    </div>
  );
}

const KINDS: [keyof NonNullable<typeof counts.value>, Word][] = [
  ["choice", "label_choices"],
  ["ranking", "label_rankings"],
  ["edit", "label_edits"],
  ["thumb", "label_thumbs"],
  ["skipped", "label_skipped"],
];
const EXPORTS: [string, Word][] = [
  ["dpo", "label_export_dpo"],
  ["sft", "label_export_sft"],
  ["kto", "label_export_kto"],
];

function Progress() {
  const now = counts.value;
  if (!now) return null;
  return (
    <footer class="card glass label-progress">
      <div class="progress" role="progressbar" aria-label={t("progress")} aria-valuemin={0} aria-valuemax={now.prompts} aria-valuenow={now.prompts_done}>
        <span style={{ width: `${(100 * now.prompts_done) / now.prompts}%` }} />
      </div>
      <p class="quiet small">{t("label_done", { done: now.prompts_done, n: now.prompts })}</p>
      <dl class="figures">
        {KINDS.map(([kind, word]) => (
          <div key={kind} data-count={kind}>
            <dd>{now[kind]}</dd>
            <dt>{t(word)}</dt>
          </div>
        ))}
      </dl>
      <div class="label-ends">
        <label>
          <span class="quiet small">{t("label_who")}</span>
          <input type="text" maxLength={80} value={who.value} onInput={(event) => setWho(event.currentTarget.value)} />
        </label>
        <span class="quiet small">{t("label_export")}</span>
        {EXPORTS.map(([kind, word]) => (
          <a key={kind} href={`api/label/export?kind=${kind}`} download={`${kind}.jsonl`}>
            {t(word)}
          </a>
        ))}
      </div>
    </footer>
  );
}
