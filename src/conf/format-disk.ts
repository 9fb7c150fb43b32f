import * as fields from './disk-fields.js'
import type { DiskDef, NetworkHost, SeclabelDef, StorageSource } from './domain-def.js'
import { seclabelFields } from './fields.js'
import { virtioAttributes, writeDevice } from './format-device.js'
import { writeFields } from './values.js'
import type { Out } from './writer.js'
import { element, textElement, unlessEmpty, withResidue } from './writer.js'

type Secure = boolean

/** `<disk>` in libvirt's order (virDomainDiskDefFormat); cookies only if `secure`. */
export function formatDisk(disk: DiskDef, secure: Secure): Out {
  const { source } = disk
  const out = element('disk', { type: source?.type ?? 'file', device: disk.device, model: disk.model }, [
    formatDriver(disk),
    source === undefined ? undefined : formatSource(source, secure, 'residue'),
    source === undefined ? undefined : formatBackingStore(source.backingStore, secure),
    formatMirror(disk.mirror, secure),
    disk.geometry === undefined ? undefined : element('geometry', writeFields(disk.geometry, fields.geometry)),
    disk.blockio === undefined ? undefined : element('blockio', writeFields(disk.blockio, fields.blockio)),
    element('target', { dev: disk.target, bus: disk.bus, ...writeFields(disk, fields.target) }),
    formatIotune(disk.iotune),
    disk.readonly ? element('readonly') : undefined,
    disk.shareable ? element('shareable') : undefined,
    disk.transient === true ? element('transient') : undefined,
    textElement('serial', disk.serial),
    textElement('wwn', disk.wwn),
    textElement('vendor', disk.vendor),
    textElement('product', disk.product),
    ...writeDevice(disk),
  ])
  return withResidue(out, disk.residue)
}

function formatDriver({ driver, source }: DiskDef): Out | undefined {
  const { name, ...others } = writeFields(driver, fields.driver)
  const format = source === undefined ? driver.emptyFormat : source.format
  const size = driver.metadataCacheSize
  const cache =
    size === undefined ? [] : [element('metadata_cache', {}, [element('max_size', { unit: 'bytes' }, String(size))])]
  return unlessEmpty(element('driver', { name, type: format, ...others, ...virtioAttributes(driver.virtio) }, cache))
}

/** `owns`: whether the source's residue belongs to this element or to the `<backingStore>` around it. */
function formatSource(source: StorageSource, secure: Secure, owns?: 'residue'): Out {
  const out = element('source', { ...sourceAttributes(source), ...sourceExtras(source, owns) }, [
    ...(source.type === 'network' ? networkChildren(source, secure) : []),
    formatSlice(source),
    ...(source.seclabels ?? []).map(formatSeclabel),
  ])
  return owns === undefined ? out : withResidue(out, source.residue)
}

function sourceAttributes(source: StorageSource): Record<string, string | undefined> {
  switch (source.type) {
    case 'file':
      return { file: source.path }
    case 'block':
      return { dev: source.path }
    case 'network': {
      const { protocol, name, query, tls, tlsHostname } = source
      return { protocol, name, query, tls, tlsHostname }
    }
  }
}

function sourceExtras(
  { startupPolicy, index }: StorageSource,
  owns?: 'residue',
): Record<string, string | number | undefined> {
  return { startupPolicy, ...(owns !== undefined && { index }) }
}

function networkChildren(source: Extract<StorageSource, { type: 'network' }>, secure: Secure): (Out | undefined)[] {
  const { ssl, cookies, readahead, timeout, reconnectDelay } = source
  return [
    ...source.hosts.map(formatHost),
    ssl === undefined ? undefined : element('ssl', { verify: ssl.verify }),
    cookies === undefined || !secure
      ? undefined
      : element(
          'cookies',
          {},
          cookies.map(({ name, value }) => element('cookie', { name }, value)),
        ),
    readahead === undefined ? undefined : element('readahead', { size: readahead }),
    timeout === undefined ? undefined : element('timeout', { seconds: timeout }),
    reconnectDelay === undefined ? undefined : element('reconnect', { delay: reconnectDelay }),
  ]
}

function formatHost(host: NetworkHost): Out {
  const { transport, ...place } = host
  return element('host', { ...(transport === 'unix' && { transport }), ...writeFields(place, fields.host) })
}

function formatSlice({ slice }: StorageSource): Out | undefined {
  if (slice === undefined) return undefined
  return element('slices', {}, [element('slice', { type: 'storage', offset: slice.offset, size: slice.size })])
}

/** `<seclabel>` of a domain or an image. */
export function formatSeclabel(label: SeclabelDef): Out {
  return element('seclabel', writeFields(label, seclabelFields), [
    textElement('label', label.label),
    textElement('imagelabel', label.imagelabel),
    textElement('baselabel', label.baselabel),
  ])
}

/** Null is written as `<backingStore/>`, which ends the chain; undefined is not written. */
function formatBackingStore(store: StorageSource | null | undefined, secure: Secure): Out | undefined {
  if (store === undefined) return undefined
  if (store === null) return element('backingStore')
  const out = element('backingStore', { type: store.type, index: store.index }, [
    element('format', { type: store.format ?? 'raw' }),
    formatSource(store, secure),
    formatBackingStore(store.backingStore, secure),
  ])
  return withResidue(out, store.residue)
}

function formatMirror(mirror: DiskDef['mirror'], secure: Secure): Out | undefined {
  if (mirror === undefined) return undefined
  const { source, ready } = mirror
  return element('mirror', { type: source.type, job: 'active-commit', ...(ready && { ready: 'yes' }) }, [
    element('format', { type: source.format ?? 'raw' }),
    formatSource(source, secure, 'residue'),
  ])
}

function formatIotune(limits: Record<string, number> | undefined): Out | undefined {
  if (limits === undefined) return undefined
  return element(
    'iotune',
    {},
    fields.iotune.map((name) => textElement(name, limits[name])),
  )
}
