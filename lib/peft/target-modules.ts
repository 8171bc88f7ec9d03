import { invalidArgument } from '../errors.js'
import type { CausalLM } from '../models/causal-lm.js'

/** Names of layers (`q_proj`, `layers.0.self_attn.q_proj`) or a pattern that the whole name must match. */
export type ModuleSelector = readonly string[] | RegExp | string

export interface TargetSelection {
  /** undefined: the architecture's usual ones */
  targetModules?: ModuleSelector
  excludeModules?: ModuleSelector
  layersToTransform?: readonly number[]
}

/** PEFT's rule: a listed name is the layer's name or its last parts; a pattern matches it from beginning to end. */
export function matchesModule(selector: ModuleSelector, module: string): boolean {
  if (typeof selector === 'string' || selector instanceof RegExp) return fullMatch(selector, module)
  return selector.some((name) => module === name || module.endsWith(`.${name}`))
}

function fullMatch(pattern: string | RegExp, module: string): boolean {
  const source = typeof pattern === 'string' ? pattern : pattern.source
  const flags = typeof pattern === 'string' ? '' : pattern.flags.replace(/[gy]/g, '')
  return new RegExp(`^(?:${source})$`, flags).test(module)
}

/** The linear layers of `network` that an adapter wraps, in the network's order. */
export function selectModules(network: CausalLM, selection: TargetSelection): string[] {
  const { excludeModules, layersToTransform } = selection
  const target = selection.targetModules ?? network.defaultTargetModules
  const names = [...network.linearLayers.keys()]
  const chosen = names.filter((name) => {
    if (excludeModules !== undefined && matchesModule(excludeModules, name)) return false
    if (layersToTransform && !inLayers(name, layersToTransform)) return false
    return target === 'all-linear' ? name !== network.headName : matchesModule(target, name)
  })
  if (typeof target === 'object' && !(target instanceof RegExp)) checkEachFound(target, names)
  if (chosen.length === 0) {
    const matched = names.some((name) => target === 'all-linear' || matchesModule(target, name))
    if (matched) throw invalidArgument(leftNone(selection, names))
    const hint = /^all[_ ]?linear$/i.test(String(target)) ? "did you mean 'all-linear'?" : known(names)
    throw invalidArgument(`LoraConfig.targetModules: ${describe(target)} matches no linear layer; ${hint}`)
  }
  return chosen
}

/** Why nothing is left of layers that `targetModules` names. */
function leftNone({ layersToTransform, excludeModules }: TargetSelection, names: readonly string[]): string {
  if (layersToTransform && !names.some((name) => inLayers(name, layersToTransform))) {
    const last = Math.max(...names.map((name) => layerOf(name) ?? -1))
    return `LoraConfig.layersToTransform: [${layersToTransform.join(', ')}] names no layer with targets; the layers are 0 to ${last}`
  }
  const exclude = excludeModules === undefined ? '' : ' and excludeModules'
  return `LoraConfig.targetModules: no layer is left of those it names; check layersToTransform${exclude}`
}

/** The number that stands in a layer's name is its place in the stack. */
function inLayers(module: string, layers: readonly number[]): boolean {
  const index = layerOf(module)
  return index !== null && layers.includes(index)
}

function layerOf(module: string): number | null {
  const index = /^(?:.*\.)?[^.]+\.(\d+)\./.exec(module)?.[1]
  return index === undefined ? null : Number(index)
}

function checkEachFound(target: readonly string[], names: readonly string[]): void {
  for (const name of target) {
    if (!names.some((module) => matchesModule([name], module))) {
      throw invalidArgument(`LoraConfig.targetModules: "${name}" matches no linear layer; ${known(names)}`, { module: name })
    }
  }
}

function known(names: readonly string[]): string {
  return `the layers are called ${[...new Set(names.map((name) => name.slice(name.lastIndexOf('.') + 1)))].join(', ')}`
}

function describe(target: ModuleSelector): string {
  return typeof target === 'string' || target instanceof RegExp ? String(target) : `[${target.join(', ')}]`
}
