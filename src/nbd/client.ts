import type { Duplex } from 'node:stream'

const CLIENT_FLAGS = 3 // fixed newstyle, no zeroes
const OPT_GO = 7
const IHAVEOPT = 0x49484156454f5054n
const REQUEST_MAGIC = 0x25609513
const CMD_DISC = 2
const CMD_FLUSH = 3

/** Interim client: connects to an export and flushes it. */
export class NbdClient {
  readonly #stream: Duplex
  #buffer = Buffer.alloc(0)
  #wanted: { length: number; resolve: (bytes: Buffer) => void; reject: (error: Error) => void } | undefined
  #ended: Error | undefined

  private constructor(stream: Duplex) {
    this.#stream = stream
    stream.on('data', (chunk: Buffer) => {
      this.#buffer = Buffer.concat([this.#buffer, chunk])
      this.#serve()
    })
    const end = (error?: Error): void => {
      this.#ended ??= error ?? new Error('the NBD connection is lost')
      this.#wanted?.reject(this.#ended)
    }
    stream.on('error', end)
    stream.on('close', () => end())
  }

  static async connect(stream: Duplex, options: { export: string }): Promise<NbdClient> {
    const client = new NbdClient(stream)
    await client.#read(18)
    const name = Buffer.from(options.export)
    const option = Buffer.alloc(4 + 16 + 4 + name.length + 2)
    option.writeUInt32BE(CLIENT_FLAGS, 0)
    option.writeBigUInt64BE(IHAVEOPT, 4)
    option.writeUInt32BE(OPT_GO, 12)
    option.writeUInt32BE(4 + name.length + 2, 16)
    option.writeUInt32BE(name.length, 20)
    name.copy(option, 24)
    stream.write(option)
    for (;;) {
      const reply = await client.#read(20)
      const type = reply.readUInt32BE(12)
      await client.#read(reply.readUInt32BE(16))
      if (type === 1) return client
      if (type >= 0x80000000) throw new Error(`the server refuses export '${options.export}'`)
    }
  }

  async flush(): Promise<void> {
    this.#stream.write(request(CMD_FLUSH))
    const reply = await this.#read(16)
    if (reply.readUInt32BE(4) !== 0) throw new Error(`NBD flush failed with error ${reply.readUInt32BE(4)}`)
  }

  disconnect(): Promise<void> {
    this.#stream.end(request(CMD_DISC))
    return Promise.resolve()
  }

  destroy(): void {
    this.#stream.destroy()
  }

  #read(length: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      if (this.#ended !== undefined) reject(this.#ended)
      this.#wanted = { length, resolve, reject }
      this.#serve()
    })
  }

  #serve(): void {
    if (this.#wanted === undefined || this.#buffer.length < this.#wanted.length) return
    const { length, resolve } = this.#wanted
    this.#wanted = undefined
    const bytes = this.#buffer.subarray(0, length)
    this.#buffer = this.#buffer.subarray(length)
    resolve(bytes)
  }
}

function request(command: number): Buffer {
  const bytes = Buffer.alloc(28)
  bytes.writeUInt32BE(REQUEST_MAGIC, 0)
  bytes.writeUInt16BE(command, 6)
  return bytes
}
