/** Help in the manner of a manual page, from what a command says of itself. */
import type { CommandSpec } from './spec.js'

const WIDTH = 80
/** a blank at which no line is broken */
const NO_BREAK = '\u00a0'

export const globalOptions = [
  ['-c, --connect <uri>', 'connection URI; default: $VIRSTREAM_DEFAULT_URI, else a tree of your own (see FILES)'],
  ['-r, --readonly', 'connect for reading only'],
  ['-q, --quiet', 'print what scripts read, without messages, headers and progress'],
  ['--debug', 'write a log of what the driver does to standard error, as JSON lines'],
] as const

export const exitStatus = [
  ['0', 'success'],
  ['1', "failure; standard error has 'error: …' with libvirt's code, e.g. VIR_ERR_NO_DOMAIN"],
] as const

export function wrap(text: string, indent: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line !== '' && indent + line.length + 1 + word.length > WIDTH) {
      lines.push(' '.repeat(indent) + line)
      line = word
    } else line = line === '' ? word : `${line} ${word}`
  }
  return [...lines, ' '.repeat(indent) + line].map((wrapped) => wrapped.replaceAll(NO_BREAK, ' '))
}

export function section(title: string, lines: readonly string[]): string[] {
  return lines.length === 0 ? [] : [title, ...lines, '']
}

/** Terms on the left, meanings on the right, or below where a term is long. */
export function definitions(entries: readonly (readonly [string, string])[], column = 24): string[] {
  return entries.flatMap(([term, meaning]) => {
    const [first = '', ...rest] = wrap(meaning, column)
    if (term.length + 4 > column) return [`  ${term}`, first, ...rest]
    return [`  ${term}`.padEnd(column) + first.trimStart(), ...rest]
  })
}

export function synopsis(spec: CommandSpec): string {
  const options = spec.options.map(([flags]) => `[${flags.replace(' ', NO_BREAK)}]`)
  return [`virstream ${spec.name}`, ...spec.arguments.map(([name]) => name), ...options].join(' ')
}

export function commandHelp(spec: CommandSpec): string {
  const paragraphs = spec.description.flatMap((text, nth) => [...(nth > 0 ? [''] : []), ...wrap(text, 2)])
  const examples = spec.examples.flatMap(([command, meaning]) => [`  virstream ${command}`, ...wrap(meaning, 6)])
  return [
    ...section('NAME', wrap(`${spec.name} - ${spec.summary}`, 2)),
    ...section('SYNOPSIS', wrap(synopsis(spec), 2)),
    ...section('DESCRIPTION', paragraphs),
    ...section('ARGUMENTS', definitions(spec.arguments)),
    ...section('OPTIONS', definitions([...spec.options, ['-h, --help', 'show this help']])),
    ...section('GLOBAL OPTIONS', definitions(globalOptions)),
    ...section('EXAMPLES', examples),
    ...section('EXIT STATUS', definitions([...exitStatus, ...(spec.exit ?? [])], 8)),
    ...section('SEE ALSO', wrap(spec.seeAlso.map((name) => `virstream ${name}`).join(', '), 2)),
  ].join('\n')
}

export const files: readonly (readonly [string, string])[] = [
  [
    '$XDG_STATE_HOME/virstream (~/.local/state/virstream)',
    "the tree of qemu:///embed when no other root is given: definitions in etc, running domains in run, saved states in lib, QEMU's own words in log",
  ],
]

export const environment: readonly (readonly [string, string])[] = [
  ['VIRSTREAM_DEFAULT_URI', 'the connection URI when --connect is not given'],
  ['XDG_STATE_HOME', 'where the default tree lies; default: ~/.local/state'],
]

export const programDescription: readonly string[] = [
  'Defines and runs virtual machines on QEMU from domain XML, and streams their disks while they run: a guest starts at once on a thin image whose base lies elsewhere, and ends with an image that needs no base. Words, options and output are those of virsh where virsh has the command.',
  'With qemu:///embed the driver works inside this process. Domains run on when it ends, with their streams; the next command finds them again. One process at a time has a tree open: while a command waits or follows events, another one is told which process that is. With a virstreamd on the tree there is no such limit.',
  "With virstream+tls://HOST/ the domains are those of a virstreamd, with qemu:///system, qemu+ssh://HOST/system or any other URI that libvirt knows those of a libvirtd, by libvirt's own library. test:///default is for trying: one domain, in memory.",
]

export function programHelp(specs: readonly CommandSpec[], groups: readonly string[]): string {
  const commands = groups.flatMap((group) => [
    `  ${group}`,
    ...specs.filter((spec) => spec.group === group).map(({ name, summary }) => `    ${name.padEnd(24)}${summary}`),
    '',
  ])
  return [
    ...section('NAME', ['  virstream - start virtual machines at once on thin images, and stream their disks']),
    ...section('SYNOPSIS', ['  virstream [OPTION...] COMMAND [ARGUMENT...]', '  virstream COMMAND --help']),
    ...section(
      'DESCRIPTION',
      programDescription.flatMap((text, nth) => [...(nth > 0 ? [''] : []), ...wrap(text, 2)]),
    ),
    ...section(
      'OPTIONS',
      definitions([...globalOptions, ['-V, --version', 'print the version'], ['-h, --help', 'show this help']]),
    ),
    'COMMANDS',
    ...commands,
    ...section('EXIT STATUS', definitions(exitStatus, 8)),
    ...section('ENVIRONMENT', definitions(environment)),
    ...section('FILES', definitions(files)),
  ].join('\n')
}
