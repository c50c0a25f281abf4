/** The examples at the end of every help text, by the name of the verb. */

const SYNC = `
Examples:
  secondsite sync /srv/vm/web01.raw /mnt/second/web01.raw
  secondsite sync --dry-run web01.raw /mnt/second/web01.raw    # how much differs?
  secondsite sync --digest blake3 /dev/vg/web01 web01.raw      # and read both again
  secondsite sync --progress json a.raw b.raw 2>progress.jsonl
`

const VERIFY = `
Examples:
  secondsite verify a.raw b.raw
  secondsite verify --repair /dev/vg/web01 /dev/vg/web01-second
  secondsite verify --json --digest xxh3-128 a.raw b.raw
`

const SHOW = `
Examples:
  secondsite log show web01-os.hrl
  secondsite log show --entries web01-os.hrl | head -50
  secondsite log show --entries --json web01-os.hrl | jq 'select(.operation == "discard")'
`

const CHECK = `
Examples:
  secondsite log verify web01-os.hrl
  secondsite log verify 1.hrl 2.hrl 3.hrl    # and that 2 follows 1, and 3 follows 2
`

const APPLY = `
Example:
  secondsite log apply 1.hrl 2.hrl web01-os.raw
`

const EXPORT = `
Example:
  secondsite log export --strict web01-os.hrl for-hyper-v.hrl
`

const DEMO = `
Examples:
  secondsite demo
  secondsite demo --keep    # and look at disk, logs and replica afterwards
`

const PROTECT = `
Examples:
  secondsite protect os.raw data.raw --replica /mnt/second/web01 --nbd unix:/run/web01.sock --every 30s
  secondsite protect /dev/vg/db01 --replica /mnt/second/db01 --nbd tcp:127.0.0.1:10809 --resync now
  secondsite protect os.raw --replica r --nbd unix:web01.sock --json | jq 'select(.event)'
  secondsite protect os.raw --replica r --nbd unix:web01.sock --quiesce-agent /run/web01/agent.sock \\
    --application-consistent-every 4h --failover-settings web01.yaml
A cut on demand: kill -USR2 PID.
Then, for the guest: qemu-system-x86_64 …, with the lines that are printed: -drive file=…
`

const PLAN = `
Examples:
  secondsite plan check shop.yaml
  secondsite plan run shop.yaml --kind test
  secondsite plan run shop.yaml --kind unplanned --dry-run
  secondsite plan continue shop-20261121T101500Z-Unplanned
  secondsite plan report shop-20261121T101500Z-Test --html drill.html
`

const PLAN_RUN = `
Examples:
  secondsite plan run shop.yaml --kind planned --dry-run    # what would happen?
  secondsite plan run shop.yaml --kind test
  secondsite plan run shop.yaml --kind unplanned --yes --json
  secondsite plan run shop.yaml --kind failback --dry-run   # the same file leads home, where its machines have "reverse"
`

const PLAN_CONTINUE = `
Examples:
  secondsite plan continue shop-20261121T101500Z-Unplanned           # the manual step is done
  secondsite plan continue shop-20261121T101500Z-Planned --skip      # the failed step was done by hand
`

const PLAN_CHECK = `
Examples:
  secondsite plan check shop.yaml
  secondsite plan check shop.yaml --json | jq '.error.details.problems[]'
`

const PLAN_LIST = `
Examples:
  secondsite plan list
  secondsite plan list --json | jq '.runs[] | select(.state == "WaitingForInput")'
`

const PLAN_REPORT = `
Examples:
  secondsite plan report shop-20261121T101500Z-Test
  secondsite plan report shop-20261121T101500Z-Test --html drill.html
`

const PLAN_ABANDON = `
Example:
  secondsite plan abandon shop-20261121T101500Z-Planned
`

const POINTS = `
Examples:
  secondsite points /mnt/second/web01
  secondsite points /mnt/second/web01 --json | jq '.points[] | select(.damage == null) | .number'
  secondsite points /mnt/second/web01 --around 2026-11-21T10:15:00Z --span 2m    # just before the damage?
  secondsite points /mnt/second/web01 --html churn.html
  secondsite points lock /mnt/second/web01 4711 --until 2026-12-24T00:00:00Z
`

const RESTORE = `
Examples:
  secondsite restore /mnt/second/web01 --point 2026-11-21T09:55:00Z --to /srv/restored
  secondsite restore /mnt/second/web01 --at 2026-11-21T10:14:59.123456789Z --to /srv/restored    # as points --around has it
  secondsite restore /mnt/second/web01 --sequence os.raw:12582917 --to /srv/restored
`

const DIFF = `
Example:
  secondsite diff /mnt/second/web01 --from 4711 --to 4800
`

const TEST_FAILOVER = `
Examples:
  secondsite test-failover start /mnt/second/web01 --nbd unix:/run/web01-test.sock
  secondsite test-failover start /mnt/second/web01 --run --lifetime 2h    # boots it on a network of its own
  secondsite test-failover list /mnt/second/web01
`

const FAILOVER = `
After a disaster, at the second site:
  secondsite points /mnt/second/web01
  secondsite failover start /mnt/second/web01 --nbd unix:/run/web01.sock          # says what would be lost
  secondsite failover start /mnt/second/web01 --nbd unix:/run/web01.sock --yes    # and serves the disks
  secondsite failover start /mnt/second/web01 --run --yes                         # or boots the machine from them
  secondsite failover commit /mnt/second/web01 --yes
Planned: shut the machine down, end protect, then
  secondsite failover prepare /var/lib/secondsite/web01 web01
  secondsite failover start /mnt/second/web01 --planned --nbd unix:/run/web01.sock --yes
or, to be protected again at once (then \`protect\` there serves the disks):
  secondsite failover start /mnt/second/web01 --planned --reverse --state /var/lib/secondsite/away \\
    --home /srv/vm/home-store --former-state /var/lib/secondsite/web01 --yes
`

const SETTINGS = `
Examples:
  secondsite failover settings show /mnt/second/web01 >web01.yaml
  secondsite failover settings set /mnt/second/web01 web01.yaml
  secondsite failover settings set /mnt/second/web01 --from-primary
`

const REVERSE = `
Examples:
  secondsite reverse /mnt/second/web01 --state /var/lib/secondsite/away --home /srv/vm/home-store \\
    --former-state /var/lib/secondsite/web01 --yes
  secondsite reverse /mnt/second/web01 --state /var/lib/secondsite/away --home /srv/new/store \\
    --former-disk web01.raw=/srv/new/web01.raw --yes
`

const FAILBACK = `
Examples:
  secondsite failback /mnt/second/web01 --state /var/lib/secondsite/away --home-state /var/lib/secondsite/web01 \\
    --home /srv/vm/home-store                              # what is left, what would be copied, what would be lost
  secondsite failback … --until synchronize --yes          # end \`failover serve\` before, start \`protect\` after: it runs on there
  secondsite failback … --yes                              # the guest shut down, \`protect\` ended: the rest of the way
`

const GROUP = `
Examples:
  secondsite group list /var/lib/secondsite/shop
  secondsite group points /mnt/second/web01 /mnt/second/db01
  secondsite group test-failover /mnt/second/web01 /mnt/second/db01 --nbd /run/shop-test
  secondsite group failover /mnt/second/web01 /mnt/second/db01 --nbd /run/shop --yes
  secondsite group change-point /mnt/second/web01 /mnt/second/db01 --point 2026-11-21T10:15:00Z --nbd /run/shop --yes
  secondsite group commit /mnt/second/web01 /mnt/second/db01 --yes    # or: cancel
`

/** Examples of a verb, by its whole name. */
export const EXAMPLES: Readonly<Record<string, string>> = {
  secondsite: `
Examples:
  secondsite protect web01.raw --replica /mnt/second/web01 --nbd unix:/run/web01.sock
  secondsite sync /srv/vm/web01.raw /mnt/second/web01.raw
  secondsite verify --repair a.raw b.raw
  secondsite log show --entries web01-os.hrl
  secondsite <verb> --help
`,
  protect: PROTECT,
  sync: SYNC,
  verify: VERIFY,
  log: SHOW,
  'log show': SHOW,
  'log verify': CHECK,
  'log apply': APPLY,
  'log export': EXPORT,
  points: POINTS,
  'points lock': POINTS,
  'points unlock': POINTS,
  'points delete': POINTS,
  'points digest': POINTS,
  'points dismiss': POINTS,
  restore: RESTORE,
  diff: DIFF,
  'test-failover': TEST_FAILOVER,
  'test-failover start': TEST_FAILOVER,
  'test-failover list': TEST_FAILOVER,
  'test-failover stop': TEST_FAILOVER,
  failover: FAILOVER,
  'failover prepare': FAILOVER,
  'failover start': FAILOVER,
  'failover serve': FAILOVER,
  'failover change-point': FAILOVER,
  'failover cancel': FAILOVER,
  'failover commit': FAILOVER,
  'failover settings': SETTINGS,
  'settings show': SETTINGS,
  'settings set': SETTINGS,
  reverse: REVERSE,
  failback: FAILBACK,
  group: GROUP,
  'group list': GROUP,
  'group points': GROUP,
  'group failover': GROUP,
  'group change-point': GROUP,
  'group cancel': GROUP,
  'group commit': GROUP,
  'group test-failover': GROUP,
  plan: PLAN,
  'plan check': PLAN_CHECK,
  'plan run': PLAN_RUN,
  'plan continue': PLAN_CONTINUE,
  'plan list': PLAN_LIST,
  'plan report': PLAN_REPORT,
  'plan abandon': PLAN_ABANDON,
  demo: DEMO,
}
