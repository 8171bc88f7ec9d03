import t from 'tap'
import { QuantuneError } from '../../lib/errors.js'

t.test('an error carries its code, details and cause', async (t) => {
  const cause = new Error('why')
  const error = new QuantuneError('ERR_IO', 'could not read', { details: { path: 'x' }, cause })
  t.match(error, { code: 'ERR_IO', name: 'QuantuneError', details: { path: 'x' }, cause })
  t.ok(error instanceof Error)
})
