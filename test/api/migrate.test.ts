/** The phases of a migration, on drivers that are scripted: what follows where one does not come about. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import type { HypervisorOps } from '../../src/driver.js'
import { VirError } from '../../src/error.js'
import { Connect, type Domain } from '../../src/index.js'
import { ref, scriptedDriver } from '../remote/scripted.js'

interface Hosts {
  domain: Domain
  destination: Connect
  /** what was asked of both, in order; 'not': it is called off */
  asked: () => string[]
}

/** A source and a destination where all goes well, but for what `there` does. */
async function hosts(t: TestContext, there: Partial<HypervisorOps>): Promise<Hosts> {
  const asked: string[] = []
  const note = <T>(what: string, answer: T): Promise<T> => {
    asked.push(what)
    return Promise.resolve(answer)
  }
  const [source, destination] = [
    scriptedDriver({
      domainMigrateBegin: () => Promise.resolve({ xml: '<domain/>', cookie: 'begun' }),
      domainMigratePerform: () => note('perform', { cookie: 'performed' }),
      domainMigrateConfirm: (_ref, _params, _flags, _cookie, cancelled) =>
        note(cancelled ? 'confirm not' : 'confirm', undefined),
      domainAbortJob: () =>
        Promise.reject(new VirError('VIR_ERR_OPERATION_INVALID', 'VIR_FROM_QEMU', 'nothing could be canceled')),
    }),
    scriptedDriver({
      domainMigratePrepare: () => Promise.resolve({ cookie: 'prepared', uri: 'virstream+tls://there/' }),
      domainMigrateFinish: (_params, _flags, _cookie, cancelled) =>
        cancelled ? note('finish not', undefined) : note('finish', ref),
      ...there,
    }),
  ]
  const open = async ({ driver }: typeof source): Promise<Connect> => {
    const conn = await Connect.open('test:///scripted', { drivers: [driver] })
    t.after(() => conn.close())
    return conn
  }
  const domain = await (await open(source)).domainLookupByName('guest')
  return { domain, destination: await open(destination), asked: () => asked }
}

test('a migration that is aborted while the destination prepares itself goes no further', async (t) => {
  const controller = new AbortController()
  const { domain, destination, asked } = await hosts(t, {
    domainMigratePrepare: () => {
      controller.abort()
      return Promise.resolve({ cookie: 'prepared', uri: 'virstream+tls://there/' })
    },
  })
  await assert.rejects(domain.migrate(destination, { signal: controller.signal }), {
    code: 'VIR_ERR_OPERATION_ABORTED',
    message: "migration of domain 'guest' was canceled",
  })
  assert.deepEqual(asked(), ['finish not', 'confirm not'])
})

test('a destination whose connection breaks when it is prepared leaves nobody waiting', async (t) => {
  const { domain, destination, asked } = await hosts(t, {
    connectTunnel: () => Promise.reject(new VirError('VIR_ERR_RPC', 'VIR_FROM_REMOTE', 'the connection is broken')),
  })
  await assert.rejects(domain.migrate(destination), { code: 'VIR_ERR_RPC', message: 'the connection is broken' })
  assert.deepEqual(asked(), ['finish not', 'confirm not'])
})
