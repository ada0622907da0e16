// The settings: how answers are drawn, and how they are shown.
import { signal } from "@preact/signals";
import { Dialog } from "./dialog";
import { run } from "./run";
import { DEFAULTS, setSettings, settings } from "./talk";
import { t } from "./words";

export const settingsOpen = signal(false);

export function SettingsDialog() {
  const { temperature, maxTokens, system, tint } = settings.value;
  const longest = Math.min(1024, run.value?.model?.context ?? 1024);
  return (
    <Dialog open={settingsOpen} title="settings">
      <form class="settings" method="dialog">
        <label>
          <span>
            {t("temperature")} <b>{temperature.toFixed(1)}</b>
          </span>
          <input type="range" min="0" max="1.5" step="0.1" value={temperature} onInput={(e) => setSettings({ temperature: Number(e.currentTarget.value) })} />
          <small>{t("temperature_more")}</small>
        </label>
        <label>
          <span>
            {t("max_tokens")} <b>{Math.min(maxTokens, longest)}</b>
          </span>
          <input type="range" min="16" max={longest} step="16" value={maxTokens} onInput={(e) => setSettings({ maxTokens: Number(e.currentTarget.value) })} />
        </label>
        <label>
          <span>{t("system")}</span>
          <textarea rows={3} value={system} onInput={(e) => setSettings({ system: e.currentTarget.value })} />
          <small>{t("system_more")}</small>
        </label>
        <label class="check">
          <input type="checkbox" checked={tint} onChange={(e) => setSettings({ tint: e.currentTarget.checked })} />
          <span>{t("tint")}</span>
          <small>{t("tint_more")}</small>
        </label>
        <button type="button" class="plain" onClick={() => setSettings(DEFAULTS)}>
          {t("reset")}
        </button>
      </form>
    </Dialog>
  );
}
