/** Streams that a definition asks for in `<metadata>`: begun at each start until the disk needs no base any more. */
import type { DomainDef } from '../../conf/domain-def.js'
import { readDomainWeight, readStreamRequests, type StreamRequest } from '../../conf/stream-request.js'
import { VIR_DOMAIN_BLOCK_JOB_FAILED } from '../../constants.gen.js'
import { messageOf } from '../../error.js'
import { findDisk } from '../blocks/disk-names.js'
import { emitPull } from '../core/emit.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatusOrSay } from '../core/status.js'
import { startStream } from './stream.js'
import type { Live, Vm } from '../core/vm.js'

/** At define: each request names a disk of the definition, and weights are weights. VIR_ERR_XML_ERROR, VIR_ERR_INVALID_ARG. */
export function checkBootStreams(def: DomainDef): void {
  for (const { disk } of readStreamRequests(def)) findDisk(def, disk)
  readDomainWeight(def)
}

const requestsOf = (live: Live): StreamRequest[] =>
  readStreamRequests(live.def).filter(({ disk }) => findDisk(live.def, disk).source?.backingStore != null)

/** Before the status says that the domain runs: a later process is to begin what we do not come to. */
export function promiseBootStreams(live: Live): void {
  if (requestsOf(live).length > 0) live.booting = true
}

/** After the start, as jobs of their own: the start does not wait for them, and does not fail with them. */
export function beginBootStreams(qemu: Qemu, vm: Vm, live: Live): void {
  const requests = requestsOf(live)
  if (requests.length === 0) return
  qemu.inBackground(`the streams of domain '${vm.name}' at boot`, async () => {
    const begun = await Promise.allSettled(requests.map((request) => begin(qemu, vm, live, request)))
    delete live.booting
    if (vm.live === live) saveStatusOrSay(vm, live, (text) => qemu.warn(text))
    for (const result of begun) if (result.status === 'rejected') throw result.reason
  })
}

async function begin(qemu: Qemu, vm: Vm, live: Live, { disk, ...options }: StreamRequest): Promise<void> {
  try {
    await vm.jobs.run('stream', async () => {
      if (vm.live === live && live.blockJobs.ofDisk(findDisk(live.def, disk).target) === undefined)
        await startStream(qemu, vm, disk, options)
    })
  } catch (error) {
    if (vm.live === live) emitPull(qemu, vm, findDisk(live.def, disk), VIR_DOMAIN_BLOCK_JOB_FAILED, messageOf(error))
    throw error
  }
}
