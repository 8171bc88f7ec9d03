/**
 * The little world that the tiny model reads about: people, things, places and dates, the relations between them, and for each
 * relation several ways to state it, to ask for it and to answer in a plain sentence.
 */
import type { Random } from './random.js'

const FIRST_NAMES =
  `Mara Joren Tilda Oskar Lena Bram Ines Pavel Greta Milo Nadia Hugo Selma Anton Rosa Felix Clara Yusuf Edith Marek Olga Tomas Vera
Samir Irma Ruben Freya Diego Paula Jonas Alma Victor Petra Emil Sonja Karl Lydia Bruno Hanna Ivan Celia Rolf Mina Oscar Tessa Albert Nora Ravi Elsa
Gustav Judith Omar Wanda Stefan Pearl Leon Agnes Theo Ursula Jasper Ada Conrad Maya Dieter Flora Hector Signe Walter Zora Amos`.split(
    /\s+/,
  )
const LAST_NAMES =
  `Brook Hale Winter Stone Marsh Field Abbott Carver Lind Moreau Novak Falk Ridge Sutton Vance Keller Thorn Baker Dunn Quill Reed Lowe
Archer Frost Hollis Penn Wells Barlow Crane Doyle Ellis Finch Grant Holt Irving Jarvis Kemp Lambert Mercer Nash`.split(/\s+/)
const COLORS = 'red blue green yellow white black silver golden purple orange brown grey'.split(' ')
const OBJECTS =
  `kite lamp clock violin boat ladder mirror kettle drum carpet telescope bicycle umbrella basket wagon camera globe trumpet sword chest
blanket piano wheel bell vase chair compass lantern saddle painting`.split(/\s+/)
const ROOMS =
  `old mill|stone tower|town hall|boat house|school attic|fire station|village church|bakery cellar|train depot|corn barn|harbour office|city museum|
garden shed|post office|lighthouse|wine cellar|market hall|glass pavilion|horse stable|public library|north gate|royal theatre|river lodge|castle chapel`
    .split('|')
    .map((name) => name.trim())
const TOWNS =
  `Alden Birkby Corvale Dunmore Eastwick Fairholm Glenrock Harwich Ilford Jutland Kestrel Larkspur Mosswood Norbury Oakham Pinecrest Quarry
Ravenna Selby Tarnow Ulverton Verona Westmere Yarrow Zell Ashford Bracken Coldbrook Denby Elmswell`.split(/\s+/)
const JOBS =
  `baker|teacher|carpenter|nurse|sailor|farmer|painter|lawyer|gardener|tailor|pilot|cook|miner|blacksmith|librarian|fisherman|watchmaker|
postman|violinist|beekeeper|shepherd|judge|printer|surgeon|potter`
    .split('|')
    .map((name) => name.trim())
const ANIMALS = 'geese goats sheep horses ducks cats dogs hens rabbits cows pigs doves donkeys bees ponies'.split(' ')
const NUMBERS =
  `two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen twenty thirty forty fifty`.split(/\s+/)
const MONTHS = 'January February March April May June July August September October November December'.split(' ')
const FOOD =
  `bread soup cheese honey plums rice salmon noodles pancakes olives cherries walnuts lentils apples mushrooms`.split(/\s+/)
const SCHOOLS =
  'music school|chess club|rowing club|art school|drama society|science club|sewing circle|history society|cooking school|ski club'.split(
    '|',
  )

/** What a relation is about: `subject` is named in the question, `value` is the answer. */
export interface Fact {
  relation: string
  subject: string
  value: string
}

/** A fact that a context states, with the offset of its value in the text. */
export interface StatedFact extends Fact {
  start: number
}

interface Relation {
  name: string
  subject(world: Subjects): string
  value(random: Random): string
  statements: readonly string[]
  questions: readonly string[]
  /** Plain sentences; {v} is the answer word for word. */
  answers: readonly string[]
}

/** The people and things that one context is about. */
interface Subjects {
  person(): string
  thing(): string
  group(): string
}

const PEOPLE_RELATIONS: readonly Relation[] = [
  {
    name: 'job',
    subject: (w) => w.person(),
    value: (r) => r.pick(JOBS),
    statements: ['{s} works as a {v}.', '{s} is a {v} by trade.', 'For many years {s} has earned a living as a {v}.'],
    questions: ['What is the job of {s}?', 'What does {s} work as?', 'Which trade does {s} have?'],
    answers: ['{s} works as a {v}.', '{s} is a {v}.'],
  },
  {
    name: 'birthplace',
    subject: (w) => w.person(),
    value: (r) => r.pick(TOWNS),
    statements: ['{s} was born in {v}.', '{s} comes from {v}.', '{s} spent a happy childhood in {v}.'],
    questions: ['Where was {s} born?', 'Which town does {s} come from?', 'In which town did {s} grow up?'],
    answers: ['{s} comes from {v}.', '{s} was born in {v}.'],
  },
  {
    name: 'arrival',
    subject: (w) => w.person(),
    value: date,
    statements: ['{s} arrived on {v}.', 'It was on {v} that {s} first came here.', '{s} moved here on {v}.'],
    questions: ['When did {s} arrive?', 'On what date did {s} move here?', 'When did {s} come here?'],
    answers: ['{s} arrived on {v}.', 'It was on {v}.'],
  },
  {
    name: 'animals',
    subject: (w) => w.person(),
    value: (r) => `${r.pick(NUMBERS)} ${r.pick(ANIMALS)}`,
    statements: ['{s} keeps {v}.', '{s} looks after {v}.', 'Behind the house {s} has {v}.'],
    questions: ['Which animals does {s} keep?', 'What does {s} look after?', 'How many animals does {s} have?'],
    answers: ['{s} keeps {v}.', '{s} looks after {v}.'],
  },
  {
    name: 'food',
    subject: (w) => w.person(),
    value: (r) => r.pick(FOOD),
    statements: ['{s} likes {v} best.', 'The favourite food of {s} is {v}.', '{s} eats {v} every evening.'],
    questions: ['What does {s} like to eat?', 'What is the favourite food of {s}?', 'Which food does {s} like best?'],
    answers: ['{s} likes {v}.', 'The favourite food is {v}.'],
  },
]

const THING_RELATIONS: readonly Relation[] = [
  {
    name: 'owner',
    subject: (w) => w.thing(),
    value: person,
    statements: ['The {s} belongs to {v}.', '{v} owns the {s}.', 'The owner of the {s} is {v}.'],
    questions: ['Who owns the {s}?', 'To whom does the {s} belong?', 'Who is the owner of the {s}?'],
    answers: ['The {s} belongs to {v}.', '{v} owns the {s}.'],
  },
  {
    name: 'place',
    subject: (w) => w.thing(),
    value: (r) => r.pick(ROOMS),
    statements: ['The {s} is kept in the {v}.', 'Visitors can see the {s} in the {v}.', 'The {s} stands in the {v}.'],
    questions: ['Where is the {s} kept?', 'Where can visitors see the {s}?', 'In which place does the {s} stand?'],
    answers: ['The {s} is kept in the {v}.', 'It is in the {v}.'],
  },
  {
    name: 'price',
    subject: (w) => w.thing(),
    value: (r) => `${10 + 5 * r.int(90)} crowns`,
    statements: ['The {s} cost {v}.', 'Somebody paid {v} for the {s}.', 'The price of the {s} was {v}.'],
    questions: ['How much did the {s} cost?', 'What was the price of the {s}?', 'How much was paid for the {s}?'],
    answers: ['The {s} cost {v}.', 'The price was {v}.'],
  },
]

const GROUP_RELATIONS: readonly Relation[] = [
  {
    name: 'founder',
    subject: (w) => w.group(),
    value: person,
    statements: ['The {s} was founded by {v}.', '{v} started the {s}.', 'It was {v} who opened the {s}.'],
    questions: ['Who founded the {s}?', 'Who started the {s}?', 'By whom was the {s} opened?'],
    answers: ['{v} founded the {s}.', 'The {s} was founded by {v}.'],
  },
  {
    name: 'year',
    subject: (w) => w.group(),
    value: (r) => String(1850 + r.int(170)),
    statements: ['The {s} dates from {v}.', 'The doors of the {s} opened in {v}.', 'The {s} has existed since {v}.'],
    questions: ['In which year did the {s} open?', 'Since when has the {s} existed?', 'From which year does the {s} date?'],
    answers: ['The {s} opened in {v}.', 'It opened in {v}.'],
  },
]

export const RELATIONS: readonly Relation[] = [...PEOPLE_RELATIONS, ...THING_RELATIONS, ...GROUP_RELATIONS]

/** A noun for each relation. */
export const LABELS: Readonly<Record<string, string>> = {
  job: 'job',
  birthplace: 'birthplace',
  arrival: 'arrival',
  animals: 'animals',
  food: 'food',
  owner: 'owner',
  place: 'place',
  price: 'price',
  founder: 'founder',
  year: 'year',
}

/** Words of all kinds, for exercises that mean nothing. */
export const WORDS: readonly string[] = [
  ...FIRST_NAMES,
  ...LAST_NAMES,
  ...COLORS,
  ...OBJECTS,
  ...TOWNS,
  ...JOBS,
  ...ANIMALS,
  ...NUMBERS,
  ...MONTHS,
  ...FOOD,
  ...new Set([...ROOMS, ...SCHOOLS].flatMap((name) => name.split(' '))),
]

const BY_NAME = new Map(RELATIONS.map((relation) => [relation.name, relation]))

function person(random: Random): string {
  return `${random.pick(FIRST_NAMES)} ${random.pick(LAST_NAMES)}`
}

function date(random: Random): string {
  return `${1 + random.int(28)} ${random.pick(MONTHS)} ${1900 + random.int(120)}`
}

/** Draws each subject once, so that no two facts of a context contradict each other. */
function subjects(random: Random): { people: string[]; things: string[]; groups: string[] } {
  const distinct = (count: number, draw: () => string) => {
    const out = new Set<string>()
    while (out.size < count) out.add(draw())
    return [...out]
  }
  return {
    people: distinct(6, () => person(random)),
    things: distinct(5, () => `${random.pick(COLORS)} ${random.pick(OBJECTS)}`),
    groups: distinct(3, () => random.pick(SCHOOLS)),
  }
}

export interface Context {
  text: string
  facts: StatedFact[]
  /** Facts with a subject or a relation of this context which it does not state: for questions without an answer. */
  missing: Fact[]
}

/** A paragraph of `size` facts, by default five to seven, each about another person, thing or group. */
export function makeContext(random: Random, size = 5 + random.int(3)): Context {
  const { people, things, groups } = subjects(random)
  const candidates: Fact[] = []
  const add = (relations: readonly Relation[], subject: string) => {
    for (const relation of relations) candidates.push({ relation: relation.name, subject, value: relation.value(random) })
  }
  for (const subject of people) add(PEOPLE_RELATIONS, subject)
  for (const subject of things) add(THING_RELATIONS, subject)
  for (const subject of groups) add(GROUP_RELATIONS, subject)

  // The last person, thing and group stay outside: asking for them has no answer, as asking for more about the others has none.
  const absent = new Set([people[5], things[4], groups[2]])
  const present = random.shuffle(candidates.filter(({ subject }) => !absent.has(subject)))
  const mentioned = new Set<string>()
  const stated = present.filter(({ subject }) => mentioned.size < size && !mentioned.has(subject) && mentioned.add(subject))
  const missing = [
    ...present.filter((fact) => mentioned.has(fact.subject) && !stated.includes(fact)).slice(0, 4),
    ...candidates.filter(({ subject }) => absent.has(subject)),
  ]
  let text = ''
  const facts = stated.map((fact) => {
    const sentence = fill(random.pick(BY_NAME.get(fact.relation)!.statements), fact)
    const start = text.length + (text ? 1 : 0) + sentence.indexOf(fact.value)
    text = text ? `${text} ${sentence}` : sentence
    return { ...fact, start }
  })
  return { text, facts, missing: random.shuffle(missing) }
}

/** A question that asks for a fact's value. */
export function ask(random: Random, fact: Fact): string {
  return fill(random.pick(BY_NAME.get(fact.relation)!.questions), fact)
}

/** A plain sentence that answers it. */
export function tell(random: Random, fact: Fact): string {
  return fill(random.pick(BY_NAME.get(fact.relation)!.answers), fact)
}

function fill(template: string, fact: Fact): string {
  const text = template.replace('{s}', fact.subject).replace('{v}', fact.value)
  return text.charAt(0).toUpperCase() + text.slice(1)
}

/** One key a fact, to keep training and test apart. */
export function factKey(fact: Fact): string {
  return `${fact.relation}|${fact.subject}|${fact.value}`
}
