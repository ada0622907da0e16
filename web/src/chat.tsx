// The chat: the conversation, and the box to write in.
import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { TurnView } from "./answer";
import { CompareSwitch } from "./compare";
import { Icon, Logo } from "./icons";
import { opened } from "./inspector";
import { reachable, run } from "./run";
import { announcement, ask, stop, takeBack, turns, writing } from "./talk";
import { duration, stageTitle, t, type Word } from "./words";

const draft = signal("");
const EXAMPLES: Word[] = ["example_1", "example_2", "example_3", "example_5", "example_4", "example_8", "example_7", "example_6"];
const LINES_AT_MOST = 200; // pixels of the message box before it scrolls

export function Chat() {
  const end = useRef<HTMLDivElement>(null);
  const scroller = useRef<HTMLDivElement>(null);
  const follow = useRef(true);
  const all = turns.value;
  useLayoutEffect(() => {
    if (follow.current && !opened.value) scroller.current?.scrollTo({ top: scroller.current.scrollHeight });
  }, [all]);
  const scrolled = () => {
    const box = scroller.current;
    if (box) follow.current = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
    if (opened.value && innerWidth >= 640) opened.value = null;
  };
  const edit = (turn: number) => {
    opened.value = null;
    draft.value = takeBack(turn);
    document.getElementById("message")?.focus();
  };
  return (
    <main class="chat">
      <div class="scroll" ref={scroller} onScroll={scrolled}>
        <div class="column">
          {all.length === 0 ? <Welcome /> : all.map((turn, i) => <TurnView key={i} turn={turn} place={i} last={i === all.length - 1} edit={edit} />)}
          <div ref={end} />
        </div>
      </div>
      <div class="column bottom">
        <Note />
        <CompareSwitch />
        <Composer sent={() => (follow.current = true)} />
      </div>
      <div class="sr-only" role="status">
        {announcement.value}
      </div>
    </main>
  );
}

function Welcome() {
  const waiting = run.value?.kind === "run" && !run.value.model;
  return (
    <section class="welcome">
      <div class={waiting ? "halo learning" : "halo"}>
        <Logo />
      </div>
      <h2>{t(waiting ? "waiting_title" : "greeting")}</h2>
      <p class="quiet">{t(waiting ? "waiting_more" : "greeting_more")}</p>
      {!waiting && (
        <div class="examples">
          {EXAMPLES.map((key) => (
            <button key={key} class="glass" onClick={() => ask(t(key))}>
              {t(key)}
            </button>
          ))}
        </div>
      )}
    </section>
  );
}

/** Who is talking: a snapshot of a run that is not over, or why nobody is. */
function Note() {
  if (!reachable.value) {
    return (
      <p class="note problem" role="alert">
        {t("unreachable")}
      </p>
    );
  }
  const now = run.value;
  if (!now?.model || now.kind !== "run" || !now.training) return null;
  const { model } = now;
  const values = { stage: stageTitle(model.stage), step: model.step, time: duration(now.now - model.made) };
  return <p class="note">{t(model.finished ? "stage_note" : "snapshot_note", values)}</p>;
}

function Composer({ sent }: { sent: () => void }) {
  const box = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    if (matchMedia("(pointer: fine)").matches) box.current?.focus();
  }, []);
  useLayoutEffect(() => {
    if (!box.current) return;
    box.current.style.height = "auto";
    box.current.style.height = `${Math.min(LINES_AT_MOST, box.current.scrollHeight)}px`;
  }, [draft.value]);
  const send = () => {
    if (writing.value || !draft.value.trim()) return;
    opened.value = null;
    sent();
    ask(draft.value);
    draft.value = "";
  };
  const key = (event: KeyboardEvent) => {
    // Enter that ends the input of Chinese or Japanese characters (keyCode 229 in some browsers) does not send
    const composing = event.isComposing || event.keyCode === 229;
    if (event.key === "Enter" && !event.shiftKey && !composing) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape" && writing.value) stop();
  };
  return (
    <form
      class="composer glass"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <textarea
        id="message"
        ref={box}
        rows={1}
        aria-label={t("message_label")}
        placeholder={t("placeholder")}
        value={draft.value}
        onInput={(event) => (draft.value = event.currentTarget.value)}
        onKeyDown={key}
      />
      {writing.value ? (
        <button type="button" class="round" aria-label={t("stop")} title={t("stop")} onClick={stop}>
          <span class="square" />
        </button>
      ) : (
        <button type="submit" class="round" aria-label={t("send")} title={t("send")} disabled={!draft.value.trim()}>
          <Icon name="send" />
        </button>
      )}
    </form>
  );
}
