/** A certificate authority for one test. */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from '../../src/util/run.js'

/** Where certificates are, named as libvirt names them, so that each folder is a pkipath. */
export class TestAuthority {
  readonly #folder: string

  private constructor(folder: string) {
    this.#folder = folder
  }

  static async make(folder: string, name = 'Test CA'): Promise<TestAuthority> {
    await mkdir(folder, { recursive: true })
    const authority = new TestAuthority(folder)
    await authority.#openssl('req', '-x509', ...newKey('cakey.pem'), '-out', 'cacert.pem', '-subj', `/CN=${name}`)
    return authority
  }

  /** A folder with cacert.pem, and certificate and key of one role; `subject` is that of openssl: '/O=Example/CN=host'. */
  async issue(role: 'server' | 'client', subject: string, names = 'IP:127.0.0.1,DNS:localhost'): Promise<string> {
    const folder = join(this.#folder, `${role}-${subject.replace(/\W/g, '_')}`)
    await mkdir(folder)
    const file = (name: string): string => join(folder, name)
    await writeFile(file('ext'), `subjectAltName=${names}\n`)
    await this.#openssl('req', ...newKey(file(`${role}key.pem`)), '-out', file('csr'), '-subj', subject)
    const signing = ['-CA', 'cacert.pem', '-CAkey', 'cakey.pem', '-CAcreateserial', '-days', '2']
    const paths = ['-in', file('csr'), '-out', file(`${role}cert.pem`), '-extfile', file('ext')]
    await this.#openssl('x509', '-req', ...signing, ...paths)
    await run('cp', [join(this.#folder, 'cacert.pem'), folder])
    return folder
  }

  async #openssl(...args: string[]): Promise<void> {
    await run('openssl', args, { cwd: this.#folder })
  }
}

function newKey(path: string): string[] {
  return ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', path]
}
