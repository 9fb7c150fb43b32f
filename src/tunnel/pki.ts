/** Certificates where libvirt keeps them (virNetTLSContext), and who may use them. */
import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { TLSSocket, SecureContextOptions } from 'node:tls'
import { errnoOf, wordsOf } from '../error.js'
import { TunnelError } from './error.js'

/** PEM: who signs, who we are, our key; a list of what is revoked, if there is one. */
export interface Credentials {
  ca: string
  cert: string
  key: string
  crl?: string
}

interface Places {
  ca: string
  crl: string
  cert: string
  key: string
}

function inOneFolder(folder: string, role: 'server' | 'client'): Places {
  const file = (name: string): string => join(folder, name)
  return { ca: file('cacert.pem'), crl: file('cacrl.pem'), cert: file(`${role}cert.pem`), key: file(`${role}key.pem`) }
}

function ofTheSystem(role: 'server' | 'client'): Places {
  return {
    ca: '/etc/pki/CA/cacert.pem',
    crl: '/etc/pki/CA/cacrl.pem',
    cert: `/etc/pki/libvirt/${role}cert.pem`,
    key: `/etc/pki/libvirt/private/${role}key.pem`,
  }
}

/**
 * Reads certificates from `pkipath` (cacert.pem, servercert.pem or clientcert.pem, serverkey.pem or clientkey.pem, and
 * cacrl.pem if it is there); without it, those of the user (~/.pki/libvirt) if all are there and the user is not root, else
 * those of the system. Rejects with TunnelError EINVAL for what is missing or can't be read.
 */
export async function loadCredentials(role: 'server' | 'client', pkipath?: string): Promise<Credentials> {
  if (pkipath !== undefined) return await read(inOneFolder(pkipath, role))
  if (process.getuid?.() !== 0) {
    const own = await read(inOneFolder(join(homedir(), '.pki/libvirt'), role)).catch((error: unknown) => {
      if (error instanceof TunnelError && errnoOf(error.cause) === 'ENOENT') return undefined
      throw error
    })
    if (own !== undefined) return own
  }
  return await read(ofTheSystem(role))
}

async function read(places: Places): Promise<Credentials> {
  // one after the other: of several that are missing always the same one is named
  const ca = await readPem(places.ca)
  const cert = await readPem(places.cert)
  const key = await readPem(places.key)
  const crl = await readPem(places.crl).catch((error: unknown) => {
    if (error instanceof TunnelError && errnoOf(error.cause) === 'ENOENT') return undefined
    throw error
  })
  return { ca, cert, key, ...(crl !== undefined && { crl }) }
}

async function readPem(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    throw new TunnelError('EINVAL', `cannot read '${path}': ${wordsOf(error)}`, error)
  }
}

/** What both ends ask of TLS: version 1.3, and certificates of the same authority. */
export function tlsOptions(credentials: Credentials): SecureContextOptions & { rejectUnauthorized: true } {
  return { ...credentials, minVersion: 'TLSv1.3', rejectUnauthorized: true }
}

/** The name in the peer's certificate, as libvirt writes it: `C=GB,O=Example,CN=host`. '' where there is none. */
export function distinguishedName(socket: TLSSocket): string {
  const subject = socket.getPeerX509Certificate()?.subject ?? ''
  return subject
    .split('\n')
    .map((part) =>
      part.replace(/^([^=]*=)(.*)$/s, (_, key: string, value: string) => key + value.replace(/[,+"\\<>;]/g, '\\$&')),
    )
    .join(',')
}

/** libvirt's tls_allowed_dn_list: one of the patterns matches, with `*` and `?` as wildcards. No list: everybody may. */
export function isAllowedDn(dn: string, patterns: readonly string[] | undefined): boolean {
  if (patterns === undefined) return true
  return patterns.some((pattern) => wildcard(pattern).test(dn))
}

function wildcard(pattern: string): RegExp {
  const source = pattern
    .replace(/[.+^${}()|[\]\\]/g, '\\$&')
    .replaceAll('*', '.*')
    .replaceAll('?', '.')
  return new RegExp(`^${source}$`, 's')
}
