import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

export const root = fileURLToPath(new URL('../../', import.meta.url))

/**
 * Plain JavaScript of the sources as they are, so that the programs that a test starts need no compiler of their own.
 * @param name of the folder build-NAME; one per test file, as test files run side by side
 * @param parts folders of the repository
 * @returns the folder, with the parts at their places
 */
export function compile(name: string, parts: readonly string[]): string {
  const target = join(root, `build-${name}`)
  const compilerOptions = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true }
  for (const part of parts) {
    for (const file of readdirSync(join(root, part), { recursive: true, encoding: 'utf8' })) {
      if (!file.endsWith('.ts') || file.endsWith('.test.ts')) continue
      const path = join(target, part, file.replace(/ts$/, 'js'))
      mkdirSync(dirname(path), { recursive: true })
      writeFileSync(path, ts.transpileModule(readFileSync(join(root, part, file), 'utf8'), { compilerOptions }).outputText)
    }
  }
  return target
}
