/** XML that wants to eat memory, time or files. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { validateDomainXml } from '../../src/conf/validate.js'
import { VirError, type VirErrorCode } from '../../src/error.js'
import { domainXml, schemaMissing } from './support.js'

function refuses(xml: string, code: VirErrorCode, says: RegExp): void {
  assert.throws(
    () => parseDomainXml(xml),
    (error) => error instanceof VirError && error.code === code && says.test(error.message),
  )
}

const withDoctype = (subset: string, title = ''): string =>
  `<?xml version='1.0'?>\n<!-- <root> -->\n<!DOCTYPE domain ${subset}>\n${domainXml({ top: `<title>${title}</title>` })}`

test('a billion laughs are refused before one is laughed', () => {
  const lol = Array.from({ length: 9 }, (_, at) => `<!ENTITY l${at + 1} "${`&l${at};`.repeat(10)}">`).join('')
  refuses(withDoctype(`[<!ENTITY l0 "lol">${lol}]`, '&l9;'), 'VIR_ERR_XML_ERROR', /entities are not allowed/)
})

test('an external entity is never read', () => {
  const folder = mkdtempSync(join(tmpdir(), 'virstream-conf-'))
  try {
    const secret = join(folder, 'secret')
    writeFileSync(secret, 'top secret')
    for (const subset of [
      `[<!ENTITY x SYSTEM "${secret}">]`,
      `[<!ENTITY % x SYSTEM "${secret}"> %x;]`,
      `SYSTEM "${secret}"`,
    ]) {
      refuses(withDoctype(subset, '&x;'), 'VIR_ERR_XML_ERROR', /entities are not allowed/)
    }
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('a parameter entity and a default attribute are refused', () => {
  refuses(withDoctype('[<!ENTITY % p "<!ENTITY x \'y\'>"> %p;]', '&x;'), 'VIR_ERR_XML_ERROR', /not allowed/)
  refuses(withDoctype('[<!ATTLIST domain id CDATA "7">]'), 'VIR_ERR_XML_ERROR', /not allowed/)
})

test('an entity without a declaration is an error with its line', () => {
  refuses(domainXml({ top: '<title>&x;</title>' }), 'VIR_ERR_XML_DETAIL', /line 4: Entity 'x' not defined/)
  refuses(withDoctype('', '&x;'), 'VIR_ERR_XML_DETAIL', /Entity 'x' not defined/)
})

test('a document type that declares nothing, and the five entities of XML itself, are fine', () => {
  assert.equal(parseDomainXml(withDoctype('', '&lt;&amp;&#65;')).title, '<&A')
})

test('a document type inside a comment or a CDATA section is only text', () => {
  const xml = domainXml({ top: '<title><![CDATA[<!DOCTYPE x [<!ENTITY a "b">]>]]></title><!-- <!DOCTYPE y [ ]> -->' })
  assert.equal(parseDomainXml(xml).title, '<!DOCTYPE x [<!ENTITY a "b">]>')
})

test('an encoding that is said in the text does not change what a string says', () => {
  for (const encoding of ['UTF-16', 'ISO-8859-1', 'UTF-7', 'nonsense']) {
    const xml = `<?xml version='1.0' encoding='${encoding}'?>${domainXml({ top: '<title>Zoë 💾</title>' })}`
    assert.equal(parseDomainXml(xml).title, 'Zoë 💾')
  }
})

test('more than four MiB of text are refused', () => {
  refuses(
    domainXml({ top: `<description>${'x'.repeat(4 * 1024 * 1024)}</description>` }),
    'VIR_ERR_OVERFLOW',
    /4194304/,
  )
})

test('more than a hundred thousand elements are refused', () => {
  refuses(domainXml({ top: `<a>${'<b/>'.repeat(100_000)}</a>` }), 'VIR_ERR_OVERFLOW', /elements/)
  refuses(domainXml({ top: '<'.repeat(300_000) }), 'VIR_ERR_OVERFLOW', /elements/)
})

test('nesting deeper than 128 elements is refused, however deep', () => {
  for (const depth of [130, 300, 50_000]) {
    const xml = domainXml({ top: '<a>'.repeat(depth) + '</a>'.repeat(depth) })
    assert.throws(
      () => parseDomainXml(xml),
      (error) => error instanceof VirError && /deep|depth/i.test(error.message),
    )
  }
})

test('characters that XML cannot hold are refused when they are written, not turned into broken XML', () => {
  const def = parseDomainXml(domainXml())
  def.title = 'a\u0001b'
  assert.throws(
    () => formatDomainXml(def),
    (error) => error instanceof VirError && error.code === 'VIR_ERR_INVALID_ARG',
  )
})

test('text that looks like markup comes back as the same text', () => {
  const def = parseDomainXml(domainXml({ devices: "<disk><source file='/a'/><target dev='vda'/></disk>" }))
  const nasty = '</description><x y="1">&amp;\'"]]>\r\n\t<!--'
  def.description = nasty
  const disk = def.disks[0]
  assert.ok(disk?.source?.type === 'file')
  disk.source.path = nasty
  const again = parseDomainXml(formatDomainXml(def))
  assert.deepEqual(again, def)
})

test('ten thousand documents, good and bad, are read and validated without memory being kept', (t) => {
  const xml = domainXml({ devices: "<disk><source file='/a'/><target dev='vda'/></disk>" })
  const validate = schemaMissing() === undefined ? validateDomainXml : (): void => undefined
  const cycle = (times: number): void => {
    for (let at = 0; at < times; at++) {
      parseDomainXml(xml)
      assert.throws(() => parseDomainXml('<domain>'))
      if (at % 20 === 0) validate(xml)
    }
  }
  cycle(2_000)
  globalThis.gc?.()
  const before = process.memoryUsage.rss()
  cycle(10_000)
  globalThis.gc?.()
  const grown = (process.memoryUsage.rss() - before) / 1024 / 1024
  t.diagnostic(`grown by ${grown.toFixed(1)} MiB`)
  assert.ok(grown < 48, `grown by ${grown.toFixed(1)} MiB`)
})
