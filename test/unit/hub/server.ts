import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export const commit = 'a'.repeat(40)

/** A Hub in one process: model description, resolve with etags and ranges, redirects of large files to a content path. */
export class FakeHub {
  readonly requests: { method: string; url: string; range: string | undefined; token: string | undefined }[] = []
  /** The connection is cut after so many bytes of a body, once. */
  cutAfter: number | null = null
  ignoreRanges = false
  /** Bodies arrive in this many parts, some milliseconds apart. */
  parts = 1
  readonly #server: Server
  /** Serves what is large, from another origin. */
  readonly #content: Server

  constructor(
    readonly files: Map<string, Buffer>,
    readonly options: { token?: string; missing?: boolean } = {},
  ) {
    this.#server = createServer((request, response) => this.#answer(request, response))
    this.#content = createServer((request, response) => {
      this.#note(request)
      this.#send(request, response, decodeURIComponent(request.url!.slice(1)))
    })
  }

  async listen(): Promise<string> {
    for (const server of [this.#server, this.#content])
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    return origin(this.#server)
  }

  async close(): Promise<void> {
    for (const server of [this.#server, this.#content]) {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    }
  }

  #note(request: IncomingMessage): void {
    const { method, url, headers } = request
    this.requests.push({ method: method!, url: url!, range: headers.range, token: headers.authorization })
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    this.#note(request)
    const { token, missing } = this.options
    const url = request.url!
    const name = new RegExp(`^/org/tiny/resolve/${commit}/(.*)$`).exec(url)?.[1] ?? ''
    const bytes = this.files.get(name)
    if (missing) this.#refuse(response, 401, 'RepoNotFound')
    else if (token && request.headers.authorization !== `Bearer ${token}`) this.#refuse(response, 401, 'GatedRepo')
    else if (['main', commit].some((revision) => url === `/api/models/org/tiny/revision/${revision}`)) {
      response.setHeader('content-type', 'application/json')
      response.end(JSON.stringify({ sha: commit, siblings: [...this.files.keys()].map((rfilename) => ({ rfilename })) }))
    } else if (bytes === undefined) this.#refuse(response, 404, 'EntryNotFound')
    else if (!name.endsWith('.safetensors')) this.#send(request, response, name)
    else {
      response.setHeader('x-linked-etag', `"${etagOf(bytes)}"`)
      response.setHeader('x-linked-size', String(bytes.length))
      response.writeHead(302, { location: `${origin(this.#content)}/${encodeURIComponent(name)}` }).end()
    }
  }

  #refuse(response: ServerResponse, status: number, code: string): void {
    response.writeHead(status, { 'x-error-code': code }).end()
  }

  #send(request: IncomingMessage, response: ServerResponse, name: string): void {
    const bytes = this.files.get(name)!
    const start = this.ignoreRanges ? 0 : Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
    const body = bytes.subarray(start)
    response.setHeader('etag', `W/"${etagOf(bytes)}"`)
    response.setHeader('content-length', body.length)
    if (start > 0) response.statusCode = 206
    const cut = this.cutAfter
    if (request.method === 'HEAD') response.end()
    else if (this.parts > 1) void this.#sendSlowly(response, body)
    else if (cut === null || body.length <= cut) response.end(body)
    else {
      this.cutAfter = null
      response.write(body.subarray(0, cut), () => setTimeout(() => response.destroy(), 20))
    }
  }

  async #sendSlowly(response: ServerResponse, body: Buffer): Promise<void> {
    const size = Math.ceil(body.length / this.parts)
    for (let at = 0; at < body.length && !response.destroyed; at += size) {
      response.write(body.subarray(at, at + size))
      await new Promise((resolve) => setTimeout(resolve, 15))
    }
    response.end()
  }
}

export function etagOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}

function origin(server: Server): string {
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}
