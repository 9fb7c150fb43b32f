/** Real libvirt: our way to its library against libvirt-python and virsh, all on the same libvirtd. */
import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Connect } from '../src/index.js'
import type { Domain } from '../src/index.js'
import { temporaryFolder, type Cleanup } from '../test/support/images.js'
import { startLibvirtd } from '../test/support/libvirtd.js'
import { time, type BenchOptions } from './bench.js'
import { duration, inTurn, median, ratio, type Table, type Way } from './report.js'

const IN_FLIGHT = 64
const EVENTS = 400

/** Debian's, which has the bindings. */
const PYTHON = '/usr/bin/python3'

/** Does what a line of its input says, and answers the ms that it took, or a time by the clock of `monotonic`. `loop`: with an event loop, as we have one. */
const program = `
import json, queue, sys, threading, time
import libvirt
uri, loop = sys.argv[1], sys.argv[2] == 'loop'
if loop:
    libvirt.virEventRegisterDefaultImpl()
    def run():
        while True: libvirt.virEventRunDefaultImpl()
    threading.Thread(target=run, daemon=True).start()
conn = libvirt.open(uri)
domains = conn.listAllDomains()
dom = domains[0]
def states(count):
    for _ in range(count): dom.state()
def flight(count, threads):
    def each(first):
        for nth in range(first, count, threads): domains[nth % len(domains)].state()
    all = [threading.Thread(target=each, args=(nth,)) for nth in range(threads)]
    for one in all: one.start()
    for one in all: one.join()
def each():
    for one in domains: one.state()
def together():
    conn.domainListGetStats(domains, libvirt.VIR_DOMAIN_STATS_STATE)
def listing():
    for one in conn.listAllDomains(): one.XMLDesc()
def events(count):
    heard = threading.Event()
    at = []
    def callback(*args):
        at.append(time.perf_counter())
        heard.set()
    id = conn.domainEventRegisterAny(dom, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, callback, None)
    total = 0
    for nth in range(count):
        heard.clear()
        began = time.perf_counter()
        dom.suspend() if nth % 2 == 0 else dom.resume()
        heard.wait()
        total += at[-1] - began
    conn.domainEventDeregisterAny(id)
    return total * 1000
def listen():
    def callback(*args): told.put(time.monotonic())
    listening.append(conn.domainEventRegisterAny(dom, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, callback, None))
def rest(): conn.domainEventDeregisterAny(listening.pop())
def heard(): return told.get() * 1000
def change(nth):
    began = time.monotonic()
    dom.suspend() if nth % 2 == 0 else dom.resume()
    return began * 1000
told, listening = queue.SimpleQueue(), []
print('ready', flush=True)
for line in sys.stdin:
    what, *args = json.loads(line)
    began = time.perf_counter()
    answer = globals()[what](*args)
    print((time.perf_counter() - began) * 1000 if answer is None else answer, flush=True)
`

type Ask = (what: string, ...args: number[]) => Promise<number>

async function python(t: Cleanup, uri: string, loop: boolean): Promise<Ask> {
  const child = spawn(PYTHON, ['-c', program, uri, loop ? 'loop' : 'plain'], { stdio: ['pipe', 'pipe', 'inherit'] })
  t.after(() => child.kill())
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  const next = async (): Promise<string> => {
    const line = (await lines.next()) as IteratorResult<string, undefined>
    if (line.done === true) throw new Error("libvirt-python ended: is the package 'python3-libvirt' there?")
    return line.value
  }
  await next()
  return async (...request) => {
    child.stdin.write(`${JSON.stringify(request)}\n`)
    return Number(await next())
  }
}

/** ms that one virsh takes for many commands, its start and connection included. */
function virsh(uri: string, commands: readonly string[]): Promise<number> {
  return time(
    () =>
      new Promise((resolve, reject) => {
        const child = spawn('virsh', ['-q', '-c', uri], { stdio: ['pipe', 'ignore', 'inherit'] })
        child.once('error', reject).once('close', resolve)
        child.stdin.end(`${commands.join('\n')}\n`)
      }),
  )
}

const domainXml = (nth: number): string => `<domain type='test'>
  <name>bench${nth}</name><uuid>00000000-0000-4000-8000-${String(nth).padStart(12, '0')}</uuid>
  <memory unit='MiB'>256</memory><vcpu>2</vcpu><os><type arch='x86_64'>hvm</type><boot dev='hd'/></os>
  <devices><disk type='file' device='disk'><source file='/images/${nth}.qcow2'/><target dev='vda' bus='virtio'/></disk>
  <interface type='network'><source network='default'/></interface></devices></domain>`

async function eventLatency(conn: Connect, dom: Domain, count: number): Promise<number> {
  const events = conn.domainEvents({ domain: dom, kinds: ['lifecycle'] })
  // the server knows by then that we listen
  for (const change of [() => dom.suspend(), () => dom.resume()]) await Promise.all([events.next(), change()])
  let total = 0
  for (let nth = 0; nth < count; nth++) {
    const began = performance.now()
    const heard = events.next().then(() => performance.now())
    await (nth % 2 === 0 ? dom.suspend() : dom.resume())
    total += (await heard) - began
  }
  events.close()
  return total
}

/** ms of the clock that all processes of this machine have */
const monotonic = (): number => Number(process.hrtime.bigint()) / 1e6

/** ms from the beginning of what another process does to a domain until we hear of it, `count` times. */
async function latencyHere(conn: Connect, dom: Domain, actor: Ask, count: number): Promise<number> {
  const events = conn.domainEvents({ domain: dom, kinds: ['lifecycle'] })
  // the server knows by then that we listen
  for (const change of [() => dom.suspend(), () => dom.resume()]) await Promise.all([events.next(), change()])
  let total = 0
  for (let nth = 0; nth < count; nth++) {
    const heard = events.next().then(monotonic)
    const began = await actor('change', nth)
    total += (await heard) - began
  }
  events.close()
  return total
}

/** The same of a program that listens. */
async function latencyThere(listener: Ask, actor: Ask, count: number): Promise<number> {
  await listener('listen')
  let total = 0
  for (let nth = 0; nth < count; nth++) {
    const began = await actor('change', nth)
    total += (await listener('heard')) - began
  }
  await listener('rest')
  return total
}

/** On the test driver's own domain, which all connections of a daemon have in common. */
async function eventsOfOthers(t: Cleanup, daemonUri: string): Promise<Way[]> {
  const uri = daemonUri.replace('qemu+unix:///system', 'test+unix:///default')
  const conn = await Connect.open(uri)
  t.after(() => conn.close())
  const [dom] = await conn.listAllDomains()
  if (dom === undefined) throw new Error('the test driver has no domain')
  const [actor, listener] = [await python(t, uri, false), await python(t, uri, true)]
  return [
    { name: OURS, run: () => latencyHere(conn, dom, actor, EVENTS) },
    { name: 'libvirt-python with an event loop', run: () => latencyThere(listener, actor, EVENTS) },
  ]
}

async function inFlight(all: readonly Domain[], count: number): Promise<void> {
  let next = 0
  const one = async (): Promise<void> => {
    while (next < count) await all[next++ % all.length]?.getState()
  }
  await Promise.all(Array.from({ length: IN_FLIGHT }, one))
}

/** `size` is the number of domains, and three times as many calls are made. */
export async function benchLibvirt(t: Cleanup, { rounds, size: domains }: BenchOptions): Promise<Table[]> {
  const folder = await temporaryFolder(t)
  const daemon = await startLibvirtd(t, folder, '')
  const file = join(folder, 'node.xml')
  writeFileSync(file, `<node>${Array.from({ length: domains }, (_, nth) => domainXml(nth)).join('')}</node>`)
  const uri = daemon.uri.replace('qemu+unix:///system', `test+unix://${file}`)
  const conn = await Connect.open(uri)
  t.after(() => conn.close())
  const all = await conn.listAllDomains()
  const [dom] = all
  if (dom === undefined) throw new Error('the test driver has no domain')
  const [plain, loop] = [await python(t, uri, false), await python(t, uri, true)]
  const calls = domains * 3
  const names = Array.from({ length: domains }, (_, nth) => `bench${nth}`)

  const listing = async (): Promise<void> => {
    const listed = await conn.listAllDomains()
    await Promise.all(listed.map((each) => each.getXMLDesc()))
  }
  const states = async (): Promise<void> => {
    for (let nth = 0; nth < calls; nth++) await dom.getState()
  }
  const virshLists = (): Promise<number> => virsh(uri, ['list --all', ...names.map((name) => `dumpxml ${name}`)])
  const virshStates = (): Promise<number> =>
    virsh(
      uri,
      Array.from({ length: calls }, () => 'domstate bench0'),
    )
  const tasks: [string, number, Way[]][] = [
    [`${domains} domains, each with its XML`, domains, ways(() => time(listing), plain, loop, ['listing'], virshLists)],
    ['state, one call after the other', calls, ways(() => time(states), plain, loop, ['states', calls], virshStates)],
    [
      `state, ${IN_FLIGHT} calls in flight`,
      calls,
      ways(() => time(() => inFlight(all, calls)), plain, loop, ['flight', calls, IN_FLIGHT]),
    ],
    [
      `state of each of ${domains} domains`,
      domains,
      [
        ...ways(() => time(() => Promise.all(all.map((each) => each.getState()))), plain, loop, ['each']),
        { name: "libvirt-python, by 'domainListGetStats'", run: () => plain('together') },
      ],
    ],
    [
      'from a call to its event',
      EVENTS,
      ways(() => eventLatency(conn, dom, EVENTS), undefined, loop, ['events', EVENTS]),
    ],
    ["from another's call to its event", EVENTS, await eventsOfOthers(t, daemon.uri)],
  ]
  const rows: string[][] = []
  for (const [what, count, these] of tasks) {
    for (const way of these) await way.run()
    const { times } = await inTurn(these, rounds)
    for (const { name } of these) {
      const mine = times.get(name) ?? []
      const against = name === OURS ? '' : ratio(times, OURS, name).text
      const middle = median(mine)
      rows.push([what, name, against, String(Math.round((count / middle) * 1000)), duration(middle)])
    }
  }
  const head = ['what', 'way', 'virstream is … times as fast', 'per second', 'time']
  return [{ title: 'Real libvirt', head, rows, notes: [] }]
}

const OURS = 'virstream'

function ways(
  ours: () => Promise<number>,
  plain: Ask | undefined,
  loop: Ask,
  request: [string, ...number[]],
  virshWay?: () => Promise<number>,
): Way[] {
  return [
    { name: OURS, run: ours },
    ...(plain ? [{ name: 'libvirt-python', run: () => plain(...request) }] : []),
    { name: 'libvirt-python with an event loop', run: () => loop(...request) },
    ...(virshWay ? [{ name: 'virsh', run: virshWay }] : []),
  ]
}
