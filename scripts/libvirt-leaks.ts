/**
 * Whether calls and connections of real libvirt leave anything behind: 100,000 calls and 10,000 times open and close, memory
 * and descriptors told ten times on the way. Needs root, libvirtd and two minutes: node dist/scripts/libvirt-leaks.js
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Connect } from '../src/index.js'
import { temporaryFolder } from '../test/support/images.js'
import { startLibvirtd } from '../test/support/libvirtd.js'
import { runProgram } from './program.js'

const CALLS = 100_000
const CONNECTIONS = 10_000
const STEPS = 10

function tell(what: string): void {
  const memory = Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1])
  const descriptors = readdirSync('/proc/self/fd').length
  const threads = readdirSync('/proc/self/task').length
  console.log(`${what}: ${(memory / 1024).toFixed(1)} MiB, ${descriptors} descriptors, ${threads} threads`)
}

async function inTens(count: number, one: () => Promise<unknown>): Promise<void> {
  for (let done = 0; done < count; done += 10) await Promise.all(Array.from({ length: 10 }, one))
}

await runProgram('libvirt-leaks', async (t) => {
  const folder = await temporaryFolder(t)
  const daemon = await startLibvirtd(t, join(folder), '')
  const uri = daemon.uri.replace('qemu+unix:///system', 'test+unix:///default')
  const conn = await Connect.open(uri)
  const dom = await conn.domainLookupByName('test')
  tell('at first')
  for (let step = 1; step <= STEPS; step++) {
    await inTens(CALLS / STEPS, () => (step % 2 === 0 ? dom.getXMLDesc() : dom.getState()))
    tell(`${(step * CALLS) / STEPS} calls`)
  }
  const openAndClose = async (): Promise<void> => {
    const other = await Connect.open(uri)
    await other.listAllDomains()
    await other.close()
  }
  for (let step = 1; step <= STEPS; step++) {
    await inTens(CONNECTIONS / STEPS, openAndClose)
    tell(`${(step * CONNECTIONS) / STEPS} connections`)
  }
  await conn.close()
})
