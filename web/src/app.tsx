// The page: a header, the chat, beside it (on a phone: behind a tab) the run being watched.
import { signal } from "@preact/signals";
import { Chat, focusBox } from "./chat";
import { lastOther, turns } from "./conversations";
import { Icon, Logo } from "./icons";
import { Inspector } from "./inspector";
import { KeptDialog, keptOpen } from "./kept";
import { Label, LabelButton } from "./label";
import { setOpen as setLabelOpen } from "./labelling";
import { Learn } from "./learn";
import { Microscope, MicroscopeButton } from "./microscope";
import { front, run } from "./run";
import { SettingsDialog, settingsOpen } from "./settings";
import { load, save } from "./store";
import { goTo } from "./talk";
import { dark, toggleTheme } from "./theme";
import { setOpen as setMicroscopeOpen } from "./traces";
import { language, setLanguage, t } from "./words";

const side = signal(load("side", true)); // on a wide window

export function App() {
  const watching = run.value?.kind === "run";
  return (
    <div class={`app ${watching && side.value ? "with-side" : ""} show-${watching ? front.value : "chat"}`}>
      <a class="sr-only skip" href="#message">
        {t("skip")}
      </a>
      <Header watching={watching} />
      <Chat />
      {watching && <Learn />}
      <Microscope />
      <Label />
      <Inspector />
      <KeptDialog go={showChat} />
      <SettingsDialog />
    </div>
  );
}

function Header({ watching }: { watching: boolean }) {
  const now = run.value;
  return (
    <header class="top">
      <h1>
        <Logo />
        <span>
          Liuli <b>琉璃</b>
        </span>
      </h1>
      <p class="quiet subtitle">{now ? now.name : t("subtitle")}</p>
      {watching && (
        <div class="tabs switch" role="group" aria-label={t("watch")}>
          <button aria-pressed={front.value === "chat"} onClick={() => (front.value = "chat")}>
            {t("chat")}
          </button>
          <button aria-pressed={front.value === "learn"} onClick={() => (front.value = "learn")}>
            {t("learning")}
          </button>
        </div>
      )}
      <nav>
        {turns.value.length > 0 && <Tool icon="plus" label={t("new_chat")} act={() => showChat()} />}
        {(turns.value.length > 0 || lastOther()) && <Tool icon="history" label={t("conversations")} act={() => (keptOpen.value = true)} />}
        <LabelButton />
        <MicroscopeButton />
        {watching && <Tool icon="curve" label={t("watch")} act={toggleSide} pressed={side.value} only="wide" />}
        <button class="icon word-button" aria-label={t("language_label")} title={t("language_label")} onClick={() => setLanguage(language.value === "zh" ? "en" : "zh")}>
          {t("language")}
        </button>
        <Tool icon={dark.value ? "sun" : "moon"} label={t("theme")} act={toggleTheme} />
        <Tool icon="settings" label={t("settings")} act={() => (settingsOpen.value = true)} />
      </nav>
    </header>
  );
}

interface ToolProps {
  icon: Parameters<typeof Icon>[0]["name"];
  label: string;
  act: () => void;
  pressed?: boolean;
  only?: string;
}

function Tool({ icon, label, act, pressed, only = "" }: ToolProps) {
  return (
    <button class={`icon ${only}`} aria-label={label} title={label} aria-pressed={pressed} onClick={act}>
      <Icon name={icon} />
    </button>
  );
}

/** A new conversation or another one, also from the page where answers are judged, or from the microscope. */
function showChat(name?: string): void {
  setLabelOpen(false);
  setMicroscopeOpen(false);
  front.value = "chat";
  goTo(name);
  setTimeout(focusBox); // when the chat is drawn again
}

function toggleSide(): void {
  side.value = !side.value;
  save("side", side.value);
}
