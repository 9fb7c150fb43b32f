import { failFrom, messageOf } from '../error.js'
import { run } from '../util/run.js'

const fail = failFrom('VIR_FROM_QEMU')

/** libvirt knows this many host CPUs (VIR_DOMAIN_CPUMASK_LEN). */
const MAX_CPUS = 1024

/**
 * The host CPUs of a set like '0-3,^2,8', ascending (virBitmapParse). VIR_ERR_XML_ERROR for anything else, and for a set
 * without a CPU.
 */
export function parseCpuset(cpuset: string): number[] {
  const cpus = new Set<number>()
  for (const part of cpuset.split(',')) {
    const [, not, first, last = first] = /^\s*(\^?)(\d+)(?:-(\d+))?\s*$/.exec(part) ?? []
    const [from, to] = [Number(first), Number(last)]
    if (first === undefined || from > to || to >= MAX_CPUS || (not && from !== to))
      throw fail('VIR_ERR_XML_ERROR', `'${cpuset}' is not a set of CPUs`)
    for (let cpu = from; cpu <= to; cpu++) {
      if (not) cpus.delete(cpu)
      else cpus.add(cpu)
    }
  }
  if (cpus.size === 0) throw fail('VIR_ERR_XML_ERROR', `'${cpuset}' has no CPU`)
  return [...cpus].sort((a, b) => a - b)
}

/**
 * Keeps all threads of a process, and those that it will start, on the host CPUs of a set, as libvirt does for
 * `<vcpu cpuset>`. CPUs that the host does not have are passed over; VIR_ERR_SYSTEM_ERROR when it has none of them.
 */
export async function pinProcess(pid: number, cpuset: string): Promise<void> {
  const list = parseCpuset(cpuset).join(',')
  try {
    await run('taskset', ['-a', '-c', '-p', list, String(pid)])
  } catch (error) {
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot set CPU affinity on process ${pid}: ${messageOf(error)}`, error)
  }
}
