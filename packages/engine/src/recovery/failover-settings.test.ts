import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { isSecondsiteError } from '../errors.js'
import { SeededRandom } from '../random.js'
import { parseFailoverSettings } from './failover-settings.js'
import { failoverSettingsJsonSchema, readFailoverSettings } from './failover-settings-file.js'
import { environmentOf, handoverOf } from './runner-handover.js'

const DOMAIN = '<domain type="kvm"><name>web01</name><devices/></domain>'

function problemsOf(action: () => unknown): { path: string; value: unknown; range: string }[] {
  try {
    action()
  } catch (error) {
    if (isSecondsiteError(error, 'FAILOVER_SETTINGS_INVALID')) return error.details['problems'] as never
    throw error
  }
  return expect.unreachable('accepted')
}

describe('failover settings', () => {
  it('fill in what nobody has said: a machine of QEMU, unplugged but in tests', () => {
    expect(parseFailoverSettings({ networkAdapters: [{}] })).toEqual({
      networkAdapters: [{ testNetwork: 'isolated', failoverNetwork: 'none' }],
      startLimitSeconds: 120,
      stopLimitSeconds: 120,
      runner: {
        method: 'qemu',
        accelerator: 'auto',
        diskBus: 'virtio',
        adapterModel: 'virtio-net-pci',
        arguments: [],
      },
    })
  })

  it('are taken again as they were put out', () => {
    const runner = { method: 'libvirt', domainXml: DOMAIN, disks: { vda: 'os.raw' } } as const
    const settings = parseFailoverSettings({ memoryMiB: 512, runner })
    expect(parseFailoverSettings(JSON.parse(JSON.stringify(settings)))).toEqual(settings)
  })

  const BAD: [string, unknown, string, string][] = [
    ['a size out of range', { memoryMiB: 1 }, 'memoryMiB', '16'],
    ['a fraction', { processorCount: 1.5 }, 'processorCount', 'whole number'],
    ['a setting that is none', { memoryMib: 512 }, 'memoryMib', 'no such setting'],
    ['a name with a slash', { name: 'a/b' }, 'name', 'without a slash'],
    [
      'a network that is none',
      { networkAdapters: [{ testNetwork: 'lan' }] },
      'networkAdapters.0.testNetwork',
      'isolated',
    ],
    [
      'a bridge with an option behind it',
      { networkAdapters: [{ failoverNetwork: 'bridge:br0,x=y' }] },
      'networkAdapters.0.failoverNetwork',
      'bridge:NAME',
    ],
    [
      'a MAC address with a comma',
      { networkAdapters: [{ macAddress: '52:54:00:12:34:56,x' }] },
      'networkAdapters.0.macAddress',
      '52:54',
    ],
    [
      'an address that is none',
      { networkAdapters: [{ failoverAddresses: { ipv4Address: '10.0.0.256' } }] },
      'networkAdapters.0.failoverAddresses.ipv4Address',
      'IPv4',
    ],
    [
      'too many adapters',
      { networkAdapters: Array.from({ length: 17 }, () => ({})) },
      'networkAdapters',
      '16',
    ],
    ['a runner that is none', { runner: { method: 'vmware' } }, 'runner.method', 'qemu, libvirt, command'],
    [
      'a program that is not absolute',
      { runner: { method: 'qemu', program: 'qemu' } },
      'runner.program',
      'absolute',
    ],
    ['no command', { runner: { method: 'command', start: [] } }, 'runner.start', 'absolute path'],
    [
      'a command that nothing could stop',
      { runner: { method: 'command', start: ['/bin/true'] } },
      'runner.stop',
      'nothing is left',
    ],
    [
      'a domain that is no XML',
      { runner: { method: 'libvirt', domainXml: '<domain>' } },
      'runner.domainXml',
      'virsh dumpxml',
    ],
    [
      'a domain that is another thing',
      { runner: { method: 'libvirt', domainXml: '<network/>' } },
      'runner.domainXml',
      'outermost',
    ],
    [
      'a domain with entities of its own',
      { runner: { method: 'libvirt', domainXml: `<!DOCTYPE d [<!ENTITY a "b">]>${DOMAIN}` } },
      'runner.domainXml',
      'document type',
    ],
    [
      'more than a hello takes',
      { runner: { method: 'qemu', arguments: Array(80).fill('x'.repeat(4000)) } },
      '',
      '262144',
    ],
    ['no object', 'web01', '', 'object'],
    ['nothing', null, '', 'object'],
  ]
  it.each(BAD)('are refused for %s, with path and what is allowed', (_what, input, path, range) => {
    const [problem] = problemsOf(() => parseFailoverSettings(input))
    expect(problem).toMatchObject({ path, range: expect.stringContaining(range) })
  })

  it('tell every problem at once, and shorten what they show', () => {
    const problems = problemsOf(() => parseFailoverSettings({ memoryMiB: 1, name: 'x'.repeat(5000), who: 1 }))
    expect(problems.map(({ path }) => path).toSorted()).toEqual(['memoryMiB', 'name', 'who'])
    expect(JSON.stringify(problems).length).toBeLessThan(1000)
  })
})

describe('a file of failover settings', () => {
  let folder: string
  const write = (name: string, text: string | Buffer): string => {
    writeFileSync(join(folder, name), text)
    return join(folder, name)
  }

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'secondsite-settings-'))
  })

  afterEach(() => rmSync(folder, { recursive: true, force: true }))

  it('is YAML or JSON, and the domain may stand beside it', () => {
    expect(readFailoverSettings(write('a.yaml', 'memoryMiB: 64\n')).memoryMiB).toBe(64)
    expect(readFailoverSettings(write('a.json', '{"memoryMiB": 65}')).memoryMiB).toBe(65)
    write('web01.xml', DOMAIN)
    const path = write('b.yaml', 'runner: { method: libvirt, domainXmlFile: web01.xml }\n')
    expect(readFailoverSettings(path).runner).toMatchObject({ method: 'libvirt', domainXml: DOMAIN })
  })

  it('has an example that is right', () => {
    const settings = readFailoverSettings(
      join(import.meta.dirname, '../../../../examples/failover-settings.yaml'),
    )
    expect(settings.networkAdapters[0]?.failoverAddresses?.ipv4Address).toBe('10.2.0.15')
  })

  it('that is no YAML is refused with line and column', () => {
    const [problem] = problemsOf(() => readFailoverSettings(write('a.yaml', 'memoryMiB: 64\nname: [web\n')))
    expect(problem?.range).toMatch(/line 3, column 1/)
    const path = write('b.yaml', 'name: a\nname: b\n')
    expect(problemsOf(() => readFailoverSettings(path))[0]?.range).toMatch(/line 2, column 1/)
  })

  it('that is too large, empty or not there is refused', () => {
    const large = write('a.yaml', Buffer.alloc(300_000, '#'))
    expect(problemsOf(() => readFailoverSettings(large))[0]?.range).toContain('262144')
    expect(problemsOf(() => readFailoverSettings(write('b.yaml', '')))).toHaveLength(1)
    expect(() => readFailoverSettings(join(folder, 'none'))).toThrow(
      expect.objectContaining({ code: 'PATH_NOT_FOUND' }),
    )
    const path = write('c.yaml', 'runner: { method: libvirt, domainXmlFile: none.xml }\n')
    expect(() => readFailoverSettings(path)).toThrow(expect.objectContaining({ code: 'PATH_NOT_FOUND' }))
  })

  it('has a schema for editors, which is in the documents', async () => {
    const text = `${JSON.stringify(failoverSettingsJsonSchema(), null, 2)}\n`
    await expect(text).toMatchFileSnapshot(
      join(import.meta.dirname, '../../../../docs/failover-settings.schema.json'),
    )
    expect(
      readFileSync(join(import.meta.dirname, '../../../../docs/failover-settings.md'), 'utf8'),
    ).toContain('failover-settings.schema.json')
  })
})

describe('what is handed over', () => {
  const settings = parseFailoverSettings({
    name: 'shop',
    memoryMiB: 512,
    networkAdapters: [
      {
        macAddress: '52:54:00:12:34:56',
        failoverNetwork: 'bridge:br0',
        testAddresses: { ipv4Address: '192.0.2.1' },
        failoverAddresses: { ipv4PreferredDnsServer: '192.0.2.53', ipv6SubnetPrefixLength: 64 },
      },
    ],
  })
  const facts = {
    machine: 'web01',
    replica: '/replica',
    run: '/replica/runs/failover',
    point: { number: 7, timeMs: 1000 },
    address: 'unix:/run/nbd.sock',
    disks: [{ name: 'os.raw', sizeBytes: 512, uri: 'nbd+unix:///os.raw?socket=/run/nbd.sock' }],
  }

  it('to a real failover has its name, addresses and network', () => {
    const real = { ...facts, kind: 'Unplanned' as const, defaultName: 'web01' }
    const handover = handoverOf(settings, real, new SeededRandom(1))
    expect(handover).toMatchObject({ name: 'shop', memoryMiB: 512, processorCount: null })
    expect(environmentOf(handover, 'token')).toMatchObject({
      SECONDSITE_NAME: 'shop',
      SECONDSITE_MACHINE: 'web01',
      SECONDSITE_KIND: 'Unplanned',
      SECONDSITE_POINT_TIME: '1970-01-01T00:00:01.000Z',
      SECONDSITE_DISK_0_URI: 'nbd+unix:///os.raw?socket=/run/nbd.sock',
      SECONDSITE_ADAPTER_0_MAC: '52:54:00:12:34:56',
      SECONDSITE_ADAPTER_0_NETWORK: 'bridge:br0',
      SECONDSITE_ADAPTER_0_IPV4_PREFERRED_DNS_SERVER: '192.0.2.53',
      SECONDSITE_ADAPTER_0_IPV6_SUBNET_PREFIX_LENGTH: '64',
      SECONDSITE_RUN_TOKEN: 'token',
    })
    expect(environmentOf(handover, 'token')).not.toHaveProperty('SECONDSITE_PROCESSORS')
  })

  it('to a test has neither the name, nor an address or a network of the machine', () => {
    const test = { ...facts, kind: 'Test' as const, defaultName: 'web01 - Test 2' }
    const handover = handoverOf(settings, test, new SeededRandom(1))
    const [adapter] = handover.networkAdapters
    expect(handover.name).toBe('shop - Test 2')
    expect(adapter).toMatchObject({ network: 'isolated', addresses: { ipv4Address: '192.0.2.1' } })
    expect(adapter?.macAddress).toMatch(/^52:54:00(:[0-9a-f]{2}){3}$/)
    expect(adapter?.macAddress).not.toBe('52:54:00:12:34:56')
  })
})
