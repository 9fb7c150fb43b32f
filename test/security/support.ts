/** Definitions, targets and journals for the tests of security drivers. */
import { randomUUID } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import type { DomainDef, SeclabelDef } from '../../src/conf/domain-def.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import type { LabelTarget } from '../../src/security/security-driver.js'
import type { LabelEntry, LabelJournal } from '../../src/security/security-stack.js'

export function definition(seclabels: SeclabelDef[] = [], name = 'guest', type = 'qemu'): DomainDef {
  const def = parseDomainXml(
    `<domain type='${type}'><name>${name}</name><uuid>${randomUUID()}</uuid><memory>65536</memory>
     <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>`,
  )
  def.seclabels = seclabels
  return def
}

export function target(path: string, more: Partial<LabelTarget> = {}): LabelTarget {
  return { path, kind: 'disk', readonly: false, shared: false, seclabels: [], ...more }
}

/** A file in a folder of its own that goes with the test. */
export function scratchFile(t: TestContext, base = tmpdir()): string {
  const folder = mkdtempSync(join(base, 'virstream-security-'))
  t.after(() => rmSync(folder, { recursive: true, force: true }))
  const path = join(folder, 'image')
  writeFileSync(path, 'image', { mode: 0o600 })
  return path
}

/** Keeps what was written down each time, as a later process would find it. */
export class TestJournal implements LabelJournal {
  readonly entries: LabelEntry[] = []
  readonly saved: LabelEntry[][] = []
  save(): void {
    this.saved.push(structuredClone(this.entries))
  }
}
