/**
 * Starts a domain at once on a thin overlay of a template, and streams the template into it while the guest runs.
 * usage: node dist/examples/start-from-template.js URI NAME TEMPLATE.raw OVERLAY.qcow2
 */
import { resolve } from 'node:path'
import { Connect, createOverlay } from 'virstream'

const [uri, name, template, overlay] = process.argv.slice(2)
if (uri === undefined || name === undefined || template === undefined || overlay === undefined) {
  console.error('usage: start-from-template URI NAME TEMPLATE.raw OVERLAY.qcow2')
  process.exit(2)
}

const image = resolve(overlay)
const backing = { type: 'file', path: resolve(template), format: 'raw' } as const
await createOverlay({ path: image, format: 'qcow2', backing })

await using conn = await Connect.open(uri)
const domain = await conn.domainDefineXML(`<domain type='qemu'>
  <name>${name}</name>
  <memory unit='MiB'>256</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='${image}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <console type='pty'/>
  </devices>
</domain>`)
const began = performance.now()
await domain.create()
console.log(`${name} runs after ${Math.round(performance.now() - began)} ms`)
const stream = await domain.stream('vda')
await stream.finished
console.log(`${overlay} holds all of the template after ${Math.round(performance.now() - began)} ms`)
