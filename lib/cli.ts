#!/usr/bin/env node
import { doctor } from './doctor.js'

const USAGE = `usage: quantune doctor      what this machine offers: CPU variant, threads, devices, versions, and why a device is refused`

const [command, ...rest] = process.argv.slice(2)
if (command === 'doctor' && rest.length === 0) {
  console.log(await doctor())
} else {
  const asked = command === undefined || command === '--help' || command === '-h'
  console[asked ? 'log' : 'error'](USAGE)
  process.exitCode = asked ? 0 : 2
}
