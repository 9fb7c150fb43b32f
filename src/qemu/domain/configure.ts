import type { ChardevDef } from '../../conf/domain-def.js'
import { ioThrottleArguments } from '../../machine/command-disk.js'
import { pinProcess } from '../../machine/cpu-affinity.js'
import { syncConsole } from '../../machine/defaults-chardevs.js'
import type { Live } from '../core/vm.js'

/** What is said to a QEMU over its monitor before the guest begins, and what it has to tell. */
export async function configure(live: Live): Promise<void> {
  const { def, monitor } = live
  if (def.vcpu.cpuset !== undefined) await pinProcess(live.pid, def.vcpu.cpuset)
  await monitor.setAction({
    shutdown: def.onPoweroff === 'restart' || def.onPoweroff === 'preserve' ? 'pause' : 'poweroff',
    reboot: def.onReboot === 'destroy' ? 'shutdown' : 'reset',
    panic: def.onCrash === 'restart' || def.onCrash === 'preserve' ? 'pause' : 'shutdown',
  })
  for (const disk of def.disks) {
    const limits = ioThrottleArguments(disk)
    if (limits !== undefined) await monitor.blockSetIoThrottle(limits)
  }
  for (const net of def.interfaces)
    if (net.link === 'down' && net.alias !== undefined) await monitor.setLink(net.alias, false)
  const chardevs = await monitor.queryChardev()
  for (const device of [...def.serials, ...def.consoles, ...def.channels]) notePty(device, chardevs)
  syncConsole(def)
  for (const graphics of def.graphics)
    if (graphics.type === 'vnc' && graphics.passwd !== undefined) await monitor.setVncPassword(graphics.passwd)
}

function notePty(device: ChardevDef, chardevs: { label: string; filename: string }[]): void {
  if (device.source.type !== 'pty') return
  const found = chardevs.find((candidate) => candidate.label === `char${device.alias ?? ''}`)
  if (found?.filename.startsWith('pty:') === true) device.source.path = found.filename.slice('pty:'.length)
}
