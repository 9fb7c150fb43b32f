/** `test:///default`: a hypervisor in memory, with one running domain. Each connection has a world of its own. */
import type { HypervisorDriver } from '../driver.js'
import { defaultDomainXml } from './default-domain.js'
import { define, defineOps } from './define.js'
import { lifecycleOps, startDomain } from './lifecycle.js'
import { queryOps } from './query.js'
import { streamOps } from './stream.js'
import { fail, World } from './world.js'

export const testDriver: HypervisorDriver = {
  name: 'test',
  uriSchemes: ['test'],
  open(uri, host) {
    if (uri.protocol !== 'test:') return Promise.resolve(undefined)
    if (uri.host !== '' || uri.pathname !== '/default')
      throw fail('VIR_ERR_INVALID_ARG', `unknown URI '${uri.href}', the test driver has test:///default only`)
    const world = new World(host)
    const domain = define(world, defaultDomainXml)
    startDomain(world, domain, domain.def, { paused: false })
    return Promise.resolve({
      ...queryOps(world),
      ...defineOps(world),
      ...lifecycleOps(world),
      ...streamOps(world),
      async connectClose() {
        world.close()
        return Promise.resolve()
      },
    })
  },
}
