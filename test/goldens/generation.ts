import { existsSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { Tokenizer } from '../../lib/data/tokenizer.js'
import { Generator } from '../../lib/generation/generator.js'
import { loadModel, modelFolder, withModel } from './models.js'
import { differences, type Figure, Figures, type GoldenCase } from './result.js'

const SCORE_TOLERANCE = 1e-4
const MODEL = 'stories260k'

interface BeamCase {
  prompt: string
  input_ids: number[]
  options: Record<string, unknown>
  eos_token_id: number
  sequences: number[][]
  sequences_scores: number[] | null
}

interface TokenizerCase {
  text: string
  ids: number[]
  decoded: string
}

/** `generation/beam_search.json` and `generation/tokenizer_stories260k.json`. */
export function generationCases(folder: string): GoldenCase[] {
  const cases: GoldenCase[] = []
  const beams = join(folder, 'generation', 'beam_search.json')
  if (existsSync(beams)) cases.push({ name: `generation/${basename(beams, '.json')}`, run: () => runBeams(folder, beams) })
  const texts = join(folder, 'generation', `tokenizer_${MODEL}.json`)
  if (existsSync(texts)) cases.push({ name: `generation/tokenizer_${MODEL}`, run: () => runTokenizer(folder, texts) })
  return cases
}

async function runBeams(folder: string, path: string): Promise<Figure[]> {
  const cases = JSON.parse(readFileSync(path, 'utf8')) as BeamCase[]
  // The file does not say how many tokens were asked for: as many as its longest answer has.
  const answers = cases.flatMap(({ sequences, input_ids: prompt }) => sequences.map((ids) => ids.length - prompt.length))
  const maxNewTokens = Math.max(...answers)
  return withModel(loadModel(folder, MODEL), async (model) => {
    const generator = new Generator(model)
    const figures = new Figures()
    for (const { input_ids: inputIds, options, eos_token_id: eosTokenId, ...expected } of cases) {
      const { earlyStopping, ...rest } = inCamelCase(options)
      const result = await generator.generate(
        { inputIds },
        {
          ...rest,
          ...(earlyStopping === undefined ? {} : { earlyStopping: earlyStopping as boolean }),
          eosTokenId,
          maxNewTokens,
        },
      )
      const sequences = [result, ...(result.alternatives ?? [])]
      figures.add('missing sequences', Math.abs(sequences.length - expected.sequences.length), 0)
      for (const [i, ids] of expected.sequences.entries()) {
        const sequence = sequences[i]
        const ours = withoutEnd(sequence?.tokenIds ?? [], eosTokenId)
        figures.add('different tokens', differences(ours, withoutEnd(ids.slice(inputIds.length), eosTokenId)), 0)
        const score = expected.sequences_scores?.[i]
        if (score !== undefined) figures.add('scores', Math.abs((sequence?.score ?? Number.NaN) - score), SCORE_TOLERANCE)
      }
    }
    await generator.dispose()
    return figures.all()
  })
}

function inCamelCase(options: Record<string, unknown>): Record<string, unknown> {
  const camel = (name: string) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase())
  return Object.fromEntries(Object.entries(options).map(([name, value]) => [camel(name), value]))
}

/** transformers keeps the token that ends a sequence, and pads with it. */
function withoutEnd(ids: readonly number[], eos: number): number[] {
  const end = ids.indexOf(eos)
  return end < 0 ? [...ids] : ids.slice(0, end)
}

async function runTokenizer(folder: string, path: string): Promise<Figure[]> {
  const tokenizer = await Tokenizer.fromFolder(modelFolder(folder, MODEL))
  const figures = new Figures()
  for (const { text, ids, decoded } of JSON.parse(readFileSync(path, 'utf8')) as TokenizerCase[]) {
    figures.add('different ids', differences(tokenizer.encode(text), ids), 0)
    figures.add('different characters', differences(tokenizer.decode(ids, { skipSpecialTokens: true }), decoded), 0)
  }
  return figures.all()
}
