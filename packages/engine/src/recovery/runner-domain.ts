/**
 * A libvirt domain made to start from an export: its XML parsed, changed in the places named here, and written again.
 *
 * Disks become network disks of the export. Name and ids are new for a test; a network adapter is plugged into what the
 * settings say, or unplugged. What belongs to the old host goes: paths of channels, the medium in a drive, NVRAM, fixed
 * ports. Everything else stays as the owner of the domain wrote it. The domain carries the token of its run, by which it is known as ours
 * when it is to be stopped.
 *
 * Elements: https://libvirt.org/formatdomain.html.
 */

import { basename } from 'node:path'
import { type Document, DOMParser, type Element, onErrorStopParsing, XMLSerializer } from '@xmldom/xmldom'
import { SecondsiteError } from '../errors.js'
import { nbdPlaceOf } from '../track/nbd-export.js'

/** Namespace of our element in the metadata of a domain. */
const NAMESPACE = 'https://secondsite.invalid/run/1'

/**
 * What a guest's programs find the handover under. As base64: libvirt (9.0) hands a value on to QEMU's command line with its
 * quotes as entities and its commas as they are; a file instead would have to be readable for the user that QEMU runs as.
 */
const HANDOVER_NAME = 'opt/org.secondsite/failover.base64'

/** A disk of the export. */
export interface DomainDisk {
  readonly name: string
  /** `unix:PATH` or `tcp:HOST:PORT`. */
  readonly address: string
}

/** A network adapter as it is to be. */
export interface DomainAdapter {
  readonly network: string
  readonly macAddress: string
}

/** What a domain is changed to. */
export interface DomainChange {
  readonly name: string
  readonly isTest: boolean
  /** Names the run. */
  readonly token: string
  /** Id of a test's domain, and the generation id of every one that has such an id. */
  readonly freshId: string
  readonly disks: readonly DomainDisk[]
  /** Disk by target, where the settings say. */
  readonly diskOfTarget: Readonly<Record<string, string>>
  readonly adapters: readonly DomainAdapter[]
  readonly processorCount?: number | undefined
  readonly memoryMiB?: number | undefined
  /** Seconds for which requests wait for the export; 0 for not at all. */
  readonly reconnectSeconds: number
  /** What the machine's programs find as `opt/org.secondsite/failover.base64`. */
  readonly handover: string
}

/** A domain that was changed. */
export interface ChangedDomain {
  readonly xml: string
  /** Undefined where the XML names none, and libvirt makes one up. */
  readonly uuid: string | undefined
}

/** What is wrong with a text as the XML of a domain; undefined when nothing is. */
export function domainProblem(xml: string): string | undefined {
  try {
    parse(xml)
    return undefined
  } catch (error) {
    return error instanceof Error ? error.message.split('\n')[0] : String(error)
  }
}

/** @throws {RUNNER_DOMAIN_UNFIT} when its disks are not those of the replica */
export function changeDomain(xml: string, change: DomainChange): ChangedDomain {
  const document = parse(xml)
  const domain = rootOf(document)
  const devices = childOf(domain, 'devices') ?? append(domain, 'devices')
  setText(domain, 'name', change.name)
  changeIds(domain, change)
  changeSize(domain, change)
  assignDisks(devices, change)
  changeAdapters(devices, change)
  leaveHost(domain, devices)
  addMetadata(domain, change)
  return { xml: new XMLSerializer().serializeToString(document), uuid: textOf(domain, 'uuid') }
}

/** The token of the run that a domain was started for; undefined when it is none of ours. */
export function runOfDomain(xml: string): string | undefined {
  const metadata = childOf(rootOf(parse(xml)), 'metadata')
  const runs = metadata && [...metadata.getElementsByTagNameNS(NAMESPACE, 'run')]
  return runs?.[0]?.getAttribute('token') ?? undefined
}

function parse(xml: string): Document {
  const document = new DOMParser({ onError: onErrorStopParsing }).parseFromString(xml, 'text/xml')
  if (document.doctype !== null) throw new Error('it has a document type')
  if (rootOf(document).localName !== 'domain') throw new Error('its outermost element is not <domain>')
  return document
}

function rootOf({ documentElement }: Document): Element {
  if (documentElement === null) throw new Error('it is empty')
  return documentElement
}

function changeIds(domain: Element, { isTest, freshId }: DomainChange): void {
  domain.removeAttribute('id')
  if (isTest) setText(domain, 'uuid', freshId)
  // The guest's disks are those of an older moment: a system that asks must see that it is not where it was.
  if (childOf(domain, 'genid')) setText(domain, 'genid', freshId)
}

function changeSize(domain: Element, { processorCount, memoryMiB }: DomainChange): void {
  if (processorCount !== undefined) {
    for (const name of ['vcpu', 'vcpus']) remove(childOf(domain, name))
    setText(domain, 'vcpu', String(processorCount))
    const cpu = childOf(domain, 'cpu')
    // Sockets, cores and threads have to multiply to the number of processors.
    for (const name of ['topology', 'numa']) remove(cpu && childOf(cpu, name))
    remove(childOf(domain, 'cputune'))
  }
  if (memoryMiB === undefined) return
  for (const name of ['memory', 'currentMemory', 'maxMemory']) remove(childOf(domain, name))
  setText(domain, 'memory', String(memoryMiB)).setAttribute('unit', 'MiB')
}

/** By what the settings say, else by the name of the file, else by order. */
function assignDisks(devices: Element, change: DomainChange): void {
  const elements = childrenOf(devices, 'disk').filter(
    (disk) => (disk.getAttribute('device') ?? 'disk') === 'disk',
  )
  const left = new Map(change.disks.map((disk) => [disk.name, disk]))
  const assigned = new Map<Element, DomainDisk>()
  for (const nameOf of [
    (element: Element) => change.diskOfTarget[targetOf(element)],
    (element: Element) => basename(sourceOf(element)),
  ]) {
    for (const element of elements) {
      const disk = assigned.has(element) ? undefined : left.get(nameOf(element) ?? '')
      if (disk === undefined) continue
      assigned.set(element, disk)
      left.delete(disk.name)
    }
  }
  const rest = elements.filter((element) => !assigned.has(element))
  if (rest.length !== left.size) throw unfit(elements, change)
  for (const [index, disk] of [...left.values()].entries()) assigned.set(rest[index] as Element, disk)
  for (const [element, disk] of assigned) attach(element, disk, change.reconnectSeconds)
}

function targetOf(disk: Element): string {
  return childOf(disk, 'target')?.getAttribute('dev') ?? ''
}

function sourceOf(disk: Element): string {
  const source = childOf(disk, 'source')
  return source?.getAttribute('file') ?? source?.getAttribute('dev') ?? source?.getAttribute('name') ?? ''
}

function unfit(elements: readonly Element[], { disks }: DomainChange): SecondsiteError {
  const [targets, names] = [elements.map(targetOf), disks.map(({ name }) => name)]
  return new SecondsiteError('RUNNER_DOMAIN_UNFIT', {
    message: `the domain has the disks ${targets.join(', ') || 'none'}, the replica has ${names.join(', ')}`,
    details: { targets, disks: names },
  })
}

/** What QEMU puts over a disk at the old host, and how it is encrypted there, is nothing of the replica's raw image. */
const HOST_DISK_ELEMENTS = [
  'source',
  'backingStore',
  'mirror',
  'encryption',
  'auth',
  'transient',
  'shareable',
]

function attach(disk: Element, { name, address }: DomainDisk, reconnectSeconds: number): void {
  for (const element of HOST_DISK_ELEMENTS) remove(childOf(disk, element))
  disk.setAttribute('type', 'network')
  const driver = childOf(disk, 'driver') ?? append(disk, 'driver')
  driver.setAttribute('name', 'qemu')
  driver.setAttribute('type', 'raw')
  // Native asynchronous I/O is of files.
  for (const attribute of ['io', 'iothread', 'error_policy']) driver.removeAttribute(attribute)
  const source = append(disk, 'source')
  source.setAttribute('protocol', 'nbd')
  source.setAttribute('name', name)
  setHost(append(source, 'host'), address)
  if (reconnectSeconds > 0) append(source, 'reconnect').setAttribute('delay', String(reconnectSeconds))
}

function setHost(host: Element, address: string): void {
  const place = nbdPlaceOf(address)
  const attributes =
    'path' in place ? { transport: 'unix', socket: place.path } : { name: place.host, port: place.port }
  for (const [name, value] of Object.entries(attributes)) host.setAttribute(name, value)
}

/** Adapters that the settings do not speak of are there and unplugged, in a test as in earnest. */
function changeAdapters(devices: Element, { adapters, isTest }: DomainChange): void {
  const elements = childrenOf(devices, 'interface')
  while (elements.length < adapters.length) elements.push(append(devices, 'interface'))
  for (const [index, element] of elements.entries()) {
    const adapter = adapters[index]
    plug(element, adapter?.network ?? 'none')
    if (adapter) setMac(element, adapter.macAddress)
    else if (isTest) remove(childOf(element, 'mac'))
  }
}

const HOST_ADAPTER_ELEMENTS = [
  'source',
  'link',
  'target',
  'virtualport',
  'actual',
  'backend',
  'ip',
  'bandwidth',
  'vlan',
]

/** Libvirt knows no network of QEMU's own that reaches nobody, so an isolated adapter is an unplugged one there. */
function plug(element: Element, network: string): void {
  for (const name of HOST_ADAPTER_ELEMENTS) remove(childOf(element, name))
  const [kind = '', place] = network.split(':')
  element.setAttribute('type', place === undefined ? 'user' : kind)
  if (place !== undefined) append(element, 'source').setAttribute(kind, place)
  if (kind === 'none' || kind === 'isolated') append(element, 'link').setAttribute('state', 'down')
  if (!childOf(element, 'model')) append(element, 'model').setAttribute('type', 'virtio')
}

function setMac(element: Element, macAddress: string): void {
  const mac = childOf(element, 'mac') ?? append(element, 'mac')
  mac.setAttribute('address', macAddress)
}

function leaveHost(domain: Element, devices: Element): void {
  for (const disk of childrenOf(devices, 'disk'))
    if (disk.getAttribute('device') === 'cdrom' || disk.getAttribute('device') === 'floppy') {
      remove(childOf(disk, 'source'))
      remove(childOf(disk, 'backingStore'))
    }
  for (const channel of childrenOf(devices, 'channel'))
    if (channel.getAttribute('type') === 'unix') remove(childOf(channel, 'source'))
  for (const graphics of childrenOf(devices, 'graphics')) {
    for (const attribute of ['port', 'tlsPort', 'socket']) graphics.removeAttribute(attribute)
    graphics.setAttribute('autoport', 'yes')
  }
  const os = childOf(domain, 'os')
  const nvram = os && childOf(os, 'nvram')
  // Libvirt makes it anew from the template; that of the old host is not here.
  if (nvram) nvram.textContent = ''
}

function addMetadata(domain: Element, { token, handover }: DomainChange): void {
  const metadata = childOf(domain, 'metadata') ?? append(domain, 'metadata')
  const before = [...metadata.getElementsByTagNameNS(NAMESPACE, 'run')]
  for (const old of before) remove(old)
  const run = ownerOf(domain).createElementNS(NAMESPACE, 'secondsite:run')
  run.setAttribute('token', token)
  metadata.appendChild(run)
  const isOurs = (entry: Element): boolean => entry.getAttribute('name') === HANDOVER_NAME
  const known = childrenOf(domain, 'sysinfo').find((one) => one.getAttribute('type') === 'fwcfg')
  const sysinfo = known ?? append(domain, 'sysinfo')
  sysinfo.setAttribute('type', 'fwcfg')
  const entry = childrenOf(sysinfo, 'entry').find(isOurs) ?? append(sysinfo, 'entry')
  entry.setAttribute('name', HANDOVER_NAME)
  entry.textContent = Buffer.from(handover).toString('base64')
}

function ownerOf({ ownerDocument }: Element): Document {
  if (ownerDocument === null) throw new TypeError('an element that was parsed has a document')
  return ownerDocument
}

function childrenOf(parent: Element, name: string): Element[] {
  return [...parent.childNodes].filter(
    (node): node is Element => node.nodeType === node.ELEMENT_NODE && node.nodeName === name,
  )
}

function childOf(parent: Element, name: string): Element | undefined {
  return childrenOf(parent, name)[0]
}

function append(parent: Element, name: string): Element {
  const element = ownerOf(parent).createElement(name)
  parent.appendChild(element)
  return element
}

function remove(element: Element | undefined): void {
  element?.parentNode?.removeChild(element)
}

function textOf(parent: Element, name: string): string | undefined {
  return childOf(parent, name)?.textContent?.trim() || undefined
}

function setText(parent: Element, name: string, text: string): Element {
  const element = childOf(parent, name) ?? append(parent, name)
  element.textContent = text
  return element
}
