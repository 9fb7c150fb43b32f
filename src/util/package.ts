import { readFileSync } from 'node:fs'

const manifest = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as {
  version: string
}

/** The version of this package, 'MAJOR.MINOR.RELEASE'. */
export const packageVersion = manifest.version

/** The same as libvirt counts versions: 1000000 * major + 1000 * minor + release. */
export const packageNumber = packageVersion
  .split('.')
  .map(Number)
  .reduce((number, part) => number * 1000 + part, 0)
