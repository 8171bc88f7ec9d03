import { QuantuneError } from '../errors.js'

export interface HubConnection {
  endpoint: string
  token: string | null
  signal: AbortSignal | undefined
}

/**
 * Asks the Hub. The token goes to the endpoint alone: redirects (to a content network) are followed without it.
 * @throws ERR_HUB_NOT_FOUND, ERR_HUB_UNAUTHORIZED, ERR_IO for a network that fails; `signal.reason` when aborted
 */
export async function request(
  connection: HubConnection,
  url: string,
  init: RequestInit & { what: string },
  redirects = 0,
): Promise<Response> {
  const { signal, token, endpoint } = connection
  signal?.throwIfAborted()
  const headers = new Headers(init.headers)
  headers.set('user-agent', 'quantune')
  if (token !== null && new URL(url).origin === new URL(endpoint).origin) headers.set('authorization', `Bearer ${token}`)
  let response: Response
  try {
    response = await fetch(url, { ...init, headers, redirect: 'manual', signal: signal ?? null })
  } catch (cause) {
    signal?.throwIfAborted()
    throw networkError(url, cause)
  }
  const location = response.headers.get('location')
  if (response.status < 300 || response.status >= 400 || location === null) return check(response, url, init.what, connection)
  await response.body?.cancel()
  const next = new URL(location, url).href
  if (redirects === 5) throw networkError(next, new Error('too many redirects'))
  const target = await request(connection, next, init, redirects + 1)
  // The Hub's own answer names the commit and the file's hash; the content network's does not.
  return withHubHeaders(target, response)
}

const hubHeaders = ['x-repo-commit', 'x-linked-etag', 'x-linked-size']

function withHubHeaders(target: Response, first: Response): Response {
  const headers = new Headers(target.headers)
  for (const name of hubHeaders) {
    const value = first.headers.get(name)
    if (value !== null) headers.set(name, value)
  }
  return new Response(target.body, { status: target.status, headers })
}

async function check(response: Response, url: string, what: string, { token }: HubConnection): Promise<Response> {
  if (response.ok || response.status === 416) return response
  await response.body?.cancel()
  const { status } = response
  const code = response.headers.get('x-error-code')
  const details = { url, status, errorCode: code }
  // The Hub answers 401 for what does not exist, so that private names cannot be guessed.
  if (status === 404 || code === 'RepoNotFound' || code === 'RevisionNotFound' || code === 'EntryNotFound') {
    const hint = status === 404 ? '' : '; if it is private, a token is needed (option token, or HF_TOKEN)'
    throw new QuantuneError('ERR_HUB_NOT_FOUND', `${what} was not found (${url})${hint}`, { details })
  }
  if (status === 401 || status === 403) {
    const hint = token === null ? 'no token was given (option token, or HF_TOKEN)' : 'the token does not allow it'
    throw new QuantuneError('ERR_HUB_UNAUTHORIZED', `${what}: the server refuses access; ${hint}`, { details })
  }
  throw new QuantuneError('ERR_IO', `${what}: the server answered ${status} (${url})`, { details })
}

export function networkError(url: string, cause: unknown): QuantuneError {
  const inner = (cause as { cause?: unknown }).cause ?? cause
  const reason = inner instanceof Error ? inner.message || (inner as NodeJS.ErrnoException).code : String(inner)
  return new QuantuneError('ERR_IO', `cannot reach ${url}: ${reason}`, { details: { url }, cause })
}
