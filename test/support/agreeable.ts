/** A QMP server in the place of QEMU, for what no QEMU here can be made to do. */
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { Monitor } from '../../src/qemu/monitor/monitor.js'
import { temporaryFolder, type Cleanup } from './images.js'

export interface Command {
  execute: string
  arguments?: object
  id: string
}

/** A QMP server that agrees to everything and remembers what it was asked. */
export async function agreeable(t: Cleanup): Promise<{ monitor: Monitor; commands: Command[]; drop: () => void }> {
  const path = join(await temporaryFolder(t), 'mon.sock')
  const commands: Command[] = []
  let connection: Socket | undefined
  const server = createServer((socket) => {
    connection = socket
    socket.write(
      '{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}\r\n',
    )
    let rest = ''
    socket.on('data', (chunk) => {
      const lines = (rest + chunk.toString()).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines) {
        const command = JSON.parse(line) as Command
        commands.push(command)
        if (command.execute === 'never') continue
        const value = command.execute.startsWith('query-') ? [] : {}
        socket.write(JSON.stringify({ return: value, id: command.id }) + '\r\n')
      }
    })
  })
  await new Promise<void>((resolve) => server.listen(path, resolve))
  const quiet = { onEvent: () => undefined, onClose: () => undefined, onAnomaly: () => undefined }
  const monitor = await Monitor.connect(path, 'guest', quiet, 5_000)
  t.after(() => {
    monitor.close()
    server.close()
  })
  return { monitor, commands, drop: () => connection?.destroy() }
}
