// The microscope: what learning from rewards does to a model, from the figures of a stage down to a single token.
import { explain } from "./failures";
import { useOpener } from "./focus";
import { Icon } from "./icons";
import { SmallCharts } from "./microscope_charts";
import "./microscope.css";
import { TokenPanel } from "./microscope_tokens";
import { run } from "./run";
import {
  chooseStage,
  chooseStep,
  down,
  follows,
  list,
  loadAnswers,
  loadTokens,
  one,
  open,
  problem,
  setOpen,
  sort,
  stage,
  stages,
  step,
  type Sort,
  type Stage,
  type TracedAnswer,
} from "./traces";
import { stageTitle, t, type Word } from "./words";

/** In the header, where a run has something to show. */
export function MicroscopeButton() {
  const button = useOpener(open.value);
  if (!stages.value.length && !open.value) return null;
  const label = t("microscope");
  return (
    <button ref={button} class="icon" aria-label={label} title={label} aria-pressed={open.value} onClick={() => setOpen(!open.value)}>
      <svg class="icon-image" viewBox="0 0 24 24" aria-hidden="true">
        <path d="M9 3.5h4v8.5H9zM8 15h6M11 12v3M6 20.5h12M13 6.5a6.6 6.6 0 0 1 2.5 14" />
      </svg>
    </button>
  );
}

export function Microscope() {
  if (!open.value) return null;
  const now = stage.value;
  return (
    <main class="microscope" aria-label={t("microscope")}>
      <header class="micro-head">
        <h2>{t("microscope")}</h2>
        <p class="quiet small">{t("micro_more")}</p>
        {stages.value.length > 1 && <StageChoice />}
        <button class="icon" aria-label={t("close")} title={t("close")} onClick={() => setOpen(false)}>
          <Icon name="close" />
        </button>
      </header>
      {!now && <p class="card glass quiet">{t("micro_wait")}</p>}
      {now && <SmallCharts stage={now} step={step.value} />}
      {now && step.value === null && <p class="card glass quiet">{t("micro_no_traces")}</p>}
      {now && step.value !== null && <StepChoice stage={now} step={step.value} />}
      {problem.value && (
        <p class="problem small" role="alert">
          {explain(problem.value)}
        </p>
      )}
      {now && step.value !== null && (
        <div class="micro-both">
          <Answers />
          <div class="micro-side">
            {one.value && list.value && <TokenPanel one={one.value} scales={list.value.scales} />}
            {one.value && <ThenAndNow name={now.name} />}
          </div>
        </div>
      )}
    </main>
  );
}

function StageChoice() {
  return (
    <div class="switch" role="group" aria-label={t("stages")}>
      {stages.value.map(({ name }) => (
        <button key={name} aria-pressed={name === stage.value?.name} onClick={() => chooseStage(name)}>
          {stageTitle(name)}
        </button>
      ))}
    </div>
  );
}

function StepChoice({ stage, step }: { stage: Stage; step: number }) {
  const place = stage.steps.indexOf(step);
  const last = stage.steps.length - 1;
  const go = (to: number) => chooseStep(stage.steps[Math.max(0, Math.min(last, to))]!);
  return (
    <section class="card glass micro-step">
      <strong>
        {t("micro_step", { n: step.toLocaleString("en") })}
        {follows.value && <span class="chip">{t("samples_newest")}</span>}
      </strong>
      <div class="slider">
        <button class="icon" aria-label={t("micro_step_before")} title={t("micro_step_before")} disabled={place === 0} onClick={() => go(place - 1)}>
          <Icon name="left" />
        </button>
        <input
          type="range"
          min={0}
          max={last}
          value={place}
          aria-label={t("micro_step_choice")}
          aria-valuetext={t("micro_step", { n: step })}
          onInput={(event) => go(Number(event.currentTarget.value))}
        />
        <button class="icon" aria-label={t("micro_step_after")} title={t("micro_step_after")} disabled={place === last} onClick={() => go(place + 1)}>
          <Icon name="right" />
        </button>
      </div>
      <span class="quiet small">{t("micro_traced", { n: stage.steps.length })}</span>
    </section>
  );
}

// --- the answers of a step --------------------------------------------------------------------------------------------

const SORTS: Record<Sort, Word> = { sequence: "micro_sort_sequence", score: "micro_score", length: "micro_length", kl: "micro_kl" };

function Answers() {
  const shown = list.value;
  if (!shown) return null;
  return (
    <section class="card glass micro-answers">
      <header>
        <h2>{t("micro_answers", { n: shown.total })}</h2>
        <span class="micro-sort">
          <select aria-label={t("micro_sort")} value={sort.value} onChange={(event) => (sort.value = event.currentTarget.value as Sort)}>
            {Object.entries(SORTS).map(([name, word]) => (
              <option key={name} value={name}>
                {t(word)}
              </option>
            ))}
          </select>
          <button class="icon" aria-label={t("micro_descending")} title={t("micro_descending")} aria-pressed={down.value} disabled={sort.value === "sequence"} onClick={() => (down.value = !down.value)}>
            {down.value ? "↓" : "↑"}
          </button>
        </span>
      </header>
      <ul>
        {shown.answers.map((answer) => (
          <li key={answer.sequence}>
            <button aria-pressed={one.value?.answer.sequence === answer.sequence} onClick={() => loadTokens(answer.sequence)}>
              <span class="quiet small">{answer.prompt}</span>
              <span class="micro-said">{answer.answer.trim() || t("no_answer")}</span>
              <Facts answer={answer} />
            </button>
          </li>
        ))}
      </ul>
      {shown.answers.length < shown.total && (
        <button class="plain" onClick={() => loadAnswers("more")}>
          {t("micro_next_answers")}
        </button>
      )}
    </section>
  );
}

/** Score, truth, length and drift of an answer, in a line. */
function Facts({ answer }: { answer: TracedAnswer }) {
  return (
    <span class="micro-facts small">
      <Truth right={answer.right} />
      {answer.score !== null && (
        <span>
          {t("micro_score")} <b>{answer.score.toFixed(2)}</b>
        </span>
      )}
      <span>{t("count_tokens", { n: answer.length })}</span>
      {answer.kl !== null && <span>KL {answer.kl.toFixed(2)}</span>}
      {!answer.finished && <span>{t("micro_unfinished")}</span>}
    </span>
  );
}

function Truth({ right }: { right: boolean | null }) {
  if (right === null) return null;
  return (
    <span class={right ? "micro-right" : "micro-wrong"}>
      {right ? "✓" : "✗"} {t(right ? "micro_right" : "micro_wrong")}
    </span>
  );
}

// --- the same question, then and now ----------------------------------------------------------------------------------

interface Said {
  step: number;
  answers: { prompt?: string; answer: string; of?: TracedAnswer }[];
}

/** The open answer's prompt at the first and the newest traced step; below, the fixed prompts that the stage was asked. */
function ThenAndNow({ name }: { name: string }) {
  const samples = run.value?.samples.filter((sample) => sample.stage === name) ?? [];
  const fixed = samples.length > 1 ? [samples[0]!, samples.at(-1)!] : [];
  const same: Said[] = one.value!.same_prompt.map((at) => ({ step: at.step, answers: at.answers.slice(0, 4).map((of) => ({ answer: of.answer, of })) }));
  return (
    <section class="card glass">
      <header>
        <h2>{t("micro_then_now")}</h2>
      </header>
      <p class="micro-prompt">{one.value!.answer.prompt}</p>
      {same.length ? <Columns columns={same} /> : <p class="quiet small">{t("micro_not_asked")}</p>}
      {fixed.length > 0 && <h3>{t("micro_fixed")}</h3>}
      {fixed.length > 0 && <Columns columns={fixed} />}
    </section>
  );
}

function Columns({ columns }: { columns: Said[] }) {
  return (
    <div class="micro-columns">
      {columns.map((column, i) => (
        <div key={i}>
          <p class="quiet small">{t(column.answers.length ? "micro_step" : "micro_not_asked_at", { n: column.step.toLocaleString("en") })}</p>
          <ul>
            {column.answers.map(({ prompt, answer, of }, j) => (
              <li key={j}>
                {prompt && <span class="quiet small">{prompt}</span>}
                <span class="micro-said">{answer.trim() || t("no_answer")}</span>
                {of && <Facts answer={of} />}
              </li>
            ))}
          </ul>
        </div>
      ))}
    </div>
  );
}
