/** What the daemon says of itself, on the terminal and in its manual page. */
import { definitions, exitStatus, section, wrap } from './help.js'

export const daemonOptions: readonly (readonly [flags: string, meaning: string])[] = [
  [
    '--root <dir>',
    'absolute path of the root that is served; default: that of `virstream` ($XDG_STATE_HOME/virstream)',
  ],
  [
    '--listen <addresses...>',
    'for other hosts: tls://[ADDRESS][:PORT], port 16520 by default; for this one without TLS: tcp://127.0.0.1[:PORT]. Default: not at all',
  ],
  ['--unix <paths...>', 'more unix sockets; ROOT/run/virstreamd.sock is always there'],
  [
    '--pki <dir>',
    "folder of cacert.pem, servercert.pem, serverkey.pem, and clientcert.pem and clientkey.pem for connections to other daemons; default: libvirt's places",
  ],
  [
    '--allowed-dn <patterns...>',
    "names in clients' certificates that may connect, with * and ?; default: all that the authority of cacert.pem has signed",
  ],
  [
    '--until-idle [seconds]',
    'end by itself when there has been no client, no stream and no migration for so long; default: 5',
  ],
  ['--log-level <level>', 'trace, debug, info, warn, error, fatal or silent; default: info'],
  ['--ready-fd <number>', 'write one line of JSON to this descriptor when clients may come, or why none can'],
]

export const daemonSummary = 'serve the domains of a root to other processes and hosts'

export const daemonDescription: readonly string[] = [
  'Opens one root as qemu:///embed does and keeps it open: streams and migrations go on while no command runs, and other hosts can be let in. Migrations, consoles and everything else of all domains go through one listening port.',
  'Commands and programs on the same host need nothing new: whoever opens qemu:///embed with a root that a daemon has open goes through the daemon. Others say virstream+unix:///PATH or virstream+tls://HOST/.',
  'A unix socket is for processes of the same user and of root. With TLS (1.3 only) both sides show certificates. Whoever is let in may do with the domains whatever the daemon may, unless they connect for reading only.',
  'SIGTERM and SIGINT end it: clients are told, domains run on, and the next process that opens the root finds them again. SIGHUP does nothing. Under systemd, Type=notify is understood.',
]

export const daemonFiles: readonly (readonly [string, string])[] = [
  [
    'ROOT/etc/virstreamd.json',
    'settings: listen, unix, pki, allowedDns, logLevel; what the command line says goes before',
  ],
  ['ROOT/run/virstreamd.sock', 'the socket for this host'],
  ['ROOT/log/virstreamd.log', 'the log of a daemon that a command has started'],
  [
    '/etc/pki/CA/cacert.pem, /etc/pki/libvirt/…',
    "certificates, as libvirt's; an ordinary user's are in ~/.pki/libvirt",
  ],
]

export const daemonExamples: readonly (readonly [command: string, meaning: string])[] = [
  ['virstreamd --root /var/lib/virstream --listen tls://', 'serve that root on all addresses of the host'],
  ['virstream -c virstream+tls://host1.example/ list', 'the domains that run there'],
]

export function daemonHelp(): string {
  return [
    ...section('NAME', wrap(`virstreamd - ${daemonSummary}`, 2)),
    ...section('SYNOPSIS', ['  virstreamd [OPTION...]']),
    ...section(
      'DESCRIPTION',
      daemonDescription.flatMap((text, nth) => [...(nth > 0 ? [''] : []), ...wrap(text, 2)]),
    ),
    ...section(
      'OPTIONS',
      definitions([...daemonOptions, ['-V, --version', 'print the version'], ['-h, --help', 'show this help']]),
    ),
    ...section(
      'EXAMPLES',
      daemonExamples.flatMap(([command, meaning]) => [`  ${command}`, ...wrap(meaning, 6)]),
    ),
    ...section('EXIT STATUS', definitions(exitStatus, 8)),
    ...section('FILES', definitions(daemonFiles)),
  ].join('\n')
}
