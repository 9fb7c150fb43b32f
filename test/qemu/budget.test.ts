import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  type Allotment,
  type BudgetMember,
  giveSlots,
  shareOut,
  StreamBudget,
  type StreamLimits,
} from '../../src/qemu/blocks/budget.js'
import { UnitPaces } from '../../src/qemu/blocks/unit-pace.js'

/** A stream that notes what it is told. */
class Member implements BudgetMember {
  readonly allotment: Allotment = { slot: false, share: 0 }
  readonly told: Allotment[] = []
  still = false
  refuses = false
  readonly arrival: number
  bandwidth: number
  readonly #weight: number
  constructor(arrival: number, weight = 1, bandwidth = 0) {
    this.arrival = arrival
    this.#weight = weight
    this.bandwidth = bandwidth
  }
  get weight(): number {
    return this.#weight
  }
  apply(): Promise<void> {
    this.told.push({ ...this.allotment })
    return this.refuses ? Promise.reject(new Error('it is deaf')) : Promise.resolve()
  }
}

/** An open budget over `members`; `settled` resolves when all have been told. */
function budgetOf(
  limits: StreamLimits,
  members: Member[],
): { budget: StreamBudget; settled: () => Promise<void>; warnings: string[] } {
  const work: Promise<void>[] = []
  const warnings: string[] = []
  const budget = new StreamBudget(limits, {
    inBackground: (_what, run) => void work.push(run()),
    warn: (text) => void warnings.push(text),
  })
  const settled = async (): Promise<void> => {
    await Promise.all(work.splice(0))
  }
  budget.open(() => members)
  return { budget, settled, warnings }
}

const shares = (members: readonly Member[]): number[] => members.map(({ allotment }) => allotment.share)
const slots = (members: readonly Member[]): boolean[] => members.map(({ allotment }) => allotment.slot)

test('a bandwidth is shared by weight, none gets more than it wants, and what it leaves goes to the others', () => {
  const of = (weight: number, bandwidth = 0): { weight: number; bandwidth: number } => ({ weight, bandwidth })
  const cases: [number, { weight: number; bandwidth: number }[], number[]][] = [
    [100, [], []],
    [100, [of(1)], [100]],
    [100, [of(1), of(3)], [25, 75]],
    [100, [of(1, 10), of(1)], [10, 90]],
    [100, [of(1, 10), of(1, 20), of(2)], [10, 20, 70]],
    // the first remainder makes another one content
    [100, [of(1, 10), of(1, 40), of(1)], [10, 40, 50]],
    [100, [of(1, 10), of(1, 20)], [10, 20]],
    [100, [of(1, 50), of(1, 50)], [50, 50]],
    [100, [of(1, 1000), of(1, 1000)], [50, 50]],
    [10, [of(1), of(1), of(1)], [3, 3, 3]],
    // 0 would be no limit at all
    [1, [of(1), of(1000)], [1, 1]],
  ]
  for (const [total, members, expected] of cases) assert.deepEqual(shareOut(total, members), expected)
})

test('of random streams none gets more than its bandwidth, all together no more than there is, and nothing is left over', () => {
  let x = 42
  const random = (below: number): number => (x = (x * 48_271) % 2_147_483_647) % below
  for (let round = 0; round < 500; round++) {
    const total = 1_000 + random(1_000_000)
    const members = Array.from({ length: 1 + random(12) }, () => ({
      weight: 1 + random(1000),
      bandwidth: random(3) === 0 ? 0 : 1 + random(200_000),
    }))
    const got = shareOut(total, members)
    const sum = got.reduce((all, share) => all + share, 0)
    const wanted = members.reduce((all, { bandwidth }) => all + (bandwidth === 0 ? Infinity : bandwidth), 0)
    assert.ok(sum <= total + members.length, `${sum} of ${total}`)
    assert.ok(sum >= Math.min(total, wanted) - members.length, `${sum} of ${Math.min(total, wanted)}`)
    members.forEach(({ weight, bandwidth }, i) => {
      const share = got[i] ?? NaN
      assert.ok(share >= 1 && (bandwidth === 0 || share <= bandwidth), `${share} of ${bandwidth}`)
      // who gets less than it wants gets no less for its weight than any other
      if (share === bandwidth) return
      members.forEach((other, j) => assert.ok((got[j] ?? NaN) / other.weight <= (share + 1) / weight, 'fair'))
    })
  }
})

test('slots go by arrival, whoever moves keeps his, and who stands still leaves his to the next', () => {
  const [late, early, middle] = [new Member(3), new Member(1), new Member(2)]
  const members = [late, early, middle]
  giveSlots(members, 2)
  assert.deepEqual(slots(members), [false, true, true])
  giveSlots([...members, new Member(0)], 2)
  assert.deepEqual(slots(members), [false, true, true], 'nobody is pushed out')
  early.still = true
  giveSlots(members, 2)
  assert.deepEqual(slots(members), [true, false, true])
  early.still = false
  giveSlots(members, 2)
  assert.deepEqual(slots(members), [true, false, true], 'it has to wait for its turn')
  giveSlots([early, middle], 2)
  assert.equal(early.allotment.slot, true)
  const next = new Member(9)
  giveSlots([next], 2, 2)
  assert.equal(next.allotment.slot, false, 'slots that are held are not free')
})

test('without settings everyone moves as fast as he likes', async () => {
  const members = [new Member(1, 1, 5), new Member(2)]
  const { budget, settled } = budgetOf({ totalBandwidth: 0, maxStreams: 0 }, members)
  await settled()
  assert.deepEqual(
    [slots(members), shares(members)],
    [
      [true, true],
      [5, 0],
    ],
  )
  assert.equal(budget.placeOf((members[1] ?? new Member(0)).allotment), undefined)
  const [first] = members
  if (first !== undefined) [first.bandwidth, first.still] = [7, true]
  budget.update()
  assert.deepEqual(
    [slots(members), shares(members)],
    [
      [true, true],
      [7, 0],
    ],
  )
})

test('shares follow as streams come, stand still, want less and go', async () => {
  const [a, b, c] = [new Member(1), new Member(2, 3), new Member(3)]
  const members: Member[] = [a]
  const { budget, settled } = budgetOf({ totalBandwidth: 1000 }, members)
  assert.deepEqual(shares(members), [1000])
  members.push(b)
  budget.update()
  assert.deepEqual(shares(members), [250, 750])
  members.push(c)
  budget.update()
  assert.deepEqual(shares(members), [200, 600, 200])
  b.bandwidth = 100
  budget.update()
  assert.deepEqual(shares(members), [450, 100, 450])
  c.still = true
  budget.update()
  assert.deepEqual([a.allotment.share, b.allotment.share, c.allotment.slot], [900, 100, false])
  c.still = false
  budget.update()
  assert.deepEqual([...shares(members), c.allotment.slot], [450, 100, 450, true])
  members.splice(0, 2)
  budget.update()
  assert.deepEqual(shares(members), [1000])
  await settled()
  assert.deepEqual(c.told.at(-1), { slot: true, share: 1000 })
})

test('who gets less is told before who gets more, one that cannot be told keeps nobody else from it', async () => {
  const order: string[] = []
  class Told extends Member {
    override apply(): Promise<void> {
      order.push(`${this.arrival}: ${this.allotment.share}`)
      return super.apply()
    }
  }
  const [grows, shrinks] = [new Told(1, 1, 100), new Told(2)]
  const { budget, settled, warnings } = budgetOf({ totalBandwidth: 1000 }, [grows, shrinks])
  await settled()
  order.length = 0
  shrinks.refuses = true
  grows.bandwidth = 0
  budget.update()
  await settled()
  assert.deepEqual(order, ['2: 500', '1: 500'])
  assert.match(warnings.join(), /it is deaf/)
})

test('of those that wait each knows its place, and a slot that is held on the way to elsewhere is nobody elses', async () => {
  const members = [new Member(4), new Member(2), new Member(3)]
  const { budget, settled } = budgetOf({ maxStreams: 1 }, members)
  const places = (): (number | undefined)[] => members.map(({ allotment }) => budget.placeOf(allotment))
  assert.deepEqual(places(), [2, undefined, 1])
  budget.hold(2)
  members.splice(1, 1)
  budget.update()
  assert.deepEqual(places(), [2, 1])
  budget.letGo(2)
  assert.deepEqual(places(), [1, undefined])
  budget.close()
  members.pop()
  budget.update()
  assert.deepEqual(places(), [1], 'nothing begins any more when the root is being closed')
  assert.equal(budget.arrive(), 5)
  await settled()
})

test('a single unit takes its share of the bandwidth until it is paid for, but no slot', async () => {
  const stream = new Member(1)
  const { budget, settled } = budgetOf({ totalBandwidth: 100_000, maxStreams: 1 }, [stream])
  const units = new UnitPaces(budget)
  await units.wait('vda')
  units.charge('vda', 100_000_000, 3)
  await settled()
  assert.deepEqual(stream.allotment, { slot: true, share: 25_000 })
  await units.wait('vdb')
  const stop = new AbortController()
  const next = units.wait('vda', stop.signal)
  stop.abort()
  await assert.rejects(next, { code: 'VIR_ERR_OPERATION_ABORTED' })
  units.charge('vdb', 1, 1)
  await units.wait('vdb')
  await settled()
  assert.equal(stream.allotment.share, 25_000)
})

test('without a bandwidth to share units come one after the other', async () => {
  const { budget } = budgetOf({ maxStreams: 1 }, [])
  const units = new UnitPaces(budget)
  units.charge('vda', Number.MAX_SAFE_INTEGER, 1)
  await units.wait('vda')
})
