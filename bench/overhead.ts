/** What the driver adds to the start of a QEMU: XML to running guest, against the same argv run by hand. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { overlay, emptyImage, type Cleanup } from '../test/support/images.js'
import { benchRoot, emptyDomain, MiB, time, type BenchOptions } from './bench.js'
import { argvOf, pidOf, startByHand } from './by-hand.js'
import { duration, inTurn, median, spread, type Table } from './report.js'

const CREATE_XML = 'virstream: domainCreateXML'
const CREATE = 'virstream: create of a defined domain'
const HAND = 'the same argv by hand'

export async function benchOverhead(t: Cleanup, { rounds }: BenchOptions): Promise<Table[]> {
  const { folder, root, conn } = await benchRoot(t)
  const path = await overlay(folder, await emptyImage(folder, 'raw', 16 * MiB))
  const xml = emptyDomain(path)
  const first = await conn.domainCreateXML(xml)
  const argv = await argvOf(await pidOf(root, first))
  await first.destroy()
  const socket = join(folder, 'hand.sock')

  const createXml = async (): Promise<number> => {
    const began = performance.now()
    const dom = await conn.domainCreateXML(xml)
    const ms = performance.now() - began
    await dom.destroy()
    return ms
  }
  const create = async (): Promise<number> => {
    const dom = await conn.domainDefineXML(xml)
    const ms = await time(() => dom.create())
    await dom.destroy()
    await dom.undefine()
    return ms
  }
  const byHand = async (): Promise<number> => {
    await rm(socket, { force: true })
    await using qemu = await startByHand(argv, socket)
    return qemu.ms + (await time(() => run(qemu.qmp)))
  }
  const ways = [
    { name: CREATE_XML, run: createXml },
    { name: CREATE, run: create },
    { name: HAND, run: byHand },
  ]
  const { times } = await inTurn(ways, rounds)
  const hand = times.get(HAND) ?? []
  const rows = [...times].map(([name, all]) => {
    const added = all.map((ms, round) => ms - (hand[round] ?? NaN))
    const factor = all.map((ms, round) => ms / (hand[round] ?? NaN))
    const isHand = name === HAND
    return [name, isHand ? '' : median(factor).toFixed(2), isHand ? '' : duration(median(added)), spread(all)]
  })
  return [
    {
      title: 'Start-up: from the call to a running QEMU',
      head: ['way', 'times by hand', 'added', 'time (min–max)'],
      rows,
      notes: ['By hand: spawn, QMP greeting and capabilities, cont, query-status.'],
    },
  ]
}

async function run(qmp: { execute(command: string): Promise<unknown> }): Promise<void> {
  await qmp.execute('cont')
  const { running } = (await qmp.execute('query-status')) as { running: boolean }
  if (!running) throw new Error('QEMU by hand does not run')
}
