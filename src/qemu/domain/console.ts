import { closeSync, constants, openSync } from 'node:fs'
import { connect } from 'node:net'
import type { Duplex } from 'node:stream'
import { ReadStream } from 'node:tty'
import type { ChardevDef, DomainDef } from '../../conf/domain-def.js'
import { VIR_DOMAIN_CONSOLE_FORCE } from '../../constants.gen.js'
import type { HypervisorOps } from '../../driver.js'
import { failFrom, wordsOf } from '../../error.js'
import type { Qemu } from '../core/qemu.js'

const fail = failFrom('VIR_FROM_QEMU')

/** one session for each device, as with libvirt; the path of the host's end names it */
const sessions = new Map<string, Duplex>()

function findDevice(def: DomainDef, alias: string | undefined): ChardevDef {
  const devices = [...def.consoles, ...def.serials, ...def.channels]
  const device = alias === undefined ? (def.consoles[0] ?? def.serials[0]) : devices.find((d) => d.alias === alias)
  if (device !== undefined) return device
  throw fail(
    'VIR_ERR_INTERNAL_ERROR',
    alias === undefined ? 'cannot find default console device' : `cannot find character device '${alias}'`,
  )
}

function openPty(path: string): Duplex {
  const fd = openSync(path, constants.O_RDWR | constants.O_NOCTTY)
  try {
    // a tty.ReadStream is a socket: it writes as well
    const stream = new ReadStream(fd).setRawMode(true)
    // it opens the terminal once more and closes only that descriptor at its end
    const { _handle: handle } = stream as unknown as { _handle?: { fd?: number } }
    if (handle?.fd !== undefined && handle.fd !== fd) closeSync(fd)
    return stream
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

function openDevice(device: ChardevDef): { path: string; stream: Duplex } {
  const { source } = device
  const path = source.type === 'pty' || source.type === 'unix' ? source.path : undefined
  if (path === undefined)
    throw fail(
      'VIR_ERR_OPERATION_UNSUPPORTED',
      `character device '${device.alias ?? ''}' is not using a PTY or a UNIX socket`,
    )
  try {
    return { path, stream: source.type === 'pty' ? openPty(path) : connect({ path }) }
  } catch (error) {
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot open console '${path}': ${wordsOf(error)}`, error)
  }
}

export function consoleOps(qemu: Qemu): Pick<HypervisorOps, 'domainOpenConsole'> {
  return {
    async domainOpenConsole(ref, alias, flags) {
      const live = qemu.require(ref).requireLive()
      const device = findDevice(live.def, alias)
      const { path, stream } = openDevice(device)
      const other = sessions.get(path)
      if (other !== undefined && (flags & VIR_DOMAIN_CONSOLE_FORCE) === 0) {
        stream.destroy()
        throw fail('VIR_ERR_OPERATION_FAILED', 'Active console session exists for this domain')
      }
      other?.destroy()
      sessions.set(path, stream)
      stream.once('close', () => {
        if (sessions.get(path) === stream) sessions.delete(path)
      })
      return Promise.resolve(stream)
    },
  }
}
