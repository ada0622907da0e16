// A dialog of the browser's own: focus stays inside, Escape and a click beside it close it.
import type { Signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { Icon } from "./icons";
import { t, type Word } from "./words";

export function Dialog({ open, title, children }: { open: Signal<boolean>; title: Word; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    if (open.value) dialog.current?.showModal();
    else dialog.current?.close();
  }, [open.value]);
  const close = () => (open.value = false);
  return (
    <dialog class="glass dialog" ref={dialog} aria-label={t(title)} onClose={close} onClick={(event) => event.target === dialog.current && close()}>
      <header>
        <h2>{t(title)}</h2>
        <button type="button" class="icon" aria-label={t("close")} title={t("close")} onClick={close}>
          <Icon name="close" />
        </button>
      </header>
      {open.value && children}
    </dialog>
  );
}
