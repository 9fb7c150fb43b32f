/**
 * How long a base may be away. Without a limit the guest's reads of what has not come over wait until it is back; with one
 * (`baseTimeout`, or `<reconnect delay>` of the source) they fail after that time, and QEMU pauses the guest. Nothing else
 * can pause it then: QEMU's own `stop` would wait for those reads, with everything in it.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { DiskDef, DomainDef } from '../../conf/domain-def.js'
import { readStreamRequests } from '../../conf/stream-request.js'
import { VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_IOERROR } from '../../constants.gen.js'
import { failFrom } from '../../error.js'
import { formatBackingString } from '../../storage/backing-string.js'
import { chainOf } from '../blocks/block-graph.js'
import { findDisk } from '../blocks/disk-names.js'
import { isFromMigration, isNbd, linkProblem, remoteImages } from '../blocks/link-watch.js'
import type { Qemu } from '../core/qemu.js'
import { exchangeBase } from './half-replaced.js'
import type { Replacement } from './replace-base.js'
import { isServed } from './stand-in.js'
import type { Live, StreamHost, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms after a resume in which a guest that has not got its base back is paused again */
const STEADY = 1_000
/** ms between two tries to resume */
const RETRY = 500
/** QEMU fails the first requests after an outage and connects while it does */
const TRIES = 8

/** Before a start: how long each disk waits for its base, and that the guest is paused when it waits no longer. */
export function settleBaseTimeouts(def: DomainDef, usual: number | undefined): void {
  const requests = readStreamRequests(def)
  for (const disk of def.disks) {
    const request = requests.find((candidate) => findDisk(def, candidate.disk) === disk)
    settleBaseTimeout(disk, usual, request?.baseTimeout)
  }
}

/** The same for one disk; `own`: what is said of it alone. */
export function settleBaseTimeout(disk: DiskDef, usual: number | undefined, own?: number): void {
  if (remoteImages(disk).length === 0) return
  const { driver } = disk
  if (driver.errorPolicy === undefined && driver.rerrorPolicy === undefined) {
    driver.errorPolicy = 'stop'
    driver.rerrorPolicy = 'stop'
  }
  // what a guest that has moved lacks comes from its former host, for which it waits
  const timeout = own ?? (isFromMigration(disk) ? undefined : usual)
  if (timeout !== undefined && pausesOnErrors(disk)) disk.baseTimeout = timeout
}

/** A guest that is not paused would see the errors. */
const pausesOnErrors = ({ driver }: DiskDef): boolean =>
  driver.errorPolicy === 'stop' && (driver.rerrorPolicy ?? 'stop') === 'stop'

/** Under the domain's job, before a stream: from now on the disk waits for its base so many seconds. */
export async function setBaseTimeout(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  disk: DiskDef,
  seconds: number,
): Promise<void> {
  if (disk.baseTimeout === seconds) return
  const limited = chainOf(disk).find((image) => isNbd(image) && image.reconnectDelay === undefined)
  if (host.mode === 'full' && limited !== undefined) requirePausing(disk)
  const before = disk.baseTimeout
  disk.baseTimeout = seconds
  if (limited === undefined || limited === disk.source) return
  try {
    await reopen(qemu, vm, host, { disk, old: limited, timeoutBefore: before })
  } catch (error) {
    if (before === undefined) delete disk.baseTimeout
    else disk.baseTimeout = before
    throw error
  }
}

function requirePausing(disk: DiskDef): void {
  if (pausesOnErrors(disk)) return
  const text = `errors of disk '${disk.target}' do not pause the guest, so its base can have no timeout: see <driver error_policy='stop'/>`
  throw fail('VIR_ERR_OPERATION_INVALID', text)
}

/** QEMU takes the time only when it opens an image, so the chain is opened a second time and takes its own place. */
async function reopen(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  { disk, old, timeoutBefore }: Pick<Replacement, 'disk' | 'old' | 'timeoutBefore'>,
): Promise<void> {
  for (const image of remoteImages(disk)) {
    if (!isNbd(image) || (await isServed(image))) continue
    const text = `base '${formatBackingString(image)}' of disk '${disk.target}' takes no second connection, which its timeout needs`
    throw fail('VIR_ERR_OPERATION_FAILED', text)
  }
  await exchangeBase(qemu, vm, host, { disk, old, fresh: structuredClone(old), moved: false, timeoutBefore })
}

export const isBroken = ({ state }: Vm): boolean =>
  state.state === VIR_DOMAIN_PAUSED && state.reason === VIR_DOMAIN_PAUSED_IOERROR

/**
 * Lets a paused guest go on. After an I/O error it may take QEMU a few tries to have its bases back; VIR_ERR_OPERATION_FAILED
 * when one is still away, and the guest paused again.
 */
export async function resumeGuest(vm: Vm, live: Live): Promise<void> {
  const broken = isBroken(vm) && live.def.disks.some((disk) => remoteImages(disk).length > 0)
  for (let tries = 1; ; tries++) {
    await live.monitor.cont()
    vm.requireSame(live)
    if (!broken || !(await breaksAgain(vm, live))) return
    const problem = await awayBase(live.def)
    if (problem !== undefined) throw fail('VIR_ERR_OPERATION_FAILED', `the guest is paused again: ${problem}`)
    if (tries === TRIES)
      throw fail('VIR_ERR_OPERATION_FAILED', 'the guest is paused again by an I/O error each time it is resumed')
    await delay(RETRY)
  }
}

async function breaksAgain(vm: Vm, live: Live): Promise<boolean> {
  const end = performance.now() + STEADY
  // QEMU's event of the resume comes with its answer, the next error after it
  while (performance.now() < end) {
    await delay(50)
    vm.requireSame(live)
    if (isBroken(vm)) return true
  }
  return false
}

async function awayBase(def: DomainDef): Promise<string | undefined> {
  for (const image of def.disks.flatMap(remoteImages)) {
    const problem = await linkProblem(image)
    if (problem !== undefined) return `base '${formatBackingString(image)}' does not answer: ${problem}`
  }
  return undefined
}
