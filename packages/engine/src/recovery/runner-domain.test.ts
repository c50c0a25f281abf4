import { DOMParser, type Element } from '@xmldom/xmldom'
import { describe, expect, it } from 'vitest'
import { isSecondsiteError } from '../errors.js'
import { changeDomain, type DomainChange, runOfDomain } from './runner-domain.js'

/** What `virsh dumpxml` prints of a running domain, shortened. */
const DOMAIN = `<domain type='kvm' id='4' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web01</name>
  <uuid>c7a5fdbd-cdaf-9455-926a-d65c16db1809</uuid>
  <genid>4392e2f6-8d59-47b5-a9ad-4fa7d5d9ed31</genid>
  <metadata><app:owner xmlns:app='https://example.org/app'>shop</app:owner></metadata>
  <memory unit='KiB'>8388608</memory><currentMemory unit='KiB'>8388608</currentMemory>
  <vcpu placement='static' current='2'>8</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web01_VARS.fd</nvram></os>
  <cpu mode='host-model'><topology sockets='2' cores='4' threads='1'/></cpu>
  <devices>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>
      <source dev='/dev/vg/os.raw' index='2'/><backingStore/>
      <target dev='vda' bus='virtio'/><boot order='1'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/srv/vm/data.raw'/><target dev='sdb' bus='scsi'/>
    </disk>
    <disk type='file' device='cdrom'><source file='/srv/iso/debian.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='bridge'>
      <mac address='52:54:00:aa:bb:01'/><source bridge='br-prod'/><target dev='vnet0'/><model type='virtio'/>
    </interface>
    <interface type='network'>
      <mac address='52:54:00:aa:bb:02'/><source network='backup'/><model type='e1000e'/>
    </interface>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/4-web01/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <graphics type='vnc' port='5901' autoport='no'/>
  </devices>
  <qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>
</domain>`

const TEST: DomainChange = {
  name: 'web01 - Test',
  isTest: true,
  token: 'token-of-the-run',
  freshId: '11111111-2222-4333-8444-555555555555',
  disks: [
    { name: 'data.raw', address: 'unix:/run/nbd & co.sock' },
    { name: 'os.raw', address: 'unix:/run/nbd & co.sock' },
  ],
  diskOfTarget: {},
  adapters: [{ network: 'isolated', macAddress: '52:54:00:00:00:01' }],
  reconnectSeconds: 0,
  handover: '{"name":"web01 <Test>"}',
}
const REAL: DomainChange = { ...TEST, name: 'web01', isTest: false, reconnectSeconds: 300 }

function rootOf(xml: string): Element {
  const { documentElement } = new DOMParser().parseFromString(xml, 'text/xml')
  if (documentElement === null) throw new Error('nothing')
  return documentElement
}

/** All elements of that name. */
function all(root: Element, name: string): Element[] {
  return [...root.getElementsByTagName(name)]
}

/** Attributes of the first element of that name below another. */
function attributes(parent: Element | undefined, name: string): Record<string, string> | undefined {
  const element = parent && all(parent, name)[0]
  return element && Object.fromEntries([...element.attributes].map((one) => [one.name, one.value]))
}

const text = (root: Element, name: string): string | null | undefined => all(root, name)[0]?.textContent

describe('a domain made for a test', () => {
  const { xml, uuid } = changeDomain(DOMAIN, TEST)
  const root = rootOf(xml)
  const disks = all(root, 'disk')

  it('has each disk from the export, by the name of its file', () => {
    expect(disks.map((disk) => attributes(disk, 'source')?.['name'])).toEqual([
      'os.raw',
      'data.raw',
      undefined,
    ])
    expect(disks[0]?.getAttribute('type')).toBe('network')
    expect(attributes(disks[0], 'host')).toEqual({ transport: 'unix', socket: '/run/nbd & co.sock' })
    expect(attributes(disks[0], 'driver')).toEqual({
      name: 'qemu',
      type: 'raw',
      cache: 'none',
      discard: 'unmap',
    })
    expect(attributes(disks[1], 'driver')).toMatchObject({ type: 'raw' })
    expect(attributes(disks[0], 'target')).toEqual({ dev: 'vda', bus: 'virtio' })
    expect(all(root, 'backingStore')).toEqual([])
    expect(all(root, 'reconnect')).toEqual([])
    expect(xml).not.toContain('/srv/')
    expect(xml).not.toContain('/dev/vg')
  })

  it('has a name and ids of its own', () => {
    expect([text(root, 'name'), text(root, 'uuid'), uuid]).toEqual([
      'web01 - Test',
      TEST.freshId,
      TEST.freshId,
    ])
    expect(text(root, 'genid')).toBe(TEST.freshId)
    expect(root.hasAttribute('id')).toBe(false)
  })

  it('is plugged into nothing of the old host', () => {
    const adapters = all(root, 'interface')
    expect(adapters.map((adapter) => adapter.getAttribute('type'))).toEqual(['user', 'user'])
    expect(adapters.map((adapter) => attributes(adapter, 'link'))).toEqual([
      { state: 'down' },
      { state: 'down' },
    ])
    expect(adapters.map((adapter) => attributes(adapter, 'mac'))).toEqual([
      { address: '52:54:00:00:00:01' },
      undefined,
    ])
    expect(adapters.map((adapter) => attributes(adapter, 'model')?.['type'])).toEqual(['virtio', 'e1000e'])
    expect(text(root, 'nvram')).toBe('')
    expect(attributes(root, 'nvram')).toEqual({ template: '/usr/share/OVMF/OVMF_VARS_4M.fd' })
    expect(attributes(root, 'graphics')).toEqual({ type: 'vnc', autoport: 'yes' })
    for (const gone of ['br-prod', 'backup', 'vnet0', '/run/libvirt', 'debian.iso'])
      expect(xml).not.toContain(gone)
  })

  it('keeps what is nobody else’s business, and says whose run it is', () => {
    expect(text(root, 'app:owner')).toBe('shop')
    expect(attributes(root, 'qemu:arg')).toEqual({ value: '-snapshot' })
    expect(text(root, 'vcpu')).toBe('8')
    expect(runOfDomain(xml)).toBe('token-of-the-run')
    expect(runOfDomain(DOMAIN)).toBeUndefined()
    expect(runOfDomain(changeDomain(xml, { ...TEST, token: 'another' }).xml)).toBe('another')
    const [entry, ...more] = all(rootOf(changeDomain(xml, TEST).xml), 'entry')
    expect(more).toEqual([])
    expect([entry?.getAttribute('name'), entry?.textContent]).toEqual([
      'opt/org.secondsite/failover.base64',
      'eyJuYW1lIjoid2ViMDEgPFRlc3Q+In0=',
    ])
  })
})

describe('a domain made for a real failover', () => {
  it('keeps its id, waits for its disks, and is plugged in where the settings say', () => {
    const adapters = [
      { network: 'bridge:br0', macAddress: '52:54:00:aa:bb:01' },
      { network: 'network:dr', macAddress: '52:54:00:aa:bb:02' },
      { network: 'none', macAddress: '52:54:00:aa:bb:03' },
    ]
    const { xml, uuid } = changeDomain(DOMAIN, { ...REAL, adapters, processorCount: 2, memoryMiB: 512 })
    const root = rootOf(xml)
    expect([text(root, 'name'), uuid]).toEqual(['web01', 'c7a5fdbd-cdaf-9455-926a-d65c16db1809'])
    expect(text(root, 'genid')).toBe(REAL.freshId)
    expect(all(root, 'reconnect').map((one) => one.getAttribute('delay'))).toEqual(['300', '300'])
    const interfaces = all(root, 'interface')
    expect(interfaces.map((one) => one.getAttribute('type'))).toEqual(['bridge', 'network', 'user'])
    expect(interfaces.map((one) => attributes(one, 'source'))).toEqual([
      { bridge: 'br0' },
      { network: 'dr' },
      undefined,
    ])
    expect([text(root, 'vcpu'), text(root, 'memory')]).toEqual(['2', '512'])
    expect(attributes(root, 'memory')).toEqual({ unit: 'MiB' })
    expect([...all(root, 'currentMemory'), ...all(root, 'topology')]).toEqual([])
  })

  it('takes disks by target, and what is left by order', () => {
    const disks = [
      { name: 'one', address: 'tcp:[::1]:10809' },
      { name: 'two', address: 'tcp:127.0.0.1:10809' },
    ]
    const namesOf = (diskOfTarget: Record<string, string>): (string | undefined)[] => {
      const root = rootOf(changeDomain(DOMAIN, { ...REAL, disks, diskOfTarget }).xml)
      return all(root, 'disk').map((disk) => attributes(disk, 'source')?.['name'])
    }
    expect(namesOf({})).toEqual(['one', 'two', undefined])
    expect(namesOf({ sdb: 'one' })).toEqual(['two', 'one', undefined])
    const root = rootOf(changeDomain(DOMAIN, { ...REAL, disks }).xml)
    expect(all(root, 'host').map((host) => host.getAttribute('name'))).toEqual(['::1', '127.0.0.1'])
  })

  it.each([
    ['fewer disks', [{ name: 'os.raw', address: 'unix:/s' }]],
    ['more disks', ['os.raw', 'data.raw', 'more.raw'].map((name) => ({ name, address: 'unix:/s' }))],
  ])('is refused over a replica with %s', (_what, disks) => {
    try {
      changeDomain(DOMAIN, { ...REAL, disks })
    } catch (error) {
      if (!isSecondsiteError(error, 'RUNNER_DOMAIN_UNFIT')) throw error
      expect(error.details).toEqual({ targets: ['vda', 'sdb'], disks: disks.map(({ name }) => name) })
      return
    }
    expect.unreachable('accepted')
  })
})
