/** Labels of files that are taken from what they were, shared between domains, and given back. */
import { realpathSync } from 'node:fs'
import { errnoOf, failFrom, wordsOf } from '../error.js'
import { LabelMemory, withMetadataLock } from './label-memory.js'
import type { LabelTarget } from './security-driver.js'

const fail = failFrom('VIR_FROM_SECURITY')

/** What restoring a label needs: the state of a label entry, as JSON. */
interface State {
  /** before the first domain got the file; null: it had none */
  label: string | null
  given: string
  /** domains that used the file already; null: nothing is written on the file */
  users: number | null
}

/** How one security driver reads and writes the label of a file. */
export interface FileLabel {
  /** undefined: it has none */
  read(path: string): string | undefined
  /** null removes it */
  write(path: string, label: string | null): void
}

/**
 * Files keep in mind what label they had (`LabelMemory`), and get it back when no domain uses them any more. Where nothing
 * can be written on files, exclusive ones get back what the domain's status remembers; those that others may use too
 * (backing images, read-only and shareable disks) keep the label, as in libvirt.
 */
export class FileLabels {
  readonly #label: FileLabel
  readonly #memory: LabelMemory
  readonly #writesOnFiles: boolean

  constructor(model: string, label: FileLabel, writesOnFiles: boolean) {
    this.#label = label
    this.#memory = new LabelMemory(model)
    this.#writesOnFiles = writesOnFiles
  }

  /** VIR_ERR_OPERATION_INVALID when another domain uses it with another label. */
  async give(target: LabelTarget, given: string, note: (state: string) => void): Promise<void> {
    const path = realpath(target.path)
    if (path === undefined) throw fail('VIR_ERR_SYSTEM_ERROR', `'${target.path}' does not exist`)
    await withMetadataLock(path, () => {
      const now = this.#label.read(path)
      if (now !== undefined && this.#writesOnFiles && this.#memory.isPossible(path)) {
        this.#giveRemembered(path, target, now, given, note)
        return
      }
      const exclusive = target.kind !== 'backing' && target.kind !== 'boot' && !target.readonly && !target.shared
      if (exclusive) note(JSON.stringify({ label: now ?? null, given, users: null } satisfies State))
      this.#label.write(path, given)
    })
  }

  #giveRemembered(path: string, target: LabelTarget, now: string, given: string, note: (state: string) => void): void {
    const remembered = this.#memory.read(path)
    if (remembered !== undefined && now !== given)
      throw fail(
        'VIR_ERR_OPERATION_INVALID',
        `'${target.path}' is in use with label '${now}', it cannot have '${given}' as well`,
      )
    const label = remembered?.label ?? now
    note(JSON.stringify({ label, given, users: remembered?.count ?? 0 } satisfies State))
    this.#memory.remember(path, label)
    try {
      if (now !== given) this.#label.write(path, given)
    } catch (error) {
      this.#memory.recall(path)
      throw error
    }
  }

  /** `complete` and `stays` as in `restoreImageLabel`. */
  async giveBack(target: LabelTarget, noted: string, complete: boolean, stays: boolean): Promise<void> {
    const path = realpath(target.path)
    if (path === undefined) return
    const state = JSON.parse(noted) as State
    await withMetadataLock(path, () => {
      const remembered = state.users === null ? undefined : this.#memory.read(path)
      if (remembered === undefined) {
        // nothing is counted: nobody began to, or the host has booted since
        if (!stays && this.#label.read(path) === state.given) this.#label.write(path, state.label)
        return
      }
      if (!complete && remembered.count <= (state.users ?? 0)) return
      const label = this.#memory.recall(path)
      if (label !== undefined) this.#label.write(path, label)
    })
  }
}

/** Attributes are those of the file, not of a link to it. Undefined: there is no such file. */
function realpath(path: string): string | undefined {
  try {
    return realpathSync(path)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot find '${path}': ${wordsOf(error)}`, error)
  }
}
