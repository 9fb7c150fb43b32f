/**
 * QMP on the wire: JSON objects, one a line (QEMU docs/interop/qmp-spec, section 2). Bytes in, messages out; no sockets.
 */

export interface QmpEvent {
  event: string
  data: Record<string, unknown>
  timestamp: { seconds: number; microseconds: number }
}
export interface QmpGreeting {
  QMP: { version: { qemu: { major: number; minor: number; micro: number }; package: string }; capabilities: string[] }
}
export type QmpReply = { id?: unknown; return: unknown } | { id?: unknown; error: { class: string; desc: string } }

export type QmpMessage =
  | { kind: 'greeting'; greeting: QmpGreeting }
  | { kind: 'event'; event: QmpEvent }
  | { kind: 'reply'; reply: QmpReply }
  | { kind: 'malformed'; line: string; reason: string }

/** a reply of query-qmp-schema has some 200 KiB; far beyond that the peer is not sane */
const LINE_LIMIT = 64 * 1024 * 1024

/** Cuts a byte stream into messages. */
export class QmpSplitter {
  #chunks: Buffer[] = []
  #pending = 0

  /** Takes the next bytes; answers the messages that they complete. Throws RangeError on a line without end. */
  push(chunk: Buffer): QmpMessage[] {
    const messages: QmpMessage[] = []
    let start = 0
    for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, start)) {
      const line = Buffer.concat([...this.#chunks, chunk.subarray(start, end)])
        .toString('utf8')
        .trim()
      this.#chunks = []
      this.#pending = 0
      start = end + 1
      if (line !== '') messages.push(parseLine(line))
    }
    if (start < chunk.length) {
      this.#chunks.push(chunk.subarray(start))
      this.#pending += chunk.length - start
      if (this.#pending > LINE_LIMIT) throw new RangeError(`a QMP message of more than ${LINE_LIMIT} bytes`)
    }
    return messages
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function parseLine(line: string): QmpMessage {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch (error) {
    return { kind: 'malformed', line, reason: error instanceof Error ? error.message : String(error) }
  }
  if (!isObject(value)) return { kind: 'malformed', line, reason: 'not an object' }
  if ('QMP' in value) return { kind: 'greeting', greeting: value as unknown as QmpGreeting }
  if (typeof value['event'] === 'string') return parseEvent(value)
  if ('return' in value || isObject(value['error'])) return { kind: 'reply', reply: value as unknown as QmpReply }
  return { kind: 'malformed', line, reason: 'neither greeting, event nor reply' }
}

function parseEvent(value: Record<string, unknown>): QmpMessage {
  const event = { ...value, data: isObject(value['data']) ? value['data'] : {} }
  return { kind: 'event', event: event as unknown as QmpEvent }
}

/** One command as the bytes of its line; out of band: QEMU does it at once, ahead of what it is at. */
export function formatCommand(command: string, args: object | undefined, id: string, outOfBand = false): Buffer {
  const verb = outOfBand ? 'exec-oob' : 'execute'
  return Buffer.from(JSON.stringify({ [verb]: command, ...(args && { arguments: args }), id }) + '\r\n')
}
