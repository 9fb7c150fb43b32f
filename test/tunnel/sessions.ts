/** Sessions without a stream between them: what one says is carried by hand, and the clock is ours. */
import { TunnelError } from '../../src/tunnel/error.js'
import { FrameReader, frameTypes, type Frame, type FrameType } from '../../src/tunnel/framing.js'
import { Session, type SessionEvents, type SessionLimits } from '../../src/tunnel/session.js'

export interface End {
  session: Session
  /** 'data 1 10', 'end 1', … */
  log: string[]
  /** bytes that came by channel */
  got: Map<number, number>
}

export interface Clock {
  now: number
}

export function end(role: 'client' | 'server', clock: Clock, limits: SessionLimits = {}, takesAll = true): End {
  const log: string[] = []
  const got = new Map<number, number>()
  const events: SessionEvents = {
    onHello: ({ token }) => log.push(`hello ${token}`),
    onOpen: (id, service) => log.push(`open ${id} ${service}`),
    onAccepted: (id) => log.push(`accepted ${id}`),
    onRefused: (id, reason) => log.push(`refused ${id} ${reason}`),
    onData: (id, bytes) => {
      got.set(id, (got.get(id) ?? 0) + bytes.length)
      if (takesAll) session.channels.taken(id, bytes.length)
    },
    onEnd: (id) => log.push(`end ${id}`),
    onReset: (id, reason) => log.push(`reset ${id} ${reason}`),
    onPong: () => undefined,
    onGoaway: (reason) => log.push(`goaway ${reason}`),
    onReady: () => undefined,
  }
  const session = new Session({ role, now: () => clock.now, ...limits }, events)
  return { session, log, got }
}

/** Everything that waits goes over, until neither side has anything to say. */
export function settle(a: End, b: End, budget = 1 << 20): void {
  for (let quiet = 0; quiet < 2;) {
    quiet = 0
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      const bytes = Buffer.concat(from.session.pull(budget))
      if (bytes.length === 0) quiet += 1
      else to.session.receive(bytes)
    }
  }
}

/** Client and server after their hello. */
export function opened(
  clock: Clock = { now: 0 },
  limits: SessionLimits = {},
  serverTakesAll = true,
): [client: End, server: End] {
  const client = end('client', clock, limits)
  const server = end('server', clock, limits, serverTakesAll)
  client.session.hello('', {})
  settle(client, server)
  server.session.welcome({})
  settle(client, server)
  return [client, server]
}

/** A channel that the client opened and the server accepted. */
export function channelOf(client: End, server: End, service = 'x'): number {
  const id = client.session.open(service, {})
  settle(client, server)
  server.session.channels.accept(id, {})
  settle(client, server)
  return id
}

export function framesOf(parts: readonly Buffer[]): Frame[] {
  const frames: Frame[] = []
  new FrameReader().push(Buffer.concat(parts), (got) => frames.push(got))
  return frames
}

export function typeName(type: FrameType): string {
  return Object.entries(frameTypes).find(([, value]) => value === type)?.[0] ?? ''
}

/** The error that ends a session when these bytes come; undefined: none did. */
export function objection({ session }: End, ...frames: Buffer[]): string | undefined {
  try {
    session.receive(Buffer.concat(frames))
    return undefined
  } catch (error) {
    if (error instanceof TunnelError) return `${error.code} ${error.message}`
    throw error
  }
}
