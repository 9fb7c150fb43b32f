/**
 * The steps of a process that drives QEMU, seen from outside its code: each QMP command before it is sent and after it was
 * answered, each event of a block job before it is heeded, each file that is replaced or removed, each program that is
 * started, each flush. Between two of them nothing changes that another process could see.
 */
import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { basename } from 'node:path'
import { native, type NativeAddon, type SpawnOptions } from '../../src/native.js'
import { NbdClient } from '../../src/nbd/client.js'
import { BlockJobs } from '../../src/qemu/blocks/blockjob.js'
import type { QmpEvent } from '../../src/qmp/framing.js'
import { QmpClient } from '../../src/qmp/client.js'

/** What only looks, and comes as often as time goes by. */
const LOOKS = new Set(['query-block-jobs', 'query-blockstats', 'human-monitor-command'])

/** Calls `step` at each step below `folder`, `<` before it and `>` after it, until the process ends. */
export function countSteps(folder: string, step: (name: string) => void): void {
  countCommands(step)
  countEvents(step)
  countFiles(folder, step)
  countPrograms(step)
}

function countCommands(step: (name: string) => void): void {
  const { prototype } = QmpClient
  const execute = Reflect.get(prototype, 'execute')
  prototype.execute = async function (this: QmpClient, ...args: Parameters<QmpClient['execute']>) {
    const [command] = args
    const counts = !LOOKS.has(command)
    if (counts) step(`< ${command}`)
    const result = await execute.apply(this, args)
    if (counts) step(`> ${command}`)
    return result
  }
  const client = NbdClient.prototype
  const flush = Reflect.get(client, 'flush')
  client.flush = async function (this: NbdClient) {
    step('< flush')
    await flush.call(this)
    step('> flush')
  }
}

function countEvents(step: (name: string) => void): void {
  const { prototype } = BlockJobs
  const take = Reflect.get(prototype, 'take')
  prototype.take = function (this: BlockJobs, event: QmpEvent) {
    const status = event.data['status']
    if (/JOB/.test(event.event)) step(`< ${event.event}${typeof status === 'string' ? ` ${status}` : ''}`)
    return take.call(this, event)
  }
}

function countFiles(folder: string, step: (name: string) => void): void {
  const { renameSync, rmSync } = fs
  const ours = (path: fs.PathLike): path is string => typeof path === 'string' && path.startsWith(folder)
  fs.renameSync = (from, to) => {
    const what = ours(to) ? `write ${basename(to)}${phaseIn(from)}` : undefined
    if (what !== undefined) step(`< ${what}`)
    renameSync(from, to)
    if (what !== undefined) step(`> ${what}`)
  }
  fs.rmSync = (path, options) => {
    if (ours(path)) step(`< remove ${basename(path)}`)
    rmSync(path, options)
    if (ours(path)) step(`> remove ${basename(path)}`)
  }
  syncBuiltinESMExports()
}

/** What a record says of how far its migration is. */
function phaseIn(path: fs.PathLike): string {
  const phase = /"phase":"(\w+)"/.exec(fs.readFileSync(path, 'utf8'))?.[1]
  return phase === undefined ? '' : ` ${phase}`
}

function countPrograms(step: (name: string) => void): void {
  const own: NativeAddon = { ...native }
  const around = <T>(name: string, work: () => T): T => {
    step(`< ${name}`)
    const result = work()
    step(`> ${name}`)
    return result
  }
  Object.assign(native, {
    spawn: (options: SpawnOptions) => around('spawn', () => own.spawn(options)),
    spawnHeld: (options: SpawnOptions, path?: string) => around('spawn held', () => own.spawnHeld(options, path)),
    resumeHeld: (pid: number) => around('resume held', () => own.resumeHeld(pid)),
    listenUnix: (path: string, mode: number, backlog: number) =>
      around(`listen ${basename(path)}`, () => own.listenUnix(path, mode, backlog)),
  })
}
