// The panel that shows a run: how far it is, its stages, its figures, its curve, what it says.
import { Chart } from "./chart";
import { Icon } from "./icons";
import { run } from "./run";
import { Samples } from "./samples";
import type { Run, StageState, Status } from "./types";
import { dark } from "./theme";
import { duration, explained, language, stageTitle, t, type Word } from "./words";

const SILENT_SECONDS = 180; // a running build rewrites its status every few seconds
const STOPPED = "stopped by hand; the same command goes on"; // of src/liuli/build.py; other messages tell of errors

export function Learn() {
  const now = run.value;
  if (!now || now.kind !== "run") return null;
  return (
    <aside class="learn" aria-label={t("watch")}>
      <Head now={now} />
      {now.report && now.status?.state === "done" && (
        <a class="report glass" href={`report.html?lang=${language.value}&theme=${dark.value ? "dark" : "light"}`} target="_blank" rel="noopener">
          {t("report")}
          <Icon name="open" />
        </a>
      )}
      <Stages status={now.status} />
      <Chart now={now} />
      <Samples now={now} />
    </aside>
  );
}

function Head({ now }: { now: Run }) {
  const status = now.status;
  const state = status?.state ?? "waiting";
  const progress = state === "done" ? 1 : (status?.progress ?? 0);
  const silent = state === "running" && status?.updated ? now.now - status.updated : 0;
  const word = (["running", "done", "failed", "stopped"].includes(state) ? `state_${state}` : "state_waiting") as Word;
  return (
    <section class="card glass">
      <header>
        <h2>{t("watch")}</h2>
        <span class={`chip ${state}`}>{t(word)}</span>
      </header>
      <div class="progress" role="progressbar" aria-label={t("progress")} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(progress * 100)}>
        <span style={{ width: `${progress * 100}%` }} />
      </div>
      <p class="times">
        <strong>{Math.floor(progress * 100)}%</strong>
        <span>{times(status, state)}</span>
      </p>
      {silent > SILENT_SECONDS && <p class="problem small">{t("state_silent", { time: duration(silent) })}</p>}
      {state === "failed" && <p class="problem small">{t("failed_more")}</p>}
      {status?.message === STOPPED && <p class="quiet small">{t("stopped_by_hand")}</p>}
      {status?.message && status.message !== STOPPED && (
        <p class="quiet small own-words" lang="en" dir="ltr">
          {status.message}
        </p>
      )}
      {state === "running" && status && <Figures status={status} />}
    </section>
  );
}

function times(status: Status | null, state: string): string {
  const passed = (status?.stages ?? []).reduce((sum, stage) => sum + (stage.seconds ?? 0), 0);
  if (passed === 0) return "";
  if (state === "done") return t("time_took", { time: duration(passed) });
  const said = [t("time_passed", { time: duration(passed) })];
  if (state === "running" && typeof status?.seconds_left === "number") said.push(t("time_left", { time: duration(status.seconds_left) }));
  return said.join(" · ");
}

function Figures({ status }: { status: Status }) {
  const step: Word = status.steps ? "figure_step_of" : "figure_step";
  const figures: [Word, string | null][] = [
    [step, status.step ? status.step.toLocaleString("en") : null],
    ["figure_bpb", status.bpb ? status.bpb.toFixed(3) : null],
    ["figure_loss", status.loss && !status.bpb ? status.loss.toFixed(3) : null],
    ["figure_speed", status.tokens_per_s ? Math.round(status.tokens_per_s).toLocaleString("en") : null],
    ["figure_peak", status.peak_share ? `${Math.round(status.peak_share * 100)}%` : null],
  ];
  const known = figures.filter(([, value]) => value !== null);
  if (!known.length) return null;
  return (
    <dl class="figures">
      {known.map(([name, value]) => (
        <div key={name}>
          <dd>{value}</dd>
          <dt>{t(name, { n: status.steps ?? "" })}</dt>
        </div>
      ))}
    </dl>
  );
}

const STATES: Record<string, Word> = { done: "stage_done", running: "stage_running", failed: "stage_failed" };

function Stages({ status }: { status: Status | null }) {
  if (!status?.stages?.length) return null;
  return (
    <section class="card glass">
      <h2 class="sr-only">{t("stages")}</h2>
      <ol class="stages">
        {status.stages.map((stage) => (
          <StageRow key={stage.name} stage={stage} status={status} />
        ))}
      </ol>
    </section>
  );
}

function StageRow({ stage, status }: { stage: StageState; status: Status }) {
  const running = stage.state === "running";
  const within = running && status.stage === stage.name && status.step && status.steps ? status.step / status.steps : null;
  return (
    <li class={stage.state} aria-current={running ? "step" : undefined} title={explained(stage.name)}>
      <span class="dot">{stage.state === "done" && <Icon name="check" />}</span>
      <span class="stage-name">
        {stageTitle(stage.name, stage.title)} <small>{stage.name}</small>
        {running && <em>{explained(stage.name)}</em>}
      </span>
      <span class="sr-only">{t(STATES[stage.state] ?? "stage_waiting")}</span>
      <span class="quiet small">
        {within !== null && `${Math.floor(within * 100)}% · `}
        {stage.seconds ? duration(stage.seconds) : ""}
      </span>
    </li>
  );
}
