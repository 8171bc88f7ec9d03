// require() gives the same module as import.
const { Model, QuantuneError } = require('quantune')
import('quantune').then((module) => {
  if (module.Model !== Model || module.QuantuneError !== QuantuneError) throw new Error('two copies of the module')
  console.log('require: the same module')
})
