/** Servers that base images come from: NBD by qemu-nbd and nbdkit, HTTP. Each ends with its test at the latest. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { rm, stat } from 'node:fs/promises'
import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import type { Cleanup } from './images.js'

/** A program that listens, and that can be ended and started again on the same address. */
export class Server {
  readonly #program: string
  readonly #args: readonly string[]
  readonly #address: { path: string } | { port: number }
  #child: ChildProcess | undefined

  constructor(t: Cleanup, program: string, args: readonly string[], address: { path: string } | { port: number }) {
    this.#program = program
    this.#args = args
    this.#address = address
    t.after(() => this.kill())
  }

  /** Resolves when it takes connections. */
  async start(): Promise<this> {
    if ('path' in this.#address) await rm(this.#address.path, { force: true })
    const child = spawn(this.#program, this.#args, { stdio: 'ignore' })
    this.#child = child
    for (let tries = 0; !(await this.#answers()); tries++) {
      if (tries > 2_400 || child.exitCode !== null) throw new Error(`'${this.#program}' does not come up`)
      await delay(25)
    }
    return this
  }

  /** Ends it at once; connections break. */
  async kill(): Promise<void> {
    const child = this.#child
    this.#child = undefined
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  }

  async #answers(): Promise<boolean> {
    const socket = connect(this.#address)
    try {
      await once(socket, 'connect')
      return true
    } catch {
      return false
    } finally {
      socket.destroy()
    }
  }
}

/** qemu-nbd: a raw image, read-only, as export 'base' on a unix socket or a TCP port. */
export async function qemuNbd(t: Cleanup, image: string, at: { path: string } | { port: number }): Promise<Server> {
  const where = 'path' in at ? ['-k', at.path] : ['-b', '127.0.0.1', '-p', String(at.port)]
  return await new Server(
    t,
    'qemu-nbd',
    ['-r', '-t', '-e', '0', '-f', 'raw', '-x', 'base', ...where, image],
    at,
  ).start()
}

/** nbdkit on a unix socket: `args` are filters, plugin and its parameters. */
export async function nbdkit(t: Cleanup, socket: string, args: readonly string[]): Promise<Server> {
  return await new Server(t, 'nbdkit', ['-f', '-r', '-U', socket, ...args], { path: socket }).start()
}

/** How an overlay names an image behind NBD. */
export function nbdUri(at: { path: string } | { port: number }, name = 'base'): string {
  return 'path' in at ? `nbd+unix:///${name}?socket=${at.path}` : `nbd://127.0.0.1:${at.port}/${name}`
}

/** One file over HTTP with byte ranges; answers its URL. With `atOnce`, answers take a while, and more than that are refused. */
export async function httpFile(t: Cleanup, path: string, { atOnce }: { atOnce?: number } = {}): Promise<string> {
  let underWay = 0
  const server = createHttpServer((request, response) => {
    const serve = async (): Promise<void> => {
      response.once('close', () => underWay--)
      if (++underWay > (atOnce ?? Infinity)) response.writeHead(503).end()
      else {
        if (atOnce !== undefined) await delay(20)
        await answer(path, request, response)
      }
    }
    void serve()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.close()
    server.closeAllConnections()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/images/base.raw`
}

async function answer(path: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { size } = await stat(path)
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '')
  const start = Number(range?.[1] ?? 0)
  const end = Math.min(range?.[2] ? Number(range[2]) : size - 1, size - 1)
  response.writeHead(range === null ? 200 : 206, {
    'Accept-Ranges': 'bytes',
    'Content-Length': end - start + 1,
    ...(range !== null && { 'Content-Range': `bytes ${start}-${end}/${size}` }),
  })
  if (request.method === 'HEAD') response.end()
  else
    createReadStream(path, { start, end })
      .on('error', () => response.destroy())
      .pipe(response)
}
