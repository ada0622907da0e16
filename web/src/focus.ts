// Where the focus goes when the page that somebody worked in closes.
import { useLayoutEffect, useRef } from "preact/hooks";

/** The ref of the button that opens a page: it has the focus again when the page closes. */
export function useOpener(open: boolean) {
  const button = useRef<HTMLButtonElement>(null);
  useLayoutEffect(() => (open ? () => button.current?.focus() : undefined), [open]);
  return button;
}
