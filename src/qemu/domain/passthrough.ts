import { VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP } from '../monitor/flags.js'
import type { HypervisorOps } from '../../driver.js'
import { failFrom, messageOf } from '../../error.js'
import type { Qemu } from '../core/qemu.js'
import { modify } from '../core/vm-job.js'

const fail = failFrom('VIR_FROM_QEMU')

interface Command {
  execute: string
  arguments?: object
}

function parseCommand(text: string): Command {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw fail('VIR_ERR_INVALID_ARG', `monitor command is not JSON: ${messageOf(error)}`, error)
  }
  if (typeof value === 'object' && value !== null && 'execute' in value && typeof value.execute === 'string')
    return value as Command
  throw fail('VIR_ERR_INVALID_ARG', `monitor command '${text}' has no 'execute'`)
}

/** virDomainQemuMonitorCommand: QMP as the user writes it, or with the HMP flag a line of the human monitor. */
export function passthroughOps(qemu: Qemu): Pick<HypervisorOps, 'qemuMonitorCommand'> {
  return {
    qemuMonitorCommand: (ref, text, flags) =>
      modify(qemu, ref, async (_vm, live) => {
        if ((flags & VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP) !== 0) return live.monitor.humanMonitorCommand(text)
        const command = parseCommand(text)
        return JSON.stringify({ return: await live.monitor.passThrough(command.execute, command.arguments) })
      }),
  }
}
