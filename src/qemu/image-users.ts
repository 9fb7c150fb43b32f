/** Who has an image open, as far as /proc tells. */
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { basename } from 'node:path'

export interface ImageUser {
  pid: number
  /** file name of its program */
  command: string
}

/** O_WRONLY and O_RDWR in the octal `flags` of /proc/PID/fdinfo */
const WRITING = 0o3

/** Processes but ours that have the file open; those that may write to it are named first. Processes of others may be hidden. */
export function usersOf(path: string): ImageUser[] {
  const file = statSync(path, { throwIfNoEntry: false })
  if (file === undefined) return []
  const writers: ImageUser[] = []
  const readers: ImageUser[] = []
  for (const pid of pids()) {
    const fds = namesIn(`/proc/${pid}/fd`).filter((fd) => {
      const stat = quietly(() => statSync(`/proc/${pid}/fd/${fd}`))
      return stat?.ino === file.ino && stat.dev === file.dev
    })
    if (fds.length === 0) continue
    const user = { pid, command: commandOf(pid) }
    if (fds.some((fd) => mayWrite(pid, fd))) writers.push(user)
    else readers.push(user)
  }
  return [...writers, ...readers]
}

const pids = (): number[] =>
  namesIn('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid)

const namesIn = (dir: string): string[] => quietly(() => readdirSync(dir)) ?? []

function mayWrite(pid: number, fd: string): boolean {
  const text = quietly(() => readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8')) ?? ''
  return (parseInt(/^flags:\s*(\d+)/m.exec(text)?.[1] ?? '0', 8) & WRITING) !== 0
}

function commandOf(pid: number): string {
  const line = quietly(() => readFileSync(`/proc/${pid}/cmdline`, 'utf8')) ?? ''
  return basename(line.split('\0')[0] ?? '')
}

/** Processes come and go, and others' are closed to us. */
function quietly<T>(look: () => T): T | undefined {
  try {
    return look()
  } catch {
    return undefined
  }
}
