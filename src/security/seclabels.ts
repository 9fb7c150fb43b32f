/** Which `<seclabel>` counts for what. */
import type { DomainDef, SeclabelDef } from '../conf/domain-def.js'
import type { LabelTarget } from './security-driver.js'

/** The `<seclabel>` of a domain for one driver. */
export const seclabelOf = (def: DomainDef, model: string): SeclabelDef | undefined =>
  def.seclabels.find((label) => label.model === model)

/**
 * The label that `target` is to get, undefined for none: what its own `<seclabel>` says, else `label`, unless the domain's
 * says relabel='no'. What is made for the run is always labelled: without it QEMU could not even start.
 */
export function wantedLabel(
  def: DomainDef,
  target: LabelTarget,
  model: string,
  label: string | undefined,
): string | undefined {
  if (target.kind === 'runtime') return label
  if (!relabels(def, model)) return undefined
  for (const own of target.seclabels) {
    if (own.model !== undefined && own.model !== model) continue
    if (own.relabel === 'no') return undefined
    if (own.label !== undefined) return own.label
  }
  return label
}

/** May images be labelled? Where relabel is not said, it is yes for dynamic labels only. */
export function relabels(def: DomainDef, model: string): boolean {
  const label = seclabelOf(def, model)
  if (label?.relabel !== undefined) return label.relabel === 'yes'
  return label?.type !== 'static' && label?.type !== 'none'
}
