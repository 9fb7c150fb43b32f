import type { DriverHost, HypervisorDriver } from './driver.js'
import { failFrom } from './error.js'
import { testDriver } from './test-driver/driver.js'

const fail = failFrom('VIR_FROM_NONE')

/** VIR_ERR_OPERATION_UNSUPPORTED for what only the process that starts QEMU could heed; left out it would not be missed. */
function refuseOwn({ security, lockManager }: DriverHost, uri: URL, why: string): void {
  const option = security !== undefined ? 'security' : lockManager !== undefined ? 'lockManager' : undefined
  if (option !== undefined)
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `'${option}' is not possible on a connection to '${uri.href}': ${why}`)
}

/** Loaded when it is used, since it needs the native addon, which the others can do without. */
const qemuDriver: HypervisorDriver = {
  name: 'qemu',
  uriSchemes: ['qemu'],
  async open(uri, host) {
    const { qemuDriver: embedded } = await import('./qemu/driver.js')
    try {
      return await embedded.open(uri, host)
    } catch (error) {
      // a daemon that has the root lets others use it
      const { isRootInUse } = await import('./qemu/core/root.js')
      if (!isRootInUse(error)) throw error
      const { throughDaemon } = await import('./remote/embedded.js')
      const operations = await throughDaemon(uri, host)
      if (operations === undefined) throw error
      return operations
    }
  },
}

const remoteDriver: HypervisorDriver = {
  name: 'remote',
  uriSchemes: ['virstream+tls', 'virstream+unix', 'virstream+tcp'],
  async open(uri, host) {
    refuseOwn(host, uri, 'its daemon starts QEMU, as the settings of its root say')
    return (await import('./remote/driver.js')).remoteDriver.open(uri, host)
  },
}

/** Loaded when it is used: it needs koffi and, in the end, libvirt itself. */
const ffiDriver: HypervisorDriver = {
  name: 'ffi',
  uriSchemes: ['*'],
  async open(uri, host) {
    refuseOwn(host, uri, 'libvirtd starts QEMU, as its qemu.conf says')
    return (await import('./ffi/driver.js')).ffiDriver.open(uri, host)
  },
}

/** The drivers that come with virstream, in the order of asking. */
export const drivers: readonly HypervisorDriver[] = [qemuDriver, remoteDriver, testDriver, ffiDriver]
