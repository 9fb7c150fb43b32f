import { readFileSync } from 'node:fs'

/**
 * `starttime` of /proc/PID/stat, which with the pid names a process for good; undefined when there is no such process or it is
 * only a zombie.
 */
export function processStartTime(pid: number): string | undefined {
  let stat: string
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  } catch {
    return undefined
  }
  // the command name stands in parentheses and may hold anything; what follows the last one is plain
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return fields[0] === 'Z' ? undefined : fields[19]
}
