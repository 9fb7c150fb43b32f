import type { ChardevDef, ChardevSource } from './domain-def.js'
import type { Reconnect } from './fields.js'
import { writeDevice } from './format-device.js'
import type { ChardevKind } from './parse-chardev.js'
import type { Out } from './writer.js'
import { element, unlessEmpty, withResidue } from './writer.js'

/** `<serial>`, `<console>` or `<channel>` (virDomainChrDefFormat). */
export function formatChardev(kind: ChardevKind, chardev: ChardevDef): Out {
  const { source, log, targetType, port, targetModel, name, state } = chardev
  const model = targetModel === undefined ? [] : [element('model', { name: targetModel })]
  const tty = kind === 'console' && source.type === 'pty' ? source.path : undefined
  const out = element(kind, { type: source.type, tty }, [
    ...formatChardevSource(source),
    log === undefined ? undefined : element('log', { file: log.file, append: log.append }),
    unlessEmpty(element('target', { type: targetType, port, name, state }, model)),
    ...writeDevice(chardev),
  ])
  return withResidue(out, chardev.residue)
}

/** `<source>` and `<protocol>` as a character device, an RNG or a smart card holds them. */
export function formatChardevSource(source: ChardevSource): (Out | undefined)[] {
  switch (source.type) {
    case 'pty':
      return [source.path === undefined ? undefined : element('source', { path: source.path })]
    case 'file':
      return [element('source', { path: source.path, append: source.append })]
    case 'dev':
    case 'pipe':
      return [element('source', { path: source.path })]
    case 'unix': {
      const { mode, path, reconnect } = source
      return path === undefined && reconnect === undefined
        ? []
        : [element('source', { mode, path }, formatReconnect(reconnect))]
    }
    case 'tcp': {
      const { mode, host, service, protocol, tls, reconnect } = source
      return [
        element('source', { mode, host, service, tls }, formatReconnect(reconnect)),
        element('protocol', { type: protocol }),
      ]
    }
    case 'udp': {
      const { bind, connect } = source
      return [
        bind === undefined ? undefined : element('source', { mode: 'bind', host: bind.host, service: bind.service }),
        element('source', { mode: 'connect', host: connect.host, service: connect.service }),
      ]
    }
    case 'spiceport':
      return [element('source', { channel: source.channel })]
    case 'null':
    case 'vc':
    case 'stdio':
    case 'spicevmc':
      return []
  }
}

function formatReconnect(reconnect: Reconnect | undefined): Out[] {
  return reconnect === undefined
    ? []
    : [element('reconnect', { enabled: reconnect.enabled, timeout: reconnect.timeout })]
}
