// Runs every test, Rust and TypeScript, and ends with one line over all of them. `--slow` runs them with many more
// seeds and rounds (SECONDSITE_SLOW is set for them).
//
// A test that cannot run here writes its reason into the file named by SECONDSITE_SKIP_LOG. Every skip is printed; in CI
// one that is not listed in test/allowed-skips.json fails the run.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { root } from './steps.mjs'

const isSlow = process.argv.includes('--slow')
const scratch = mkdtempSync(join(tmpdir(), 'secondsite-test-'))
const skipLog = join(scratch, 'skips')
const env = { ...process.env, SECONDSITE_SKIP_LOG: skipLog, ...(isSlow ? { SECONDSITE_SLOW: '1' } : {}) }
const totals = { passed: 0, failed: 0 }

function count(name, passed, failed) {
  totals.passed += passed
  totals.failed += failed
  console.log(`${name}: ${passed} passed, ${failed} failed`)
}

function check(name, command, args) {
  const { status } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env })
  count(name, status === 0 ? 1 : 0, status === 0 ? 0 : 1)
}

function cargoTests() {
  const args = ['test', '--workspace', '--exclude', 'secondsite-node', '--no-fail-fast']
  const result = spawnSync('cargo', isSlow ? [...args, '--release'] : args, {
    cwd: root,
    env,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  })
  process.stdout.write(result.stdout)
  process.stderr.write(result.stderr)
  const sums = [...result.stdout.matchAll(/^test result: \w+\. (\d+) passed; (\d+) failed/gm)]
  const passed = sums.reduce((total, sum) => total + Number(sum[1]), 0)
  const failed = sums.reduce((total, sum) => total + Number(sum[2]), 0)
  count('cargo test', passed, failed === 0 && result.status !== 0 ? 1 : failed)
}

function vitestTests() {
  const report = join(scratch, 'vitest.json')
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`]
  // By itself vitest leaves one processor alone, which on two means one file after the other.
  const workers = `--maxWorkers=${availableParallelism()}`
  const { status } = spawnSync(join(root, 'node_modules/.bin/vitest'), ['run', workers, ...reporters], {
    cwd: root,
    stdio: 'inherit',
    env,
  })
  if (!existsSync(report)) return count('vitest', 0, 1)
  const { numPassedTests, numFailedTests, numPendingTests, numTodoTests } = JSON.parse(
    readFileSync(report, 'utf8'),
  )
  const notRun = numPendingTests + numTodoTests
  if (notRun > 0)
    console.log(`${notRun} tests are marked as skipped in the source; skip with a reason instead`)
  const failed = numFailedTests + notRun
  count('vitest', numPassedTests, failed === 0 && status !== 0 ? 1 : failed)
}

function reportSkips() {
  if (!existsSync(skipLog)) return
  const allowed = JSON.parse(readFileSync(join(root, 'test/allowed-skips.json'), 'utf8')).map(
    (skip) => skip.test,
  )
  for (const line of new Set(readFileSync(skipLog, 'utf8').split('\n').filter(Boolean))) {
    const [test = '', reason = ''] = line.split('\t')
    console.log(`skipped: ${test}: ${reason}`)
    if (process.env.CI && !allowed.includes(test))
      count(`skip of ${test} is not listed in test/allowed-skips.json`, 0, 1)
  }
}

if (!isSlow) check('lint', process.execPath, ['scripts/lint.mjs'])
cargoTests()
vitestTests()
reportSkips()
rmSync(scratch, { recursive: true, force: true })
console.log(`\n${totals.passed} passed, ${totals.failed} failed`)
process.exit(totals.failed === 0 && totals.passed > 0 ? 0 : 1)
