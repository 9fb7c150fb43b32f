/** How fast memory may go, how long the guest may stand still and what compression keeps: of migrations to come, and of one that is under way. */
import * as c from '../../constants.gen.js'
import type { DomainRef, HypervisorOps } from '../../driver.js'
import { failFrom } from '../../error.js'
import { MigrationCommands, type MigrationLimits } from '../monitor/migration-commands.js'
import { checkCompressionCache } from './flags.js'
import type { Qemu } from '../core/qemu.js'

const fail = failFrom('VIR_FROM_QEMU')

const MIB = 1024 * 1024
/** MiB/s, libvirt's figure for no limit */
const NO_LIMIT = 8_796_093_022_207
/** bytes/s that QEMU takes for no limit; a JSON number keeps no more */
const QEMU_MOST = 2 ** 53 - 1
/** ms that QEMU takes at most */
const DOWNTIME_MOST = 2_000_000

type LimitOps = Pick<
  HypervisorOps,
  | 'domainMigrateSetMaxDowntime'
  | 'domainMigrateGetMaxDowntime'
  | 'domainMigrateSetMaxSpeed'
  | 'domainMigrateGetMaxSpeed'
  | 'domainMigrateSetCompressionCache'
  | 'domainMigrateGetCompressionCache'
>

/** 0: no limit */
const toQemu = (speed: number): number => (speed === 0 ? QEMU_MOST : Math.min(speed * MIB, QEMU_MOST))

/** None of them is a job: they have to get through while a migration holds the domain. */
export function limitOps(qemu: Qemu): LimitOps {
  const commandsOf = (ref: DomainRef): MigrationCommands =>
    new MigrationCommands(qemu.require(ref).requireLive().monitor)
  const get = async (ref: DomainRef, limit: keyof MigrationLimits): Promise<number> =>
    (await commandsOf(ref).queryParameters())[limit]
  return {
    async domainMigrateSetMaxDowntime(ref, downtime) {
      const commands = commandsOf(ref)
      if (downtime > DOWNTIME_MOST)
        throw fail('VIR_ERR_OVERFLOW', `downtime must be at most ${DOWNTIME_MOST} ms, not '${downtime}'`)
      await commands.setParameters({ 'downtime-limit': downtime })
    },
    domainMigrateGetMaxDowntime: (ref) => get(ref, 'downtime-limit'),

    async domainMigrateSetCompressionCache(ref, size) {
      await commandsOf(ref).setParameters({ 'xbzrle-cache-size': checkCompressionCache(size) })
    },
    domainMigrateGetCompressionCache: (ref) => get(ref, 'xbzrle-cache-size'),

    async domainMigrateSetMaxSpeed(ref, speed, flags) {
      const vm = qemu.require(ref)
      if (speed > NO_LIMIT)
        throw fail('VIR_ERR_OVERFLOW', `bandwidth must be at most ${NO_LIMIT} MiB/s, not '${speed}'`)
      if ((flags & c.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY) !== 0) {
        await commandsOf(ref).setParameters({ 'max-postcopy-bandwidth': toQemu(speed) })
        return
      }
      if (vm.live !== undefined)
        await new MigrationCommands(vm.live.monitor).setParameters({ 'max-bandwidth': toQemu(speed) })
      vm.migrationSpeed = toQemu(speed)
    },

    async domainMigrateGetMaxSpeed(ref, flags) {
      const vm = qemu.require(ref)
      const { migrationSpeed = QEMU_MOST } = vm
      const postcopy = (flags & c.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY) !== 0
      const bytes = postcopy ? await get(ref, 'max-postcopy-bandwidth') : migrationSpeed
      return bytes === QEMU_MOST ? NO_LIMIT : Math.floor(bytes / MIB)
    },
  }
}
