/** `node ofd-helper.js PID STARTTIME`: keeps the locks on inherited descriptors until that process ends. */
import { native } from '../native.js'
import { processStartTime } from '../util/process-start-time.js'

const [pid = '0', startTime] = process.argv.slice(2)
try {
  native.watchProcess(Number(pid), () => process.exit())
  if (processStartTime(Number(pid)) !== startTime) process.exit()
} catch {
  process.exit() // it has ended already
}
