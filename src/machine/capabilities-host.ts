/** What Linux says of the host: processors, memory, identity. */
import { readdir, readFile } from 'node:fs/promises'
import { arch as nodeArch } from 'node:os'

export interface HostCpu {
  id: number
  socket: number
  die: number
  core: number
  /** the threads of the same core: '0,4' */
  siblings: string
}
export interface HostInfo {
  /** 'x86_64' */
  arch: string
  /** of the SMBIOS tables, which only root may read */
  uuid?: string
  cells: { id: number; memoryKib: number; cpus: HostCpu[] }[]
}

const archNames: Record<string, string> = { x64: 'x86_64', arm64: 'aarch64', ia32: 'i686' }
const nodes = '/sys/devices/system/node'

export async function readHost(): Promise<HostInfo> {
  const uuid = (await read('/sys/class/dmi/id/product_uuid')).toLowerCase()
  const found = await readdir(nodes).catch(() => [] as string[])
  const ids = found.flatMap((name) => /^node(\d+)$/.exec(name)?.[1] ?? []).map(Number)
  const cells = await Promise.all(ids.toSorted((a, b) => a - b).map(readCell))
  return {
    arch: archNames[nodeArch()] ?? nodeArch(),
    ...(/^[0-9a-f-]{36}$/.test(uuid) && { uuid }),
    cells: cells.length > 0 ? cells : [await wholeHost()],
  }
}

async function readCell(id: number): Promise<HostInfo['cells'][number]> {
  const memory = /MemTotal:\s*(\d+) kB/.exec(await read(`${nodes}/node${id}/meminfo`))?.[1]
  const cpus = parseCpuList(await read(`${nodes}/node${id}/cpulist`))
  return { id, memoryKib: Number(memory ?? 0), cpus: await Promise.all(cpus.map(readCpu)) }
}

/** A kernel without NUMA: one cell. */
async function wholeHost(): Promise<HostInfo['cells'][number]> {
  const memory = /MemTotal:\s*(\d+) kB/.exec(await read('/proc/meminfo'))?.[1]
  const cpus = parseCpuList(await read('/sys/devices/system/cpu/online'))
  return { id: 0, memoryKib: Number(memory ?? 0), cpus: await Promise.all(cpus.map(readCpu)) }
}

async function readCpu(id: number): Promise<HostCpu> {
  const topology = `/sys/devices/system/cpu/cpu${id}/topology`
  const number = async (name: string): Promise<number> => Math.max(0, Number(await read(`${topology}/${name}`)))
  const siblings = await read(`${topology}/thread_siblings_list`)
  const [socket, die, core] = [await number('physical_package_id'), await number('die_id'), await number('core_id')]
  return { id, socket, die, core, siblings: siblings === '' ? String(id) : siblings }
}

const read = async (path: string): Promise<string> => (await readFile(path, 'utf8').catch(() => '')).trim()

/** '0-3,8' as numbers. */
function parseCpuList(list: string): number[] {
  return list.split(',').flatMap((range) => {
    const [first, last = first] = range.split('-')
    if (first === undefined || first === '') return []
    return Array.from({ length: Number(last) - Number(first) + 1 }, (_, i) => Number(first) + i)
  })
}
