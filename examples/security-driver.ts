/**
 * A security driver of one's own: says what a QEMU gets, and lets it have images below one folder only.
 * usage: node dist/examples/security-driver.js URI DOMAIN FOLDER
 */
import { realpathSync } from 'node:fs'
import { Connect, VirError, type SecurityDriver } from 'virstream'

const [uri, name, folder] = process.argv.slice(2)
if (uri === undefined || name === undefined || folder === undefined) {
  console.error('usage: security-driver URI DOMAIN FOLDER')
  process.exit(2)
}

const fence: SecurityDriver = {
  name: 'fence',
  probe: () => Promise.resolve(undefined),
  setImageLabel(def, { path, kind, readonly }, note) {
    const isImage = kind === 'disk' || kind === 'backing'
    if (isImage && !realpathSync(path).startsWith(`${realpathSync(folder)}/`))
      throw new VirError('VIR_ERR_OPERATION_DENIED', 'VIR_FROM_SECURITY', `'${path}' is not below '${folder}'`)
    // whatever is noted comes back when QEMU no longer uses it, also in another process and after a crash
    if (isImage) note(`since ${new Date().toISOString()}`)
    console.log(`${def.name} gets ${kind} ${path}${readonly ? ', read-only' : ''}`)
    return Promise.resolve()
  },
  restoreImageLabel(def, { path }, state) {
    console.log(`${def.name} had ${path} ${state}`)
    return Promise.resolve()
  },
}

// other drivers can stand before or after it: `await securityDriver('dac', { user: 'libvirt-qemu' })`
await using conn = await Connect.open(uri, { security: [fence] })
const domain = await conn.domainLookupByName(name)
await domain.create()
await domain.destroy()
