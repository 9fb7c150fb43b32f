/** `node dist/bench/http-server.js FILE SIZE MS`: an HTTP server for ranges of one file, each answer MS late. Says its URL. */
import { open } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'

const [path = '', size = '', ms = ''] = process.argv.slice(2)
const file = await open(path, 'r')
const server = createServer((request, response) => {
  const answer = async (): Promise<void> => {
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
    const headers = { 'accept-ranges': 'bytes' }
    if (request.method === 'HEAD' || range === null) {
      response.writeHead(200, { ...headers, 'content-length': size }).end()
      return
    }
    const [start, end] = [Number(range[1]), Math.min(Number(range[2]), Number(size) - 1)]
    const [{ buffer }] = await Promise.all([
      file.read(Buffer.allocUnsafe(end - start + 1), 0, end - start + 1, start),
      delay(Number(ms)),
    ])
    response.writeHead(206, {
      ...headers,
      'content-length': buffer.length,
      'content-range': `bytes ${start}-${end}/${size}`,
    })
    response.end(buffer)
  }
  answer().catch((error: unknown) => response.destroy(error instanceof Error ? error : undefined))
})
server.listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}/base.raw`))
