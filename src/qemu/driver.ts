/** `qemu:///embed?root=/abs/dir`: the QEMU driver inside this process, with a tree of its own under root. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DriverHost, HypervisorDriver, HypervisorOps, LockDriver } from '../driver.js'
import { failFrom, messageOf } from '../error.js'
import { lockDriver } from '../locking/drivers.js'
import { securityDriver, securityDriverNames } from '../security/drivers.js'
import { SecurityStack } from '../security/security-stack.js'
import type { AccessPolicy } from './access/access.js'
import { CapabilitiesCache } from '../machine/capabilities-cache.js'
import { commitOps } from './streams/commit.js'
import { loadConfigs } from './core/config.js'
import { consoleOps } from './domain/console.js'
import { defineOps } from './domain/define.js'
import { handOver } from './streams/engines.js'
import { hotplugOps } from './disks/hotplug.js'
import { jobControlOps } from './streams/job-control.js'
import { createVm, lifecycleOps } from './domain/lifecycle.js'
import { migrationOps } from './migration/migration.js'
import { migrationHooks } from './migration/hooks.js'
import { limitOps } from './migration/limits.js'
import { closeMigrations, reconnectMigrations, reopenRelays } from './migration/reconnect.js'
import { Transports } from '../migration/transports.js'
import { passthroughOps } from './domain/passthrough.js'
import { resumeStreams } from './streams/moved-streams.js'
import { Qemu } from './core/qemu.js'
import { queryOps } from './domain/query.js'
import { reconnectOffline } from './domain/offline-reconnect.js'
import { reconnectAll } from './domain/reconnect.js'
import { resizeOps } from './disks/resize.js'
import { readSettings, type Settings } from './core/settings.js'
import { Root, writeFileAtomically } from './core/root.js'
import { saveOps } from './domain/save.js'
import { watchLocks } from './domain/lock-watch.js'
import { openBudget } from './streams/launch.js'
import { streamOps } from './streams/stream.js'
import { updateOps } from './disks/update.js'
import { Vm } from './core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

export const qemuDriver: HypervisorDriver = {
  name: 'qemu',
  uriSchemes: ['qemu'],
  async open(uri, host) {
    if (uri.protocol !== 'qemu:' || uri.host !== '' || uri.pathname !== '/embed') return undefined
    return openRoot(rootOf(uri), host)
  },
}

function rootOf(uri: URL): string {
  for (const key of uri.searchParams.keys())
    if (key !== 'root') throw fail('VIR_ERR_INVALID_ARG', `unknown parameter '${key}' in URI '${uri.href}'`)
  const root = uri.searchParams.get('root')
  if (root === null || root === '')
    throw fail('VIR_ERR_INVALID_ARG', `URI '${uri.href}' lacks 'root', e.g. qemu:///embed?root=/var/lib/virstream`)
  return root
}

async function openRoot(path: string, host: DriverHost): Promise<Partial<HypervisorOps>> {
  const transports = new Transports(host.transports)
  const root = Root.open(path)
  const capabilities = new CapabilitiesCache({ cacheDir: root.cacheDir, nvramDir: root.nvramDir })
  const { settings, access } = await settingsAndAccess(root, host).catch((error: unknown) => {
    root.release()
    throw error
  })
  const qemu = new Qemu(host, root, capabilities, access, transports, migrationHooks, settings.streams)
  try {
    qemu.baseTimeout = settings.baseTimeout
    for (const { def, autostart } of loadConfigs(root, (text) => qemu.warn(text))) {
      const vm = new Vm(def.name, def.uuid)
      vm.config = def
      vm.autostart = autostart
      qemu.add(vm)
    }
    await reopenRelays(qemu)
    const resumptions = [...(await reconnectAll(qemu)), ...(await reconnectOffline(qemu))]
    for (const { vm, departure } of resumptions) resumeStreams(qemu, vm, departure)
    openBudget(qemu)
    qemu.stopWatchingLocks = watchLocks(qemu)
    await reconnectMigrations(qemu)
    if (!host.readOnly) autostart(qemu)
  } catch (error) {
    await close(qemu)
    throw error
  }
  return {
    ...queryOps(qemu),
    ...defineOps(qemu),
    ...lifecycleOps(qemu),
    ...saveOps(qemu),
    ...streamOps(qemu),
    ...commitOps(qemu),
    ...jobControlOps(qemu),
    ...hotplugOps(qemu),
    ...updateOps(qemu),
    ...resizeOps(qemu),
    ...consoleOps(qemu),
    ...passthroughOps(qemu),
    ...migrationOps(qemu),
    ...limitOps(qemu),
    connectClose: () => close(qemu),
  }
}

async function settingsAndAccess(root: Root, host: DriverHost): Promise<{ settings: Settings; access: AccessPolicy }> {
  const settings = await readSettings(root)
  return { settings, access: await accessPolicy(root, host, settings) }
}

/** What the connection was opened with, else what the root's settings say, else nothing. */
async function accessPolicy(root: Root, host: DriverHost, settings: Settings): Promise<AccessPolicy> {
  const { security: names } = settings
  const configured = names === undefined || names === 'none' ? [] : names
  const drivers = host.security ?? configured.map((name) => securityDriver(name, settings))
  // labels that an earlier process has set are taken back also when nobody asks for new ones
  const known = securityDriverNames.map((name) => securityDriver(name, settings))
  const security = new SecurityStack(drivers, (text) => host.logger.warn(text), known)
  await security.probe()
  const locks = host.lockManager ?? configuredLocks(root, settings)
  const reason = await locks?.probe?.()
  if (reason !== undefined)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `lock manager '${locks?.name ?? ''}' cannot be used: ${reason}`)
  return { security, locks }
}

/** where libvirt looks for them */
const SANLOCK_LEASES = '/var/lib/libvirt/sanlock'

function configuredLocks(root: Root, settings: Settings): LockDriver | undefined {
  const { lockManager = 'none', lockDirectory, virtlockdSocket, fileLockspace, sanlockHostId } = settings
  if (lockManager === 'none') return undefined
  return lockDriver(lockManager, {
    directory: lockDirectory ?? (lockManager === 'sanlock' ? SANLOCK_LEASES : join(root.path, 'lib/lock')),
    ...(virtlockdSocket !== undefined && { socket: virtlockdSocket }),
    ...(fileLockspace !== undefined && { fileLockspace }),
    ...(sanlockHostId !== undefined && { hostId: sanlockHostId }),
  })
}

/** Domains marked for it are started at the first opening of the root after the host has booted. */
function autostart(qemu: Qemu): void {
  const marker = join(qemu.root.path, 'run/autostarted')
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8')
  if (readIfThere(marker) === boot) return
  writeFileAtomically(marker, boot)
  for (const vm of qemu.vms) {
    if (!vm.autostart || vm.live !== undefined) continue
    qemu.inBackground(`autostart of domain '${vm.name}'`, () => vm.jobs.run('create', () => createVm(qemu, vm, 0)))
  }
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    void messageOf(error)
    return undefined
  }
}

/** Streams that our own requests move are left to QEMU. */
async function handOverAll(qemu: Qemu, vm: Vm): Promise<void> {
  const { host } = vm
  for (const job of host?.blockJobs.all ?? [])
    if (host !== undefined && job.puller !== undefined) await handOver(qemu, vm, host, job)
}

/** Lets go of the root. Domains run on, with their streams; the next opening finds them again. */
async function close(qemu: Qemu): Promise<void> {
  qemu.closing = true
  qemu.stopWatchingLocks()
  qemu.budget.close()
  // whoever opens the root next waits for a QEMU that does not answer yet
  for (const { live } of qemu.vms) if (live?.catchingUp !== undefined) live.monitor.close()
  // as a job, so that who is in the middle of something gets to its end
  const left = await Promise.allSettled(
    qemu.vms.map((vm) => vm.jobs.run('settle', () => handOverAll(qemu, vm), Infinity)),
  )
  for (const result of left) if (result.status === 'rejected') qemu.warn(messageOf(result.reason))
  await closeMigrations(qemu)
  await qemu.idle()
  for (const { host } of qemu.vms) {
    host?.exports.close()
    host?.monitor.close()
    host?.process.close()
  }
  qemu.root.release()
}
