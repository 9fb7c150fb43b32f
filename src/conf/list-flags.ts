/** Flags of virConnectListAllDomains, for every driver that keeps its own list of domains. */
import * as c from '../constants.gen.js'

/** What the flags ask of one domain. */
export interface ListedDomain {
  active: boolean
  persistent: boolean
  /** VIR_DOMAIN_RUNNING … */
  state: number
  managedSave: boolean
  autostart: boolean
}

const NAMED_STATES: readonly number[] = [c.VIR_DOMAIN_RUNNING, c.VIR_DOMAIN_PAUSED, c.VIR_DOMAIN_SHUTOFF]

/** Flags come in groups; a group that is not asked about lets everything through. No domain has snapshots or checkpoints. */
export function isListed({ active, persistent, state, managedSave, autostart }: ListedDomain, flags: number): boolean {
  const groups: [number, boolean][][] = [
    [
      [c.VIR_CONNECT_LIST_DOMAINS_ACTIVE, active],
      [c.VIR_CONNECT_LIST_DOMAINS_INACTIVE, !active],
    ],
    [
      [c.VIR_CONNECT_LIST_DOMAINS_PERSISTENT, persistent],
      [c.VIR_CONNECT_LIST_DOMAINS_TRANSIENT, !persistent],
    ],
    [
      [c.VIR_CONNECT_LIST_DOMAINS_RUNNING, state === c.VIR_DOMAIN_RUNNING],
      [c.VIR_CONNECT_LIST_DOMAINS_PAUSED, state === c.VIR_DOMAIN_PAUSED],
      [c.VIR_CONNECT_LIST_DOMAINS_SHUTOFF, state === c.VIR_DOMAIN_SHUTOFF],
      [c.VIR_CONNECT_LIST_DOMAINS_OTHER, !NAMED_STATES.includes(state)],
    ],
    [
      [c.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE, managedSave],
      [c.VIR_CONNECT_LIST_DOMAINS_NO_MANAGEDSAVE, !managedSave],
    ],
    [
      [c.VIR_CONNECT_LIST_DOMAINS_AUTOSTART, autostart],
      [c.VIR_CONNECT_LIST_DOMAINS_NO_AUTOSTART, !autostart],
    ],
    [
      [c.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT, false],
      [c.VIR_CONNECT_LIST_DOMAINS_NO_SNAPSHOT, true],
    ],
    [
      [c.VIR_CONNECT_LIST_DOMAINS_HAS_CHECKPOINT, false],
      [c.VIR_CONNECT_LIST_DOMAINS_NO_CHECKPOINT, true],
    ],
  ]
  return groups.every((group) => {
    const asked = group.filter(([flag]) => (flags & flag) !== 0)
    return asked.length === 0 || asked.some(([, holds]) => holds)
  })
}
