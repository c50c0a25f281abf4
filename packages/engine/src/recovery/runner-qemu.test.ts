import { describe, expect, it } from 'vitest'
import { SeededRandom } from '../random.js'
import { type FailoverSettingsInput, parseFailoverSettings, type QemuSettings } from './failover-settings.js'
import { handoverOf, type RunKind } from './runner-handover.js'
import { qemuArguments } from './runner-qemu.js'

const PLACES = { folder: '/replica/runs/failover', socketDirectory: '/replica/runs/failover' }

function argumentsOf(
  input: FailoverSettingsInput,
  kind: RunKind = 'Unplanned',
  address = 'unix:/run/nbd.sock',
) {
  const settings = parseFailoverSettings(input)
  const disks = ['os.raw', 'data.raw'].map((name) => ({ name, sizeBytes: 512, uri: '' }))
  const point = { number: 1, timeMs: 0 }
  const facts = { kind, machine: 'web01', replica: '/replica', run: PLACES.folder, point, address, disks }
  const handover = handoverOf(settings, { ...facts, defaultName: 'web,01' }, new SeededRandom(1))
  return qemuArguments(settings.runner as QemuSettings, handover, PLACES, false)
}

/** The values behind each mention of an argument. */
function valuesOf(words: readonly string[], name: string): string[] {
  return words.flatMap((word, index) => (word === name ? [words[index + 1] ?? ''] : []))
}

const blockdevsOf = (words: readonly string[]) =>
  valuesOf(words, '-blockdev').map((text) => JSON.parse(text) as { file: Record<string, unknown> })

describe('the arguments of QEMU', () => {
  it('say size, name and disks; the first disk boots first', () => {
    const words = argumentsOf({ processorCount: 3, memoryMiB: 300 })
    expect(valuesOf(words, '-name')).toEqual(['web,,01'])
    expect([...valuesOf(words, '-smp'), ...valuesOf(words, '-m')]).toEqual(['3', '300M'])
    expect(valuesOf(words, '-accel')).toEqual(['tcg'])
    expect(valuesOf(words, '-device').filter((text) => text.includes('drive='))).toEqual([
      'virtio-blk-pci,drive=disk0,serial=os.raw,bootindex=1',
      'virtio-blk-pci,drive=disk1,serial=data.raw,bootindex=2',
    ])
    expect(blockdevsOf(words).map(({ file }) => file)).toMatchObject([
      {
        driver: 'nbd',
        export: 'os.raw',
        server: { type: 'unix', path: '/run/nbd.sock' },
        'reconnect-delay': 300,
      },
      { export: 'data.raw' },
    ])
  })

  it('let a test lose its disks, and take them over TCP', () => {
    const [first] = blockdevsOf(argumentsOf({}, 'Test', 'tcp:[::1]:10809'))
    expect(first?.file).toMatchObject({
      'reconnect-delay': 0,
      server: { type: 'inet', host: '::1', port: '10809' },
    })
  })

  it('restrict a test’s network, and leave an adapter that nobody has mapped unplugged', () => {
    const networkAdapters = [{ macAddress: '52:54:00:12:34:56' }]
    const test = argumentsOf({ networkAdapters }, 'Test')
    expect(valuesOf(test, '-netdev')).toEqual(['user,id=net0,restrict=on'])
    const real = argumentsOf({ networkAdapters })
    expect(valuesOf(real, '-netdev')).toEqual([])
    expect(valuesOf(real, '-device')).toContain('virtio-net-pci,mac=52:54:00:12:34:56,romfile=')
    const bridged = argumentsOf({ networkAdapters: [{ failoverNetwork: 'bridge:br0' }] })
    expect(valuesOf(bridged, '-netdev')).toEqual(['bridge,id=net0,br=br0'])
    expect(() => argumentsOf({ networkAdapters: [{ failoverNetwork: 'network:lan' }] })).toThrow(
      expect.objectContaining({ code: 'FAILOVER_SETTINGS_INVALID' }),
    )
  })

  it('put what the settings add behind everything', () => {
    const words = argumentsOf({ runner: { method: 'qemu', diskBus: 'scsi', arguments: ['-device', 'VGA'] } })
    expect(words.slice(-2)).toEqual(['-device', 'VGA'])
    expect(words.indexOf('virtio-scsi-pci,id=disks')).toBeLessThan(
      words.indexOf('scsi-hd,bus=disks.0,drive=disk0,serial=os.raw,bootindex=1'),
    )
  })
})
