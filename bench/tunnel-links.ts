/** Links to measure on: loopback, and pairs of network namespaces with a veth of limited rate between them. */
import { run } from '../src/util/run.js'
import type { Cleanup } from '../test/support/images.js'

export interface Link {
  name: string
  /** bytes a second; undefined: no limit */
  rate: number | undefined
  /** of the receiving side */
  host: string
  /** what a program is started with, so that it is at that side */
  receiver: readonly string[]
  sender: readonly string[]
}

export const loopback: Link = { name: 'loopback', rate: undefined, host: '127.0.0.1', receiver: [], sender: [] }

/** A link of so many Gbit/s; gone with the test. Rejects where we may not make namespaces. */
export async function limitedLink(t: Cleanup, gigabits: number): Promise<Link> {
  const id = `vs${process.pid}-${gigabits}`
  const [near, far] = [`${id}-a`, `${id}-b`]
  t.after(async () => {
    for (const name of [near, far]) await run('ip', ['netns', 'del', name]).catch(() => undefined)
  })
  for (const name of [near, far]) {
    await run('ip', ['netns', 'add', name])
    await run('ip', ['-n', name, 'link', 'set', 'lo', 'up'])
  }
  const veth = ['link', 'add', 'vs0', 'netns', near, 'type', 'veth', 'peer', 'name', 'vs0', 'netns', far]
  await run('ip', veth)
  // what may go at once must last for a tick of the kernel's clock
  const burst = Math.max(64 * 1024, Math.round((gigabits * 1e9) / 8 / 200))
  for (const [name, address] of [
    [near, '10.97.0.1/24'],
    [far, '10.97.0.2/24'],
  ] as const) {
    await run('ip', ['-n', name, 'address', 'add', address, 'dev', 'vs0'])
    await run('ip', ['-n', name, 'link', 'set', 'vs0', 'up'])
    const limit = ['tbf', 'rate', `${gigabits}gbit`, 'burst', `${burst}`, 'latency', '10ms']
    await run('tc', ['-n', name, 'qdisc', 'add', 'dev', 'vs0', 'root', ...limit])
  }
  const at = (name: string): string[] => ['ip', 'netns', 'exec', name]
  return {
    name: `${gigabits} Gbit/s`,
    rate: (gigabits * 1e9) / 8,
    host: '10.97.0.2',
    receiver: at(far),
    sender: at(near),
  }
}
