// The chat: the conversation, and the box to write in.
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { TurnView } from "./answer";
import { CompareSwitch } from "./compare";
import { lastOther, turns, writing } from "./conversations";
import { draft, edit, editing, endEdit, send } from "./draft";
import { Icon, Logo } from "./icons";
import { closeWhenScrolled, opened } from "./inspector";
import { reachable, run } from "./run";
import { announcement, ask, goTo, stop } from "./talk";
import { duration, stageTitle, t, type Word } from "./words";

const EXAMPLES: Word[] = ["example_1", "example_2", "example_3", "example_5", "example_4", "example_8", "example_7", "example_6"];
const LINES_AT_MOST = 200; // pixels of the message box before it scrolls

export function Chat() {
  const scroller = useRef<HTMLDivElement>(null);
  const follow = useRef(true);
  const before = useRef(0); // where it was scrolled to
  const all = turns.value;
  useLayoutEffect(() => {
    const box = scroller.current!;
    const observer = new ResizeObserver(() => {
      if (turns.value.length && follow.current && !opened.value) box.scrollTo({ top: box.scrollHeight });
    });
    for (const each of [box, box.firstElementChild!]) observer.observe(each);
    return () => observer.disconnect();
  }, []);
  const scrolled = () => {
    const box = scroller.current!;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
    // an answer that grew since the last frame leaves the end behind, too: only who scrolls up reads elsewhere
    follow.current = atEnd || (follow.current && box.scrollTop >= before.current);
    before.current = box.scrollTop;
    closeWhenScrolled(box);
  };
  return (
    <main class="chat">
      <div class="scroll" ref={scroller} onScroll={scrolled}>
        <div class="column">
          {all.length === 0 ? <Welcome /> : all.map((turn, i) => <TurnView key={i} turn={turn} place={i} last={i === all.length - 1} edit={change} />)}
        </div>
      </div>
      <div class="column bottom">
        <Note />
        <CompareSwitch />
        {editing.value !== null && <EditNote />}
        <Composer sent={() => (follow.current = true)} />
      </div>
      <div class="sr-only" role="status">
        {announcement.value}
      </div>
    </main>
  );
}

function change(turn: number): void {
  opened.value = null;
  edit(turn);
  focusBox();
}

function Welcome() {
  const other = lastOther();
  const waiting = run.value?.kind === "run" && !run.value.model;
  return (
    <section class="welcome">
      <div class="halo">
        <Logo />
      </div>
      <h2>{t(waiting ? "waiting_title" : "greeting")}</h2>
      <p class="quiet">{t(waiting ? "waiting_more" : "greeting_more")}</p>
      {other && (
        <button class="plain back" onClick={() => goTo(other)}>
          {t("back")}
        </button>
      )}
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

/** What sending an edited question will do, and the way back. */
function EditNote() {
  const cancel = () => {
    endEdit();
    focusBox();
  };
  return (
    <p class="note">
      {t("edit_note")}
      <button type="button" class="plain" onClick={cancel}>
        {t("label_cancel")}
      </button>
    </p>
  );
}

/** Elsewhere the focus would open a keyboard over half of the page. */
const hasKeyboard = () => matchMedia("(pointer: fine)").matches;

export function focusBox(): void {
  document.getElementById("message")?.focus();
}

function Composer({ sent }: { sent: () => void }) {
  const box = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    if (hasKeyboard()) focusBox();
  }, []);
  useLayoutEffect(() => {
    if (!box.current) return;
    box.current.style.height = "auto";
    box.current.style.height = `${Math.min(LINES_AT_MOST, box.current.scrollHeight)}px`;
  }, [draft.value]);
  const submit = () => {
    if (writing.value || !draft.value.trim()) return;
    opened.value = null;
    sent();
    send();
  };
  const stopWriting = () => {
    stop();
    if (hasKeyboard()) focusBox(); // the button goes
  };
  const key = (event: KeyboardEvent) => {
    // Enter that ends the input of Chinese or Japanese characters (keyCode 229 in some browsers) does not send
    const composing = event.isComposing || event.keyCode === 229;
    if (event.key === "Enter" && !event.shiftKey && !composing) {
      event.preventDefault();
      submit();
    } else if (event.key === "Escape" && editing.value !== null && !composing) endEdit();
    else if (event.key === "Escape" && writing.value && !composing) stop();
  };
  return (
    <form
      class="composer glass"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <textarea
        id="message"
        ref={box}
        rows={1}
        dir="auto"
        aria-label={t("message_label")}
        placeholder={t("placeholder")}
        value={draft.value}
        onInput={(event) => (draft.value = event.currentTarget.value)}
        onKeyDown={key}
      />
      {writing.value ? (
        <button type="button" class="round" aria-label={t("stop")} title={t("stop")} onClick={stopWriting}>
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
