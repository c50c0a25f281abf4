import { defineConfig } from 'vitest/config'

// Workers run from built dist, so tests that touch the pool import packages by name; `npm test` builds first.
export default defineConfig({
  test: {
    pool: 'forks',
    include: ['packages/*/src/**/*.test.ts', 'test/**/*.test.ts'],
    exclude: ['**/node_modules/**', '**/dist/**', 'test/slow/**'],
    // Only a hang is to be ended by it: commands start in seconds each where a machine is busy.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    retry: 0,
  },
})
