import type { DomainDef } from '../conf/domain-def.js'
import { failFrom, messageOf } from '../error.js'
import { Undo } from '../util/undo.js'
import type { LabelTarget, ProcessLabel, SecurityDriver } from './security-driver.js'

const fail = failFrom('VIR_FROM_SECURITY')

/** One label that was set and is to be restored. */
export interface LabelEntry {
  driver: string
  target: LabelTarget
  /** what the driver noted */
  state: string
  /** false as long as the driver is at it */
  complete: boolean
}

/** The labels that a domain has set, in their order, and the way to write them down. */
export interface LabelJournal {
  readonly entries: LabelEntry[]
  /** puts the entries where the next process finds them */
  save(): void
}

/** Several security drivers as one: set in their order, undone in reverse. The empty one does nothing. */
export class SecurityStack {
  readonly #drivers: readonly SecurityDriver[]
  readonly #known: readonly SecurityDriver[]
  readonly #warn: (text: string) => void

  /** `known`: others that can restore what an earlier process has set. */
  constructor(drivers: readonly SecurityDriver[], warn: (text: string) => void, known: readonly SecurityDriver[] = []) {
    const names = drivers.map(({ name }) => name)
    const twice = names.find((name, nth) => names.indexOf(name) !== nth)
    if (twice !== undefined) throw fail('VIR_ERR_INVALID_ARG', `security driver '${twice}' is given twice`)
    this.#drivers = drivers
    this.#known = known
    this.#warn = warn
  }

  get isEmpty(): boolean {
    return this.#drivers.length === 0
  }

  /** The models of its drivers, in their order. */
  get names(): string[] {
    return this.#drivers.map(({ name }) => name)
  }

  /** VIR_ERR_CONFIG_UNSUPPORTED, with the driver's own words, when one of them cannot work here. */
  async probe(): Promise<void> {
    for (const driver of this.#drivers) {
      const reason = await driver.probe()
      if (reason !== undefined)
        throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `security driver '${driver.name}' cannot be used: ${reason}`)
    }
  }

  /**
   * Gives `def` its labels: one `<seclabel>` for each driver, made where there is none. When one fails, those before it
   * take theirs back. VIR_ERR_CONFIG_UNSUPPORTED for a `<seclabel>` of a model that no driver has.
   */
  async generateLabels(def: DomainDef, running: readonly DomainDef[]): Promise<void> {
    const first = this.#drivers[0]
    if (first === undefined) return
    for (const label of def.seclabels) {
      label.model ??= first.name
      if (label.model !== 'none' && !this.#drivers.some(({ name }) => name === label.model))
        throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `there is no security driver for <seclabel model='${label.model}'>`)
      if ((label.type ?? 'dynamic') === 'dynamic' && label.relabel === 'no')
        throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `a dynamic <seclabel model='${label.model}'> cannot have relabel='no'`)
    }
    await using undo = new Undo()
    for (const driver of this.#drivers) {
      if (!def.seclabels.some(({ model }) => model === driver.name))
        def.seclabels.push({ type: 'dynamic', model: driver.name, relabel: 'yes', implicit: true })
      await driver.generateLabel?.(def, running)
      undo.add(() => driver.releaseLabel?.(def))
    }
    undo.commit()
  }

  /** Labels `target` by every driver. When one fails, what those before it did is restored. */
  async setImageLabel(def: DomainDef, target: LabelTarget, journal: LabelJournal): Promise<void> {
    await using undo = new Undo()
    for (const driver of this.#drivers) {
      const entry = await setOne(driver, def, target, journal)
      if (entry !== undefined) undo.add(() => this.restore(def, [entry], journal))
    }
    undo.commit()
  }

  /**
   * Restores entries of the journal, newest first. What cannot be restored is reported; the others are restored all the same.
   * `stays`: those whose file another host's QEMU uses.
   */
  async restore(
    def: DomainDef,
    entries: readonly LabelEntry[],
    journal: LabelJournal,
    stays: (entry: LabelEntry) => boolean = () => false,
  ): Promise<void> {
    for (const entry of entries.toReversed()) {
      const driver = [...this.#drivers, ...this.#known].find(({ name }) => name === entry.driver)
      const { path } = entry.target
      if (driver === undefined)
        this.#warn(`'${path}' keeps its label of security driver '${entry.driver}', which is not here`)
      try {
        await driver?.restoreImageLabel?.(def, entry.target, entry.state, entry.complete, stays(entry))
      } catch (error) {
        this.#warn(`the label of '${path}' is not restored: ${messageOf(error)}`)
      }
      remove(journal, entry)
    }
    if (entries.length > 0) journal.save()
  }

  /** Makes a socket that QEMU will have, or connect to. */
  makeSocket<T>(def: DomainDef, make: () => T): T {
    const set: SecurityDriver[] = []
    try {
      for (const driver of this.#drivers) {
        driver.setSocketLabel?.(def)
        set.push(driver)
      }
      return make()
    } finally {
      for (const driver of set.toReversed()) driver.clearSocketLabel?.(def)
    }
  }

  /** What QEMU is to run as. */
  async processLabel(def: DomainDef): Promise<ProcessLabel> {
    const all: ProcessLabel = {}
    for (const driver of this.#drivers) Object.assign(all, await driver.processLabel?.(def))
    return all
  }

  /** QEMU is about to begin. */
  async labelsSet(def: DomainDef, program: string): Promise<void> {
    for (const driver of this.#drivers) await driver.labelsSet?.(def, program)
  }

  /** The domain has ended and everything else is undone. */
  async releaseLabels(def: DomainDef): Promise<void> {
    // also of drivers that an earlier process was opened with
    const known = this.#known.filter(({ name }) => !this.names.includes(name))
    for (const driver of [...this.#drivers, ...known].toReversed()) {
      try {
        await driver.releaseLabel?.(def)
      } catch (error) {
        this.#warn(`security driver '${driver.name}' could not let go of domain '${def.name}': ${messageOf(error)}`)
      }
    }
  }
}

async function setOne(
  driver: SecurityDriver,
  def: DomainDef,
  target: LabelTarget,
  journal: LabelJournal,
): Promise<LabelEntry | undefined> {
  const noted: LabelEntry[] = []
  const note = (state: string): void => {
    const entry = { driver: driver.name, target, state, complete: false }
    for (const former of noted.splice(0)) remove(journal, former)
    noted.push(entry)
    journal.entries.push(entry)
    journal.save()
  }
  try {
    await driver.setImageLabel?.(def, target, note)
  } catch (error) {
    for (const entry of noted) remove(journal, entry)
    throw error
  }
  const entry = noted[0]
  if (entry !== undefined) entry.complete = true
  return entry
}

function remove(journal: LabelJournal, entry: LabelEntry): void {
  const at = journal.entries.indexOf(entry)
  if (at >= 0) journal.entries.splice(at, 1)
}
