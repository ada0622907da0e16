// The conversations that this browser keeps: go back to one, delete one or all.
import { signal } from "@preact/signals";
import { useRef, useState } from "preact/hooks";
import { conversation, type Kept, kept, MOST } from "./conversations";
import { Dialog } from "./dialog";
import { Icon } from "./icons";
import { discard } from "./talk";
import { moment, t } from "./words";

export const keptOpen = signal(false);

export function KeptDialog({ go }: { go: (name: string) => void }) {
  return (
    <Dialog open={keptOpen} title="conversations">
      <KeptList go={go} />
    </Dialog>
  );
}

function KeptList({ go }: { go: (name: string) => void }) {
  const [all, setAll] = useState(kept);
  const list = useRef<HTMLUListElement>(null);
  const remove = (gone: Kept[]) => {
    discard(gone.map(({ name }) => name));
    setAll(all.filter((each) => !gone.includes(each)));
    list.current?.focus(); // the button goes
  };
  const open = (name: string) => {
    keptOpen.value = false;
    if (name !== conversation.value) go(name);
  };
  const key = (event: KeyboardEvent) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const rows = [...list.current!.querySelectorAll<HTMLElement>(".go")];
    if (!by || !rows.length) return;
    const at = rows.findIndex((row) => row.parentElement!.contains(document.activeElement));
    rows[(at + by + rows.length) % rows.length]!.focus();
    event.preventDefault();
  };
  return (
    <>
      <ul class="kept" ref={list} tabIndex={-1} onKeyDown={key}>
        {all.map((each, i) => (
          <li key={each.name}>
            <button class="go" autoFocus={i === 0} aria-current={each.name === conversation.value ? "page" : undefined} onClick={() => open(each.name)}>
              <span dir="auto">{each.title}</span>
              {each.time && <small>{moment(each.time)}</small>}
            </button>
            <Remove label={`${t("delete")}: ${each.title}`} sure={t("delete_sure")} act={() => remove([each])}>
              <Icon name="trash" />
            </Remove>
          </li>
        ))}
      </ul>
      <footer>
        <small>{t(all.length ? "conversations_more" : "conversations_none", { n: MOST })}</small>
        {all.length > 1 && (
          <Remove label={t("delete_all")} sure={t("delete_all_sure", { n: all.length })} act={() => remove(all)}>
            {t("delete_all")}
          </Remove>
        )}
      </footer>
    </>
  );
}

interface RemoveProps {
  label: string;
  sure: string;
  act: () => void;
  children: preact.ComponentChildren;
}

/** What is deleted does not come back: the first press asks, the second deletes. */
function Remove({ label, sure, act, children }: RemoveProps) {
  const [asked, setAsked] = useState(false);
  const press = () => (asked ? act() : setAsked(true));
  return (
    <button class={asked ? "icon sure" : "icon"} aria-label={asked ? sure : label} title={label} onClick={press} onBlur={() => setAsked(false)}>
      {asked ? sure : children}
    </button>
  );
}
