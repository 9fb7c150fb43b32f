/** Questions for states that go together: each gets the answer that it would have got alone. */
import assert from 'node:assert/strict'
import { constants } from 'node:os'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { Connect, VirError } from '../../src/index.js'
import * as c from '../../src/constants.gen.js'
import type { Connection } from '../../src/ffi/connection.js'
import { States } from '../../src/ffi/states.js'
import { daemonFor, testUri } from './support.js'

const { SIGSTOP, SIGCONT } = constants.signals

const plain = (name: string): string =>
  `<domain type='qemu'><name>${name}</name><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os></domain>`

test('of a running, a paused, a stopped and a domain that is gone each is told what it is', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const conn = await Connect.open(daemon.uri)
  t.after(() => conn.close())
  const names = Array.from({ length: 8 }, (_, nth) => `guest${nth}`)
  const doms = await Promise.all(names.map((name) => conn.domainDefineXML(plain(name))))
  const [running, paused, gone] = doms
  assert.ok(running && paused && gone)
  await running.create()
  await paused.create(c.VIR_DOMAIN_START_PAUSED)
  const ask = () => Promise.allSettled(doms.flatMap((dom) => [dom, dom, dom]).map((dom) => dom.getState()))
  const shutoff = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_UNKNOWN }
  const expected = [
    { state: c.VIR_DOMAIN_RUNNING, reason: c.VIR_DOMAIN_RUNNING_BOOTED },
    { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER },
    ...Array.from({ length: 6 }, () => shutoff),
  ]
  const threeTimes = expected.flatMap((one) => [one, one, one])
  const told = (all: PromiseSettledResult<unknown>[]) => all.map((one) => (one.status === 'fulfilled' ? one.value : 0))
  assert.deepEqual(told(await ask()), threeTimes)

  // what has happened before the question counts
  await Promise.all([running.suspend(), paused.resume()])
  await daemon.virsh('undefine', gone.name)
  const after = await ask()
  const lost = after.splice(6, 3)
  assert.deepEqual(told(after.splice(0, 6)), [
    ...Array.from({ length: 3 }, () => ({ state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER })),
    ...Array.from({ length: 3 }, () => ({ state: c.VIR_DOMAIN_RUNNING, reason: c.VIR_DOMAIN_RUNNING_UNPAUSED })),
  ])
  assert.deepEqual(told(after), threeTimes.slice(9))
  for (const one of lost) {
    assert.ok(one.status === 'rejected' && one.reason instanceof VirError)
    assert.equal(one.reason.code, 'VIR_ERR_NO_DOMAIN')
  }
})

test('a call that takes its time does not hold up the questions after it', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const conn = await Connect.open(testUri(daemon))
  t.after(() => conn.close())
  const dom = await conn.domainLookupByName('test')
  const others = await Promise.all(
    ['a', 'b', 'c'].map((name) => conn.domainDefineXML(plain(name).replace("'qemu'", "'test'"))),
  )
  const askAll = () => Promise.all([dom, ...others, dom].map(async (each) => (await each.getState()).state))
  const expected = [c.VIR_DOMAIN_RUNNING, ...others.map(() => c.VIR_DOMAIN_SHUTOFF), c.VIR_DOMAIN_RUNNING]
  daemon.kill(SIGSTOP)
  const first = askAll()
  // each sent while those before it have no answer
  const later = [1, 2].map(async (nth) => {
    await delay(40 * nth)
    return askAll()
  })
  setTimeout(() => daemon.kill(SIGCONT), 150)
  for (const answers of [first, ...later]) assert.deepEqual(await answers, expected)
  assert.deepEqual(await askAll(), expected)
})

/** A connection whose server answers when it is let, and knows no call for many domains unless it `tellsMany`. */
class Scripted {
  readonly here = false
  readonly asked: string[] = []
  readonly #tellsMany: boolean
  readonly #answers: (() => void)[] = []

  constructor(tellsMany: boolean) {
    this.#tellsMany = tellsMany
  }

  call(_name: string, domain: bigint, state: Uint8Array): Promise<number> {
    this.asked.push(String(domain))
    return new Promise((resolve) => {
      this.#answers.push(() => {
        state[0] = Number(domain)
        resolve(0)
      })
    })
  }

  numbers(domains: readonly { domain: bigint }[]): Promise<Float64Array> {
    this.asked.push(domains.map(({ domain }) => domain).join(' '))
    return new Promise((resolve, reject) => {
      this.#answers.push(() => {
        if (this.#tellsMany) resolve(Float64Array.from(domains.flatMap(({ domain }) => [Number(domain), 0])))
        else reject(new VirError('VIR_ERR_NO_SUPPORT', 'VIR_FROM_NONE', 'this function is not supported'))
      })
    })
  }

  async answerAll(): Promise<void> {
    while (this.#answers.length > 0) {
      this.#answers.shift()?.()
      await new Promise(setImmediate)
    }
  }
}

function asker(scripted: Scripted): (...domains: number[]) => Promise<number[]> {
  const states = new States(scripted as unknown as Connection)
  const one = async (n: number) => (await states.ask({ name: '', uuid: `u${n}`, id: -1 }, BigInt(n))).state
  return (...domains) => Promise.all(domains.map(one))
}

test('few go together in one call, many in two at a time that share what is asked', async () => {
  const scripted = new Scripted(true)
  const ask = asker(scripted)
  const list = (from: number, to: number) => Array.from({ length: to - from }, (_, nth) => from + nth)
  const askTwice = async (domains: readonly number[]): Promise<string[]> => {
    scripted.asked.length = 0
    const twice = ask(...domains).then(() => ask(...domains))
    await scripted.answerAll()
    assert.deepEqual(await twice, domains)
    return scripted.asked
  }
  assert.deepEqual(await askTwice(list(0, 6)), ['0', '1 2 3 4 5', '0 1 2 3 4 5'])
  const calls = [[0], list(1, 17), list(17, 37), list(37, 40), list(0, 20), list(20, 40)]
  assert.deepEqual(
    await askTwice(list(0, 40)),
    calls.map((domains) => domains.join(' ')),
  )
})

test('a driver that knows no call for many is asked for one after the other, and for many no more', async () => {
  const scripted = new Scripted(false)
  const ask = asker(scripted)
  const first = ask(1, 2, 3, 2)
  await scripted.answerAll()
  assert.deepEqual(await first, [1, 2, 3, 2])
  // the first alone, the two others together, which failed, then each alone
  assert.deepEqual(scripted.asked, ['1', '2 3', '2', '3'])
  scripted.asked.length = 0
  const second = ask(1, 2, 3)
  await scripted.answerAll()
  assert.deepEqual(await second, [1, 2, 3])
  assert.deepEqual(scripted.asked, ['1', '2', '3'])
})
