// Who may visit a sandbox's public URLs: the examples of E2B's documentation
// about it, as a program that follows them would run them, for any release of
// its SDK.
import assert from 'node:assert/strict'
import { after, describe, it } from 'node:test'

const scheme = process.env.MOAT_TEST_SCHEME ?? 'https'

// shows answers every request with the headers it got.
const shows = `import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(self.headers).encode())
http.server.HTTPServer(("", int(sys.argv[1])), Handler).serve_forever()`

/**
 * Defines the tests.
 * @param {string} name what is tested
 * @param {object} sdk the SDK's module
 */
export function visitors(name, sdk) {
  const { Sandbox } = sdk

  describe(name, () => {
    const made = []
    const create = async (options) => {
      const sandbox = await Sandbox.create({ timeoutMs: 120_000, ...options })
      made.push(sandbox)
      return sandbox
    }
    const url = (sandbox, port) => `${scheme}://${sandbox.getHost(port)}`
    after(() => Promise.all(made.map((sandbox) => sandbox.kill())))

    describe('a public sandbox', () => {
      it('has a host for every port and no token', async () => {
        const sandbox = await create()
        assert.ok(sandbox.getHost(3000).startsWith(`3000-${sandbox.sandboxId}.`), sandbox.getHost(3000))
        assert.ok(!sandbox.trafficAccessToken)
      })

      it('shows a server as soon as it was started', async () => {
        const sandbox = await create({ network: { allowPublicTraffic: true } })
        const process = await sandbox.commands.run('python -m http.server 3000', { background: true })
        const response = await fetch(url(sandbox, 3000))
        assert.match(await response.text(), /Directory listing for \//)
        assert.equal(await process.kill(), true)
        await assert.rejects(process.wait())
        assert.equal((await sandbox.getInfo()).network.allowPublicTraffic, true)
      })
    })

    describe('a sandbox with restricted public access', () => {
      // No wait between the start of the server and the requests.
      it('wants its token', async () => {
        const sandbox = await create({ network: { allowPublicTraffic: false } })
        assert.match(sandbox.trafficAccessToken, /^[0-9a-f]{64}$/)
        await sandbox.commands.run('python -m http.server 8080', { background: true })

        const response1 = await fetch(url(sandbox, 8080))
        assert.equal(response1.status, 403)
        const { sandboxId, message, code } = await response1.json()
        assert.deepEqual({ sandboxId, message, code }, {
          sandboxId: sandbox.sandboxId,
          message: "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing",
          code: 403,
        })
        const response2 = await fetch(url(sandbox, 8080), {
          headers: { 'e2b-traffic-access-token': sandbox.trafficAccessToken },
        })
        assert.equal(response2.status, 200)
        assert.match(await response2.text(), /Directory listing for \//)
        const response3 = await fetch(url(sandbox, 8080), { headers: { 'e2b-traffic-access-token': 'wrong' } })
        assert.equal(response3.status, 403)
      })

      it('is worked with as any other', async () => {
        const sandbox = await create({ network: { allowPublicTraffic: false } })
        await sandbox.files.write('note.txt', 'kept')
        const result = await sandbox.commands.run('cat note.txt')
        assert.equal(result.stdout, 'kept')
        assert.equal(await sandbox.isRunning(), true)
        await sandbox.updateNetwork({ denyOut: ['8.8.8.8'] })
        const { network } = await sandbox.getInfo()
        assert.deepEqual([network.denyOut, network.allowPublicTraffic], [['8.8.8.8'], false])
        assert.ok(!JSON.stringify(await sandbox.getInfo()).includes(sandbox.trafficAccessToken))
      })

      it('tells its token to those who connect', async () => {
        const sandbox = await create({ network: { allowPublicTraffic: false } })
        const again = await Sandbox.connect(sandbox.sandboxId)
        assert.equal(again.trafficAccessToken, sandbox.trafficAccessToken)
      })

      it('does not show its token to the program', async () => {
        const sandbox = await create({ network: { allowPublicTraffic: false } })
        await sandbox.files.write('shows.py', shows)
        await sandbox.commands.run('python shows.py 8080', { background: true })
        const response = await fetch(url(sandbox, 8080), {
          headers: { 'e2b-traffic-access-token': sandbox.trafficAccessToken, 'x-own': 'passes' },
        })
        const seen = await response.text()
        assert.match(seen, /^x-own: passes$/im)
        assert.ok(!seen.includes(sandbox.trafficAccessToken), seen)
      })
    })

    describe('a masked host', () => {
      it('is what the program sees', async () => {
        const sandbox = await create({ network: { maskRequestHost: 'localhost:${PORT}' } })
        await sandbox.files.write('shows.py', shows)
        await sandbox.commands.run('python shows.py 8080', { background: true })
        const seen = await (await fetch(url(sandbox, 8080))).text()
        assert.match(seen, /^Host: localhost:8080\r?$/m)
        assert.ok(seen.includes(`X-Forwarded-Host: ${sandbox.getHost(8080)}`), seen)
        assert.equal((await sandbox.getInfo()).network.maskRequestHost, 'localhost:${PORT}')
      })

      it('must be a host', async () => {
        await assert.rejects(create({ network: { maskRequestHost: 'http://localhost' } }),
          /400.*mask request host is not valid: http:\/\/localhost/s)
        await assert.rejects(create({ network: { maskRequestHost: 'bücher.example' } }), /is not ASCII/)
      })
    })
  })
}
