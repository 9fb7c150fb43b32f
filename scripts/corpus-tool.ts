import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const execute = promisify(execFile)

/** Standard output of a program that ends well; throws what it said otherwise. */
export async function runTool(file: string, args: string[]): Promise<string> {
  const { stdout } = await execute(file, args)
  return stdout
}
