// What a reference run recorded: generation.json, batches.json, log.jsonl and answers_after.json of its folder.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

export interface PeerCase {
  id: string
  inputIds: number[]
  greedy: { tokenIds: number[]; maxNewTokens: number }
  beams: { tokenIds: number[]; maxNewTokens: number; numBeams: number; score: number }
}

export interface PeerStep {
  step: number
  learningRate: number
  /** Labels are the ids from `labelsFrom` on. */
  samples: { inputIds: number[]; labelsFrom: number }[]
}

interface GenerationFile {
  id: string
  input_ids: number[]
  greedy: { tokens: number[]; options: { max_new_tokens: number } }
  beams: { tokens: number[]; score: number; options: { max_new_tokens: number; num_beams: number } }
}

interface BatchFile {
  step: number
  learning_rate: number
  samples: { input_ids: number[]; labels_from: number }[]
}

async function readJson<T>(folder: string, name: string): Promise<T> {
  return JSON.parse(await readFile(join(folder, name), 'utf8')) as T
}

export async function readPeerGenerations(folder: string): Promise<PeerCase[]> {
  const cases = await readJson<GenerationFile[]>(folder, 'generation.json')
  return cases.map(({ id, input_ids: inputIds, greedy, beams }) => ({
    id,
    inputIds,
    greedy: { tokenIds: greedy.tokens, maxNewTokens: greedy.options.max_new_tokens },
    beams: {
      tokenIds: beams.tokens,
      maxNewTokens: beams.options.max_new_tokens,
      numBeams: beams.options.num_beams,
      score: beams.score,
    },
  }))
}

/** The steps and their losses, each the mean over the step's labelled tokens before its update. */
export async function readPeer(folder: string): Promise<{ steps: PeerStep[]; losses: number[] }> {
  const batches = await readJson<BatchFile[]>(folder, 'batches.json')
  const log = (await readFile(join(folder, 'log.jsonl'), 'utf8')).split('\n').filter((line) => line !== '')
  const steps = batches.map(({ step, learning_rate: learningRate, samples }) => ({
    step,
    learningRate,
    samples: samples.map(({ input_ids: inputIds, labels_from: labelsFrom }) => ({ inputIds, labelsFrom })),
  }))
  return { steps, losses: log.map((line) => (JSON.parse(line) as { loss: number }).loss) }
}

/** The reference's answers to the same questions, in their order. */
export async function readPeerAnswers(folder: string, questions: readonly { id: string; answers: string[] }[]) {
  const answers = await readJson<{ id: string; model: string | null; exact: boolean }[]>(folder, 'answers_after.json')
  const byId = new Map(answers.map((answer) => [answer.id, answer]))
  return questions.map(({ id, answers }) => {
    const theirs = byId.get(id)
    if (!theirs) throw new Error(`answers_after.json has no answer to question ${id}`)
    return { id, answers, answer: theirs.model, exactMatch: theirs.exact }
  })
}
