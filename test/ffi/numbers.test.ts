/** What the addon makes of the records that virDomainListGetStats answers. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import koffi from 'koffi'
import * as c from '../../src/constants.gen.js'
import { library } from '../../src/ffi/library.js'
import { TYPED_PARAM_SIZE } from '../../src/ffi/typed-params.js'
import { libvirtIsThere } from './support.js'

const domainNumbers = koffi.proto('int', ['void *', 'void *', 'const char *', 'uint', 'const char *', 'void *'])
const listGetStats = koffi.proto('int', ['void *', 'uint', 'void *', 'uint'])
const getUuid = koffi.proto('int', ['void *', 'void *'])
const freeList = koffi.proto('void', ['void *'])
const statsRecord = koffi.struct({ dom: 'uint64_t', params: 'void *', nparams: 'int' })

/** A handle is the number that all bytes of its UUID are. */
const uuidOf = (domain: number): string =>
  `00000000-0000-0000-0000-000000000000`.replaceAll('00', domain.toString(16).padStart(2, '0'))

type Param = [name: string, type: number, kind: string, value: number | bigint]

/** Records as libvirt lays them out: a list of addresses. */
function recordsOf(all: readonly { domain: number; params: readonly Param[] }[]): unknown {
  const list: unknown = koffi.alloc('void *', Math.max(1, all.length))
  for (const [nth, { domain, params }] of all.entries()) {
    const bytes: unknown = koffi.alloc('uint8_t', TYPED_PARAM_SIZE * params.length)
    for (const [at, [name, type, kind, value]] of params.entries()) {
      koffi.encode(bytes, at * TYPED_PARAM_SIZE, koffi.array('char', 80, 'String'), name)
      koffi.encode(bytes, at * TYPED_PARAM_SIZE + 80, 'int', type)
      koffi.encode(bytes, at * TYPED_PARAM_SIZE + 88, kind, value)
    }
    const record: unknown = koffi.alloc(statsRecord, 1)
    koffi.encode(record, statsRecord, { dom: domain, params: bytes, nparams: params.length })
    koffi.encode(list, nth * 8, 'void *', record)
  }
  return list
}

/** Asks for domains, of which a libvirt that is only made up tells `records`; how often these were given back. */
function ask(domains: readonly number[], names: string, records: unknown, count: number) {
  let freed = 0
  const functions = [
    koffi.register((_list: unknown, _stats: number, into: unknown) => {
      if (count >= 0) koffi.encode(into, 'void *', records)
      return count
    }, koffi.pointer(listGetStats)),
    koffi.register((domain: bigint, into: unknown) => {
      koffi.encode(into, koffi.array('uint8_t', 16), new Uint8Array(16).fill(Number(domain)))
      return 0
    }, koffi.pointer(getUuid)),
    koffi.register(() => {
      freed += 1
    }, koffi.pointer(freeList)),
  ]
  const numbers = new Float64Array(domains.length * names.split(' ').length).fill(NaN)
  const libvirt = BigUint64Array.from(functions.map((one) => koffi.address(one)))
  const list = BigUint64Array.of(...domains.map(BigInt), 0n)
  const uuids = domains.map(uuidOf).join(' ')
  const address = library().functions.domainNumbers
  const answer = koffi.call(address, domainNumbers, libvirt, list, uuids, 1, names, numbers) as number
  for (const one of functions) koffi.unregister(one)
  return { answer, numbers: [...numbers], freed }
}

test('numbers of every type go to the domain that they are of, in whatever order libvirt tells', (t) => {
  if (!libvirtIsThere(t)) return
  const records = recordsOf([
    {
      domain: 0xfe,
      params: [
        ['b', c.VIR_TYPED_PARAM_ULLONG, 'uint64_t', 2n ** 40n],
        ['a', c.VIR_TYPED_PARAM_INT, 'int', -7],
      ],
    },
    { domain: 3, params: [['a', c.VIR_TYPED_PARAM_DOUBLE, 'double', 0.5]] },
    // which nobody asked for
    { domain: 9, params: [['a', c.VIR_TYPED_PARAM_INT, 'int', 9]] },
    {
      domain: 1,
      params: [
        ['a', c.VIR_TYPED_PARAM_UINT, 'uint', 4e9],
        ['ab', c.VIR_TYPED_PARAM_INT, 'int', 9],
        ['b', c.VIR_TYPED_PARAM_LLONG, 'int64_t', -(2n ** 40n)],
      ],
    },
    {
      domain: 4,
      params: [
        ['a', c.VIR_TYPED_PARAM_STRING, 'uint64_t', 0n],
        ['b', c.VIR_TYPED_PARAM_BOOLEAN, 'uint8_t', 1],
      ],
    },
  ])
  const { answer, numbers, freed } = ask([1, 2, 3, 4, 0xfe], 'a b', records, 5)
  assert.equal(answer, 5)
  assert.deepEqual(numbers, [4e9, -(2 ** 40), NaN, NaN, 0.5, NaN, NaN, 1, -7, 2 ** 40])
  assert.equal(freed, 1)
})

test('nothing is told, and nothing given back, where libvirt fails; an empty list is given back as well', (t) => {
  if (!libvirtIsThere(t)) return
  assert.deepEqual(ask([1], 'a', null, -1), { answer: -1, numbers: [NaN], freed: 0 })
  assert.deepEqual(ask([1], 'a', recordsOf([]), 0), { answer: 0, numbers: [NaN], freed: 1 })
})
