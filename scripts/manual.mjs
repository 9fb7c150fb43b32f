// What the generators of manual pages share.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

export const escape = (text) => text.replaceAll('\u00a0', ' ').replace(/[<>*_]/g, '\\$&')
export const definitions = (entries) => entries.map(([term, meaning]) => `- \`${term}\`: ${escape(meaning)}\n`).join('')

/** Writes a page into docs, or, with --check, ends with 1 when it is not what is there. */
export function writeOrCheck(name, page, script) {
  const path = fileURLToPath(new URL(`../docs/${name}`, import.meta.url))
  if (process.argv.includes('--check')) {
    if (existsSync(path) && readFileSync(path, 'utf8') === page) return
    console.error(`${path} is not what the commands say: node scripts/${script}`)
    process.exit(1)
  }
  mkdirSync(fileURLToPath(new URL('../docs', import.meta.url)), { recursive: true })
  writeFileSync(path, page)
}
