// Builds the page into the Python package. No plugin: Vite itself compiles TSX by tsconfig.json.
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  build: {
    outDir: "../src/liuli/server/page",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false }, // the polyfill would be an inline script, which the page's policy forbids
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  server: { proxy: { "/api": "http://127.0.0.1:8365", "/v1": "http://127.0.0.1:8365" } },
});
