// What a user gets: packs the package with its prebuilt addon, installs the tarball into an empty folder without a compiler
// and without install scripts, and uses it there as ESM, as CommonJS and from strict TypeScript.
// usage: npm run test:package
import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const root = resolve(here, '../..')
const folder = mkdtempSync(join(tmpdir(), 'quantune-package-'))
const noCompiler = { ...process.env, CC: 'false', CXX: 'false', npm_config_audit: 'false', npm_config_fund: 'false' }

function run(command, args, options = {}) {
  console.log(`$ ${command} ${args.join(' ')}`)
  return execFileSync(command, args, { stdio: ['ignore', 'inherit', 'inherit'], env: noCompiler, ...options })
}

try {
  run('npx', ['prebuildify', '--napi', '--strip', '--tag-libc'], { cwd: root, env: process.env })
  run('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', folder], { cwd: root })
  const tarball = readdirSync(folder).find((name) => name.endsWith('.tgz'))
  if (!tarball) throw new Error('npm pack left no tarball')

  const consumer = mkdtempSync(join(tmpdir(), 'quantune-consumer-'))
  cpSync(join(here, 'consumer'), consumer, { recursive: true })
  cpSync(join(root, 'test/fixtures/goldens/models/llama'), join(consumer, 'model'), { recursive: true })
  writeFileSync(join(consumer, 'package.json'), '{ "name": "consumer", "private": true, "type": "module" }\n')
  run('npm', ['install', '--ignore-scripts', join(folder, tarball)], { cwd: consumer })
  if (existsSync(join(consumer, 'node_modules/quantune/build'))) throw new Error('the package carries a build folder')

  run(process.execPath, ['train.mjs'], { cwd: consumer })
  run(process.execPath, ['require.cjs'], { cwd: consumer })
  run('npx', ['--no', 'quantune', 'doctor'], { cwd: consumer })

  run('npm', ['install', '--ignore-scripts', '--save-dev', 'typescript@5.9', '@types/node@20'], { cwd: consumer })
  for (const moduleResolution of ['nodenext', 'bundler']) {
    const module = moduleResolution === 'bundler' ? 'esnext' : 'nodenext'
    run(
      'npx',
      [
        'tsc',
        '--noEmit',
        '--strict',
        '--target',
        'es2022',
        '--lib',
        'es2023,esnext.disposable',
        '--module',
        module,
        '--moduleResolution',
        moduleResolution,
        '--types',
        'node',
        'consumer.ts',
      ],
      { cwd: consumer },
    )
  }

  run('npx', ['--yes', 'publint@0.3.25', '--strict', join(folder, tarball)], { cwd: root })
  run('npx', ['--yes', '@arethetypeswrong/cli@0.18.5', '--profile', 'esm-only', join(folder, tarball)], { cwd: root })
  rmSync(consumer, { recursive: true })
  console.log('package: ok')
} finally {
  rmSync(folder, { recursive: true, force: true })
}
