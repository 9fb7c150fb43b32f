/**
 * How well we do on libvirt's own test data. Usage:
 *   LIBVIRT_SOURCE=/path/to/libvirt-9.0.0 node dist/scripts/corpus-report.js [--no-qemu] [--reasons] [--record]
 * --no-qemu leaves out the columns that run QEMU (minutes), --reasons lists every reason with its files, --record writes
 * docs/corpus.md and docs/corpus.json (what the tests compare with).
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { confResult, corpusFiles, identicalOutput, type ConfResult, type Identical, type Reasons } from './corpus.js'
import { hostName, qemuResult, qemuVersion, type QemuResult } from './corpus-qemu.js'

/** What may only rise (`crashes`: stays 0). */
export interface CorpusNumbers {
  files: number
  parsed: number
  roundTrip: number
  validOutput: number
  identical: number
  mustFail: number
  refusedByParser: number
  crashes: number
  defined?: number
  commands?: number
  accepted?: number
  refusedAtDefine?: number
}

const docs = join(import.meta.dirname, '../../docs')

export function numbersOf(conf: ConfResult, identical: Identical, qemu?: QemuResult): CorpusNumbers {
  const bad = conf.files.filter(({ mustFail }) => mustFail).map(({ name }) => name)
  const refusedByParser = bad.filter((name) => conf.refused.has(name))
  const crashed = (reasons: Reasons): number => [...reasons.values()].reduce((sum, names) => sum + names.length, 0)
  return {
    ...{ files: conf.files.length, parsed: conf.defs.size, roundTrip: conf.roundTrip },
    ...{ validOutput: conf.validOutput, identical: identical.identical, mustFail: bad.length },
    ...{ refusedByParser: refusedByParser.length, crashes: crashed(conf.crashes) + (qemu ? crashed(qemu.crashes) : 0) },
    ...(qemu && {
      ...{ defined: qemu.defined.size, commands: qemu.commands.size, accepted: qemu.accepted.size },
      refusedAtDefine: bad.filter((name) => conf.refused.has(name) || !qemu.commands.has(name)).length,
    }),
  }
}

function table(numbers: CorpusNumbers, conf: ConfResult, identical: Identical): string {
  const row = (what: string, count: number | undefined, of: number): string =>
    count === undefined ? '' : `| ${what} | ${count} | ${of} | ${((100 * count) / of).toFixed(1)} % |\n`
  const x86 = [...conf.defs.values()].filter(({ os }) => os.arch === 'x86_64' || os.arch === 'i686').length
  return (
    '| what | files | of | |\n|---|---:|---:|---:|\n' +
    row('parse', numbers.parsed, numbers.files) +
    row('same definition and same text after a round trip', numbers.roundTrip, numbers.parsed) +
    row(
      "valid against libvirt's domain.rng after a round trip, of those that were before",
      numbers.validOutput,
      conf.validInput,
    ) +
    row("libvirt's own output (qemuxml2xmloutdata) comes back to the letter", identical.identical, identical.files) +
    row('x86 guests made whole (defaults, addresses) and not refused at define', numbers.defined, x86) +
    row('give a command line', numbers.commands, numbers.defined ?? 1) +
    row('QEMU comes up with it, stopped (-S)', numbers.accepted, numbers.commands ?? 1) +
    row('must fail (*.err) and are refused by the parser', numbers.refusedByParser, numbers.mustFail) +
    row('must fail (*.err) and are refused before QEMU runs', numbers.refusedAtDefine, numbers.mustFail) +
    row('crash', numbers.crashes, numbers.files)
  )
}

function reasonsText(title: string, reasons: Reasons, most: number): string {
  const rows = [...reasons].sort((a, b) => b[1].length - a[1].length).slice(0, most)
  if (rows.length === 0) return ''
  const lines = rows.map(
    ([reason, names]) => `| ${names.length} | ${reason.replaceAll('|', '\\|')} | ${names.slice(0, 2).join(', ')} |`,
  )
  return `\n### ${title}\n\n| files | reason | such as |\n|---:|---|---|\n${lines.join('\n')}\n`
}

function refusedReasons(conf: ConfResult, wanted: boolean): Reasons {
  const reasons: Reasons = new Map()
  for (const { name, mustFail } of conf.files) {
    const reason = conf.refused.get(name)
    if (reason === undefined || mustFail !== wanted) continue
    const general = reason.replace(/'[^']*'/g, "'…'")
    reasons.set(general, [...(reasons.get(general) ?? []), name])
  }
  return reasons
}

function acceptedBad(conf: ConfResult, qemu: QemuResult): Reasons {
  const names = conf.files.filter(({ name, mustFail }) => mustFail && qemu.commands.has(name)).map(({ name }) => name)
  return new Map(
    names.map((name) => [qemu.accepted.has(name) ? `${name}: QEMU takes it` : `${name}: QEMU refuses it`, [name]]),
  )
}

function report(
  numbers: CorpusNumbers,
  conf: ConfResult,
  identical: Identical,
  qemu: QemuResult | undefined,
  most: number,
): string {
  return [
    table(numbers, conf, identical),
    reasonsText('Crashes', new Map([...conf.crashes, ...(qemu?.crashes ?? [])]), most),
    reasonsText('Not the same, or no longer valid', conf.failures, most),
    reasonsText('Refused by the parser, though libvirt takes them', refusedReasons(conf, false), most),
    ...(qemu
      ? [
          reasonsText('Must fail, but have a command line', acceptedBad(conf, qemu), most),
          reasonsText('Refused at define', qemu.atDefine, most),
          reasonsText('Without a command line', qemu.atCommand, most),
          reasonsText('QEMU does not come up', qemu.atQemu, most),
        ]
      : []),
  ].join('')
}

async function record(numbers: CorpusNumbers, text: string): Promise<void> {
  const day = new Date().toISOString().slice(0, 10)
  const head = `# libvirt's test data as a yardstick

Measured on ${day} on ${hostName()} with QEMU ${await qemuVersion()} and libvirt 9.0.0's sources:

    apt-get source libvirt          # with a deb-src line for apt
    LIBVIRT_SOURCE=$PWD/libvirt-9.0.0 node dist/scripts/corpus-report.js --record

The corpus is every XML under \`tests/qemuxml2argvdata\`: all architectures, devices of every kind, and definitions that
libvirt's tests expect to fail. What a host lacks is stood in for when QEMU runs (images and block devices by small files, taps
by user networking, KVM by TCG); what needs a server, a host device or another architecture is counted as not accepted.
\`docs/corpus.json\` holds the numbers that the tests compare with: they may only rise.

`
  writeFileSync(join(docs, 'corpus.md'), head + text)
  writeFileSync(join(docs, 'corpus.json'), JSON.stringify(numbers, undefined, 2) + '\n')
}

async function main(args: string[]): Promise<void> {
  const source = process.env['LIBVIRT_SOURCE']
  if (source === undefined) {
    console.error(
      'set LIBVIRT_SOURCE to a tree of libvirt, as `apt-get source libvirt` makes one (with a deb-src line for apt)',
    )
    process.exitCode = 1
    return
  }
  const conf = confResult(corpusFiles(source))
  const identical = identicalOutput(source)
  const qemu = args.includes('--no-qemu') ? undefined : await qemuResult(conf.defs, (text) => console.error(text))
  const numbers = numbersOf(conf, identical, qemu)
  console.log(report(numbers, conf, identical, qemu, args.includes('--reasons') ? Infinity : 12))
  if (args.includes('--record')) await record(numbers, report(numbers, conf, identical, qemu, 25))
}

if (process.argv[1] === import.meta.filename) await main(process.argv.slice(2))
