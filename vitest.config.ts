import { defineConfig } from 'vitest/config'

// Workers run from built dist, so tests that touch the pool import packages by name; `npm test` builds first.
export default defineConfig({
  test: {
    pool: 'forks',
    include: ['packages/*/src/**/*.test.ts', 'test/**/*.test.ts'],
    exclude: ['**/node_modules/**', '**/dist/**', 'test/slow/**'],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    retry: 0,
  },
})
