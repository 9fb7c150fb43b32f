/** Where a guest is that has left a libvirtd, when its destination knows nothing of it any more. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Leaving } from '../../src/ffi/leaving.js'
import { MigrationLink, UnknownThereError } from '../../src/migration/link.js'

class ForgetfulLink extends MigrationLink {
  override connect(): Promise<void> {
    return Promise.reject(new UnknownThereError())
  }
}

function gone(): Leaving {
  const leaving = new Leaving(
    { name: 'guest', uuid: 'c7a5fdbd-edaf-9455-926a-d65c16db1809', id: 1 },
    'id',
    'key',
    0,
    {},
  )
  leaving.link = new ForgetfulLink({
    ...{ id: 'id', key: 'key', uri: '' },
    onOpen: (request) => request.refuse('no'),
    onRequest: (method) => leaving.answer(method),
    onRestored: () => undefined,
    warn: (text) => assert.fail(text),
  })
  leaving.phase = 'performed'
  return leaving
}

test('a destination that forgot a guest without a word does not run it', async () => {
  assert.equal(await gone().runsThere(), false)
})

test('a destination that forgot a guest after it said that it has come runs it', async () => {
  const leaving = gone()
  leaving.answer('progress')
  assert.equal(await leaving.runsThere(), false)
  leaving.answer('released')
  assert.equal(await leaving.runsThere(), true)
})
