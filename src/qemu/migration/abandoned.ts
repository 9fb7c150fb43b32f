/**
 * The source has given this destination up: its images may be in use there again. The guest here must not run on beside
 * another one, and what it lacks will never come: it is paused, and whoever reads what is missing gets an error.
 */
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import * as c from '../../constants.gen.js'
import { messageOf } from '../../error.js'
import type { NbdServed } from '../../nbd/served.js'
import { serveNbd } from '../../nbd/server.js'
import { removeDeadSocket } from '../../tunnel/join.js'
import { setState } from '../domain/events.js'
import type { Incoming } from './incoming.js'
import { cancel } from './arrive.js'
import { letReach } from './reach.js'
import { disksSocket } from './record.js'
import { backName, exportName } from '../blocks/nbd-exports.js'
import { stopWritingBack } from './write-back.js'
import type { Qemu } from '../core/qemu.js'
import { stopJob } from '../streams/job-control.js'

/** 'abandoned', at any time: resolves when no guest runs here. */
export async function beAbandoned(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { vm, record } = incoming
  // it never ran here
  if (record.phase === 'incoming' || record.phase === 'loaded')
    return cancel(qemu, incoming, 'the source has given it up')
  await vm.jobs.run(
    'migrate',
    async () => {
      if (record.phase !== 'abandoned') incoming.enter('abandoned')
      await settleAbandoned(qemu, incoming)
    },
    Infinity,
  )
}

/** Under the domain's job. */
export async function settleAbandoned(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { vm, record } = incoming
  const warn = (error: unknown): void => qemu.warn(`domain '${vm.name}', given up by its source: ${messageOf(error)}`)
  await incoming.refuseReads()
  const { live } = vm
  if (live !== undefined) {
    await letReach(qemu, live.def, record.id, disksSocket(qemu.root, record.id))
    // QEMU answers when the reads that wait have failed
    live.pauseReason = c.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED
    await live.monitor.stop()
    delete live.pauseReason
    setState(qemu, vm, live, c.VIR_DOMAIN_PAUSED, c.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
    await stopWritingBack(incoming, live).catch(warn)
  }
  for (const job of vm.host?.blockJobs.all ?? []) await stopJob(qemu, vm, job.record.disk).catch(warn)
  vm.remains = undefined
  qemu.warn(`'${record.peer}' has given up domain '${vm.name}': blocks that have not come from there never will`)
  if (vm.live === undefined) forgetAbandoned(qemu, incoming)
}

/** Its QEMU is gone: what remains is an image that lacks blocks. */
export function forgetAbandoned(qemu: Qemu, incoming: Incoming): void {
  qemu.inBackground('a migration that was given up', async () => {
    await incoming.forget()
    qemu.forgetIfNothing(incoming.vm)
  })
}

/** Stands where the source's disks were: every read fails at once, and every write that was to go back. */
export class Refusal {
  readonly #server: Server
  readonly #path: string
  readonly #sockets = new Set<Socket>()

  private constructor(server: Server, path: string, exports: ReadonlyMap<string, NbdServed>) {
    this.#server = server
    this.#path = path
    server.on('connection', (socket) => {
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
      // how a connection ends tells us nothing
      serveNbd(socket, exports).catch(() => undefined)
    })
  }

  static async listen(
    qemu: Qemu,
    { record }: Incoming,
    listen: (path: string, backlog: number) => number,
  ): Promise<Refusal> {
    const path = disksSocket(qemu.root, record.id)
    const read = (): Promise<never> => Promise.reject(Object.assign(new Error('given up'), { code: 'EIO' }))
    const written = { read, write: read, flush: read, trim: read, writeZeroes: read }
    const exports = new Map<string, NbdServed>(
      record.disks.flatMap(({ disk, size }) => [
        [exportName(disk), { size, read }],
        [backName(disk), { size, ...written }],
      ]),
    )
    const server = createServer()
    const refusal = new Refusal(server, path, exports)
    await removeDeadSocket(path)
    server.listen({ fd: listen(path, 64) })
    await once(server, 'listening')
    return refusal
  }

  async close(): Promise<void> {
    const closed = once(this.#server, 'close')
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
    await closed
    rmSync(this.#path, { force: true })
  }
}
